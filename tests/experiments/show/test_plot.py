"""The figure, and the command line that writes it beside the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest

from experiments.runs.records import load_runs
from experiments.show.figures import convergence_figure, method_style, save, style

ROOT = Path(__file__).parents[3]
SESSION = {"commit": "a" * 40, "dirty": False, "started": "2025-01-01", "cpu": "Some CPU", "threads": 1}


@pytest.fixture
def write_run(tmp_path):
    """Return a function that writes a run directory with a few evaluations of the metrics given."""

    def write(name: str, metrics=("train_loss", "test_loss", "test_accuracy"), points: int = 3, **meta) -> Path:
        folder = tmp_path / "runs" / name
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
            for i in range(points)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return folder

    return write


@pytest.fixture
def study(write_run, tmp_path):
    """Two methods with two seeds each."""
    for method in ("exact", "rad_proj"):
        for seed in (0, 1):
            write_run(f"{method}-{seed}", method=method, seed=seed)
    return tmp_path / "runs"


def plot(*arguments, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts" / "plot.py", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


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


def test_no_metric_at_all(write_run, tmp_path):
    save(convergence_figure(load_runs([write_run("a", metrics=[])]).curves), tmp_path / "none")


def test_budgets_of_one_method_are_told_apart(write_run, tmp_path):
    for budget in (0.2, 0.1):
        write_run(f"b{budget}", budget=budget)
    figure = convergence_figure(load_runs([tmp_path]).curves)
    assert labels(figure) == ["RAD, projection, budget 0.1", "RAD, projection, budget 0.2"]
    assert len({line.get_linestyle() for line in figure.axes[0].get_lines()}) == 2
    assert figure.get_suptitle().endswith("budgets 0.1, 0.2")


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


def test_unknown_method_keeps_its_name_and_colour():
    assert method_style("my_sketch") == method_style("my_sketch")
    assert method_style("my_sketch")[0] == "my_sketch"


def test_style_leaves_no_trace():
    with mpl.rc_context({"font.size": 17}):
        with style():
            assert mpl.rcParams["font.size"] != 17
        assert mpl.rcParams["font.size"] == 17


def test_command_line_writes_all_files_and_the_same_twice(study, tmp_path):
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


def test_command_line_separates_studies(study, write_run, tmp_path):
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
def test_command_line_errors(case, study, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    arguments = {
        "missing": [tmp_path / "nowhere"],
        "empty": [tmp_path / "empty"],
        "blocked": [study, "--out", tmp_path / "file" / "out"],
        "target": [study, "--target", "-1"],
    }
    result = plot(*arguments[case], cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert "error: " in result.stderr.splitlines()[-1]
    assert case == "target" or result.stderr.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_output_is_one_sentence(study, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    result = plot(study, "--out", locked / "out")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
