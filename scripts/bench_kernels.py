"""Nanoseconds an element of the loops that summaries are made of, compiled (numba, Triton) and in plain PyTorch.

python scripts/bench_kernels.py --threads 1
python scripts/bench_kernels.py --device cuda --elements 268435456 --dtypes bfloat16,float32
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import rad
from experiments.errors import UserError
from experiments.options import THREADS, listed, present, whole
from experiments.runs import provenance
from experiments.show.tables import markdown, prepare, publish
from rad.sketch import bits, gpu, kernels
from rad.sketch.random import Stream

DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}


def operations(count: int, dtype: torch.dtype, device: torch.device) -> dict[str, Callable[[], object]]:
    """By name, each on ``count`` elements."""
    x = torch.randn(count // 256, 256, device=device).to(dtype)
    other, seed = torch.empty_like(x), torch.tensor(5)
    found: dict[str, Callable[[], object]] = {"a copy": lambda: other.copy_(x)}
    for width in (1, 3, 8):
        sketch = rad.Rounding(bits=width)
        kept = sketch.compress(x, seed=seed)
        found[f"round + pack, {width} bits"] = lambda s=sketch: s.compress(x, seed=seed)
        found[f"unpack + rebuild, {width} bits"] = lambda s=sketch, k=kept: s.expand(k)
        if width == 3:
            found["unpack + rebuild · gradient, 3 bits"] = lambda s=sketch, k=kept: s.times(k, x)
    mask = bits.pack_positive(x)
    flags = x > 0
    found["pack_positive"] = lambda: bits.pack_positive(x)
    found["masked"] = lambda: bits.masked(x, mask)
    found["pack, 1 bit"] = lambda: bits.pack(flags, 1)
    found["unpack, 1 bit"] = lambda: bits.unpack(mask, 1, count)
    found["random words"] = lambda: Stream(5, device).words(count)
    found["random signs"] = lambda: Stream(5, device).signs((count,), dtype)
    if dtype in (torch.float32, torch.float64):
        found["uniform numbers"] = lambda: Stream(5, device).uniform((count,), dtype)
    return found


def seconds(run: Callable[[], object], device: torch.device, rounds: int) -> float:
    """The median of some runs."""
    times = []
    for i in range(rounds + 2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= 2:  # the first compile and fill caches
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Parses the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=present, default="cpu", help="cpu or cuda (default %(default)s)")
    parser.add_argument("--elements", type=whole(256, 2**32), default=2**22, help="of a tensor (default %(default)s)")
    parser.add_argument(
        "--dtypes",
        type=listed(DTYPES, "dtype"),
        default="float32,bfloat16",
        help="separated by commas (default %(default)s)",
    )
    parser.add_argument("--rounds", type=whole(1), default=9, help="runs of each (default %(default)s)")
    parser.add_argument("--threads", type=THREADS, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--out", type=Path, help="Markdown file to write the table to as well")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device, rows, count = args.device, {}, args.elements // 256 * 256
    where = f"{count:,} elements; {provenance.describe(provenance.session(device))}"
    before = gpu.enabled, kernels.enabled
    try:
        prepare(args.out)
        for dtype in args.dtypes:
            made = operations(count, DTYPES[dtype], device)
            for loops, what in ((True, "loops"), (False, "plain")):
                gpu.enabled, kernels.enabled = (flag and loops for flag in before)
                for name, run in made.items():
                    ns = seconds(run, device, args.rounds) / count * 1e9
                    rows.setdefault(name, {"ns an element": name})[f"{dtype}, {what}"] = f"{ns:.4f}"
        columns = list(dict.fromkeys(key for row in rows.values() for key in row))
        full = [{key: row.get(key, "–") for key in columns} for row in rows.values()]
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    finally:
        gpu.enabled, kernels.enabled = before
    publish(f"{where}\n\n{markdown(full, right=True)}\n", args.out)


if __name__ == "__main__":
    main()
