"""Randomized rounding to a few bits."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from rad.sketch import kernels
from rad.sketch.base import Compressed, Sketch, kept_count
from rad.sketch.bits import MAX_BITS, pack, packed_bytes, unpack, unpack_planes
from rad.sketch.random import Stream

__all__ = ["RANGE_BYTES", "Rounding", "bernoulli", "check_group", "compute_dtype", "stored_range"]

_RANGE_DTYPE = torch.bfloat16  # of a group's two range values: the exponents of float32 in two bytes
RANGE_BYTES = 2 * _RANGE_DTYPE.itemsize


@dataclass(frozen=True)
class Rounding(Sketch):
    """Keeps every element, randomly rounded to ``b`` bits within the range of its group.

    Elements are taken in order, up to ``group`` at a time. A group keeps its lowest value and its step, both rounded
    *outward* to bfloat16 before anything is rounded to them, so that the estimate is unbiased in what is really
    stored. An element at ``v`` steps becomes ``⌊v + u⌋`` with ``u`` uniform in [0, 1), whose expectation is ``v``.

    ``u`` is the sum modulo 1 of one uniform number per group and one per place in the group. Any two such sums
    are independent, so means and variances of every linear function of the estimate are those of fully independent
    rounding, with ``elements/group + group`` random numbers in place of one per element.

    The variance of an element that lies at a fraction ``f`` of a step is ``f (1 − f) step²``, which is at most
    ``r²/(4 (2ᵇ − 1)²)`` and on average about ``r²/(6 (2ᵇ − 1)²)`` for a stored range ``r`` of its group. ``b`` is the
    largest number of bits within the budget, at most 16: beyond that float32 arithmetic itself would be biased.

    Attributes:
        group: The most elements that share a range; as many do as divide the tensor without remainder.

    Raises:
        ValueError: If ``group`` is less than 1.

    References:
        Named as future work in §7 of the paper (arXiv:2007.10412).
    """

    serves_factors: ClassVar[bool] = True

    group: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_group(self.group)

    def bits(self, count: int, itemsize: int) -> int:
        """Bits per element for ``count`` elements of ``itemsize`` bytes each."""
        ranges = -(-count // _group_size(count, self.group)) * RANGE_BYTES
        allowed = (self.budget * count * itemsize - ranges) / packed_bytes(count, 1)
        return min(kept_count(allowed, f"bits for each of {count} elements"), MAX_BITS)

    def _compress(self, x: Tensor, stream: Stream) -> tuple[Tensor, ...]:
        bits, size = self.bits(x.numel(), x.element_size()), _group_size(x.numel(), self.group)
        x = x.reshape(-1).to(compute_dtype(x.dtype))
        # One random number for each group, then one for each place in a group.
        dither = stream.uniform((-(-len(x) // size) + size,), x.dtype)
        levels, ranges = _round(x, size, bits, dither)
        return pack(levels, bits), ranges

    def _expand(self, compressed: Compressed) -> Tensor:
        packed, ranges = compressed.kept
        count, dtype = compressed.shape.numel(), compute_dtype(compressed.dtype)
        bits, size = self.bits(count, compressed.dtype.itemsize), _group_size(count, self.group)
        dither = compressed.stream().uniform((-(-count // size) + size,), dtype)
        estimate = _rebuild(packed, bits, size, ranges, dither, torch.empty(count, dtype=dtype, device=packed.device))
        return estimate.view(compressed.shape).to(compressed.dtype)

    def noise(self, compressed: Compressed) -> Tensor:
        _, ranges = compressed.kept
        count = compressed.shape.numel()
        size = _group_size(count, self.group)
        return (ranges[1].float().square() / 12).repeat_interleave(size)[:count].view(compressed.shape).to(compressed.dtype)

    def _variance(self, x: Tensor, grad_out: Tensor) -> Tensor:
        bits, size = self.bits(x.numel(), x.element_size()), _group_size(x.numel(), self.group)
        grouped = _grouped(x.reshape(-1).to(compute_dtype(x.dtype)), size)
        low, step = (t.double()[:, None] for t in stored_range(grouped.amin(1), grouped.amax(1), bits))
        variance = bernoulli(grouped, low, step).view(-1)[: x.numel()].view(x.shape)
        return (variance.sum(2) * grad_out.square().sum(2)).sum()


@functools.cache
def _group_size(count: int, limit: int) -> int:
    """Elements to a group: the largest divisor of ``count`` in (limit/2, limit], or ``limit`` if there is none."""
    return next((size for size in range(limit, limit // 2, -1) if count % size == 0), limit)


def check_group(group: int) -> None:
    """Refuses a number of elements that cannot share a range.

    Raises:
        ValueError: If it is not a whole number of at least 1.
    """
    if isinstance(group, bool) or not isinstance(group, int) or group < 1:
        raise ValueError(f"group must be a positive whole number of elements, got {group!r}")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def stored_range(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Lowest value and step, bfloat16 and rounded outward, for values that lie between ``low`` and ``high``."""
    stretch, tiny = _stretch(bits)
    stored_low = torch.add(low, low.abs(), alpha=-(2.0**-8)).to(_RANGE_DTYPE)
    return stored_low, (high - stored_low.to(high.dtype)).mul_(stretch).clamp_min_(tiny).to(_RANGE_DTYPE)


def bernoulli(x: Tensor, low: Tensor, step: Tensor) -> Tensor:
    """Variance of each element, ``f (1 − f) step²``: the fraction ``f`` of a step is the probability of rounding up.

    Args:
        x: Values, any shape.
        low: Stored lowest values, float64, broadcast against ``x``.
        step: Stored steps likewise.
    """
    fraction = ((x.double() - low) / step).frac_()
    return fraction * (1 - fraction) * step.square()


def _stretch(bits: int) -> tuple[float, float]:
    """What turns a group's width into its step, and the smallest step."""
    # The step must stay too large, by a margin that covers the arithmetic with it, after it has been rounded to eight
    # significant bits: a stretch of 2^-7 outweighs that. The smallest step is for groups of equal values.
    return (1 + 2.0**-7) / (2**bits - 1), torch.finfo(_RANGE_DTYPE).tiny


def _round(x: Tensor, size: int, bits: int, dither: Tensor) -> tuple[Tensor, Tensor]:
    """Levels ``[count]`` of the elements and stored ranges ``[2, groups]`` (lowest values, steps) of their groups."""
    groups = len(dither) - size
    # Signed, for conversion from floating point to unsigned bytes is slow; eight bits need more.
    levels = torch.empty_like(x, dtype=torch.int8 if bits < 8 else torch.int32)
    if kernels.usable(x.device, x.dtype):
        ranges = torch.empty(2, groups, dtype=torch.float32, device=x.device)
        stretch, tiny = _stretch(bits)
        real = np.float32 if x.dtype == torch.float32 else np.float64
        arrays = (t.detach().numpy() for t in (dither, levels, ranges))
        kernels.round_groups(x.detach().numpy(), size, real(stretch), real(tiny), *arrays)
        return levels, ranges.to(_RANGE_DTYPE)
    grouped = _grouped(x, size)
    low, step = stored_range(grouped.amin(1), grouped.amax(1), bits)
    u = (dither[:groups, None] + dither[groups:]).frac_()
    steps = (grouped - low.to(x.dtype)[:, None]).mul_(step.to(x.dtype).reciprocal()[:, None]).add_(u)
    return levels.copy_(steps.view(-1)[: len(x)]), torch.stack([low, step])


def _rebuild(packed: Tensor, bits: int, size: int, ranges: Tensor, dither: Tensor, out: Tensor) -> Tensor:
    """``low + level · step`` by groups, in ``out`` ``[count]``."""
    low, step = ranges.to(out.dtype)[:, :, None]
    grouped = _grouped(unpack(packed, bits, len(out)).to(out.dtype), size)
    groups = len(dither) - size
    grouped.add_(0.5).sub_((dither[:groups, None] + dither[groups:]).frac_())
    return out.copy_(grouped.mul_(step).add_(low).view(-1)[: len(out)])


def _grouped(x: Tensor, size: int) -> Tensor:
    """``x`` ``[count]`` as ``[groups, size]``, the last group filled up with the last value."""
    missing = -len(x) % size
    return (torch.cat([x, x[-1:].expand(missing)]) if missing else x).view(-1, size)
