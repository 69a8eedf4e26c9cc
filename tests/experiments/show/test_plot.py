"""The figure, and the command line that writes it beside the table."""

from __future__ import annotations

import colorsys
import itertools
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from digits import GROUPS
from matplotlib.figure import Figure

from experiments.labels import METHODS, look, rank
from experiments.runs.records import load_runs
from experiments.show.figures import convergence_figure, plain_ticks, save, style

ROOT = Path(__file__).parents[3]


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def study(write_run, tmp_path):
    """Two methods with two seeds each."""
    for method in ("exact", "rad_proj"):
        for seed in (0, 1):
            write_run(f"{method}-{seed}", method=method, seed=seed)
    return tmp_path / "runs"


@pytest.fixture
def plot(capsys):
    """Calls scripts/plot.py; returns its exit status and what it printed."""
    main = runpy.run_path(str(ROOT / "scripts" / "plot.py"))["main"]

    def call(*arguments) -> Done:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            status = stopped.code
        return Done(status, *capsys.readouterr())

    return call


def labels(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_figure_names_what_it_shows(study):
    figure = convergence_figure(load_runs([study]).curves)
    assert figure.get_suptitle() == "study on toy, budget 0.1"
    assert "mean and range (smallest to largest) of 2 seeds" in figure.legends[0].get_title().get_text()
    assert labels(figure) == ["exact", "RAD, projection"]
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "log", "linear"]


def test_figure_of_one_run_with_one_evaluation(write_run, tmp_path):
    figure = convergence_figure(load_runs([write_run("a", points=1)]).curves)
    assert "n = 1" in figure.legends[0].get_title().get_text()
    assert all(line.get_marker() == "o" for axes in figure.axes for line in axes.get_lines())
    save(figure, tmp_path / "one")


def test_missing_metric_is_said_in_its_panel(write_run, tmp_path):
    figure = convergence_figure(load_runs([write_run("a", metrics=["train_loss"])]).curves)
    assert [bool(axes.texts) for axes in figure.axes] == [False, True, True]
    save(figure, tmp_path / "missing")


def test_no_metric_at_all(write_run):
    figure = convergence_figure(load_runs([write_run("a", metrics=[])]).curves)
    assert [axes.texts[0].get_text() for axes in figure.axes] == 3 * ["not recorded in these runs"]
    assert not any(axes.get_lines() for axes in figure.axes)
    assert labels(figure) == []


def test_lines_are_means_and_bands_ranges_of_the_records(write_run, tmp_path):
    """Losses as recorded, accuracies in per cent."""
    for seed in (0, 1, 3):
        write_run(f"s{seed}", seed=seed)  # 1 / (2 + 2 seed), …
    figure = convergence_figure(load_runs([tmp_path]).curves)
    values = np.array([[0.5 / (i + 1 + seed) for i in range(3)] for seed in (0, 1, 3)])
    for axes, factor in zip(figure.axes, (1, 1, 100), strict=True):
        (line,) = axes.get_lines()
        assert line.get_xdata() == pytest.approx([0, 10, 20])
        assert line.get_ydata() == pytest.approx(factor * values.mean(0))
        corners = axes.collections[0].get_paths()[0].vertices
        at = corners[corners[:, 0] == 10, 1]
        assert (at.min(), at.max()) == pytest.approx((factor * values[:, 1].min(), factor * values[:, 1].max()))


def test_budgets_of_one_method_are_told_apart_by_lightness(write_run, tmp_path):
    budgets = (0.05, 0.1, 0.3, 0.5, 0.8)
    for budget in reversed(budgets):
        write_run(f"b{budget}", budget=budget)
    figure = convergence_figure(load_runs([tmp_path]).curves)
    assert labels(figure) == [f"RAD, projection, budget {budget}" for budget in budgets]
    lightness = [colorsys.rgb_to_hls(*mpl.colors.to_rgb(line.get_color()))[1] for line in figure.axes[0].get_lines()]
    assert all(more - less < -0.1 for less, more in itertools.pairwise(lightness))  # less is kept, lighter
    assert figure.get_suptitle().endswith("budgets 0.05, 0.1, 0.3, 0.5, 0.8")


def test_one_budget_has_the_colour_of_its_method(study):
    figure = convergence_figure(load_runs([study]).curves)
    drawn = {line.get_label(): mpl.colors.to_hex(line.get_color()) for line in figure.axes[0].get_lines()}
    assert drawn == {"exact": "#000000", "RAD, projection": look("rad_proj").colour.lower()}


@pytest.mark.parametrize("losses", [(2.3, 1.04), (2.9, 1.6), (2.3, 0.07), (2.3, 1e-6), (1.0, 0.99)])
def test_curves_fill_a_loss_panel_whose_ticks_are_plain_numbers(write_run, losses):
    path = write_run("a")
    lines = [json.dumps({"iteration": i, "data": "toy", "train_loss": loss}) for i, loss in enumerate(losses)]
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    figure = convergence_figure(load_runs([path]).curves)
    figure.canvas.draw()
    axes = figure.axes[0]
    heights = axes.transAxes.inverted().transform(axes.transData.transform([(0, loss) for loss in losses]))[:, 1]
    assert heights.min() < 0.15
    assert heights.max() > 0.85
    low, high = axes.get_ylim()
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    texts = [label.get_text() for place, label in ticks if low <= place <= high]
    assert len(texts) >= 2
    assert not any("times" in text for text in [*texts, *(t.get_text() for t in axes.get_yticklabels(minor=True))])


def test_ticks_of_an_axis_within_a_decade():
    axes = Figure().subplots()
    axes.set(xscale="log", xlim=(0.03, 0.6))
    plain_ticks(axes.xaxis)
    axes.figure.canvas.draw()
    texts = [text.get_text() for text in axes.get_xticklabels()]
    assert [text for text in texts if 0.03 <= float(text) <= 0.6] == ["0.05", "0.1", "0.2", "0.5"]
    assert not any(text.get_text() for text in axes.get_xticklabels(minor=True))


def test_legend_of_many_lines_stays_inside(write_run, tmp_path):
    for method in ("rad_same", "rad_diff", "rad_proj", "rad_round"):
        for budget in (0.05, 0.1, 0.2):
            write_run(f"{method}-{budget}", method=method, budget=budget)
    figure = convergence_figure(load_runs([tmp_path]).curves)
    save(figure, tmp_path / "many")
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_unfinished_runs_are_counted_in_the_caption(study, write_run):
    write_run("going-on", seed=2, status="running")
    figure = convergence_figure(load_runs([study]).curves)
    assert "2 to 3 seeds; 1 of 5 runs failed or unfinished" in figure.legends[0].get_title().get_text()


def test_several_studies_in_one_figure_are_refused(write_run, tmp_path):
    write_run("a")
    write_run("b", data="other")
    with pytest.raises(ValueError, match="one data set"):
        convergence_figure(load_runs([tmp_path]).curves)


def test_every_method_has_a_label_and_a_colour_of_its_own():
    assert set(GROUPS["method"]) == set(METHODS)
    for part in ("label", "colour"):
        assert len({getattr(its, part) for its in METHODS.values()}) == len(METHODS)
    assert sorted(["my_sketch", *METHODS], key=rank) == [*METHODS, "my_sketch"]


def test_unknown_method_keeps_its_name_and_colour():
    assert look("my_sketch") == look("my_sketch")
    assert look("my_sketch").label == "my_sketch"
    assert look("my_sketch").colour not in {its.colour for its in METHODS.values()}


def test_colours_are_the_same_in_every_process():
    code = "from experiments.labels import look; print([look(f'sketch_{i}').colour for i in range(20)])"
    said = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_style_leaves_no_trace():
    with mpl.rc_context({"font.size": 17}):
        with style():
            assert mpl.rcParams["font.size"] != 17
        assert mpl.rcParams["font.size"] == 17


def test_command_line_writes_all_files_and_the_same_twice(plot, study, tmp_path):
    outputs = []
    for name in ("first", "second"):
        result = plot(study, "--out", tmp_path / name, "--target", "0.2")
        assert (result.returncode, result.stderr) == (0, "")
        outputs.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
        assert all(str(tmp_path / name / file) in result.stdout for file in outputs[-1])
    assert set(outputs[0]) == {"convergence.pdf", "convergence.png", "table.md", "table.csv", "curves.csv"}
    assert all(outputs[0].values())
    assert b"CreationDate" not in outputs[0]["convergence.pdf"]
    for name in set(outputs[0]) - {"table.md"}:  # the Markdown quotes the command, whose --out differs
        assert outputs[0][name] == outputs[1][name], name
    curves = pd.read_csv(tmp_path / "first" / "curves.csv")
    assert curves.groupby("metric").size().to_dict() == {"test_accuracy": 6, "test_loss": 6, "train_loss": 6}


def test_command_line_separates_studies(plot, study, write_run, tmp_path):
    write_run("b", data="../other")
    foreign = study / "foreign"
    foreign.mkdir()
    (foreign / "meta.json").write_text("{}")
    result = plot(study, "--out", tmp_path / "out")
    assert result.returncode == 0
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("warning: ")
    tables = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("table.md"))
    assert tables == ["study/_other/table.md", "study/toy/table.md"]


@pytest.mark.parametrize("case", ["missing", "empty", "blocked", "target"])
def test_command_line_errors(plot, case, study, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    arguments = {
        "missing": [tmp_path / "nowhere"],
        "empty": [tmp_path / "empty"],
        "blocked": [study, "--out", tmp_path / "file" / "out"],
        "target": [study, "--target", "-1"],
    }
    result = plot(*arguments[case])
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert "error: " in result.stderr.splitlines()[-1]
    assert case == "target" or result.stderr.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_output_is_one_sentence(plot, study, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    result = plot(study, "--out", locked / "out")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
