"""Table, figures and verdict of several runs of the reactor, and what one gradient costs."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

import rad
from experiments.runs.configs import composed
from experiments.runs.launch import launch
from experiments.runs.records import Runs, load_runs
from experiments.runs.study import make
from experiments.studies.reactor.results import (
    THETA,
    cost_table,
    gradient_costs,
    publish_reactor,
    reactor_table,
    verdict,
)
from rad.pde import reactor, simulate
from scripts.reactor import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    """Two seeds of exact gradients, one of a sample, on a small grid; nobody writes to them."""
    folder = tmp_path_factory.mktemp("runs")
    for settings in ("method=exact seed=0", "method=exact seed=1", "method=rad_same budget=0.1"):
        launch(composed(["experiment=reactor", "scale=smoke", "iterations=6", f"runs={folder}", *settings.split()]))
    return load_runs([folder])


def test_rows_say_what_the_records_say(runs):
    curves = runs.curves[runs.curves["method"] == "exact"]
    losses = curves.pivot(index="iteration", columns="seed", values="train_loss")
    target = losses[0].iloc[3] if losses[0].iloc[3] > losses[1].iloc[3] else losses[1].iloc[3]
    exact, sampled = reactor_table(runs, target).to_dict("records")
    assert exact["method"] == "exact"
    assert exact["n"] == exact["reached"] == 2
    assert exact["final"] == pytest.approx(losses.iloc[-1].mean())
    assert exact["of_exact"] == 1
    assert exact["iterations"] == sum((losses[seed] <= target).idxmax() for seed in (0, 1)) / 2
    other = runs.curves[runs.curves["method"] == "rad_same"].sort_values("iteration")["train_loss"].iloc[-1]
    assert sampled["of_exact"] == pytest.approx(other / losses[0].iloc[-1])  # of the same seed
    assert math.isnan(sampled["final_half"])
    assert math.isnan(reactor_table(runs, 1e-9)["iterations"].iloc[0])


def test_costs_of_a_gradient(runs):
    exact, sampled = gradient_costs(runs, rounds=1, draws=30).to_dict("records")
    assert exact["noise"] == 0
    problem = make(compose_reactor().problem)
    theta = torch.tensor(THETA, requires_grad=True)
    (true,) = torch.autograd.grad(simulate(theta, problem, rad.Exact()), theta)
    config = compose_reactor("method=rad_same", "budget=0.1")
    sketch, generator = make(config.method).sketch, torch.Generator().manual_seed(1)
    errors = []
    for _ in range(30):
        (draw,) = torch.autograd.grad(simulate(theta, problem, sketch=sketch, generator=generator), theta)
        errors.append(((draw - true).norm() / true.norm()).square().item())
    again = math.sqrt(sum(errors) / len(errors))
    assert sampled["noise"] == pytest.approx(again, rel=0.5)
    assert min(exact["seconds"], sampled["seconds"]) > 0


def compose_reactor(*overrides: str):
    return composed(["experiment=reactor", "scale=smoke", *overrides])


def test_files_are_written(runs, tmp_path):
    text = publish_reactor(runs, tmp_path / "out", 0.05, rounds=1, draws=3, command="the command")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *("control.pdf", "control.png", "curves.pdf", "curves.png", "table.csv", "table.md")
    }
    assert "`the command`" in text
    assert len(pd.read_csv(tmp_path / "out" / "table.csv")) == 2


def test_verdict_counts_finished_runs_of_one_percent_only():
    rows = [("rad_same", 0.1, 2.0, True), ("rad_same", 0.01, 1.06, True), ("rad_even", 0.01, 1.0, True)]
    rows += [("rad_proj", 0.01, 1.0, False)]
    table = pd.DataFrame(rows, columns=["method", "bytes_ratio", "of_exact", "finished"]).assign(n=3)
    said = verdict(table)
    assert said.count("%: holds") == said.count("%: does not hold") == 1
    assert "projection" not in said
    assert "no verdict" in verdict(table[:1])


def test_cost_grows_with_grid_and_steps():
    config = compose_reactor("method=exact")
    rows = cost_table([(9, 50), (17, 50), (9, 200)], {"all": make(config.method)}, rounds=1)
    megabytes = [float(row["all: MB"]) for row in rows]
    fields = [4 * (n - 2) ** 2 * steps / 1e6 for n, steps in ((9, 50), (17, 50), (9, 200))]
    assert megabytes == pytest.approx(fields, abs=0.02)
    assert reactor(nx=9, ny=9, dt=0.25 / 64, steps=50, diffusion=0.25).steps == 50


@pytest.mark.parametrize(("arguments", "reason"), [([], "either runs or --cost"), (["nowhere"], "nowhere is not a")])
def test_command_line_says_what_is_wrong(arguments, reason, tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    assert stopped.value.code != 0
    assert reason in f"{stopped.value.code}{capsys.readouterr().err}"
