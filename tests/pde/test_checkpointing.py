"""Binomial checkpointing: as few steps taken again as there can be."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rad.pde import checkpointing, march, reactor, simulate_checkpointed


@functools.cache
def fewest(length, snapshots):
    """Chunks to advance over, apart from those the adjoint needs anyway, by trying every place for a snapshot."""
    if length == 1 or snapshots == 0:
        return length * (length - 1) // 2
    return min(m + fewest(length - m, snapshots - 1) + fewest(m, snapshots) for m in range(1, length))


def binomial(length, snapshots):
    """The same in closed form; the start counts as a snapshot."""
    c = snapshots + 1
    r = next(r for r in range(length + 1) if math.comb(c + r, c) >= length)
    return r * length - math.comb(c + r, c + 1)


@given(length=st.integers(1, 40), snapshots=st.integers(0, 8))
def test_closed_form_is_the_minimum(length, snapshots):
    assert binomial(length, snapshots) == fewest(length, snapshots)


@pytest.mark.parametrize(("length", "snapshots"), [(1, 0), (1, 3), (2, 1), (7, 0), (10, 2), (24, 3), (24, 40), (57, 5)])
def test_chunks_computed_again_are_as_predicted(monkeypatch, length, snapshots):
    monkeypatch.setattr(march, "_CHUNK_VALUES", 1)
    taken = []
    advance = march.March.advance
    monkeypatch.setattr(march.March, "advance", lambda self, *args: taken.append(args[1]) or advance(self, *args))
    theta = torch.zeros(7, requires_grad=True)
    loss = simulate_checkpointed(theta, reactor(5, 5, steps=length), snapshots)
    assert taken == [*range(length)]
    loss.backward()
    places = checkpointing.first_snapshots(length, snapshots)
    assert len(places) == min(snapshots, length - 1)
    # The forward pass has gone to the last snapshot already; the adjoint computes each chunk once more.
    expected = binomial(length, snapshots) - (places[-1] if places else 0) + length
    assert len(taken) - length == expected


def test_snapshots_alive_are_as_many_as_promised(monkeypatch):
    monkeypatch.setattr(march, "_CHUNK_VALUES", 1)
    depths, segment = [], checkpointing._Reversal.segment
    alive = [0]

    def watched(self, start, stop, field, snapshots):
        alive[0] += 1
        depths.append((alive[0], snapshots))
        segment(self, start, stop, field, snapshots)
        alive[0] -= 1

    monkeypatch.setattr(checkpointing._Reversal, "segment", watched)
    theta = torch.zeros(7, requires_grad=True)
    simulate_checkpointed(theta, reactor(5, 5, steps=50), 4).backward()
    # Fields besides the segment's own start, and what may still be taken, never exceed the number.
    assert max(depth - 1 + spare for depth, spare in depths) == 4


@pytest.mark.parametrize("snapshots", [-1, 2.0, True, None])
def test_bad_number_of_snapshots_is_named(snapshots):
    with pytest.raises(ValueError, match="snapshots must be a whole number"):
        simulate_checkpointed(torch.zeros(7), reactor(), snapshots)
