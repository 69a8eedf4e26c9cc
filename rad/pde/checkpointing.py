"""The exact gradient in little memory: binomial checkpointing, which recomputes what it does not keep.

References:
    Griewank, Walther. Algorithm 799: revolve. ACM Transactions on Mathematical Software 26(1), 2000.
    doi:10.1145/347837.347846.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rad.pde.march import Adjoint, March, check_theta
from rad.pde.problem import Problem
from rad.sketch import once

__all__ = ["first_snapshots", "simulate_checkpointed", "split"]


def simulate_checkpointed(theta: Tensor, problem: Problem, snapshots: int) -> Tensor:
    """The loss of the control ``theta`` with its exact gradient, from a few snapshots of the field.

    Snapshots lie between chunks of time steps, where binomial checkpointing needs the fewest steps to be taken again.
    Kept for the backward pass are ``theta``, the last field and the snapshots. The backward pass itself holds up to as
    many snapshots again, and the dense fields of one chunk.

    Args:
        theta: Parameters ``[size]`` of the problem's source, float32 or float64; the simulation takes place on its
            device and in its dtype.
        problem: What is simulated.
        snapshots: Fields to keep besides the initial one, which the problem knows.

    Returns:
        The loss, a scalar.

    Raises:
        TypeError: If ``theta`` is not float32 or float64.
        ValueError: If ``theta`` has another length than the source's or is not finite, or ``snapshots`` is no
            whole number of at least 0.
        FloatingPointError: If the field diverges.
    """
    check_theta(theta, problem)
    if isinstance(snapshots, bool) or not isinstance(snapshots, int) or snapshots < 0:
        raise ValueError(f"snapshots must be a whole number of at least 0, got {snapshots!r}; for example 10")
    return _Checkpointed.apply(theta if torch.is_grad_enabled() else theta.detach(), problem, snapshots)


def split(length: int, snapshots: int) -> int:
    """Where the next snapshot belongs, for the fewest steps taken again.

    Args:
        length: Chunks that lie ahead, at least 2.
        snapshots: Snapshots to spare, at least 1.

    Returns:
        How many chunks to advance, 1 to ``length − 1``.
    """
    # The start counts as a snapshot: with c of them and no chunk advanced over more than r times, up to
    # binomial(c + r, c) chunks can be reversed.
    c, r = snapshots + 1, 1
    while math.comb(c + r, c) < length:
        r += 1
    return min(math.comb(c + r - 1, c), length - math.comb(c + r - 2, c - 1))


def first_snapshots(length: int, snapshots: int) -> list[int]:
    """The chunks before which the forward pass keeps its field, the initial one apart."""
    places, start = [], 0
    while snapshots and length - start > 1:
        start += split(length - start, snapshots)
        snapshots -= 1
        places.append(start)
    return places


class _Checkpointed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, theta: Tensor, problem: Problem, snapshots: int) -> Tensor:
        ctx.problem, ctx.snapshots = problem, snapshots
        march = March(problem, theta)
        places = first_snapshots(len(march.chunks), snapshots) if ctx.needs_input_grad[0] else []
        fields, loss, kept = march.room(), 0.0, []
        for chunk, (_, _, added) in enumerate(march.sweep(fields)):
            loss += added
            if chunk in places:
                kept.append(fields[0].clone())
        ctx.save_for_backward(theta, fields[0].clone(), *kept)
        return theta.new_tensor(loss)

    @staticmethod
    @once
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        theta, final, *kept = ctx.saved_tensors
        march = March(ctx.problem, theta)
        reversal = _Reversal(march, Adjoint(march, final))
        places = first_snapshots(len(march.chunks), ctx.snapshots)
        # A snapshot is free again once what lies after it is done.
        ahead = pairwise([0, *places, len(march.chunks)])
        segments = [*zip(ahead, [march.start(), *kept], strict=True)]
        for used, ((start, stop), field) in reversed([*enumerate(segments)]):
            reversal.segment(start, stop, field, ctx.snapshots - used)
        return grad_out * reversal.adjoint.grad(), None, None


class _Reversal:
    """Goes back over chunks whose fields have to be computed again."""

    def __init__(self, march: March, adjoint: Adjoint) -> None:
        self.march, self.adjoint = march, adjoint
        self.fields = march.room()

    def segment(self, start: int, stop: int, field: Tensor, snapshots: int) -> None:
        """Goes back over chunks ``start`` to ``stop − 1`` from the field before them, with snapshots to spare."""
        while stop - start > 1 and snapshots:
            middle = start + split(stop - start, snapshots)
            self.segment(middle, stop, self._reach(start, middle, field), snapshots - 1)
            stop = middle
        for chunk in reversed(range(start, stop)):
            self.fields[0] = self._reach(start, chunk, field)
            first, last = self.march.chunks[chunk]
            self.march.advance(self.fields, first, last)
            self.adjoint.chunk(first, last, self.fields[: last - first])

    def _reach(self, start: int, stop: int, field: Tensor) -> Tensor:
        """The field before chunk ``stop``, given that before chunk ``start``."""
        self.fields[0] = field
        for first, last in self.march.chunks[start:stop]:
            self.march.advance(self.fields, first, last)
            self.fields[0] = self.fields[last - first]
        return self.fields[0].clone()
