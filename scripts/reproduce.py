"""The whole paper by one command: says what it will run and for how long, runs what is missing, writes a report.

    python scripts/reproduce.py --scale smoke
    python scripts/reproduce.py --scale laptop --dry-run        # only says what it would do
    python scripts/reproduce.py --scale laptop --report-only    # from the runs there are
    python scripts/reproduce.py --scale desk --records results/records      # from those that were packed

Ctrl-C (or SIGTERM) stops it; the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.errors import UserError, reading
from experiments.options import THREADS
from experiments.reproduction.plan import Plan, make_plan, measured_step
from experiments.reproduction.report import write_report
from experiments.reproduction.runner import Clock, duration, run_all
from experiments.runs import provenance
from experiments.runs.archive import unpack

PLAN = Path(__file__).parent.parent / "experiments" / "reproduction" / "plan.yaml"


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, runs what is missing and writes the report."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="laptop", help="smoke, laptop, desk or paper (default %(default)s)")
    parser.add_argument("--plan", type=Path, default=PLAN, help="what to run (default: the project's)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs (default %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the report (default: results, or results/SCALE)")
    parser.add_argument("--jobs", type=THREADS, default=2, help="runs at a time, one thread each (default %(default)s)")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="say what would be run, and stop")
    only.add_argument("--report-only", action="store_true", help="run nothing")
    only.add_argument("--records", type=Path, help="run nothing, look at no --runs but at the records in this folder")
    args = parser.parse_args(arguments)
    command = shlex.join(["python", "scripts/reproduce.py", *arguments])
    out = args.out or (Path("results") if args.scale == "laptop" else Path("results") / args.scale)
    idle = bool(args.report_only or args.records)
    try:
        if out.exists() and not out.is_dir():
            raise UserError(f"--out must name a folder, but {out} is none")
        with _runs(args.runs, args.records) as runs:
            with reading(args.plan, "name another --plan"):
                plan = make_plan(args.plan, args.scale, runs, look=not args.records)
            missing = [job for job in plan.jobs() if not job.finished()]
            print(_announce(plan, len(missing)))
            pace = 1.0
            if missing and not idle:
                step = measured_step()
                pace = step / plan.step_ms
                left = duration(Clock(missing, args.jobs, pace).left(0.0))
                print(f"About {left}, {args.jobs} at a time; an exact step takes {step:.1f} ms here.", flush=True)
            if args.dry_run:
                return
            failures = [] if idle else run_all(missing, args.jobs, runs / "logs", pace)
            page = write_report(plan, failures, out, command)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on where it was")
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"report: {out / 'report.md'}\npage:   {page}")
    if failures:
        sys.exit(f"{len(failures)} of {len(missing)} runs failed; the report names them, the same command tries again")


@contextmanager
def _runs(runs: Path, records: Path | None) -> Iterator[Path]:
    """The folder of runs: the one that is named, or one for the moment with what is packed."""
    if records is None:
        yield runs.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="rad-") as scratch:
        unpack(records, Path(scratch))
        yield Path(scratch)


def _announce(plan: Plan, missing: int) -> str:
    lines = [f"Scale {plan.scale}, commit {provenance.commit_name(provenance.commit())}."]
    for sweep in plan.sweeps:
        done = sum(run.finished() for run in sweep.runs)
        lines.append(f"  {done:3d} of {len(sweep.runs):3d} finished: {sweep.title}")
    lines += [f"  {int(s.finished()):3d} of   1 finished: python {s.command[0]}" for s in plan.scripts]
    lines += [f"note: {note}" for note in plan.notes]
    return "\n".join([*lines, f"{missing} of {len(plan.jobs())} are missing."])


if __name__ == "__main__":
    main()
