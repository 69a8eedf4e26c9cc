"""Variance of the gradient against bytes held: the same bits everywhere, and allocated by ``rad.allocate``.

Each net is trained for some steps on a task that can be learned (images with a pattern for each class, or tokens of
which each mostly tells the next). Then, on one batch, variance is measured at uniform bits and with plans of the same
bytes: one made at this state, as an allocator that follows the training has it, and one made at the initial weights.
Dropout and stochastic depth are off, for a mask that is drawn anew is a variance of its own.

    python scripts/front.py --out results/front
    python scripts/front.py --nets resnet18,gpt2 --bits 2,3 --steps 100 --draws 12
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor, nn
from tqdm import tqdm

import rad
from experiments.errors import UserError
from experiments.nets import CASES, Case, build
from experiments.options import THREADS, listed, whole
from experiments.runs import provenance
from experiments.show.figures import save, style
from experiments.show.tables import last, markdown, prepare, publish
from rad.budget import Plan
from rad.measure import gradient_noise, gradients, saved_bytes
from rad.nn import Seeds
from rad.sketch.bits import MAX_BITS

# Batch and size that a processor measures in minutes.
SIZES = {
    "mlp": (150, 28),
    "cnn": (50, 32),
    "irnn": (50, 49),
    "resnet18": (16, 64),
    "gpt2": (4, 128),
    "vit": (8, 64),
    "mobilenet_v3_small": (16, 64),
    "swin_t": (4, 64),
}


def still(model: nn.Module) -> None:
    """Turns off what is drawn anew in each forward pass."""
    for module in model.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def task(case: Case, generator: torch.Generator) -> Callable[[], tuple[Tensor, ...]]:
    """Batches of the case's shapes from which something can be learned."""
    first = case.inputs[0]
    if first.is_floating_point():
        # So faint that a few steps do not learn all there is.
        patterns = torch.randn(10, *first.shape[1:], generator=generator) * 3 / first[0].numel() ** 0.5

        def images() -> tuple[Tensor, ...]:
            y = torch.randint(10, (len(first),), generator=generator)
            return torch.randn(first.shape, generator=generator) + patterns[y], y

        return images
    words = int(first.max()) + 1
    follows = torch.randperm(words, generator=generator)

    def tokens() -> tuple[Tensor, ...]:
        out = torch.randint(words, first.shape, generator=generator)
        for t in range(1, first.shape[1]):
            told = torch.rand(len(out), generator=generator) < 0.7
            out[:, t] = torch.where(told, follows[out[:, t - 1]], out[:, t])
        return (out,)

    return tokens


class Bench:
    """A net at one state, with all that is measured of it."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.case = build(name, *SIZES.get(name, (None, None)))
        still(self.case.model)
        self.batches = task(self.case, torch.Generator().manual_seed(1))
        self.inputs = self.batches()
        self.args = args

    def loss(self) -> Tensor:
        return self.case.model(*self.inputs)

    def train(self, steps: int) -> None:
        model = self.case.model
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            model(*self.batches()).backward()
            optimizer.step()

    def held(self, sketch: rad.Sketch | Plan) -> int:
        return self._with(sketch, lambda: saved_bytes(self.loss).total)

    def variance(self, sketch: rad.Sketch | Plan, norm2: float) -> tuple[float, float]:
        """That the summaries add, with its standard error, in units of ``‖g‖²``."""
        model = self.case.model
        found = self._with(sketch, lambda: gradient_noise(lambda: gradients(model, self.loss), self.args.draws).total)
        return found.variance / norm2, found.variance_error / norm2

    def plan(self, nbytes: int, passes: int | None = None) -> Plan:
        return rad.allocate(self.case.model, self.loss, nbytes, passes=passes)

    def cost(self, nbytes: int) -> tuple[float, float]:
        """Seconds of an allocation of one pass and of two in those of a stock step, medians of interleaved runs."""
        ratios = []
        for _ in range(4):
            step = self._seconds(lambda: self.loss().backward())
            ratios.append([self._seconds(lambda n=n: self.plan(nbytes, n)) / step for n in (1, 2)])
        self.case.model.zero_grad()
        one, two = zip(*ratios[1:], strict=True)
        return statistics.median(one), statistics.median(two)

    def _seconds(self, run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def _with(self, sketch: rad.Sketch | Plan, run: Callable[[], Any]) -> Any:
        rad.convert(self.case.model, sketch, generator=Seeds(1))
        try:
            return run()
        finally:
            rad.revert(self.case.model)


def measure(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each number of bits."""
    bench = Bench(name, args)
    stock = saved_bytes(bench.loss).total
    uniform = {bits: bench.held(rad.Rounding(bits=bits)) for bits in args.bits}
    before = {bits: bench.plan(nbytes) for bits, nbytes in uniform.items()}
    bench.train(args.steps)
    exact = gradients(bench.case.model, bench.loss)
    norm2 = sum(g.double().square().sum().item() for g in exact.values())
    cost = bench.cost(uniform[args.bits[len(args.bits) // 2]])
    rows = []
    for bits, nbytes in uniform.items():
        plan = bench.plan(nbytes)
        held = bench.held(plan)
        flat, allocated, old = (bench.variance(s, norm2) for s in (rad.Rounding(bits=bits), plan, before[bits]))
        kept = [item.bits for item in plan.items if item.bits]
        rows.append(
            {
                "net": name,
                "batch": bench.case.describe,
                "bits": bits,
                "asked": nbytes,
                "held": held,
                "stock": stock,
                "uniform": flat[0],
                "uniform_error": flat[1],
                "predicted": plan.variance,
                "allocated": allocated[0],
                "allocated_error": allocated[1],
                "once": old[0],
                "least_bits": min(kept, default=0),
                "most_bits": max(kept, default=0),
                "tensors": len(plan.items),
                "steps_one_pass": cost[0],
                "steps_two_passes": cost[1],
            }
        )
    # Fewer bytes than uniform bits take: a quarter of a bit less for each element, against two bits everywhere.
    if {1, 2} <= set(args.bits):
        nbytes = int(0.25 * uniform[1] + 0.75 * uniform[2])
        plan = bench.plan(nbytes)
        allocated = bench.variance(plan, norm2)
        flat = next(row for row in rows if row["bits"] == 2)
        rows.append(
            {
                **flat,
                "bits": 1.75,
                "asked": nbytes,
                "held": bench.held(plan),
                "predicted": plan.variance,
                "allocated": allocated[0],
                "allocated_error": allocated[1],
                "once": float("nan"),
            }
        )
    return rows


def shown(row: dict[str, Any]) -> dict[str, str]:
    """A row of the table."""
    return {
        "net": row["net"],
        "batch": row["batch"],
        "mean bits": f"{row['bits']:g}",
        "bytes ÷ stock": f"{row['held'] / row['stock']:.4f}",
        "held ÷ asked": f"{row['held'] / row['asked']:.4f}",
        "uniform": f"{row['uniform']:.3g}" + (" (2 bits)" if row["bits"] == 1.75 else ""),
        "allocated": f"{row['allocated']:.3g} ± {row['allocated_error']:.1g}",
        "predicted ÷ measured": f"{row['predicted'] / row['allocated']:.2f}",
        "allocated ÷ uniform": f"{row['allocated'] / row['uniform']:.3f}",
        "plan of initial weights ÷ uniform": "–"
        if row["once"] != row["once"]
        else f"{row['once'] / row['uniform']:.3f}",
        "bits": f"{row['least_bits']:.3g} to {row['most_bits']:.3g}",
        "steps that one pass takes, two": f"{row['steps_one_pass']:.1f}, {row['steps_two_passes']:.1f}",
    }


def figure(frame: pd.DataFrame) -> Figure:
    """Variance against bytes, one panel for each net."""
    names = list(dict.fromkeys(frame["net"]))
    columns = min(4, len(names))
    with style():
        drawn = Figure(figsize=(3.1 * columns, 2.7 * -(-len(names) // columns)), layout="constrained")
        for i, name in enumerate(names):
            axes = drawn.add_subplot(-(-len(names) // columns), columns, i + 1)
            part = frame[(frame["net"] == name) & (frame["bits"] != 1.75)].sort_values("held")
            x = part["held"] / part["stock"]
            axes.loglog(x, part["uniform"], "o-", color="#009E73", ms=3, label="same bits everywhere")
            axes.loglog(x, part["once"], "o:", color="#56B4E9", ms=3, label="allocated at initial weights")
            axes.loglog(x, part["allocated"], "o-", color="#D55E00", ms=3, label="allocated now")
            axes.loglog(x, part["predicted"], "--", color="#000000", lw=0.8, label="predicted")
            axes.set_title(name)
            axes.xaxis.set_minor_formatter(NullFormatter())
            if i % columns == 0:
                axes.set_ylabel("variance ÷ ‖g‖²")
            if i >= len(names) - columns:
                axes.set_xlabel("bytes held ÷ stock")
        drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return drawn


def main() -> None:
    """Parses the command line, measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--nets", type=listed(CASES, "net"), default=",".join(SIZES), help="names (default: %(default)s)"
    )
    parser.add_argument(
        "--bits",
        type=listed(whole(1, MAX_BITS)),
        default="1,2,3,4,6,8",
        help="whose bytes are asked for (default: %(default)s)",
    )
    parser.add_argument("--steps", type=whole(0), default=60, help="of training before (default: %(default)s)")
    parser.add_argument(
        "--draws", type=whole(3), default=8, help="of the gradient for each variance (default: %(default)s)"
    )
    parser.add_argument("--threads", type=THREADS, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--out", type=Path, help="folder for table, figure and numbers")
    args = parser.parse_args()
    mpl.use("agg")
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        table = None if args.out is None else args.out / "table.md"
        prepare(table)
        rows: list[dict[str, Any]] = []
        for name in tqdm(args.nets, disable=None, unit="net"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rad.AllExactWarning)
                rows += measure(name, args)
    except (UserError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    where = provenance.describe(provenance.session(torch.device("cpu")))
    head = f"n = {args.draws} draws a variance, {args.steps} steps of training before; float32; {where}"
    publish(f"{head}\n\n{markdown([shown(row) for row in rows])}\n", table)
    if args.out is not None:
        frame = pd.DataFrame(rows)
        with last(args.out):
            frame.to_csv(args.out / "front.csv", index=False)
            save(figure(frame), args.out / "front")


if __name__ == "__main__":
    main()
