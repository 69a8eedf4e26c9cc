"""How far all runs below a folder are: state, iterations, last losses, time left. Reads files, so that any sweep shows.

python scripts/status.py runs
python scripts/status.py runs --watch
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from experiments.budgets import said
from experiments.errors import UserError
from experiments.options import positive
from experiments.runs.progress import Progress, find

COLOURS = {"running": "green", "stopped": "yellow", "failed": "red", "damaged": "red", "finished": "dim"}


def table(runs: list[Progress], rows: int | None = None) -> Table:
    """A row for each run, or for the first so many, and a caption that counts all."""
    states = Counter(run.state for run in runs)
    caption = ", ".join(f"{count} {state}" for state, count in states.items())
    hidden = max(0, len(runs) - rows) if rows else 0
    caption += f"; {hidden} not shown" if hidden else ""
    made = Table(caption=caption, caption_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown = runs[: len(runs) - hidden]
    also = ["\n".join(map(_last, sorted(run.also - _common(run, runs)))) for run in shown]
    made.add_column("experiment", overflow="fold")
    made.add_column("method", no_wrap=True)
    for name in ("budget", "seed"):
        made.add_column(name, justify="right", no_wrap=True)
    if any(also):
        made.add_column("also", overflow="fold")
    for name in ("state", "iterations", "train\nloss", "test\nloss", "left"):
        made.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    for run, rest in zip(shown, also, strict=True):
        numbers = ["–" if run.budget is None else said(run.budget), "–" if run.seed is None else str(run.seed)]
        which = [run.experiment, run.method, *numbers]
        part = f"{run.iteration:,}/{run.iterations:,}" if run.iterations else "–"
        left = "–" if run.seconds_left is None else str(timedelta(seconds=round(run.seconds_left)))
        losses = [_number(run.train_loss), _number(run.test_loss)]
        cells = map(_plain, [*which, *[rest] * any(also), run.state, part, *losses, left])
        made.add_row(*cells, style=COLOURS[run.state])
    return made


def _common(run: Progress, runs: list[Progress]) -> frozenset[str]:
    """What all runs of its experiment are named by, which tells none of them from another."""
    return frozenset.intersection(*(other.also for other in runs if other.experiment == run.experiment))


def _plain(text: str) -> str:
    """What a file says, as it stands: neither markup nor what else a terminal takes for a command."""
    return escape("".join(c for c in text if c.isprintable() or c == "\n"))


def _last(part: str) -> str:
    """A setting by the last part of its name."""
    name, equals, value = part.partition("=")
    return name.rpartition(".")[2] + equals + value


def main() -> None:
    """Parses the command line and prints the table, once or again and again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs"), help="folder of runs (default %(default)s)")
    parser.add_argument("--watch", action="store_true", help="renew the table until Ctrl-C, what is running on top")
    parser.add_argument("--every", type=positive, default=2.0, help="seconds between renewals (default %(default)s)")
    args = parser.parse_args()
    if args.every > 86400:
        parser.error(f"--every must be a number of seconds up to a day, got {args.every}")
    console = Console()
    try:
        if not args.watch:
            runs = find(args.runs, datetime.now(UTC))
            console.print(table(runs))
            for problem in filter(None, (run.problem for run in runs)):
                console.print(_plain(problem), style="red", highlight=False, soft_wrap=True)
            return
        with Live(console=console, auto_refresh=False) as live:
            while True:
                rows = max(1, (console.height - 6) // 2)  # long names take two lines
                live.update(table(find(args.runs, datetime.now(UTC)), rows), refresh=True)
                time.sleep(args.every)
    except KeyboardInterrupt:
        pass
    except UserError as error:
        sys.exit(f"error: {error}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    main()
