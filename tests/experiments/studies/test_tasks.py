"""What holds for the task of every kind of study: order of record and save, what a state holds, what counts as time."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from outcomes import equal

import experiments.studies.cases
import experiments.studies.reactor.control
import experiments.studies.trainer
from experiments.runs.study import Record, Task, build
from experiments.studies.reactor.control import Control
from experiments.studies.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore::rad.BudgetFloorWarning")

TRAINING = ["data=cifar10", "model.widths=[3072,16,10]", "batch_size=30", "iterations=6", "evaluate.test_every=2"]
TASKS = {
    "exact": [*TRAINING, "method=exact", "data.crop=2", "data.flip=true"],
    "rad_diff": [*TRAINING, "method=rad_diff", "data.crop=2", "data.flip=true"],
    "schedule": [*TRAINING, "method=rad_round", "schedule.step_size=2", "clip_norm=0.1", "evaluate.train_examples=7"],
    "reactor": ["experiment=reactor", "scale=smoke", "method=rad_same", "iterations=4", "problem.steps=50"],
    "depth": ["experiment=graph_depth", "data=mnist", "scale=smoke", "depths=[1,2]", "net.depths=[1,2]", "net.width=9"],
    "noise": [
        *("experiment=gradient_noise", "scale=smoke", "~nets.cnn", "~nets.irnn", "budgets=[0.1,1]"),
        *("nets.mlp.model.widths=[784,16,10]", "nets.mlp.batch_size=40", "steps=[1]"),
    ],
}


@pytest.fixture
def made(composed) -> Callable[[list[str]], Task]:
    """Builds a task from overrides."""
    return lambda overrides: build(composed(*overrides))[0]


def run(task: Task) -> tuple[list[Record], list[Record]]:
    """Runs to the end; returns records without times, and the states that follow each, as they come back from disk."""
    records, states = [], []

    def record(entry: Record) -> None:
        assert len(records) == len(states)
        records.append({k: v for k, v in entry.items() if k not in ("train_seconds", "seconds")})

    def save(state: Record) -> None:
        states.append(stored(state))
        assert [r["iteration"] for r in records] == [s["iteration"] for s in states]

    task.run(record, save)
    assert len(records) == len(states)
    return records, states


def stored(state: Record) -> Record:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("overrides", TASKS.values(), ids=TASKS)
def test_states_follow_records_and_from_each_it_goes_on_bit_for_bit(made, overrides):
    task = made(overrides)
    records, states = run(task)
    assert records[-1]["iteration"] == task.iteration == task.iterations
    for state in states[:: len(states) // 3]:
        task = made(overrides)
        torch.manual_seed(99)  # another process has drawn other numbers
        task.restore(copy.deepcopy(state))
        assert task.iteration == state["iteration"]
        rest, later = run(task)
        assert rest == [record for record in records if record["iteration"] > state["iteration"]]
        assert equal(later, [s for s in states if s["iteration"] > state["iteration"]])


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def slowed(self, fn: Callable, seconds: float) -> Callable:
        def slow(*args, **kwargs):
            self.now += seconds
            return fn(*args, **kwargs)

        return slow


def slow_cases(clock: Clock, monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    monkeypatch.setattr(experiments.studies.cases, "time", clock)
    task.cases = [clock.slowed(lambda i=i: {"case": i}, 1) for i in range(len(task.cases))]


def slow_trainer(clock: Clock, monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    monkeypatch.setattr(experiments.studies.trainer, "time", clock)
    monkeypatch.setattr(Trainer, "step", clock.slowed(Trainer.step, 1))
    monkeypatch.setattr(Trainer, "evaluate", clock.slowed(Trainer.evaluate, 100))


def slow_control(clock: Clock, monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    monkeypatch.setattr(experiments.studies.reactor.control, "time", clock)
    simulate = Control._simulate

    def slow(self, with_gradient):
        clock.now += 1 if with_gradient else 100
        return simulate(self, with_gradient)

    monkeypatch.setattr(Control, "_simulate", slow)


SLOW = {"exact": slow_trainer, "reactor": slow_control, "depth": slow_cases}


@pytest.mark.parametrize("name", SLOW)
def test_seconds_are_those_of_iterations_alone_and_go_on(made, monkeypatch, name):
    clock, states, records = Clock(), [], []
    with monkeypatch.context() as patch:
        task = made(TASKS[name])
        SLOW[name](clock, patch, task)
        # Whatever is done with records and states takes no time of the iterations either.
        task.run(clock.slowed(records.append, 100), clock.slowed(lambda s: states.append(stored(s)), 100))
        assert task.seconds == task.iterations
        if name == "exact":
            assert [r["train_seconds"] for r in records] == [r["iteration"] for r in records]
    with monkeypatch.context() as patch:
        task = made(TASKS[name])
        SLOW[name](clock, patch, task)
        middle = states[len(states) // 2]
        task.restore(middle)
        assert 0 < task.seconds == middle["seconds"] < task.iterations
        task.run(clock.slowed(lambda r: None, 100), clock.slowed(lambda s: None, 100))
        assert task.seconds == pytest.approx(task.iterations, abs=1 if name == "reactor" else 0)
