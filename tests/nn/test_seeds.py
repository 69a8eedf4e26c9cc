"""Seeds: none is given twice, to no call and to no rank; and a call that fails leaves no trace."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
from sketches import held, normal
from torch import Tensor, nn
from torch import distributed as dist
from torch.overrides import TorchFunctionMode

import rad
from rad.nn.seeds import Seeds, Split


def test_a_split_seed_gives_others_of_its_own():
    calls = [Split(seed) for seed in (Seeds(0).next(), Seeds(1).next())]
    given = [int(call.next()) for _ in range(100) for call in calls]
    assert len(set(given)) == 200
    assert given[0] == int(Seeds(0).next())  # a call with one summary takes what it was given


def test_ranks_never_meet(monkeypatch):
    """Not only at the first step: no rank ever draws what another draws before or after it."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    given: list[int] = []
    for rank in range(4):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        seeds = Seeds(7)
        splits = [Split(seeds.next()) for _ in range(50)]
        given += [int(split.next()) for split in splits for _ in range(3)]
    assert len(set(given)) == 4 * 50 * 3


class _Slow(Tensor):
    """Threads change places while one is added to it."""

    def __add__(self, other):
        time.sleep(0.001)
        return super().__add__(other)


def test_threads_never_meet():
    seeds = Seeds(0)
    seeds.set_state(seeds.get_state().as_subclass(_Slow))
    with ThreadPoolExecutor(4) as pool:
        given = [int(seed) for seed in pool.map(lambda _: seeds.next(), range(100))]
    assert len(set(given)) == 100


class _Around(TorchFunctionMode):
    """A mode of somebody else, past whom calls without a rule are passed on."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class _Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 7)  # which does not divide its elements; and has no rule


@pytest.mark.parametrize("around", [False, True])
def test_a_call_that_fails_leaves_no_trace(around):
    model = rad.convert(nn.Sequential(nn.Linear(64, 64), _Fails()), rad.Rounding(bits=3), generator=Seeds(0))
    layer, x = model[0], normal(64, 64)
    before = held(lambda: layer(x))
    assert before < x.nbytes / 5
    for _ in range(2):
        with _Around() if around else nullcontext(), pytest.raises(RuntimeError, match="invalid for input of size"):
            model(x)
    assert held(lambda: layer(x)) == before
