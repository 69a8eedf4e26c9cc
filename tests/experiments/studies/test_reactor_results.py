"""Table, figures and verdict of several runs of the reactor, and what one gradient costs."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pytest
import torch

import rad
from experiments.errors import UserError
from experiments.runs.configs import composed
from experiments.runs.launch import launch
from experiments.runs.parts import make
from experiments.runs.records import Runs, load_runs
from experiments.studies.reactor import results
from experiments.studies.reactor.figures import control_figure, curves_figure
from experiments.studies.reactor.results import (
    THETA,
    claim,
    cost_table,
    gradient_costs,
    publish_reactor,
    reactor_table,
    recorded_costs,
    shown_control,
    threads_of,
)
from rad.pde import reactor, simulate, trajectory
from scripts.reactor import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    """Two seeds of exact gradients, one of a sample, on a small grid; nobody writes to them."""
    folder, threads = tmp_path_factory.mktemp("runs"), torch.get_num_threads()
    common = ["experiment=reactor", "scale=smoke", "iterations=6", "threads=1", f"runs={folder}"]
    for settings in ("method=exact seed=0", "method=exact seed=1", "method=rad_same budget=0.1"):
        launch(composed([*common, *settings.split()]))
    torch.set_num_threads(threads)
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
    costs = recorded_costs(runs, tmp_path / "gradients.csv", rounds=1, draws=3)
    text = publish_reactor(runs, tmp_path / "out", 0.05, costs, command="the command")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *("control.pdf", "control.png", "curves.pdf", "curves.png", "table.csv", "table.md")
    }
    assert "`the command`" in text
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert len(table) == 2
    (line,) = [line for line in text.splitlines() if line.startswith("| RAD, same sample |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:5] == ["RAD, same sample", "0.1", "1", f"{table['saved_bytes'][1]:,.0f}", cells[4]]
    assert float(cells[4]) == pytest.approx(table["saved_bytes"][1] / table["saved_bytes"][0], abs=1e-5)
    # Gradients are timed on as many threads as the runs had, whatever this process has.
    assert "1 thread(s)" in next(line for line in text.splitlines() if line.startswith("- Gradients:"))


def test_costs_are_measured_once_and_again_where_one_is_missing(runs, tmp_path, monkeypatch):
    def measured(runs: Runs, rounds: int, draws: int) -> pd.DataFrame:
        asked.append((rounds, draws))
        found = runs.runs.drop_duplicates(["method", "budget"])[["method", "budget"]]
        return found.reset_index(drop=True).assign(
            seconds=float(len(asked)), noise=0.1, noise_error=0.2, measured="here"
        )

    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(results, "gradient_costs", measured)
    file = tmp_path / "gradients.csv"
    sampled = Runs(runs.runs[runs.runs["method"] == "rad_same"], runs.curves)
    assert recorded_costs(sampled, file, 4, 5)["seconds"].tolist() == [1.0]
    assert recorded_costs(runs, file, 6, 7)["seconds"].tolist() == [2.0, 2.0]  # exact, which has no budget, as well
    pd.testing.assert_frame_equal(
        recorded_costs(runs, file, 8, 9), measured(runs, 0, 0).assign(seconds=2.0), check_like=True
    )
    assert asked == [(4, 5), (6, 7), (0, 0)]
    assert recorded_costs(sampled, file, 8, 9)["method"].tolist() == ["rad_same"]  # of more than it was asked for
    file.write_text("method,budget\nrad_same,0.1\n")
    with pytest.raises(UserError, match=r"gradients.csv is damaged .*; delete it to measure again"):
        recorded_costs(runs, file, 8, 9)


def test_costs_are_measured_on_the_threads_of_the_runs(runs):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads_of(runs):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_curves_are_those_of_the_records(runs):
    (axes,) = curves_figure(runs.curves).axes
    drawn = {line.get_label(): line for line in axes.get_lines()}
    assert set(drawn) == {"exact", "RAD, same sample, budget 0.1"}
    losses = runs.curves[runs.curves["method"] == "exact"].groupby("iteration")["train_loss"].mean()
    assert drawn["exact"].get_xdata() == pytest.approx(losses.index)
    assert drawn["exact"].get_ydata() == pytest.approx(losses)
    assert "n = 1 to 2" in axes.get_legend().get_title().get_text()


def test_control_is_shown_with_method_and_seed(runs):
    theta, problem, title = shown_control(runs)
    assert title == "control of the reactor: exact, seed 0"
    figure = control_figure(theta, problem, title)
    assert figure.get_suptitle() == title
    above, below = figure.subfigs
    pictures = [axes for axes in above.axes if axes.images]
    fields, targets, away = (np.array([axes.images[0].get_array() for axes in pictures[i : i + 6]]) for i in (0, 6, 12))
    np.testing.assert_allclose(away, fields - targets, atol=1e-6)
    steps = torch.linspace(0, problem.steps - 1, 13, dtype=torch.float64).round().int().tolist()[1::2]
    shown = trajectory(theta, problem, steps)
    np.testing.assert_allclose(fields, shown.field.transpose(1, 2))
    assert [axes.get_title() for axes in pictures[:6]] == [f"t = {t:.2f}" for t in shown.times]
    (bars,) = [axes.containers[0] for axes in below.axes if axes.containers]
    assert [bar.get_height() for bar in bars] == pytest.approx(theta.tolist())


def test_claim_counts_finished_runs_of_one_percent_only():
    rows = [("rad_same", 0.1, 2.0, 0.01, True), ("rad_same", 0.01, 1.06, 0.001, True)]
    rows += [("rad_even", 0.01, 1.0, 0.001, True), ("rad_diff", 0.01, 1.06, 0.2, True)]
    rows += [("rad_proj", 0.01, 1.0, 0.001, False)]
    columns = ["method", "bytes_ratio", "of_exact", "final_half", "finished"]
    table = pd.DataFrame(rows, columns=columns).assign(n=3, final=1.0)
    verdicts = re.findall(r"\* RAD, (.*?) sample .*: (.*)\.", claim(table))
    assert verdicts == [("same", "does not hold"), ("evenly spaced", "holds"), ("different", "not decided")]
    assert "final loss 1.060 ± 0.212 of exact's (n = 3)" in claim(table)
    assert "projection" not in claim(table)
    assert "no verdict" in claim(table[:1])


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
