"""The search for learning rate and weight decay."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scripts.tune import main, pairs, summary


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
def test_a_search_runs_what_is_missing_and_never_looks_at_the_test_set(tmp_path, digits, capsys):
    def tune(*args: str) -> str:
        overrides = ["data=mnist", "batch_size=30", "iterations=10", "method=exact,rad_same"]
        main([*overrides, "--runs", str(tmp_path / "runs"), "--held-out", "60", *args])
        return capsys.readouterr().out

    assert "2 trials, 2 of them missing" in tune("--trials", "1", "--out", str(tmp_path / "out"))
    assert "4 trials, 2 of them missing" in tune("--trials", "2")
    trials = pd.read_csv(tmp_path / "runs" / "mlp-mnist.csv")  # below the runs, where nothing else is said
    assert len(trials) == 4
    assert len(pd.read_csv(tmp_path / "out" / "mlp-mnist.csv")) == 2
    assert set(trials.data) == {"mnist (60 held out)"}
    exact, same = (set(rows.lr) for _, rows in trials.groupby("method"))
    assert exact == same
    assert "| rad_same | 0.1 | 2 |" in (tmp_path / "runs" / "mlp-mnist.md").read_text()


def test_what_cannot_be_searched_is_said(capsys):
    with pytest.raises(SystemExit):
        main(["method=exact", "--lr", "0.1", "0.01"])
    assert "--lr must be two positive numbers, the lower one first, got 0.1 0.01" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="only the training of a net can be tuned"):
        main(["experiment=reactor"])


def test_a_setting_out_of_range_is_refused_before_any_trial(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: budget must lie in \(0, 1\], got 7"):
        main(["data=mnist5k", "method=exact,rad_diff", "budget=7", "--trials", "1", "--runs", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()
