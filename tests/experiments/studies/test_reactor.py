"""The study of the reactor as run.py starts it, against a plain loop, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from digits import GROUPS

import rad
from experiments.runs.configs import composed
from experiments.runs.parts import make
from experiments.runs.resources import generator
from experiments.runs.study import build
from rad.pde import simulate

SMALL = ["experiment=reactor", "scale=smoke"]
BATCHES = {"small_batch", "accumulate", "compile_budget", "rad_auto"}  # there is none
METHODS = [m for m in GROUPS["method"] if m not in BATCHES]


@pytest.mark.parametrize("method", sorted(BATCHES))
def test_methods_for_batches_are_refused_in_a_sentence(cli, capsys, method):
    with pytest.raises(SystemExit, match=f"method={method} has no meaning for the reactor, which has no batch"):
        cli(*SMALL, f"method={method}", small=False)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_steps_from_the_command_line(cli, tmp_path, capsys, method):
    cli(*SMALL, f"method={method}", "budget=0.05", "iterations=3", small=False)
    (path,) = {file.parent for file in (tmp_path / "runs").rglob("meta.json")}
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in records] == [0, 1, 2, 3]
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    assert (path / "reactor.png").stat().st_size > 10_000
    assert f"{method}, budget 0.05, after 3 iterations on reactor-17x17" in capsys.readouterr().out


@pytest.fixture
def small():
    """Composes the small reactor: the fixture for nets sets a batch size, which is not here."""

    def made(*overrides: str):
        return composed([*SMALL, "threads=1", *overrides])

    return made


@pytest.mark.parametrize("method", ["exact", "rad_same"])
def test_a_trajectory_is_that_of_a_plain_loop(small, method):
    config = small(f"method={method}", "iterations=6", "seed=3")
    task, _ = build(config)
    records = []
    task.run(records.append, lambda state: None)

    problem, sketches = make(config.problem), generator(3, "sketches")
    theta = torch.rand(7, generator=generator(3, "initial weights")) * 0.2 - 0.1
    theta[0] = 4.932
    theta.requires_grad_()
    adam = torch.optim.Adam([theta], lr=config.optimizer.lr)
    sketch = make(config.method).sketch if method != "exact" else rad.Exact()
    losses = []
    for _ in range(6):
        adam.zero_grad()
        loss = simulate(theta, problem, sketch, generator=sketches)
        losses.append(loss.item())
        loss.backward()
        adam.step()
    losses.append(simulate(theta.detach(), problem, rad.Exact()).item())
    np.testing.assert_allclose([r["train_loss"] for r in records], losses, rtol=1e-6)
    np.testing.assert_allclose([records[-1][f"theta_{j}"] for j in range(7)], theta.detach().numpy(), rtol=1e-6)


MISTAKES = {
    "small batch": (["method=small_batch"], "method=small_batch has no meaning for the reactor"),
    "unstable": (["problem.dt=0.01"], "0.01"),
    "grid": (["problem.nx=2"], "nx"),
    "budget": (["budget=0"], "budget"),
    "snapshots": (["method=checkpoint", "snapshots=0"], "snapshots must be at least 1, got 0"),
    "diverging": (["method=exact", "steady=1e30"], "at the start, steady=1e+30: the field diverges"),
}


@pytest.mark.parametrize(("args", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_named_in_a_sentence(cli, tmp_path, args, message):
    with pytest.raises(SystemExit) as stopped:
        cli(*SMALL, *args, small=False)
    assert str(stopped.value).startswith("error: ")
    assert message in str(stopped.value)
    assert not (tmp_path / "runs").exists()
