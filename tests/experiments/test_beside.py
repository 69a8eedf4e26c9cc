"""Training beside a converted copy: both see the same, and a whole budget changes nothing."""

from __future__ import annotations

import sys

import pytest
import torch

from scripts import beside as script


@pytest.fixture
def beside(monkeypatch, capsys):
    """Calls the script; returns its rows by column, and what it said when it stopped."""

    def call(*args: str) -> tuple[list[list[str]], str]:
        monkeypatch.setattr(sys, "argv", ["scripts/beside.py", *args])
        state, code = torch.get_rng_state(), None
        try:
            script.main()
        except SystemExit as stopped:
            code = stopped.code
        finally:
            torch.set_rng_state(state)
        said = capsys.readouterr()
        lines = [line for line in said.out.splitlines() if line.startswith("|")]
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
        return rows, "" if code is None else f"{said.err}{code}"

    return call


@pytest.mark.slow
def test_a_whole_budget_trains_like_stock_and_a_tenth_otherwise(beside, tmp_path):
    out = tmp_path / "beside.md"
    options = ["--nets", "gpt", "--batch", "2", "--size", "32", "--steps", "4"]
    (whole,), stopped = beside(*options, "--budget", "1", "--out", str(out))
    assert stopped == ""
    assert "--budget 1" in out.read_text().splitlines()[0]
    (few,), _ = beside(*options, "--budget", "0.1")
    (again,), _ = beside(*options, "--budget", "0.1")
    losses = [[tuple(map(float, cell.split(" → "))) for cell in row[3:]] for row in (whole, few)]
    assert len(losses[0]) == 4
    assert all(abs(exact - ours) < 2e-3 for exact, ours in losses[0])
    assert [exact for exact, _ in losses[1]] == [exact for exact, _ in losses[0]]  # the same batches
    assert losses[1][0][0] == losses[1][0][1]  # and weights
    assert losses[1][-1][0] != losses[1][-1][1]
    assert float(few[2]) < 0.3 < float(whole[2])
    assert few == again


@pytest.mark.slow
def test_image_nets_are_given_digits_of_their_size(beside):
    (row,), stopped = beside("--nets", "resnet18", "--batch", "4", "--size", "32", "--steps", "2")
    assert stopped == ""
    exact, ours = map(float, row[3].split(" → "))
    assert exact == ours
    assert float(row[2]) < 0.15


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--nets", "lstm"], "only image nets with labels and language models"),
        (["--nets", "gpt3"], "there is no net 'gpt3'; choose from"),
        (["--steps", "0"], "--steps: must be a whole number from 1"),
        (["--budget", "2"], "budget must lie in"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_mistakes_are_one_sentence(beside, args, said):
    rows, stopped = beside("--nets", "gpt", "--steps", "1", *args)
    assert not rows
    assert said in stopped
    assert "Traceback" not in stopped
