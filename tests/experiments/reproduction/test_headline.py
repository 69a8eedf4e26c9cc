"""Ratios of iterations with their intervals and bounds, against all resamples, and the table of them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from trained import training

from experiments.reproduction.headline import (
    Ratio,
    final_losses,
    rates_table,
    ratio_of_means,
    reached,
    speed_figure,
    speed_table,
)
from experiments.runs.records import Runs


def table(**iterations: tuple) -> pd.DataFrame:
    """Iterations to a target by method, seeds in order; None where a run did not get there after 100."""
    rows = [
        {"method": method, "seed": seed, "iterations": n or 100, "met": n is not None}
        for method, values in iterations.items()
        for seed, n in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_ratio_of_means_and_its_interval():
    found = table(a=(10, 20, 30), b=(20, 40, 60), c=(40, 40, 40))
    assert ratio_of_means(found, "a", "b") == Ratio(0.5, 0.5, 0.5, 3)  # seeds are resampled in pairs
    ratio = ratio_of_means(found, "a", "c")
    assert ratio.value == 0.5
    assert 0.25 <= ratio.low < 0.5 < ratio.high <= 0.75


def test_the_interval_is_that_of_all_resamples():
    a, b = np.array([13.0, 29, 31, 47, 83]), np.array([50.0, 20, 70, 90, 40])
    ratio = ratio_of_means(table(a=tuple(a), b=tuple(b)), "a", "b")
    drawn = np.array(list(itertools.product(range(5), repeat=5)))
    low, high = np.percentile(a[drawn].mean(1) / b[drawn].mean(1), [2.5, 97.5])
    assert (ratio.low, ratio.high) == pytest.approx((low, high), rel=0.01)


def test_only_seeds_of_both_count():
    found = table(a=(10, 20, 90), b=(20, 40))
    assert ratio_of_means(found, "a", "b") == Ratio(0.5, 0.5, 0.5, 2)
    none = ratio_of_means(found.drop(index=[0, 1]), "a", "b")
    assert (none.n, none.bound) == (0, "–")


def test_a_run_that_did_not_get_there_gives_a_bound():
    found = table(a=(10, None), b=(50, 50), c=(None, 50))
    above, below, neither = (ratio_of_means(found, *pair) for pair in (("a", "b"), ("b", "a"), ("a", "c")))
    assert (above.bound, above.value) == (">", 1.1)
    assert (below.bound, below.value) == ("<", 1 / 1.1)
    assert str(neither) == neither.bound == "–"
    # The bound varies from seed to seed as the ratio does: here from 0.2 to 2, which decides nothing.
    assert above.interval().above(1) is None
    assert below.interval().below(1) is None
    assert neither.interval().within(0, 1e9) is None


@pytest.mark.parametrize(
    ("pair", "below", "above"),
    [(("fast", "never"), True, False), (("never", "fast"), False, True), (("last", "never"), True, False)],
)
def test_bounds_decide_where_all_seeds_agree(pair, below, above):
    interval = ratio_of_means(table(fast=(20, 30), last=(100, 100), never=(None, None)), *pair).interval()
    assert (interval.below(1), interval.above(1)) == (below, above)


def test_a_bound_decides_on_one_side_only():
    found = table(fast=(20, 30), never=(None, None))
    assert ratio_of_means(found, "fast", "never").interval().below(0.1) is None  # what it would have taken is not known
    assert ratio_of_means(found, "never", "fast").interval().above(9) is None


def test_a_single_seed_decides_nothing():
    for ratio in (
        ratio_of_means(table(a=(10,), b=(20,)), "a", "b"),
        ratio_of_means(table(a=(10,), b=(None,)), "a", "b"),
    ):
        assert math.isnan(ratio.low)
        assert ratio.interval().below(1) is None
    assert ratio_of_means(table(a=(10,)), "a", "b").bound == "–"


RUNS = training(exact=(20, 20), small_batch=(60, 60), rad_same=(40, 40), rad_diff=(20, 20), rad_proj=(None, None))


def test_first_evaluation_below_the_target_counts():
    found = reached(RUNS, 1.0).set_index(["method", "seed"])
    assert found.loc[("rad_same", 0), ["iterations", "train_seconds", "epochs"]].tolist() == [40, 4, 2]
    assert found.loc[("small_batch", 1), "epochs"] == pytest.approx(60 * 20 / 3000)
    assert not found.loc[("rad_proj", 0), "met"]
    assert found.loc[("rad_proj", 0), "iterations"] == 600


def test_speed_table_says_what_the_records_say():
    rows = {row["method"]: row for row in speed_table(RUNS, 1.0, ("small_batch", "exact"))}
    assert rows["RAD, different sample"]["iterations ÷ smaller batch"] == "0.33 (0.33 to 0.33)"
    assert rows["RAD, different sample"]["bytes ÷ exact"] == "0.100"
    assert rows["RAD, same sample"]["iterations"] == "40"
    assert rows["RAD, same sample"]["seconds of training ÷ exact"] == "2.00 (2.00 to 2.00)"
    assert rows["RAD, same sample"]["epochs ÷ smaller batch"] == "5.00 (5.00 to 5.00)"
    assert rows["RAD, projection"]["iterations"] == "reached by 0 of 2"
    assert rows["RAD, projection"]["iterations ÷ exact"] == "> 30.00"
    assert rows["smaller batch"]["iterations ÷ smaller batch"] == "1"


def of_budgets(method: str, baseline: bool) -> Runs:
    """Two runs of a method at each of two budgets, and of a smaller batch at one of them or at both."""
    found = {
        0.05: training(**{method: (60, 60)}, **({"small_batch": (120, 120)} if baseline else {})),
        0.1: training(exact=(30, 30), **{method: (40, 40)}, small_batch=(80, 80)),
    }
    parts = []
    for budget, runs in found.items():
        for frame in (runs.runs, runs.curves):
            frame["budget"] = frame["budget"].where(frame["method"] == "exact", budget)
            frame["run"] += f" {budget}"
        runs.runs["saved_bytes"] = 100 * budget
        parts.append((runs.runs, runs.curves))
    return Runs(*(pd.concat(frames, ignore_index=True) for frames in zip(*parts, strict=True)))


@pytest.mark.parametrize("baseline", [True, False])
def test_a_method_at_several_budgets_has_a_row_for_each(baseline):
    rows = {row["method"]: row for row in speed_table(of_budgets("rad_auto", baseline), 1.0, ("small_batch", "exact"))}
    few, many = rows["RAD, bits allocated, 0.05"], rows["RAD, bits allocated, 0.1"]
    assert [row["bytes ÷ exact"] for row in (few, many)] == ["0.050", "0.100"]
    assert [row["iterations"] for row in (few, many)] == ["60", "40"]
    assert [row["n"] for row in (few, many)] == ["2", "2"]
    assert [row["iterations ÷ exact"][:4] for row in (few, many)] == ["2.00", "1.33"]
    # The smaller batch of the same budget, or the only one that there is.
    assert few["iterations ÷ smaller batch"][:4] == ("0.50" if baseline else "0.75")
    assert many["iterations ÷ smaller batch"][:4] == "0.50"
    assert ("smaller batch, 0.05" in rows) == baseline


def test_a_method_at_several_budgets_has_a_line_for_each():
    (axes,) = speed_figure(of_budgets("rad_auto", False), (1.0,), "small_batch").axes
    drawn = {bars.get_label(): list(bars.lines[0].get_ydata()) for bars in axes.containers}
    assert drawn["RAD, bits allocated, 0.05"] == pytest.approx([0.75])
    assert drawn["RAD, bits allocated, 0.1"] == pytest.approx([0.5])


def test_final_losses_are_those_of_the_last_evaluation():
    runs = training(small_batch=(30, 40), rad_diff=(50,))
    runs.curves.loc[runs.curves["run"].eq("rad_diff0") & runs.curves["iteration"].eq(20), "train_loss"] = 0.1
    runs = Runs(runs.runs, runs.curves.iloc[::-1])
    settings = {"small_batch0": ("SGD", 0.1), "small_batch1": ("SGD", 0.1), "rad_diff0": ("Adam", 0.2)}
    found = final_losses(runs)
    chosen = pd.DataFrame([settings[run] for run in found["run"]], columns=["optimizer", "rate"])
    found = found.join(chosen).sort_values(["optimizer", "seed"])
    assert found[["optimizer", "rate", "method", "seed", "iterations", "train_loss"]].to_numpy().tolist() == [
        ["Adam", 0.2, "rad_diff", 0, 50, 1.0],
        ["SGD", 0.1, "small_batch", 0, 30, 1.0],
        ["SGD", 0.1, "small_batch", 1, 40, 1.0],
    ]
    table = rates_table(found)
    assert [row["÷ smaller batch"] for row in table] == ["–", "1"]  # nothing to compare the first with
    assert [row["n"] for row in table] == ["1", "2"]


def test_ratios_over_targets_are_drawn_where_both_get_there():
    runs = training(exact=(50, 60), small_batch=(100, 100), rad_same=(None, None))
    early = runs.curves["method"].eq("small_batch") & runs.curves["iteration"].eq(20)
    early |= runs.curves["method"].eq("exact") & runs.curves["iteration"].eq(40)
    runs.curves.loc[early, "train_loss"] = 1.5
    (axes,) = speed_figure(runs, (1.0, 1.5, 0.5), "small_batch").axes
    (bars,) = axes.containers
    assert bars.get_label() == "exact"  # the baseline is the line at 1, the others never got there
    assert list(bars.lines[0].get_xdata()) == [1.5, 1.0]
    assert list(bars.lines[0].get_ydata()) == pytest.approx([2.0, 0.55])
    ends = [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()]
    assert ends == [pytest.approx([2.0, 2.0]), pytest.approx([0.5, 0.6])]
    assert axes.get_ylabel() == "iterations ÷ smaller batch"
