"""Budgets that are sizes, from the command line to records, tables and figures."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from experiments import budgets
from experiments.runs.records import load_runs
from experiments.runs.study import build
from experiments.show.figures import lines


@pytest.mark.parametrize(
    ("budget", "number", "said"),
    [(0.1, 0.1, "0.1"), (1, 1, "1"), ("50MB", 50_000_000, "50MB"), ("1.5kB", 1500, "1.5kB"), ("2KiB", 2048, "2.048kB")],
)
def test_numbers_and_what_is_said_of_them(budget, number, said):
    assert budgets.number(budget) == number
    assert budgets.said(number) == said


def test_what_is_no_size_has_none():
    assert budgets.size("50XB") is None
    assert budgets.size(0.1) is None
    assert budgets.size("40kB") == 40_000


@pytest.mark.parametrize("method", ["rad_auto", "rad_proj", "rad_round", "small_batch"])
def test_a_run_holds_no_more_than_its_size(config, method):
    _, meta = build(config(f"method={method}", "budget=40kB"))
    assert meta["budget"] == 40_000
    assert 0.6 * 40_000 < meta["saved_bytes"] <= 40_000


def test_records_tables_and_lines_know_sizes(cli, tmp_path):
    cli("method=rad_auto", "budget=40kB", f"run_dir={tmp_path / 'a'}")
    cli("method=rad_auto", "budget=60kB", f"run_dir={tmp_path / 'b'}")
    assert json.loads((tmp_path / "a" / "meta.json").read_text())["budget"] == 40_000
    runs = load_runs([tmp_path / "a", tmp_path / "b"])
    assert [line.label for line in lines(runs.curves)] == [
        "RAD, bits allocated, budget 40kB",
        "RAD, bits allocated, budget 60kB",
    ]


def test_plans_made_on_the_way_are_resumed_to_the_bit(config):
    def run(state=None):
        trainer, _ = build(
            config("method=rad_auto", "budget=40kB", "method.every=3", "iterations=8", "evaluate.test_every=4")
        )
        states = []
        if state is not None:
            trainer.restore(state)
        trainer.run(lambda _: None, lambda s: states.append(copy.deepcopy(s)))
        return trainer, states

    whole, states = run()
    assert [s["iteration"] for s in states] == [0, 4, 8]
    assert whole.allocator is not None
    for state in states[:-1]:
        resumed, _ = run(state)
        assert resumed.allocator.state_dict() == whole.allocator.state_dict()
        for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(p, q)
