"""What the tests of the studies share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

CONFIGS = Path(__file__).parent.parent / "configs"
GROUPS = {group.name: sorted(f.stem for f in group.glob("*.yaml")) for group in CONFIGS.iterdir() if group.is_dir()}


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
