"""The benchmark script: that it measures what it says. Its timings are nobody's business here."""

from __future__ import annotations

import sys

import pytest
import torch

from scripts import bench as script


@pytest.fixture
def bench(digits, monkeypatch, capsys):
    """Calls the script; returns what it printed, and what it said when it stopped."""

    def call(*args: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["scripts/bench.py", *args])
        threads, code = torch.get_num_threads(), None
        try:
            script.main()
        except SystemExit as stopped:
            code = stopped.code
        finally:
            torch.set_num_threads(threads)
        said = capsys.readouterr()
        return said.out, "" if code is None else f"{said.err}{code}"

    return call


@pytest.mark.slow
def test_a_row_for_each_method_and_exact_first(bench, tmp_path):
    out = tmp_path / "results" / "bench.md"
    options = ["--rounds", "2", "--steps", "2", "--threads", "1", "--out", str(out)]
    printed, stopped = bench(*options, "data=mnist", "batch_size=50", "method=rad_round,exact")
    assert stopped == ""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if "|" in line]
    assert [row[0] for row in rows[2:]] == ["exact", "rad_round"]
    assert rows[2][3].startswith("1.00 ")
    assert 0.1 < float(rows[3][-1]) < 0.13
    assert printed in out.read_text() + "\n"
    assert "mlp on mnist" in printed


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["budget=3"], "error: budget must lie in (0, 1]"),
        (["--rounds", "1"], "--rounds: must be a whole number from 2"),
    ],
)
def test_mistakes_are_named(bench, args, said):
    assert said in bench(*args)[1]
