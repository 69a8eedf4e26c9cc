"""Random search for learning rate and weight decay of each method, judged on training images that are held out.

    python scripts/tune.py experiment=mnist_mlp scale=laptop method=exact,small_batch,rad_same --trials 12

All methods try the same pairs of values, drawn log-uniformly. Every trial is an ordinary run: Ctrl-C stops the search,
the same command goes on where it was, and more trials later keep those there are. The test set is never looked at.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.budgets import said
from experiments.errors import UserError
from experiments.options import THREADS, positive, whole
from experiments.reproduction.plan import Planned, make_sweep
from experiments.reproduction.runner import run_all
from experiments.runs import provenance
from experiments.runs.configs import composed
from experiments.runs.directory import RunDir
from experiments.runs.study import validate
from experiments.show.tables import markdown, prepare, publish


def pairs(trials: int, lr: tuple[float, float], weight_decay: tuple[float, float], seed: int) -> np.ndarray:
    """Learning rates and weight decays, ``[trials, 2]``; the first ones are the same however many are asked for."""
    low, high = np.log10(np.array([lr, weight_decay], dtype=float)).T
    drawn = 10 ** np.random.default_rng(seed).uniform(low, high, (trials, 2))
    return np.array([[float(f"{value:.3g}") for value in row] for row in drawn])


def plan(overrides: list[str], held_out: int, values: np.ndarray, runs: Path) -> list[Planned]:
    """A run for each pair of values and each combination in the overrides.

    Raises:
        UserError: If a config cannot be composed, or a setting is out of range.
    """
    plain = [o for o in overrides if o.startswith("experiment=")]
    if "held_out" not in composed(plain):
        raise UserError("only the training of a net can be tuned; choose experiment=mnist_mlp or another one")
    fixed = " ".join(map(shlex.quote, [*overrides, f"held_out={held_out}"]))
    sweeps = [
        make_sweep(f"{fixed} optimizer.lr={lr:g} optimizer.weight_decay={decay:g}", runs).runs for lr, decay in values
    ]
    for run in sweeps[0]:  # what is wrong with one trial is wrong with all
        validate(composed(list(run.command[1:])))
    return [run for sweep in sweeps for run in sweep]


def trials_of(jobs: list[Planned]) -> pd.DataFrame:
    """A row for each run that has ended, one that failed with an accuracy of zero."""
    rows = []
    for job in jobs:
        run = RunDir(job.path)
        meta = run.meta()
        if meta.get("status") not in ("finished", "failed"):
            continue
        last, optimizer, failed = run.records()[-1], run.config()["optimizer"], meta["status"] == "failed"
        rows.append(
            {
                "method": meta["method"],
                "budget": meta["budget"],
                "lr": optimizer["lr"],
                "weight_decay": optimizer["weight_decay"],
                "accuracy": 0.0 if failed else 100 * last["test_accuracy"],
                "loss": np.inf if failed else last["test_loss"],
                "train_loss": np.inf if failed else last["train_loss"],
                "data": meta["data"],
                "commit": provenance.commit_name(meta["sessions"][-1]),
            }
        )
    return pd.DataFrame(rows)


def summary(trials: pd.DataFrame) -> str:
    """Markdown: of each method the values of the highest accuracy, the lower loss among equals."""
    data, commits = (", ".join(sorted(set(trials[key]))) for key in ("data", "commit"))
    table = []
    for (method, budget), rows in trials.groupby(["method", "budget"], sort=False):
        best = rows.sort_values(["accuracy", "loss"], ascending=[False, True]).iloc[0]
        near = rows[rows.accuracy >= best.accuracy - 0.5]
        lr, decay = (f"{best[k]:g} ({near[k].min():g} to {near[k].max():g})" for k in ("lr", "weight_decay"))
        table.append(
            {
                "method": str(method),
                "budget": said(budget),
                "trials": str(len(rows)),
                "learning rate (range)": lr,
                "weight decay (range)": decay,
                "held-out accuracy (%)": f"{best.accuracy:.2f}",
                "held-out loss": f"{best.loss:.3g}",
                "training loss": f"{best.train_loss:.2g}",
            }
        )
    return f"""\
{data}; one seed; commit {commits}. Best of the trials by accuracy on the held-out images, with the range of those \
within half a percentage point of it.

{markdown(table, right=True)}
"""


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, runs what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+", help="of run.py, with lists of methods, budgets and so on")
    parser.add_argument("--trials", type=whole(1), default=12, help="pairs of values (default %(default)s)")
    parser.add_argument("--lr", type=positive, nargs=2, default=(1e-4, 1e-2), metavar=("LOW", "HIGH"))
    parser.add_argument("--weight-decay", type=positive, nargs=2, default=(1e-7, 1e-2), metavar=("LOW", "HIGH"))
    parser.add_argument(
        "--held-out", type=whole(1, 2**31), default=5000, help="training images to judge by (default %(default)s)"
    )
    parser.add_argument("--draw", type=whole(0, 2**31), default=0, help="seed of the pairs (default %(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/tune"), help="folder of trials (default %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of tables (default: that of the trials)")
    parser.add_argument(
        "--jobs", type=THREADS, default=2, help="trials at a time, one thread each (default %(default)s)"
    )
    args = parser.parse_intermixed_args(arguments)
    for name, (low, high) in (("--lr", args.lr), ("--weight-decay", args.weight_decay)):
        if low > high:
            parser.error(f"{name} must be two positive numbers, the lower one first, got {low:g} {high:g}")
    try:
        values = pairs(args.trials, args.lr, args.weight_decay, args.draw)
        jobs = plan(args.overrides, args.held_out, values, args.runs.absolute())
        file = (args.out or args.runs) / f"{jobs[0].path.parent.name}.md"
        prepare(file)
        missing = [job for job in jobs if not job.finished()]
        print(f"{len(jobs)} trials, {len(missing)} of them missing", flush=True)
        run_all(missing, args.jobs, args.runs.absolute() / "logs")
        trials = trials_of(jobs)
        if len(trials) == 0:
            raise UserError(f"no trial has ended; what they said is in {args.runs / 'logs'}")
        trials.to_csv(file.with_suffix(".csv"), index=False)
        publish(summary(trials), file)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on where it was")
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"table: {file}")
    if len(trials) < len(jobs):
        sys.exit(f"{len(jobs) - len(trials)} trials have not ended; their logs are in {args.runs / 'logs'}")


if __name__ == "__main__":
    main()
