"""Bytes that autograd holds for nets that people use, converted, against PyTorch's own.

python scripts/bytes.py                                  # all nets, rad.Rounding(0.1), into runs/bytes.md
python scripts/bytes.py --nets resnet18,gpt2 --bits 2
"""

from __future__ import annotations

import argparse

import torch

import rad
from experiments.nets import CASES, build

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--nets", default=",".join(CASES))
    parser.add_argument("--budget", type=float, default=0.1)
    parser.add_argument("--ledger", action="store_true")
    args = parser.parse_args()
    for name in args.nets.split(","):
        case = build(name)
        torch.manual_seed(1)
        stock = rad.measure.saved_bytes(case.loss)
        rad.convert(case.model, rad.Rounding(args.budget))
        few = rad.measure.saved_bytes(case.loss)
        print(
            f"{name:20s} {case.describe:20s} {stock.total:14,} {few.total:14,} {few.total / stock.total:.4f}",
            flush=True,
        )
        if args.ledger:
            print(few)
