"""The methods: which bytes they hold and which gradients they give."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import rad
from experiments.errors import UserError
from experiments.methods import Checkpoint, Exact, Rad, SmallBatch, measured
from experiments.models import MLP

PAPER = (784, 300, 300, 300, 10)


def batch(size: int):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, 1, 28, 28, generator=generator)
    return x, torch.randint(10, (size,), generator=generator)


@pytest.mark.parametrize("budget", [0.05, 0.1, 0.5])
def test_small_batch_is_the_largest_that_holds_no_more(budget):
    model, full = MLP(PAPER), batch(150)
    small = SmallBatch("small_batch", rad.Project(budget))
    size = small.batch_size(model, full, F.cross_entropy)
    allowed = measured(Rad("rad", rad.Project(budget)), model, full, F.cross_entropy)
    assert measured(small, model, batch(size), F.cross_entropy) <= allowed
    assert measured(small, model, batch(size + 1), F.cross_entropy) > allowed


def test_small_batch_lands_near_the_papers():
    size = SmallBatch("small_batch", rad.Project(0.1)).batch_size(MLP(PAPER), batch(150), F.cross_entropy)
    assert 17 <= size <= 22


def test_a_budget_too_small_for_one_example_is_refused():
    with pytest.warns(rad.BudgetFloorWarning), pytest.raises(UserError, match="a single example holds more"):
        SmallBatch("small_batch", rad.Project(1e-4)).batch_size(MLP(PAPER), batch(2), F.cross_entropy)


def test_measuring_leaves_the_model_alone():
    model = MLP(PAPER)
    before, types = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    state = torch.get_rng_state()
    measured(Rad("rad", rad.Rounding(0.1)), model, batch(5), F.cross_entropy)
    assert [type(m) for m in model.modules()] == types
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("segments", [1, 2, 3])
def test_checkpointing_is_exact_and_holds_less(segments):
    torch.manual_seed(0)
    model, (x, y) = MLP(PAPER), batch(20)
    F.cross_entropy(model(x), y).backward()
    exact = [p.grad.clone() for p in model.parameters()]
    keys = list(model.state_dict())
    method = Checkpoint("checkpoint", segments)
    if segments == 2:  # more of them keep more inputs, fewer keep more of the last segment
        assert measured(method, model, (x, y), F.cross_entropy) < measured(Exact("e"), model, (x, y), F.cross_entropy)
    model.zero_grad()
    method.prepare(model, Seeds(0))
    F.cross_entropy(model(x), y).backward()
    assert list(model.state_dict()) == keys
    for p, grad in zip(model.parameters(), exact, strict=True):
        torch.testing.assert_close(p.grad, grad)


def test_checkpointing_says_what_it_cannot_do():
    with pytest.raises(UserError, match=r"segments must lie in \[1, 8\].*got 0"):
        Checkpoint("checkpoint", 0).prepare(MLP(PAPER), Seeds(0))
    with pytest.raises(UserError, match="nn.Sequential"):
        Checkpoint("checkpoint", 2).prepare(torch.nn.Linear(2, 2), Seeds(0))
