"""Plans that follow a training, and training that goes on where it was left."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rad
from rad.budget import live
from rad.measure import saved_bytes

BUDGET = 4000


class Run:
    """A training that can be saved and gone on with."""

    def __init__(self, converted: bool = False) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 4))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-2)
        self.batches = torch.Generator().manual_seed(1)
        self.seeds = rad.nn.Seeds(2)
        self.allocator = rad.Allocator(self.model, BUDGET, every=5, generator=self.seeds)
        self.plans: list[rad.Plan] = []

    def go(self, steps: int) -> None:
        for _ in range(steps):
            x = torch.randn(24, 16, generator=self.batches)
            y = x[:, :4].argmax(1)
            if self.allocator.step(lambda x=x, y=y: F.cross_entropy(self.model(x), y)):
                self.plans.append(self.allocator.plan)
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()

    def save(self) -> io.BytesIO:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "allocator": self.allocator.state_dict(),
            "seeds": self.seeds.get_state(),
            "batches": self.batches.get_state(),
        }
        torch.save(state, file := io.BytesIO())
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> None:
        state = torch.load(file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.allocator.load_state_dict(state["allocator"])
        self.seeds.set_state(state["seeds"])
        self.batches.set_state(state["batches"])


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_each_measurement_has_signs_of_its_own_and_starts_from_the_plan_in_force(monkeypatch):
    seeds, starts, run = [], [], Run()

    def watched(*args, seed: int, start: rad.Plan | None, **options) -> rad.Plan:
        seeds.append(seed), starts.append(start)
        return rad.allocate(*args, seed=seed, start=start, **options)

    monkeypatch.setattr(live, "allocate", watched)
    run.go(16)
    assert len(seeds) == len(set(seeds)) == 4
    assert starts == [None, *run.plans[:-1]]


def test_all_options_reach_the_measurement(monkeypatch):
    seen = []
    monkeypatch.setattr(live, "allocate", lambda *args, **options: seen.append((args[2:], options)) or PLANNED)
    monkeypatch.setattr(live, "convert", lambda *args, **options: None)
    for given in ({"nbytes": 4000}, {"variance": 0.5}):
        rad.Allocator(nn.Linear(2, 2), **given, draws=3, passes=2, batches=4, seed=7).step(lambda: torch.zeros(()))
    options = {"draws": 3, "passes": 2, "batches": 4, "seed": 7, "start": None}
    assert seen == [((4000,), {**options, "variance": None}), ((None,), {**options, "variance": 0.5})]


PLANNED = rad.Plan((), 0, 1.0, "Linear", "x", exact=True)


@pytest.mark.parametrize("option", [{"draws": 0}, {"passes": 0.5}, {"batches": True}, {"seed": -1}, {"nbytes": 0}])
def test_bad_options_are_refused_before_any_step(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        rad.Allocator(nn.Linear(2, 2), **{"nbytes": BUDGET, **option})


def test_a_new_plan_every_so_many_steps():
    run = Run()
    run.go(16)
    assert len(run.plans) == 4
    assert len({plan.key for plan in run.plans}) > 1
    x = torch.randn(24, 16)
    assert saved_bytes(lambda: F.cross_entropy(run.model(x), x[:, :4].argmax(1))).total <= BUDGET
    assert all(module.recipe.sketch == run.plans[-1] for module in run.model.modules())


@pytest.mark.parametrize("steps", [5, 8])
def test_resumed_to_the_bit(steps):
    whole = Run()
    whole.go(14)
    first = Run()
    first.go(steps)
    second = Run()
    second.load(first.save())
    assert second.allocator.plan == first.allocator.plan
    second.go(14 - steps)
    assert equal(whole.model, second.model)
    assert second.allocator.plan == whole.allocator.plan
    assert second.allocator.state_dict() == whole.allocator.state_dict()


def test_resumed_before_the_first_step():
    whole, other = Run(), Run()
    other.load(Run().save())
    whole.go(3)
    other.go(3)
    assert equal(whole.model, other.model)


def test_measuring_draws_nothing_from_the_run():
    run = Run()
    run.go(1)
    before = run.seeds.get_state().clone(), torch.get_rng_state()
    run.allocator._steps = 5
    x = torch.randn(24, 16, generator=run.batches)
    run.allocator.step(lambda: run.model(x).square().mean())
    assert torch.equal(before[0], run.seeds.get_state())
    assert torch.equal(before[1], torch.get_rng_state())


def test_a_converted_model_goes_on_with_its_seeds():
    model = rad.convert(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4)), rad.Rounding(bits=2))
    own = rad.nn.seeds(model)
    x = torch.randn(24, 16)
    rad.Allocator(model, BUDGET, every=1).step(lambda: model(x).square().mean())
    assert rad.nn.seeds(model) is own


def test_a_variance_in_place_of_bytes():
    run = Run()
    run.allocator = rad.Allocator(run.model, variance=0.05, every=2, passes=2)
    run.go(3)
    assert run.allocator.plan is not None
    assert run.allocator.plan.variance <= 0.05


@pytest.mark.parametrize("every", [0, -1, 2.5, True, "5"])
def test_bad_steps(every):
    with pytest.raises(ValueError, match="every must be a whole number of steps"):
        rad.Allocator(nn.Linear(2, 2), BUDGET, every=every)


def test_seeds_that_would_begin_again_with_each_plan():
    with pytest.raises(TypeError, match=r"generator must be rad\.nn\.Seeds"):
        rad.Allocator(nn.Linear(2, 2), BUDGET, generator=3)


@pytest.mark.parametrize("state", [None, {}, {"steps": 0}, {"steps": -1, "plan": None}, {"steps": 1.5, "plan": None}])
def test_a_state_of_something_else(state):
    with pytest.raises(ValueError, match="state must be what state_dict returned"):
        rad.Allocator(nn.Linear(2, 2), BUDGET).load_state_dict(state)


def test_a_state_of_another_model():
    run = Run()
    run.go(1)
    state = run.allocator.state_dict()
    with pytest.raises(ValueError, match="another model|other modules"):
        rad.Allocator(nn.Linear(2, 2), BUDGET).load_state_dict(state)
    damaged = copy.deepcopy(state)
    damaged["plan"]["places"] = 3
    with pytest.raises(ValueError, match="no plan: places must be a mapping"):
        run.allocator.load_state_dict(damaged)
    other = rad.Allocator(nn.Linear(2, 2), BUDGET)
    with pytest.raises(ValueError, match="another model|other modules"):
        other.load_state_dict(state)
    assert other.state_dict()["steps"] == 0


def test_in_the_beginning_it_measures_after_twice_as_many_steps_each_time():
    run, x = Run(), torch.randn(24, 16)
    allocator = rad.Allocator(run.model, BUDGET, every=40, generator=run.seeds)
    planned = [i for i in range(81) if allocator.step(lambda: run.model(x).square().mean())]
    assert planned == [0, 8, 16, 32, 40, 80]
