"""What scripts/status.py says of runs in all their states."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from filelock import FileLock

from experiments.errors import UserError
from experiments.runs.progress import find, progress

ROOT = Path(__file__).parents[3]
START = datetime(2026, 1, 1, tzinfo=UTC)


def write(path: Path, status: str, iteration: int, began: int = 0) -> Path:
    path.mkdir(parents=True)
    meta = {"status": status, "iterations": 100, "sessions": [{"started": START.isoformat(), "iteration": began}]}
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
    assert (found.name, found.state, found.iteration, found.iterations) == ("mlp/a", "running", 40, 100)
    assert (found.train_loss, found.test_loss) == (0.5, 2.25)
    assert found.seconds_left == pytest.approx(60 / 30 * 60 - 10)  # 30 iterations a minute, 60 to go, 10 s ago


def test_all_states_are_found_running_ones_first(tmp_path):
    for status in ("finished", "failed", "running"):
        write(tmp_path / "x" / status, status, iteration=40)
    write(tmp_path / "x" / "damaged", "running", iteration=40)
    (tmp_path / "x" / "damaged" / "meta.json").write_text("{")
    assert [p.state for p in find(tmp_path, START)] == ["stopped", "failed", "damaged", "finished"]


def test_nothing_to_show_is_said(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        find(tmp_path / "none", START)
    with pytest.raises(UserError, match="there is no run below"):
        find(tmp_path, START)


def test_the_script_shows_a_real_run(cli, tmp_path):
    cli("method=exact")
    environment = os.environ | {"COLUMNS": "160", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "scripts/status.py", str(tmp_path / "runs")]
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert "4 of 4" in said
    assert "1 finished" in said
