"""The whole paper by one command: says what it will run and for how long, runs what is missing, writes a report.

    python scripts/reproduce.py --scale smoke
    python scripts/reproduce.py --scale laptop --dry-run        # only says what it would do
    python scripts/reproduce.py --scale laptop --report-only    # from the runs there are

Ctrl-C (or SIGTERM) stops it; the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from experiments.errors import UserError, reading
from experiments.options import whole
from experiments.reproduction.plan import Plan, make_plan, measured_step
from experiments.reproduction.report import write_report
from experiments.reproduction.runner import Clock, duration, run_all
from experiments.runs import provenance

PLAN = Path(__file__).parent.parent / "experiments" / "reproduction" / "plan.yaml"


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, runs what is missing and writes the report."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="laptop", help="smoke, laptop, desk or paper (default %(default)s)")
    parser.add_argument("--plan", type=Path, default=PLAN, help="what to run (default: the project's)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs (default %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the report (default: results, or results/SCALE)")
    parser.add_argument(
        "--jobs", type=whole(1, 1024), default=2, help="runs at a time, one thread each (default %(default)s)"
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="say what would be run, and stop")
    only.add_argument("--report-only", action="store_true", help="run nothing")
    args = parser.parse_args(arguments)
    command = shlex.join(["python", "scripts/reproduce.py", *arguments])
    out = args.out or (Path("results") if args.scale == "laptop" else Path("results") / args.scale)
    try:
        if out.exists() and not out.is_dir():
            raise UserError(f"--out must name a folder, but {out} is none")
        with reading(args.plan, "name another --plan"):
            plan = make_plan(args.plan, args.scale, args.runs.absolute())
        missing = [job for job in plan.jobs() if not job.finished()]
        print(_announce(plan, len(missing)))
        pace = 1.0
        if missing and not args.report_only:
            step = measured_step()
            pace = step / plan.step_ms
            left = duration(Clock(missing, args.jobs, pace).left(0.0))
            print(f"About {left}, {args.jobs} at a time; an exact step takes {step:.1f} ms here.", flush=True)
        if args.dry_run:
            return
        failures = [] if args.report_only else run_all(missing, args.jobs, args.runs.absolute() / "logs", pace)
        page = write_report(plan, failures, out, command)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on where it was")
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"report: {out / 'report.md'}\npage:   {page}")
    if failures:
        sys.exit(f"{len(failures)} of {len(missing)} runs failed; the report names them, the same command tries again")


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
