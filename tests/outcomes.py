"""What a run ended with, and whether two ended alike."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def outcome(path: Path) -> tuple[dict, list[dict]]:
    state = torch.load(path / "checkpoint.pt", weights_only=True)
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        del record["train_seconds"]
    return state, records


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a if k != "seconds")
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b
