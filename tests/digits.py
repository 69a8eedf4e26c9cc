"""What the tests of the studies share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

CONFIGS = Path(__file__).parent.parent / "configs"
GROUPS = {group.name: sorted(f.stem for f in group.glob("*.yaml")) for group in CONFIGS.iterdir() if group.is_dir()}
SESSION = {"commit": "a" * 40, "dirty": False, "started": "2025-01-01", "cpu": "Some CPU", "threads": 1}


def write_digits(
    folder: Path,
    name: str = "mnist",
    train: int = 300,
    test: int = 60,
    shape: tuple[int, ...] = (28, 28),
    **changed: np.ndarray,
) -> Path:
    """Writes ``<name>.npz`` with ten noisy prototypes in place of digits."""
    rng = np.random.default_rng(0)
    prototypes = rng.integers(0, 200, (10, *shape))
    arrays = {}
    for split, count in (("train", train), ("test", test)):
        labels = rng.integers(0, 10, count).astype(np.uint8)
        noise = rng.integers(0, 56, (count, *shape))
        arrays |= {f"x_{split}": (prototypes[labels] + noise).astype(np.uint8), f"y_{split}": labels}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.npz"
    np.savez(path, **{k: v for k, v in (arrays | changed).items() if v is not None})
    return path


def write_run(
    folder: Path,
    metrics: tuple[str, ...] = ("train_loss", "test_loss", "test_accuracy"),
    points: int = 3,
    losses: tuple[float, ...] | None = None,
    **meta,
) -> Path:
    """Writes a run directory with an evaluation of each metric every ten iterations.

    Without ``losses``, which are training losses, the values are 1 / (2 + 2 seed), 1 / (4 + 2 seed) and so on.
    """
    folder.mkdir(parents=True)
    fields = {
        "status": "finished", "experiment": "study", "method": "rad_proj", "model": "mlp", "data": "toy",
        "budget": 0.1, "seed": 0, "iterations": 20, "batch_size": 150, "saved_bytes": 250,
        "exact_saved_bytes": 1000, "parameters": 7, "step_ms": 2.0, "sessions": [SESSION],
    }  # fmt: skip
    fields |= meta
    (folder / "meta.json").write_text(json.dumps(fields))
    records = [
        {"iteration": 10 * i, "data": fields["data"]} | {name: 0.5 / (i + 1 + fields["seed"]) for name in metrics}
        for i in range(len(losses) if losses else points)
    ]
    for record, loss in zip(records, losses or (), strict=False):
        record["train_loss"] = loss
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder
