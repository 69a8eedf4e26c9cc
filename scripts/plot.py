"""Draw finished runs and summarize them in a table.

Example:
    python scripts/plot.py runs/mnist_mlp --out results/mine --target 0.02
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import warnings
from pathlib import Path

import pandas as pd

from experiments.errors import UserError
from experiments.options import positive
from experiments.runs.records import METRICS, Runs, curve_statistics, load_runs, summary_table
from experiments.show.figures import convergence_figure, save, table_markdown


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0, or 2 after one sentence on stderr."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    warnings.simplefilter("always", UserWarning)
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    command = shlex.join(["python", "scripts/plot.py", *arguments])
    try:
        studies = list(load_runs(options.runs).studies())
        for experiment, data, runs in studies:
            folder = options.out or Path("results")
            if len(studies) > 1 or options.out is None:
                folder = folder / _file_name(experiment) / _file_name(data)
            _write(runs, folder, options.target, command)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}{place}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Draw finished runs and summarize them in a table.")
    parser.add_argument("runs", nargs="+", type=Path, help="run directories, or folders to search for them")
    parser.add_argument("--out", type=Path, help="output folder (default: results/EXPERIMENT/DATA)")
    parser.add_argument("--target", type=positive, default=0.02, help="training loss to count iterations to")
    return parser


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name).lstrip(".") or "_"


def _write(runs: Runs, folder: Path, target: float, command: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table = summary_table(runs, target)
    markdown = table_markdown(table, runs, command)
    curves = pd.concat([curve_statistics(runs.curves, metric) for metric in METRICS])
    paths = save(convergence_figure(runs.curves), folder / "convergence")
    texts = {"table.md": markdown, "table.csv": table.to_csv(index=False), "curves.csv": curves.to_csv(index=False)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        paths.append(folder / name)
    print(markdown, *paths, sep="\n")


if __name__ == "__main__":
    sys.exit(main())
