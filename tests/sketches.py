"""The sketches under test, and what their tests share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

import rad
from rad.sketch import Compressed

# Every sketch, by a name for the test report. A line here subjects a new one to the whole contract.
SKETCHES = {
    "project": rad.Project,
    "sample-batch": partial(rad.Sample, per="batch"),
    "sample-batch-without": partial(rad.Sample, per="batch", replacement=False),
    "sample-element": partial(rad.Sample, per="element"),
    "sample-element-without": partial(rad.Sample, per="element", replacement=False),
    "rounded-sample": rad.RoundedSample,
    "rounding": rad.Rounding,
    "rounding-narrow": partial(rad.Rounding, group=16),
}


@dataclass(frozen=True)
class Whole(rad.Sketch):
    """Keeps every tensor as it is where a rule asks for a summary, so that only the rule can be wrong."""

    budget: float = 1.0

    serves_factors: ClassVar[bool] = True

    @property
    def exact(self) -> bool:
        return False

    def compress(self, x: Tensor, generator: torch.Generator | None = None, seed: Tensor | None = None) -> Compressed:
        return Compressed((x,), None, x.shape, x.dtype)

    def _compress(self, x: Tensor, stream: Any) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def _expand(self, compressed: Compressed) -> Tensor:
        raise NotImplementedError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def held(fn: Callable[[], Tensor]) -> int:
    """All bytes that autograd holds after ``fn``, those of parameters included."""
    ledger = rad.measure.saved_bytes(fn)
    return ledger.total + ledger.parameters


def assert_unbiased(draws: Tensor, exact: Tensor, jump: Tensor | None = None) -> None:
    """Holds the mean of ``draws`` ``[N, ...]`` to ``exact``, entry by entry, within five standard errors.

    An entry that jumps to another value with a probability below 14/N may never do so in N draws, at the level of
    five standard errors; ``jump`` bounds its size, by default by two of the largest standard deviation.
    """
    rounding = 16 * torch.finfo(draws.dtype).eps * draws.abs().max().double()
    draws = draws.double()
    deviation = draws.std(0)
    unseen = 14 / len(draws) * (2 * deviation.max() if jump is None else jump)
    excess = (draws.mean(0) - exact.double()).abs() - 5 * deviation / len(draws) ** 0.5 - unseen - rounding
    assert (excess <= 0).all(), f"{int((excess > 0).sum())} of {exact.numel()} entries are biased"
