"""Counters that are shifted from replay to replay of a captured step."""

from __future__ import annotations

import pytest
import torch

from rad.sketch import kernels
from rad.sketch.random import Stream, counters
from rad.sketch.replay import shift, shifting

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SEEDS = (0, 3, -(2**50), 2**62)


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    monkeypatch.setattr(kernels, "enabled", False)  # no CPU captures anything


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("more", [0, 1, 1000, 2**40])
def test_what_is_drawn_is_what_later_seeds_draw(seed, more):
    with shifting(torch.tensor([counters(more)])):
        moved = Stream(seed, CPU)
        found = moved.words(7), moved.integers(100, (3, 4)), moved.uniform((5,), torch.float32)
    stream = Stream(seed + more, CPU)
    later = stream.words(7), stream.integers(100, (3, 4)), stream.uniform((5,), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, later, strict=True))


def test_nothing_is_shifted_elsewhere():
    by = torch.tensor([counters(3)])
    with shifting(by):
        assert shift(CPU) is by
        assert shift(torch.device("meta")) is None
        with shifting(by + 1):
            assert shift(CPU) is not by
        assert shift(CPU) is by
    assert shift(CPU) is None


def test_a_graph_of_another_kind_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"would draw the same.*rad\.nn\.CUDAGraph\(model\)"):
        shift(CUDA)
    assert shift(CPU) is None
