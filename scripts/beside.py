"""Trains nets that people use beside their converted copies: the same weights, batches and random numbers.

Image nets learn digits that come inside a package, or CIFAR-10 from $RAD_DATA, brought to the net's size; language
models learn the sources of Python's standard library, a byte a token. Nothing is downloaded but CIFAR-10 if asked for.

    python scripts/beside.py --nets resnet18,gpt2 --steps 300
    python scripts/beside.py --nets resnet50,gpt2 --data cifar10 --device cuda --steps 300 --out results/beside.md
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import rad
from experiments.data import Dataset, mnist5k, sources, stored
from experiments.errors import UserError
from experiments.nets import CASES, Case, build
from experiments.options import listed, positive, present, whole
from experiments.runs import provenance
from experiments.show.tables import markdown, prepare, publish
from rad.measure import saved_bytes

_SETS: dict[str, Callable[[], Dataset]] = {
    "mnist5k": lambda: mnist5k([0.13], [0.31]),
    "cifar10": lambda: stored(
        "cifar10", os.environ.get("RAD_DATA", "data"), [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
    ),
}


def batches(case: Case, data: str, device: torch.device, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """Batches in the shape of the net's inputs, drawn with replacement, without an end."""
    generator, like = torch.Generator().manual_seed(seed), case.inputs[0]
    images = like.is_floating_point()
    if images and like.dim() != 4 or len(case.inputs) != 1 + images:
        raise UserError("only image nets with labels and language models can be trained here")
    learned = (_SETS[data]() if images else sources(like.shape[1], train=4096, test=1)).to(device)
    while True:
        x, y = learned.draw(len(like), generator)
        x = learned.inputs(x)
        if images:
            x = F.interpolate(x.expand(-1, like.shape[1], -1, -1), like.shape[2:], mode="bilinear", antialias=False)
        yield (x, y.long()) if images else (x,)


def row(name: str, sketch: rad.Sketch, args: argparse.Namespace) -> dict[str, str]:
    """Losses of both, averaged over the steps of each quarter."""
    device = args.device
    made = build(name, args.batch, args.size, args.seed)
    drawn = batches(made, args.data, device, args.seed)
    stock = made.model.to(device).train()
    few = rad.convert(copy.deepcopy(stock), sketch, generator=rad.nn.Seeds(args.seed))
    optimizers = [torch.optim.AdamW(net.parameters(), lr=args.lr) for net in (stock, few)]
    losses: list[tuple[float, float]] = []
    for i in tqdm(range(args.steps), desc=name, disable=None, leave=False):
        batch, both = next(drawn), []
        for net, optimizer in zip((stock, few), optimizers, strict=True):
            torch.manual_seed(i)  # the same dropout
            optimizer.zero_grad()
            loss = net(*batch)
            loss.backward()
            optimizer.step()
            both.append(loss.detach())
        losses.append((float(both[0]), float(both[1])))
    held = [saved_bytes(lambda net=net: net(*batch)).total for net in (stock, few)]
    quarter = max(1, args.steps // 4)
    cells = {"net": name, "batch": made.describe, "bytes ÷ stock": f"{held[1] / held[0]:.3f}"}
    for start in range(0, 4 * quarter, quarter):
        part = losses[start : start + quarter]
        if part:
            exact, ours = (sum(column) / len(part) for column in zip(*part, strict=True))
            cells[f"steps {start} to {start + len(part)}, exact → converted"] = f"{exact:.4f} → {ours:.4f}"
    return cells


def main() -> None:
    """Parses the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--nets",
        type=listed(CASES, "net"),
        default="resnet18,gpt2",
        help=f"of {', '.join(CASES)} (default %(default)s)",
    )
    parser.add_argument("--steps", type=whole(1), default=200, help="of each (default %(default)s)")
    parser.add_argument("--batch", type=whole(1), help="examples (default: the net's usual number)")
    parser.add_argument(
        "--size", type=whole(1), help="side of images or length of sequences (default: the net's usual one)"
    )
    parser.add_argument("--budget", type=float, default=0.1, help="of rad.Rounding (default %(default)s)")
    parser.add_argument("--lr", type=positive, default=3e-4, help="of AdamW (default %(default)s)")
    parser.add_argument(
        "--seed", type=whole(0, 2**31), default=0, help="of weights, batches and draws (default %(default)s)"
    )
    parser.add_argument("--data", choices=_SETS, default="mnist5k", help="of image nets (default %(default)s)")
    parser.add_argument("--device", type=present, default="cpu", help="cpu or cuda (default %(default)s)")
    parser.add_argument("--out", type=Path, help="Markdown file to write the table to as well")
    args = parser.parse_args()
    try:
        sketch = rad.Rounding(args.budget)
        prepare(args.out)
        rows = [row(name, sketch, args) for name in args.nets]
    except (UserError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    where = provenance.describe(provenance.session(args.device))
    setting = f"AdamW, learning rate {args.lr}, seed {args.seed}, images: {args.data}"
    publish(f"{sketch}; {setting}; float32; {where}\n\n{markdown(rows)}\n", args.out)


if __name__ == "__main__":
    main()
