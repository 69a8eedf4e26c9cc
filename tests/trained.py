"""Runs as they are read from disk, made of the iterations at which they met a target."""

from __future__ import annotations

import pandas as pd

from experiments.runs.records import Runs


def training(**seeds: tuple) -> Runs:
    """Runs whose training loss falls to 1 at the iterations given, seeds in order, or never: None."""
    rows, curves = [], []
    for method, values in seeds.items():
        for seed, met in enumerate(values):
            run = {"run": f"{method}{seed}", "method": method, "budget": 0.1, "seed": seed}
            size = {"batch_size": 20 if method == "small_batch" else 150}
            rows.append({**run, **size, "saved_bytes": 10.0, "exact_saved_bytes": 100.0})
            for step in range(0, 1 + (met or 600), 10):
                loss = 1.0 if step == met else 2.0
                times = {"iteration": step, "train_seconds": step / 10, "examples": 3000.0}
                curves.append({**rows[-1], **times, "train_loss": loss})
    return Runs(pd.DataFrame(rows), pd.DataFrame(curves))
