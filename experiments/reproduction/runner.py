"""Runs what is missing of a plan: so many processes at a time, each with a log of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from experiments.reproduction.plan import ROOT, Planned

__all__ = ["Clock", "Failure", "duration", "run_all"]

_BAR = "{percentage:3.0f}% {bar:16} {n_fmt} of {total_fmt} runs{postfix}"
_TRUST = 60.0  # seconds of the plan that what is known beforehand weighs as much as
_UNKNOWN = 10.0  # seconds of a job of which nothing is known; the first ones to end say more
_EVERY = 30.0  # seconds between lines where there is no terminal


@dataclass(frozen=True)
class Failure:
    """A process that did not end well.

    Attributes:
        job: What was run.
        reason: The last line it printed.
        log: All that it printed.
    """

    job: Planned
    reason: str
    log: Path


class Clock:
    """How long jobs still take: first by the plan, more and more by what those that have ended took.

    Args:
        jobs: All of them.
        workers: How many at a time.
        pace: Seconds here for a second of the plan, as far as one can tell beforehand.
    """

    def __init__(self, jobs: Sequence[Planned], workers: int, pace: float = 1.0) -> None:
        self.waiting = {job.path: job.seconds or _UNKNOWN for job in jobs}
        self.workers, self.started = workers, {}
        self.planned = _TRUST if any(job.seconds for job in jobs) else 1e-9
        self.taken = self.planned * pace

    def start(self, job: Planned, now: float) -> None:
        """A job has begun."""
        self.started[job.path] = now

    def end(self, job: Planned, now: float) -> None:
        """A job has ended."""
        self.planned += self.waiting.pop(job.path)
        self.taken += now - self.started.pop(job.path, now)

    def left(self, now: float) -> float:
        """Seconds until all have ended."""
        pace = self.taken / self.planned
        parts = [max(0.0, s * pace - (now - self.started.get(path, now))) for path, s in self.waiting.items()]
        return max([sum(parts) / self.workers, *parts])


def run_all(jobs: Sequence[Planned], workers: int, logs: Path, pace: float = 1.0) -> list[Failure]:
    """Runs jobs to their end, none of them twice; a failure does not stop the others.

    Args:
        jobs: What to run.
        workers: How many at a time.
        logs: Folder of what they print.
        pace: Seconds here for a second of the plan, as far as one can tell beforehand.

    Returns:
        Those that failed.

    Raises:
        KeyboardInterrupt: If the user interrupts, or on SIGTERM; all processes have been told and have ended by then.
    """
    logs.mkdir(parents=True, exist_ok=True)
    running: dict[Path, tuple[Planned, subprocess.Popen]] = {}
    failures: list[Failure] = []
    clock = Clock(jobs, workers, pace)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    bar = tqdm(total=len(jobs), bar_format=_BAR, dynamic_ncols=True, disable=None)
    with ThreadPoolExecutor(workers) as pool, bar as progress:

        def work(job: Planned) -> Failure | None:
            log = logs / f"{job.path.parent.name} {job.path.name}.log"
            with log.open("w", encoding="utf-8") as out:
                path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
                environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
                command = [sys.executable, *job.command]
                # A session of its own: Ctrl-C reaches it through us alone, once.
                process = subprocess.Popen(
                    command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
                )
                running[job.path] = job, process
                clock.start(job, time.monotonic())
                code = process.wait()
                running.pop(job.path, None)
            return None if code == 0 else Failure(job, _reason(log, code), log)

        futures = {pool.submit(work, job): job for job in jobs}
        waiting, said = set(futures), time.monotonic()
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
                now = time.monotonic()
                for future in done:
                    clock.end(futures[future], now)
                    if (failure := future.result()) is not None:
                        failures.append(failure)
                        progress.write(f"failed: {failure.job.name}: {failure.reason}")
                    progress.update()
                left = f"about {duration(clock.left(now))} left"
                progress.set_postfix_str(f"{left}: {'; '.join(job.name for job, _ in list(running.values()))}")
                if progress.disable and waiting and now - said > _EVERY:  # no terminal: a line now and then
                    print(f"{len(jobs) - len(waiting)} of {len(jobs)} runs, {left}", flush=True)
                    said = now
        except KeyboardInterrupt:
            for future in futures:
                future.cancel()
            for _, process in list(running.values()):
                process.terminate()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
    return failures


def duration(seconds: float) -> str:
    """A time as one says it."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _reason(log: Path, code: int) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"ended with code {code}"])[-1].removeprefix("error: ")
