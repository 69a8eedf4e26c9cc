"""The benchmark script: that it measures what it says. Its timings are nobody's business here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def bench(digits: Path, *args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts" / "bench.py", *args]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"RAD_DATA": str(digits)})


@pytest.mark.slow
def test_a_row_for_each_method_and_exact_first(digits, tmp_path):
    out = tmp_path / "results" / "bench.md"
    options = ["--rounds", "2", "--steps", "2", "--threads", "1", "--out", str(out)]
    done = bench(digits, *options, "data=mnist", "batch_size=50", "method=rad_round,exact")
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line]
    assert [row[0] for row in rows[2:]] == ["exact", "rad_round"]
    assert rows[2][3].startswith("1.00 ")
    assert 0.1 < float(rows[3][-1]) < 0.13
    assert done.stdout in out.read_text() + "\n"
    assert "mlp on mnist" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "said"),
    [(["budget=3"], "error: budget must lie in (0, 1]"), (["--rounds", "1"], "--rounds must be at least 2, got 1")],
)
def test_mistakes_are_named(digits, args, said):
    done = bench(digits, *args)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
