"""Reading runs back, and the numbers made from them."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pandas as pd
import pytest

from experiments.errors import UserError
from experiments.runs.records import curve_statistics, find_runs, load_runs, mean_interval, summary_table
from experiments.show.figures import table_markdown

T_2 = 4.302652729911275  # the 97.5 % point of Student's t with two degrees of freedom, from a printed table
SESSION = {
    "commit": "a" * 40, "dirty": False, "started": "2025-01-01T00:00:00+00:00", "cpu": "Some CPU", "device": "cpu",
    "threads": 1, "python": "3.11.7", "torch": "2.14.1",
}  # fmt: skip


@pytest.fixture
def write_run(tmp_path):
    """Return a function that writes a run directory; its losses are those at iterations 0, 10, 20, …"""

    def write(name: str, losses: list[float], session: dict | None = None, **meta) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        fields = {
            "status": "finished", "experiment": "study", "method": "rad_proj", "model": "mlp", "data": "toy",
            "budget": 0.1, "seed": 0, "iterations": 20, "batch_size": 150, "saved_bytes": 250,
            "exact_saved_bytes": 1000, "parameters": 7, "step_ms": 2.0, "sessions": [SESSION | (session or {})],
        }  # fmt: skip
        (folder / "meta.json").write_text(json.dumps(fields | meta))
        with (folder / "metrics.jsonl").open("w") as file:
            for number, loss in enumerate(losses):
                record = {"iteration": 10 * number, "data": "toy", "batch_loss": loss if number else None}
                record |= {"train_loss": loss, "test_loss": 2 * loss, "test_accuracy": 1 - loss}
                file.write(json.dumps(record) + "\n")
        return folder

    return write


@pytest.fixture
def three_seeds(write_run, tmp_path):
    """Three seeds that reach a loss of 0.1 at iterations 20, 10 and 20."""
    for seed, losses in enumerate([[0.9, 0.2, 0.1], [0.8, 0.1, 0.05], [0.7, 0.3, 0.06]]):
        write_run(f"seed={seed}", losses, seed=seed, step_ms=1.0 + seed)
    return tmp_path / "runs"


def test_interval_by_hand():
    n, mean, half = mean_interval([1.0, 2.0, 3.0])
    assert (n, mean) == (3, 2.0)
    assert half == pytest.approx(T_2 / math.sqrt(3))


def test_interval_of_no_one_and_equal_values():
    assert mean_interval([])[0] == 0
    assert math.isnan(mean_interval([5.0, math.nan])[2])
    assert mean_interval([3.0, 3.0, 3.0]) == (3, 3.0, 0.0)


def test_curve_statistics(three_seeds):
    table = curve_statistics(load_runs([three_seeds]).curves, "train_loss")
    assert table["iteration"].tolist() == [0, 10, 20]
    assert table["n"].tolist() == [3, 3, 3]
    assert table[["mean", "low", "high"]].iloc[0].tolist() == pytest.approx([0.8, 0.7, 0.9])
    assert table[["mean", "low", "high"]].iloc[1].tolist() == pytest.approx([0.2, 0.1, 0.3])


def test_curve_statistics_of_one_seed_has_no_interval(write_run):
    table = curve_statistics(load_runs([write_run("a", [0.5, 0.4])]).curves, "test_loss")
    assert table["mean"].tolist() == pytest.approx([1.0, 0.8])
    assert table[["low", "high"]].isna().all(axis=None)


def test_evaluations_without_a_metric_are_passed_over(write_run):
    folder = write_run("a", [0.5, 0.4])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 15, "data": "toy", "train_loss": 0.3}\n')
    curves = load_runs([folder]).curves
    assert curve_statistics(curves, "train_loss")["iteration"].tolist() == [0, 10, 15]
    assert curve_statistics(curves, "test_loss")["iteration"].tolist() == [0, 10]


def test_peaks_are_averaged_where_they_were_measured(write_run, tmp_path):
    for seed, peak in enumerate([{"peak_bytes": 300}, {"peak_bytes": 100}, {}]):
        write_run(f"seed={seed}", [0.5], seed=seed, exact_peak_bytes=400, **peak)
    row = summary_table(load_runs([tmp_path / "runs"]), 0.1).iloc[0]
    assert row["peak_ratio"] == 0.5


def test_summary(three_seeds):
    row = summary_table(load_runs([three_seeds]), 0.1).iloc[0]
    assert math.isnan(row["peak_ratio"])
    assert row[["n", "batch_size", "saved_bytes", "bytes_ratio", "reached"]].tolist() == [3, "150", 250, 0.25, 3]
    assert row["iterations_to_target"] == pytest.approx(50 / 3)
    assert row["iterations_to_target_half"] == pytest.approx(T_2 * math.sqrt(100 / 3) / math.sqrt(3))
    assert row["train_loss"] == pytest.approx(0.07)
    assert row["test_accuracy"] == pytest.approx(0.93)
    assert row["step_ms"] == pytest.approx(2.0)
    assert (row["unfinished"], row["commits"], row["notes"]) == (0, "a" * 10, "")


def test_target_reached_by_some_gives_no_mean(three_seeds):
    runs = load_runs([three_seeds])
    table = summary_table(runs, 0.06)
    assert table["reached"].item() == 2
    assert math.isnan(table["iterations_to_target"].item())
    assert "reached by 2 of 3" in table_markdown(table, runs, "command")


def test_markdown_names_its_provenance(three_seeds):
    runs = load_runs([three_seeds])
    text = table_markdown(summary_table(runs, 0.1), runs, "python it")
    for part in ("toy", "0.1", "Student-t", "a" * 10, "Some CPU", "2.14.1", "`python it`", "17 ± 14", "0.07 ± 0.0657"):
        assert part in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1


def test_broken_last_line_is_tolerated(write_run, recwarn):
    folder = write_run("a", [0.5, 0.4])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 20, "train_lo')
    assert load_runs([folder]).curves["iteration"].tolist() == [0, 10]
    assert not recwarn.list


def test_broken_line_in_the_middle_is_named(write_run):
    folder = write_run("a", [0.5], status="running")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 1\n{"iteration": 20, "train_loss": 0.1}\n')
    with pytest.warns(UserWarning, match="line 2"):
        curves = load_runs([folder]).curves
    assert curves["iteration"].tolist() == [0, 20]


def test_repeated_iteration_counts_once_and_the_later_one_holds(write_run):
    folder = write_run("a", [0.5, 0.4])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 10, "data": "toy", "train_loss": 0.3}\n')
    assert load_runs([folder]).curves["train_loss"].tolist() == [0.5, 0.3]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("meta.json", None),
        ("meta.json", b""),
        ("meta.json", b'{"status": "fini'),
        ("meta.json", b'{"title": "holiday"}'),
        ("meta.json", b"[1, 2]"),
        ("meta.json", b"\xff\xfe\x00"),
        ("metrics.jsonl", None),
        ("metrics.jsonl", b""),
        ("metrics.jsonl", b'{"iteration": 0, "data": "another", "train_loss": 1.0}\n'),
    ],
)
def test_unreadable_directory_is_named_and_the_rest_is_kept(three_seeds, write_run, file, content):
    spoilt = write_run("spoilt", [0.5], seed=9) / file
    spoilt.unlink() if content is None else spoilt.write_bytes(content)
    with pytest.warns(UserWarning, match="spoilt is left out") as caught:
        runs = load_runs([three_seeds])
    assert len(caught) == 1
    assert runs.runs["seed"].tolist() == [0, 1, 2]
    assert len(runs.curves) == 9


def test_nothing_readable_is_an_error(write_run):
    folder = write_run("a", [0.5])
    (folder / "meta.json").write_text("{")
    with pytest.warns(UserWarning, match="not valid JSON"), pytest.raises(UserError, match="can be read"):
        load_runs([folder])


def test_paths_without_runs_are_errors(tmp_path, three_seeds):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no run"):
        find_runs([three_seeds, tmp_path / "empty"])
    with pytest.raises(UserError, match="not a directory"):
        find_runs([tmp_path / "nowhere"])


def test_overlapping_paths_find_each_run_once(three_seeds):
    assert len(find_runs([three_seeds, three_seeds / "seed=0", three_seeds.parent])) == 3


def test_seed_that_ran_twice_counts_once(three_seeds, write_run):
    write_run("killed", [0.9], seed=0, status="running", session={"started": "2026-01-01"})
    with pytest.warns(UserWarning, match="killed is left out"):
        runs = load_runs([three_seeds])
    assert runs.runs["finished"].tolist() == [True] * 3


@pytest.mark.parametrize(("method", "notes"), [("rad_proj", ["mixed commits"]), ("exact", ["", ""])])
def test_mixed_commits_are_warned_about_and_marked(three_seeds, write_run, method, notes):
    write_run("later", [0.9, 0.2, 0.1], seed=3, method=method, session={"commit": None})
    runs = load_runs([three_seeds])
    with pytest.warns(UserWarning, match="different code"):
        table = summary_table(runs, 0.1)
    assert table["notes"].tolist() == notes
    assert "; ".join(table["commits"]) in ("a" * 10 + "; unknown", "unknown; " + "a" * 10)
    assert "(mixed:" in table_markdown(table, runs, "command")


def test_uncommitted_changes_are_warned_about_and_marked(write_run):
    runs = load_runs([write_run("a", [0.5], session={"dirty": True})])
    with pytest.warns(UserWarning, match="uncommitted"):
        table = summary_table(runs, 0.1)
    assert table[["commits", "notes"]].iloc[0].tolist() == ["a" * 10 + "-dirty", "uncommitted changes"]


def test_unfinished_and_failed_runs_are_marked(write_run, tmp_path):
    write_run("a", [0.5, 0.4, 0.3])
    write_run("b", [0.5], seed=1, status="running", step_ms=None)
    write_run("c", [0.5], seed=2, status="failed", step_ms=None)
    row = summary_table(load_runs([tmp_path]), 0.3).iloc[0]
    assert (row["unfinished"], row["reached"], row["step_ms"]) == (2, 1, 2.0)
    assert set(row["notes"].split("; ")) == {"1 of 3 unfinished", "1 of 3 failed"}


def test_diverged_loss_does_not_vanish_from_the_mean(write_run, tmp_path):
    write_run("a", [0.5, 0.4])
    write_run("b", [0.5, math.nan], seed=1)
    runs = load_runs([tmp_path])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        statistics = curve_statistics(runs.curves, "train_loss")
        table = summary_table(runs, 0.4)
    assert statistics["mean"].tolist() == [0.5, math.inf]
    assert statistics["n"].tolist() == [2, 2]
    assert "diverged" in table_markdown(table, runs, "command")


def test_budget_separates_rows_only_where_it_is_read(write_run, tmp_path):
    for budget in (0.1, 0.2):
        write_run(f"rad-{budget}", [0.5], budget=budget)
    write_run("exact", [0.5], method="exact", budget=0.1)
    table = summary_table(load_runs([tmp_path]), 0.1)
    assert table["method"].tolist() == ["exact", "rad_proj", "rad_proj"]
    assert table["budget"].isna().tolist() == [True, False, False]


def test_settings_mixed_in_a_row_are_marked(write_run, tmp_path):
    write_run("a", [0.5])
    write_run("b", [0.5], seed=1, iterations=40, batch_size=99)
    table = summary_table(load_runs([tmp_path]), 0.1)
    assert table["notes"].item() == "mixed iterations; mixed batch_size"


def test_studies_are_separate(write_run, tmp_path):
    write_run("a", [0.5])
    write_run("b", [0.5, 0.4], experiment="another")
    studies = list(load_runs([tmp_path]).studies())
    assert [(experiment, len(runs.curves)) for experiment, _, runs in studies] == [("another", 2), ("study", 1)]
    assert all(isinstance(runs.runs, pd.DataFrame) for *_, runs in studies)
