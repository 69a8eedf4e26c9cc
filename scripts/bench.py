"""Step time and saved bytes of every method against exact, in one process.

Methods take turns, a block of steps each, so that a drift of the machine's speed meets all of them alike. A step is
forward pass, loss, backward pass and optimizer on one fixed batch. The table goes to the terminal; with --out also
to a Markdown file with commit and hardware.

    python scripts/bench.py
    python scripts/bench.py --threads 1 --out results/bench_mlp_1_thread.md method=exact,rad_round budget=0.05
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from torch.utils.benchmark import Timer
from tqdm import tqdm

from experiments.errors import UserError, first_line
from experiments.options import THREADS, whole
from experiments.runs import provenance
from experiments.runs.parts import make
from experiments.runs.resources import undisturbed
from experiments.runs.study import build, validate
from experiments.show.tables import prepare, publish
from experiments.studies.training import Training

CONFIGS = Path(__file__).parent.parent / "configs"


def measure(methods: list[str], overrides: list[str], rounds: int, steps: int) -> list[dict]:
    """Seconds a step, by rounds, with batch and saved bytes, for each method."""
    rows, data = [], None
    with initialize_config_dir(str(CONFIGS.resolve()), version_base="1.3"):
        for method in methods:
            config = compose("config", [*overrides, f"method={method}"], return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            kind = validate(config)
            if not isinstance(kind, Training):
                raise UserError(f"only training is timed here, got {type(kind).__name__}; choose another experiment")
            data = data or make(config.data)
            trainer, meta = build(config, data=data)
            x, y = trainer.batch()
            timer = Timer("trainer.step(x, y)", globals=locals(), num_threads=torch.get_num_threads())
            timer.timeit(steps)  # compiles what is to be compiled, fills caches
            rows.append({**meta, "timer": timer, "seconds": [], "device": x.device})
    with undisturbed():  # as in training
        for _ in tqdm(range(rounds), disable=None, unit="round"):
            for row in rows:
                row["seconds"].append(row["timer"].timeit(steps).mean)
    return rows


def table(rows: list[dict]) -> str:
    """Markdown: a row a method, ratios to the first one, which is exact."""
    exact = rows[0]
    lines = [
        "| method | batch | ms a step (quartiles) | ÷ exact (quartiles) | saved bytes | ÷ exact |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        low, mid, high = (1000 * q for q in statistics.quantiles(row["seconds"], n=4))
        # Round by round, so that both sides of a ratio saw the machine in the same mood.
        ratios = [a / b for a, b in zip(row["seconds"], exact["seconds"], strict=True)]
        r_low, r_mid, r_high = statistics.quantiles(ratios, n=4)
        lines.append(
            f"| {row['method']} | {row['batch_size']} | {mid:.2f} ({low:.2f} to {high:.2f}) | "
            f"{r_mid:.2f} ({r_low:.2f} to {r_high:.2f}) | {row['saved_bytes']:,} | "
            f"{row['saved_bytes'] / exact['saved_bytes']:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parses the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings as for run.py; method=a,b chooses methods")
    parser.add_argument("--rounds", type=whole(2), default=60, help="blocks of each method (default %(default)s)")
    parser.add_argument("--steps", type=whole(2), default=20, help="steps in a block (default %(default)s)")
    parser.add_argument("--threads", type=THREADS, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--out", type=Path, help="Markdown file to write the table to as well")
    args = parser.parse_intermixed_args()
    chosen = [o.removeprefix("method=") for o in args.overrides if o.startswith("method=")]
    methods = chosen[-1].split(",") if chosen else sorted(path.stem for path in CONFIGS.glob("method/*.yaml"))
    methods = ["exact", *(m for m in methods if m != "exact")]
    overrides = [o for o in args.overrides if not o.startswith("method=")]
    if args.threads is not None:
        overrides.append(f"threads={args.threads}")
    try:
        prepare(args.out)
        rows = measure(methods, overrides, args.rounds, args.steps)
    except (UserError, HydraException, OSError) as error:
        sys.exit(f"error: {first_line(error)}")
    header = (
        f"{rows[0]['model']} on {rows[0]['data']}, budget {rows[0]['budget']}; medians and quartiles of {args.rounds} "
        f"interleaved rounds of {args.steps} steps; {provenance.describe(provenance.session(rows[0]['device']))}"
    )
    publish(f"{header}\n\n{table(rows)}\n", args.out)


if __name__ == "__main__":
    main()
