"""The studies of depth and of gradient noise: closed forms, what is compared, and both from config to table."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from sketches import seeded

import run
from experiments.errors import UserError
from experiments.runs.study import validate
from experiments.show.tables import markdown
from experiments.studies.families import independent, interleaved
from experiments.studies.graph_depth import _rate, growth
from experiments.studies.noise_report import PAPER, _best, added, at_equal_bytes, shares
from rad.graph import sample_paths
from rad.measure import gradient_noise


@pytest.fixture
def command(digits, tmp_path, monkeypatch):
    """Calls run.py; returns the folder of all runs."""
    threads = torch.get_num_threads()

    def call(*args):
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["run.py", *args, f"runs={tmp_path / 'runs'}", "threads=1"])
        try:
            run.main()
        finally:
            torch.set_num_threads(threads)
        return tmp_path / "runs"

    return call


@pytest.mark.parametrize(("family", "exponent"), [(independent, 0), (interleaved, 1)])
def test_closed_form_of_path_sampling(family, exponent):
    for depth in (1, 3):
        graph, numbers = family(8, depth, seeded(depth)), seeded(0)
        exact = {"x": graph.reverse()}
        assert exact["x"].square().sum() == pytest.approx(1)
        noise = gradient_noise(lambda g=graph, n=numbers: {"x": sample_paths(g, 4, n).reverse()}, 800, exact).total
        predicted = growth(8, 4) ** (depth if exponent else 1) - 1
        assert abs(noise.variance - predicted) < 3 * noise.variance_error


def test_the_fitted_rate_is_that_of_an_exponential():
    depth = pd.Series([1, 2, 4, 8])
    rate, error = _rate(depth, 1.7**depth - 1, 0.01 * 1.7**depth)
    assert rate == pytest.approx(np.log(1.7))
    assert 0 < error < 0.01


def frame():
    columns = ["estimator", "budget", "saved_bytes", "variance"]
    rows = [
        ("small_batch", 1.0, 1000, 10.0),
        ("small_batch", 0.1, 110, 60.0),
        ("rad_same", 0.1, 105, 30.0),
        ("rad_round", 0.1, 100, 1.0),
        ("rad_round", 0.05, 60, 4.0),
        ("rad_same", 0.05, 50, 80.0),
        ("rad_diff", 0.05, 50, 70.0),
    ]
    made = pd.DataFrame(rows, columns=columns)
    return made.assign(net="a", phase="initial", exact_saved_bytes=1000, batch_size=50, variance_error=1.0, layers=None)


def test_added_variance_is_beyond_that_of_the_full_batch():
    table = added(frame()).set_index(["estimator", "budget"])
    assert ("small_batch", 1.0) not in table.index
    assert table.loc[("small_batch", 0.1), "added"] == pytest.approx((60 - 10) / 10)
    assert table.loc[("rad_same", 0.1), "added"] == pytest.approx(30 / 10)
    assert table.loc[("small_batch", 0.1), "added_error"] == pytest.approx(2**0.5 / 10)
    assert set(table.index[table["front"]]) == {("rad_round", 0.1), ("rad_round", 0.05), ("rad_diff", 0.05)}


def test_the_best_within_the_bytes():
    table = added(frame())
    assert _best(table, 70)["estimator"] == "rad_round"
    assert _best(table, 55)["estimator"] == "rad_diff"


def test_without_the_papers_estimators_none_is_compared_with_theirs():
    table = added(frame())
    assert [best["estimator"] for _, _, best, _ in at_equal_bytes(table)] == ["rad_same"]
    assert not list(at_equal_bytes(table[~table["estimator"].isin(PAPER)]))


def test_shares_of_variance_by_module():
    made = frame().assign(phase="trained")
    layers = {0: {"a": 1.0, "b.x": 2.0, "b.y": 1.0}, 1: {"a": 5.0, "b.x": 0.0}, 3: {"a": 3.0, "b.y": 1.0}}
    made["layers"] = [layers.get(row, {"other": 1.0}) for row in made.index]
    found = shares(made).set_index(["estimator", "module"])["share"]
    assert found["full_batch"].to_dict() == {"a": 0.25, "b": 0.75}
    assert found["small_batch"].to_dict() == {"a": 1.0, "b": 0.0}
    assert found["rad_round"].to_dict() == {"a": 0.75, "b": 0.25}
    assert set(found.index.get_level_values("estimator")) == {"full_batch", "small_batch", "rad_same", "rad_round"}
    assert shares(made.assign(phase="initial")).empty


def test_markdown_escapes_bars():
    assert markdown([{"a|b": "1", "c": "x|y"}]) == "| a\\|b | c |\n| --- | --- |\n| 1 | x\\|y |"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=graph_depth", "edges=16"], "edges must be less than width, 16, got 16"),
        (["experiment=graph_depth", "depths=[3]"], r"depths must hold at least 2 of them, got \[3\]"),
        (["experiment=graph_depth", "net.depths=[1,0]"], r"net\.depths\[1\] must be at least 1, got 0"),
        (["experiment=graph_depth", "draws=0"], "draws must be at least 1"),
        (["experiment=gradient_noise", "nets.mlp.draws=2"], r"nets\.mlp\.draws must be at least 3"),
        (["experiment=gradient_noise", "nets.cnn.batch_size=0"], r"nets\.cnn\.batch_size must be"),
        (["experiment=gradient_noise", "budgets=[0.1,1,2]"], r"budgets\[2\] must lie in"),
        (["experiment=gradient_noise", "budgets=[0.1]"], r"budgets must hold 0\.1, .* and 1"),
    ],
)
def test_settings_out_of_range(composed, overrides, message):
    with pytest.raises(UserError, match=message):
        validate(composed(*overrides))


@pytest.mark.slow
def test_depth_from_config_to_table(command, capsys):
    options = ["net.depths=[1,2]", "depths=[1,2]", "net.width=10"]
    path = command("experiment=graph_depth", "scale=smoke", *options)
    (table,) = path.rglob("table.md")
    assert "| interleaved, vertex sampling |" in table.read_text()
    assert "python run.py experiment=graph_depth scale=smoke" in table.read_text()
    assert {p.name for p in table.parent.glob("*.png")} == {"depth.png", "fig1.png"}
    assert table.read_text() in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::rad.BudgetFloorWarning")
def test_noise_from_config_to_table(command):
    path = command("experiment=gradient_noise", "scale=smoke", "budgets=[0.1,1]")
    (table,) = path.rglob("table.md")
    assert all(f"| {net} | trained |" in table.read_text() for net in ("mlp", "cnn", "irnn"))
    records = pd.read_csv(table.parent / "noise.csv")
    rounded = records[records["estimator"] == "rad_round"]
    assert (rounded["saved_bytes"] < 0.2 * rounded["exact_saved_bytes"]).all()
    assert (table.parent / "noise.png").exists()


@pytest.mark.slow
def test_noise_of_a_transformer_from_config_to_table(command):
    (table,) = command("experiment=source_noise", "scale=smoke", "budgets=[0.1,1]").rglob("table.md")
    text = table.read_text()
    assert "the paper's best" not in text
    assert "| net | estimator | 0 | 1 | 2 | 3 | 4 |" in text
    assert "| tr HΣ | gpt | 1 steps |" in text
    records = pd.read_csv(table.parent / "noise.csv").set_index(["phase", "estimator"])
    batch, rounded = (records.loc[("trained", name)] for name in ("small_batch", "rad_round"))
    assert 0.7 * rounded["saved_bytes"] < batch["saved_bytes"] <= rounded["saved_bytes"]
    assert rounded["saved_bytes"] < 0.15 * rounded["exact_saved_bytes"]
