"""Figures and table of runs of the reactor: loss curves, field and control, what a gradient costs.

Time and variance of a gradient are measured here, on one thread, when nothing else should run.

    python scripts/reactor.py runs/reactor --out results/reactor
    python scripts/reactor.py runs/reactor --out results/reactor --gif      # field and target over time, moving
    python scripts/reactor.py --cost --out results/reactor                  # against grid and number of steps
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch

from experiments.errors import UserError
from experiments.options import positive, whole
from experiments.runs.configs import composed
from experiments.runs.parts import make
from experiments.runs.records import Runs, load_runs
from experiments.show.tables import markdown
from experiments.studies.reactor.figures import animate
from experiments.studies.reactor.results import cost_table, gradient_costs, here, publish_reactor, shown_control

COSTS = {"exact": "exact", "checkpointing": "checkpoint", "evenly spaced, 0.01": "rad_even"}
SIZES = [(17, 4096), (33, 4096), (65, 4096), (129, 4096), (33, 10240), (33, 40960), (33, 163840)]


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and writes what it asks for."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run directories, or folders to search for them")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--target", type=positive, default=0.0025, help="loss to count iterations to (default %(default)s)"
    )
    parser.add_argument("--rounds", type=whole(1), default=9, help="gradients to time of each (default %(default)s)")
    parser.add_argument("--draws", type=whole(3), default=20, help="gradients for a variance (default %(default)s)")
    parser.add_argument("--gif", action="store_true", help="write an animation as well")
    parser.add_argument("--cost", action="store_true", help="measure against grid and steps, without runs")
    args = parser.parse_args(arguments)
    if bool(args.runs) == args.cost:
        parser.error("give either runs or --cost")
    command = shlex.join(["python", "scripts/reactor.py", *arguments])
    torch.set_num_threads(1)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        if args.cost:
            text = _cost(args.rounds, command)
            (args.out / "cost.md").write_text(text, encoding="utf-8")
        else:
            runs = _one_problem(load_runs(args.runs))
            costs = gradient_costs(runs, args.rounds, args.draws)
            text = publish_reactor(runs, args.out, args.target, costs, command)
            if args.gif:
                print(animate(*shown_control(runs)[:2], args.out / "control.gif"))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print(text)


def _one_problem(runs: Runs) -> Runs:
    studies = list(runs.studies())
    names = [f"{experiment} on {data}" for experiment, data, _ in studies]
    if len(studies) != 1 or not names[0].startswith("reactor on "):
        raise UserError(f"the runs must be of experiment=reactor on one grid, got {', '.join(names)}")
    return studies[0][2]


def _cost(rounds: int, command: str) -> str:
    configs = {name: composed(["budget=0.01", f"method={method}"]) for name, method in COSTS.items()}
    methods = {name: make(config.method) for name, config in configs.items()}
    table = markdown(cost_table(SIZES, methods, rounds), right=True)
    return f"# Cost of one gradient\n\n- {here()}; medians of {rounds}\n- Command: `{command}`\n\n{table}\n"


if __name__ == "__main__":
    main()
