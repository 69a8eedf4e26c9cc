"""What scripts/status.py says of runs in all their states."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console

from experiments.errors import UserError
from experiments.runs.progress import find, progress
from scripts.status import main, table

START = datetime(2026, 1, 1, tzinfo=UTC)


def write(path: Path, status: str, iteration: int, began: int = 0) -> Path:
    path.mkdir(parents=True)
    which = {"experiment": path.parent.name, "method": "rad_diff", "budget": 0.05, "seed": 2}
    sessions = [{"started": START.isoformat(), "iteration": began}]
    meta = {**which, "status": status, "iterations": 100, "sessions": sessions}
    (path / "meta.json").write_text(json.dumps(meta))
    records = [{"iteration": 0, "train_loss": 2.5, "test_loss": 2.25}, {"iteration": iteration, "train_loss": 0.5}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    minute = START.timestamp() + 60
    os.utime(path / "metrics.jsonl", (minute, minute))
    (path / ".lock").touch()
    return path


def test_a_run_whose_lock_is_held_is_running_and_has_time_left(tmp_path):
    path = write(tmp_path / "mlp" / "a", "running", iteration=40, began=10)
    now = START + timedelta(seconds=70)
    assert progress(path, now).state == "stopped"
    with FileLock(path / ".lock"):
        found = progress(path, now)
    assert (found.experiment, found.method, found.budget, found.seed) == ("mlp", "rad_diff", 0.05, 2)
    assert (found.name, found.state, found.iteration, found.iterations) == ("mlp/a", "running", 40, 100)
    assert (found.train_loss, found.test_loss) == (0.5, 2.25)
    assert found.seconds_left == pytest.approx(60 / 30 * 60 - 10)  # 30 iterations a minute, 60 to go, 10 s ago


def test_all_states_are_found_running_ones_first(tmp_path):
    for status in ("finished", "failed", "running"):
        write(tmp_path / "x" / status, status, iteration=40)
    write(tmp_path / "x" / "damaged", "running", iteration=40)
    (tmp_path / "x" / "damaged" / "meta.json").write_text("{")
    assert [p.state for p in find(tmp_path, START)] == ["stopped", "failed", "damaged", "finished"]


def test_what_a_file_says_commands_no_terminal(tmp_path):
    path = write(tmp_path / "x" / "a", "finished", iteration=40)
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"experiment": "[/] \x1b[2J", "method": "[red]m[/blue]"}))
    console = Console(file=io.StringIO(), width=100)
    console.print(table(find(tmp_path, START)))
    said = console.file.getvalue()
    assert "[/] [2J" in said
    assert "[red]m[/blue]" in said
    assert "\x1b" not in said


def test_nothing_to_show_is_said(tmp_path):
    with pytest.raises(UserError, match="is not a directory"):
        find(tmp_path / "none", START)
    with pytest.raises(UserError, match="holds no run"):
        find(tmp_path, START)


def test_the_script_shows_a_real_run(cli, tmp_path, monkeypatch, capsys):
    cli("method=exact")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", ["scripts/status.py", str(tmp_path / "runs")])
    main()
    said = capsys.readouterr().out
    assert re.search(r"mlp-mnist +exact +– +0 +finished +4/4", said)
    assert "1 finished" in said


def test_a_table_fits_a_hundred_columns_and_shows_what_tells_runs_apart(tmp_path):
    common = "data=mnist5k,evaluate.train_every=20,iterations=400"
    for rate in ("0.001", "0.00012"):
        name = f"method=rad_diff,budget=0.05,seed=2,{common},optimizer.lr={rate},optimizer.weight_decay=1e-05"
        write(tmp_path / "gradient_noise" / name, "finished", iteration=12_345)
    write(tmp_path / "mnist_mlp" / f"method=exact,{common}", "finished", iteration=12_345)
    said = _text(table(find(tmp_path, START)))
    assert max(map(len, said.splitlines())) <= 100
    assert len([line for line in said.splitlines() if "finished" in line]) == 4  # a line for each, and the caption
    assert "lr=0.00012" in said
    assert all(whole in said for whole in ("gradient_noise", "rad_diff", "12,345/100", "2.25"))
    assert "weight_decay" not in said  # the same in both
    assert "iterations=400" not in said
    assert "1 not shown" in _text(table(find(tmp_path, START), rows=2))


def _text(made) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(made)
    return console.export_text()
