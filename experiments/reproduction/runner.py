"""Runs what is missing of a plan: so many processes at a time, each with a log of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from experiments.reproduction.plan import ROOT, Planned

__all__ = ["Failure", "run_all"]


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


def run_all(jobs: Sequence[Planned], workers: int, logs: Path) -> list[Failure]:
    """Runs jobs to their end, none of them twice; a failure does not stop the others.

    Args:
        jobs: What to run.
        workers: How many at a time.
        logs: Folder of what they print.

    Returns:
        Those that failed.

    Raises:
        KeyboardInterrupt: If the user interrupts, or on SIGTERM; all processes have been told and have ended by then.
    """
    logs.mkdir(parents=True, exist_ok=True)
    running: dict[str, subprocess.Popen] = {}
    failures: list[Failure] = []
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(jobs), unit="run", disable=None) as progress:

        def work(job: Planned) -> Failure | None:
            log = logs / f"{job.name.replace('/', ' ')}.log"
            with log.open("w", encoding="utf-8") as out:
                environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
                command = [sys.executable, *job.command]
                # A session of its own: Ctrl-C reaches it through us alone, once.
                process = subprocess.Popen(
                    command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
                )
                running[job.name] = process
                progress.set_postfix_str(", ".join(running))
                code = process.wait()
                running.pop(job.name, None)
            return None if code == 0 else Failure(job, _reason(log, code), log)

        futures = [pool.submit(work, job) for job in jobs]
        try:
            for future in as_completed(futures):
                failure = future.result()
                if failure is not None:
                    failures.append(failure)
                    progress.write(f"failed: {failure.job.name}: {failure.reason}")
                progress.update()
        except KeyboardInterrupt:
            for future in futures:
                future.cancel()
            for process in list(running.values()):
                process.terminate()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
    return failures


def _reason(log: Path, code: int) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"ended with code {code}"])[-1].removeprefix("error: ")
