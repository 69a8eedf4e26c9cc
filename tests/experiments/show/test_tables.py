"""Where a script's file is to be written is looked at before it works, and left as it was."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from experiments.errors import UserError
from experiments.show.figures import summary_cells
from experiments.show.tables import markdown, prepare, provenance_lines, publish


def test_a_file_that_can_be_written_is_left_as_it_was(tmp_path):
    prepare(None)
    prepare(tmp_path / "new" / "table.md")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "old.md").write_text("found before")
    prepare(tmp_path / "old.md")
    assert (tmp_path / "old.md").read_text() == "found before"


def test_columns_of_numbers_are_set_to_the_right():
    rows = [{"a": "x", "b": "1", "c": "2"}, {"a": "y", "b": "3", "c": "4"}]
    body = "| x | 1 | 2 |\n| y | 3 | 4 |"
    assert markdown(rows) == f"| a | b | c |\n| --- | --- | --- |\n{body}"
    assert markdown(rows, right=True) == f"| a | b | c |\n| --- | --: | --: |\n{body}"


def test_where_a_run_comes_from():
    first = {"commit": "a" * 40, "dirty": False, "cpu": "one", "device": "cpu", "threads": 1, "torch": "2.0"}
    again = first | {"torch": "2.1"}
    other = first | {"commit": "b" * 40, "dirty": True, "cpu": "two", "device": "cuda", "threads": 4, "torch": "2.2"}
    meta = {"data": "toy", "seed": 7, "command": "python run.py seed=7", "sessions": [first, again, other]}
    data, commit, hardware, command = provenance_lines(meta)
    assert data == "- Data: toy; seed 7"
    assert commit.count("aaaaaaaa") == 1
    assert commit.index("aaaaaaaa") < commit.index("; ") < commit.index("bbbbbbbb")
    assert "changes" in commit[commit.index("bbbb") :]
    assert hardware == "- Hardware: one, cpu, 1 thread(s); two, cuda, 4 thread(s); torch 2.2"
    assert command == "- Command: `python run.py seed=7`"


ROW = {
    "experiment": "mlp", "data": "toy", "method": "rad_proj", "budget": 0.1, "n": 3, "batch_size": "50",
    "saved_bytes": 12345.0, "bytes_ratio": 0.12345, "peak_ratio": 0.5678, "target_loss": 0.2, "reached": 3,
    "iterations_to_target": 1234.4, "iterations_to_target_half": 56.6, "train_loss": 0.01234,
    "train_loss_half": 0.00123, "test_accuracy": 0.98765,
    "test_accuracy_half": 0.00432, "step_ms": 1.234, "commits": "abc", "notes": "",
}  # fmt: skip
CELLS = {
    "method": "RAD, projection", "budget": "0.1", "n": "3", "batch": "50", "bytes": "12,345", "of exact": "0.123",
    "peak of exact": "0.568",
    "iterations to 0.2": "1,234 ± 57", "final train loss": "0.0123 ± 0.00123",
    "final test accuracy (%)": "98.77 ± 0.43", "step (ms)": "1.23", "commit": "abc", "notes": "",
}  # fmt: skip
CHANGED = {
    "some": ({"reached": 2}, {"iterations to 0.2": "reached by 2 of 3"}),
    "none": ({"reached": 0}, {"iterations to 0.2": "reached by 0 of 3"}),
    "not recorded": ({"reached": math.nan}, {"iterations to 0.2": "not recorded"}),
    "no budget": ({"budget": math.nan}, {"budget": "–"}),
    "bytes for a budget": ({"budget": 5e7}, {"budget": "50MB"}),
    "no peak": ({"peak_ratio": math.nan}, {"peak of exact": "–"}),
    "single": ({"n": 1, "reached": 1, "train_loss_half": math.nan}, {"n": "1", "final train loss": "0.0123"}),
    "diverged": ({"train_loss": math.inf, "train_loss_half": math.nan}, {"final train loss": "diverged"}),
    "no accuracy": ({"test_accuracy": math.nan}, {"final test accuracy (%)": "–"}),
}


@pytest.mark.parametrize(("change", "expected"), [({}, {}), *CHANGED.values()], ids=["whole", *CHANGED])
def test_a_row_of_the_summary(change, expected):
    (cells,) = summary_cells(pd.DataFrame([ROW | change]))
    assert cells == CELLS | expected


@pytest.mark.parametrize("change", [{"data": "other"}, {"experiment": "cnn"}])
def test_rows_of_several_studies_say_of_which(change):
    cells = summary_cells(pd.DataFrame([ROW, ROW | change]))
    assert [(row["experiment"], row["data"]) for row in cells] == [
        ("mlp", "toy"),
        (change.get("experiment", "mlp"), change.get("data", "toy")),
    ]


def test_what_is_found_is_written_with_its_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["scripts/some.py", "--out", "x"])
    publish("what was found", tmp_path / "table.md")
    assert (tmp_path / "table.md").read_text() == "`python scripts/some.py --out x`\n\nwhat was found"
    assert capsys.readouterr().out == "what was found\n"


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match="must name a file, but .* is a folder"):
        prepare(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        prepare(tmp_path / "file" / "table.md")


def test_what_cannot_be_written_in_the_end_has_been_printed(tmp_path, capsys):
    (tmp_path / "table.md").symlink_to("/dev/full")
    with pytest.raises(
        SystemExit, match=r"table\.md cannot be written \(No space left on device\); what was found stand"
    ):
        publish("what was found", tmp_path / "table.md")
    assert capsys.readouterr().out == "what was found\n"
