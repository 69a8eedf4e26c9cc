"""What conversion does to nets that people use: bytes held, added variance, allocator peak, step time; random weights.

Stock and converted net take turns, a step each, so that a drift of the machine's speed meets both alike. A step is
forward pass, loss, backward pass and optimizer on one fixed batch; dropout and stochastic depth are off while the
variance is measured, for a mask that is drawn anew is a variance of its own.

    python scripts/nets.py                                            # bytes of all nets but gpt2_small
    python scripts/nets.py --nets resnet18,gpt2 --bits 2 --draws 40 --rounds 10 --peak --out results/nets.md
    python scripts/nets.py --nets gpt --ledger                        # what each operation keeps
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Random weights from configurations; nothing is looked for on a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from torch import nn
from tqdm import tqdm

import rad
from experiments.errors import UserError
from experiments.nets import CASES, Case, build
from experiments.options import THREADS, listed, whole
from experiments.runs import provenance
from experiments.show.tables import markdown, prepare, publish
from rad.measure import gradient_noise, gradients, peak_bytes, saved_bytes
from rad.sketch.bits import MAX_BITS

_USUAL = [name for name in CASES if name != "gpt2_small"]  # which holds more than the memory of a desk's machine


def row(name: str, sketch: rad.Sketch, args: argparse.Namespace) -> dict[str, str]:
    """All that is asked for about one net."""
    stock = build(name, args.batch, args.size)
    few = Case(rad.convert(copy.deepcopy(stock.model), sketch, generator=rad.nn.Seeds(0)), stock.inputs, stock.describe)
    torch.manual_seed(1)
    plain, ledger = saved_bytes(stock.loss), saved_bytes(few.loss)
    if args.ledger:
        print(f"{name}\n{ledger}\n")
    cells = {
        "net": name,
        "batch": stock.describe,
        "bytes held, stock": f"{plain.total:,}",
        "converted": f"{ledger.total:,}",
        "÷ stock": f"{ledger.total / plain.total:.4f}",
    }
    if args.draws:
        ratio, error = added_variance(stock, few, args.draws)
        cells["added variance ÷ ‖g‖²"] = f"{ratio:.4f} ± {error:.4f}"
    if args.peak:
        peaks = [peak_bytes(step(case)) for case in (stock, few)]
        cells["peak of a step, stock"] = f"{peaks[0] / 1e6:.0f} MB"
        cells["peak ÷ stock"] = f"{peaks[1] / peaks[0]:.3f}"
    if args.rounds:
        ratios = paired_ratios(step(few), step(stock), args.rounds)
        low, mid, high = statistics.quantiles(ratios, n=4)
        cells["step ÷ stock (quartiles)"] = f"{mid:.2f} ({low:.2f} to {high:.2f})"
    return cells


def added_variance(stock: Case, few: Case, draws: int) -> tuple[float, float]:
    """Variance that the summaries add, with its standard error, in units of the squared norm of the exact gradient."""
    for case in (stock, few):
        for module in case.model.modules():
            if isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
                module.p = 0.0
            if isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0
            if hasattr(module, "attn_dropout_p"):
                module.attn_dropout_p = 0.0
    exact = gradients(stock.model, stock.loss)
    total = gradient_noise(lambda: gradients(few.model, few.loss), draws, exact).total
    return total.variance / total.norm2, total.variance_error / total.norm2


def step(case: Case) -> Callable[[], None]:
    """One step of plain SGD."""
    optimizer = torch.optim.SGD(case.model.parameters(), lr=1e-6)

    def run() -> None:
        optimizer.zero_grad()
        case.loss().backward()
        optimizer.step()

    return run


def paired_ratios(first: Callable[[], None], second: Callable[[], None], rounds: int) -> list[float]:
    """Seconds of ``first`` ÷ those of ``second``, one after the other, ``rounds`` times."""
    ratios = []
    gc.freeze()
    try:
        for i in range(rounds + 2):
            seconds = []
            for run in (first, second):
                start = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - start)
            if i >= 2:  # the first fill caches and compile loops
                ratios.append(seconds[0] / seconds[1])
    finally:
        gc.unfreeze()
    return ratios


def main() -> None:
    """Parses the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--nets", type=listed(CASES, "net"), default=",".join(_USUAL), help="names, by default: %(default)s"
    )
    parser.add_argument("--batch", type=whole(1), help="examples (default: the net's usual number)")
    parser.add_argument(
        "--size", type=whole(1), help="side of images or length of sequences (default: the net's usual one)"
    )
    few = parser.add_mutually_exclusive_group()
    few.add_argument("--budget", type=float, default=0.1, help="of rad.Rounding (default %(default)s)")
    few.add_argument("--bits", type=whole(1, MAX_BITS), help="of rad.Rounding, in place of a budget")
    few.add_argument("--exact", action="store_true", help="rad.Exact(): what interception and lean operations alone do")
    parser.add_argument(
        "--draws", type=whole(3), default=0, help="of the gradient, to measure its variance (default none)"
    )
    parser.add_argument("--rounds", type=whole(2), default=0, help="steps of each to time (default none)")
    parser.add_argument("--peak", action="store_true", help="measure the allocator's peak of a step")
    parser.add_argument("--ledger", action="store_true", help="print what each operation keeps")
    parser.add_argument("--threads", type=THREADS, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--out", type=Path, help="Markdown file to write the table to as well")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        sketch = rad.Exact() if args.exact else rad.Rounding(bits=args.bits) if args.bits else rad.Rounding(args.budget)
        prepare(args.out)
        rows = [row(name, sketch, args) for name in tqdm(args.nets, disable=None, unit="net")]
    except (UserError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    where = provenance.describe(provenance.session(torch.device("cpu")))
    publish(f"{sketch}; float32; {where}\n\n{markdown(rows)}\n", args.out)


if __name__ == "__main__":
    main()
