"""The search for learning rate and weight decay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scripts.tune import pairs, summary

ROOT = Path(__file__).parent.parent.parent


def test_pairs_lie_in_their_ranges_and_more_of_them_begin_with_the_same():
    drawn = pairs(200, (1e-4, 1e-2), (1e-7, 1e-3), seed=0)
    assert np.array_equal(pairs(5, (1e-4, 1e-2), (1e-7, 1e-3), seed=0), drawn[:5])
    for column, (low, high) in zip(drawn.T, ((1e-4, 1e-2), (1e-7, 1e-3)), strict=True):
        assert low * 0.99 <= column.min()
        assert column.max() <= high * 1.01
        middle = np.sqrt(low * high)  # of a log-uniform distribution; 5 standard errors of a share of one half
        assert abs((column < middle).mean() - 0.5) < 5 * 0.5 / np.sqrt(200)


def test_the_best_is_that_of_the_highest_accuracy():
    common = {"method": "exact", "budget": 0.1, "train_loss": 0.1, "data": "mnist", "commit": "abc"}
    rows = [
        {**common, "lr": 1e-3, "weight_decay": 1e-4, "accuracy": 97.0, "loss": 0.1},
        {**common, "lr": 2e-3, "weight_decay": 1e-5, "accuracy": 97.2, "loss": 0.2},
        {**common, "lr": 9e-3, "weight_decay": 1e-6, "accuracy": 90.0, "loss": 0.3},
    ]
    said = summary(pd.DataFrame(rows))
    assert "| exact | 0.1 | 3 | 0.002 (0.001 to 0.002) | 1e-05 (1e-05 to 0.0001) | 97.20 | 0.2 | 0.1 |" in said


@pytest.mark.slow
def test_a_search_runs_what_is_missing_and_never_looks_at_the_test_set(tmp_path, digits):
    def tune(*args: str) -> subprocess.CompletedProcess:
        where = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--held-out", "60"]
        overrides = ["data=mnist", "batch_size=30", "iterations=10", "method=exact,rad_same"]
        command = [sys.executable, "scripts/tune.py", *overrides, *where, *args]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    first = tune("--trials", "2")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "4 trials, 4 of them missing" in first.stdout
    more = tune("--trials", "3")
    assert "6 trials, 2 of them missing" in more.stdout
    trials = pd.read_csv(tmp_path / "out" / "mlp-mnist.csv")
    assert len(trials) == 6
    assert set(trials.data) == {"mnist (60 held out)"}
    exact, same = (set(rows.lr) for _, rows in trials.groupby("method"))
    assert exact == same
    assert "| rad_same | 0.1 | 3 |" in (tmp_path / "out" / "mlp-mnist.md").read_text()
    bad = tune("--lr", "0.1", "0.01")
    assert "--lr must be two positive numbers, the lower one first, got 0.1 0.01" in bad.stderr
    none = tune("experiment=reactor")
    assert "only the training of a net can be tuned" in none.stderr
