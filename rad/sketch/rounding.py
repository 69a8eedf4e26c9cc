"""Randomized rounding to a few bits."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rad.sketch import kernels
from rad.sketch.base import Compressed, Sketch, check_budget, kept_count
from rad.sketch.bits import MAX_BITS, pack, packed_bytes, unpack
from rad.sketch.random import Stream

__all__ = ["RANGE_BYTES", "LowBitsWarning", "Rounding", "check_group", "compute_dtype", "stored_range"]

_RANGE_DTYPE = torch.bfloat16  # of a group's two range values: the exponents of float32 in two bytes
RANGE_BYTES = 2 * _RANGE_DTYPE.itemsize


class LowBitsWarning(UserWarning):
    """A budget allows a single bit for each element, which is noisy; for half precision it should be larger."""


@dataclass(frozen=True, repr=False)
class Rounding(Sketch):
    """Keeps every element, randomly rounded to ``b`` bits within the range of its group.

    Elements are taken in order, up to ``group`` at a time. A group keeps its lowest value and its step, both rounded
    *outward* to bfloat16 before anything is rounded to them, so that the estimate is unbiased in what is really stored.
    An element at ``v`` steps is stored as ``⌊v + u⌋`` and read as ``⌊v + u⌋ + ½ − u``, with ``u`` uniform in [0, 1) and
    replayed from the seed: subtractive dither. The error is then uniform in ± half a step, whatever the value: its
    variance is ``step²/12``, which is known without the values (``noise``). Read as ``⌊v + u⌋`` alone it would be ``f
    (1 − f) step²`` for a fraction ``f`` of a step, twice as much on average; less only where most values sit at the low
    end of their range, as after ReLU (1.28 against 1.39 of the second moment at one bit, no difference from two on).

    ``u`` is the sum modulo 1 of one uniform number per group and one per place in the group. Any two such sums are
    independent, so means and variances of every linear function of the estimate, and expectations of products of two of
    its elements, are those of fully independent errors, with ``elements/group + group`` random numbers in place of one
    per element. Products of three or more elements need summaries of their own.

    A group in which something is not finite is read as NaN; one of zeros as zeros.

    Attributes:
        budget: Fraction of the bytes that may be kept: ``b`` is the largest number of bits within it, at most 16
            (beyond that float32 arithmetic itself would be biased). 0.1 means 3 bits for float32 and 1 for half
            precision.
        group: The most elements that share a range; as many do as divide the tensor without remainder.
        bits: ``b`` itself, for every dtype, in place of a budget.

    Raises:
        TypeError: If neither or both of ``budget`` and ``bits`` are given.
        ValueError: If ``group`` is less than 1 or ``bits`` not in 1 to 16.

    References:
        Named as future work in §7 of the paper (arXiv:2007.10412). Roberts. Picture coding using pseudo-random noise.
        IRE Transactions on Information Theory 8, 1962 (subtractive dither).
    """

    serves_factors: ClassVar[bool] = True

    budget: float | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    group: int = 256
    bits: int | None = None

    def __post_init__(self) -> None:
        if (self.budget is None) == (self.bits is None):
            raise TypeError(
                f"either a budget must be given or bits, got budget={self.budget!r} and bits={self.bits!r}; "
                "for example Rounding(0.1) or Rounding(bits=3)"
            )
        if self.budget is not None:
            check_budget(self.budget)
        elif isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 1 <= self.bits <= MAX_BITS:
            raise ValueError(f"bits must be a whole number from 1 to {MAX_BITS}, got {self.bits!r}")
        check_group(self.group)

    def __repr__(self) -> str:
        amount = f"budget={self.budget}" if self.bits is None else f"bits={self.bits}"
        return f"Rounding({amount}, group={self.group})"

    def width(self, count: int, itemsize: int) -> int:
        """Bits per element for ``count`` elements of ``itemsize`` bytes each."""
        if self.bits is not None:
            return self.bits
        assert self.budget is not None
        ranges = -(-count // _group_size(count, self.group)) * RANGE_BYTES
        allowed = (self.budget * count * itemsize - ranges) / packed_bytes(count, 1)
        bits = min(kept_count(allowed, f"bits for each of {count} elements"), MAX_BITS)
        if bits == 1 and itemsize < 4:
            warnings.warn(
                f"a budget of {self.budget} leaves one bit for each element of {8 * itemsize}; "
                "Rounding(bits=3) keeps three whatever the precision",
                LowBitsWarning,
                stacklevel=2,
            )
        return bits

    def fraction(self, itemsize: int) -> float:
        """The share of a large tensor's bytes that is kept."""
        if self.bits is None:
            assert self.budget is not None
            return self.budget
        return (self.bits + 8 * RANGE_BYTES / self.group) / (8 * itemsize)

    def noise(self, compressed: Compressed) -> Tensor:
        """The variance of each element of the estimate, ``step²/12``, in the shape of the tensor."""
        if compressed.exact:
            return super().noise(compressed)
        _, ranges = compressed.kept
        count, dtype = compressed.shape.numel(), compute_dtype(compressed.dtype)
        variance = _shown(ranges[1]).to(dtype).square_().div_(12)
        size = _group_size(count, self.group)
        return variance[:, None].expand(-1, size).reshape(-1)[:count].view(compressed.shape)

    def _compress(self, x: Tensor, stream: Stream) -> tuple[Tensor, ...]:
        width, size = self.width(x.numel(), x.element_size()), _group_size(x.numel(), self.group)
        x = x.reshape(-1).to(compute_dtype(x.dtype))
        return _round(x, size, width, _dither(len(x), size, x.dtype, stream))

    def _expand(self, compressed: Compressed) -> Tensor:
        packed, ranges = compressed.kept
        count, dtype = compressed.shape.numel(), compute_dtype(compressed.dtype)
        size = _group_size(count, self.group)
        dither = _dither(count, size, dtype, compressed.stream())
        estimate = _rebuild(packed, size, ranges, dither, torch.empty(count, dtype=dtype, device=packed.device))
        return estimate.view(compressed.shape).to(compressed.dtype)

    def _variance(self, x: Tensor, grad_out: Tensor) -> Tensor:
        width, size = self.width(x.numel(), x.element_size()), _group_size(x.numel(), self.group)
        grouped = _grouped(x.reshape(-1).to(compute_dtype(x.dtype)), size)
        _, step = stored_range(grouped.amin(1), grouped.amax(1), width)
        noise = _shown(step).double().square_().div_(12)[:, None].expand_as(grouped)
        variance = noise.reshape(-1)[: x.numel()].view(x.shape)
        return (variance.sum(2) * grad_out.square().sum(2)).sum()


def _dither(count: int, size: int, dtype: torch.dtype, stream: Stream) -> Tensor:
    """One random number for each group of ``size`` among ``count`` elements, then one for each place in a group."""
    return stream.uniform((-(-count // size) + size,), dtype)


def _shown(step: Tensor) -> Tensor:
    """Steps as they are read: none at all in groups of zeros, whose step is the smallest there is."""
    return step.where(step != torch.finfo(step.dtype).tiny, 0)


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
    step = (high - stored_low.to(high.dtype)).mul_(stretch).clamp_min_(tiny).to(_RANGE_DTYPE)
    finite = torch.isfinite(low) & torch.isfinite(high)
    return stored_low.where(finite, torch.nan), step.where(finite, torch.nan)


def _stretch(bits: int) -> tuple[float, float]:
    """What turns a group's width into its step, and the smallest step."""
    # The step must stay too large, by a margin that covers the arithmetic with it, after it has been rounded to eight
    # significant bits: a stretch of 2^-7 outweighs that. The smallest step is for groups of equal values.
    return (1 + 2.0**-7) / (2**bits - 1), torch.finfo(_RANGE_DTYPE).tiny


def _round(x: Tensor, size: int, width: int, dither: Tensor) -> tuple[Tensor, Tensor]:
    """Packed levels of the elements ``[count]`` and stored ranges ``[2, groups]``: lowest values and steps."""
    groups = len(dither) - size
    if kernels.usable(x):
        packed = torch.empty(width, packed_bytes(len(x), 1), dtype=torch.uint8)
        ranges = torch.empty(2, groups, dtype=torch.float32)
        values = x.detach().numpy()
        kernels.shared(
            kernels.round_groups, groups, size, values, size, width,
            *(values.dtype.type(number) for number in _stretch(width)),
            dither.numpy(), packed.numpy(), ranges.numpy(),
        )  # fmt: skip
        return packed, ranges.to(_RANGE_DTYPE)
    grouped = _grouped(x, size)
    low, step = stored_range(grouped.amin(1), grouped.amax(1), width)
    u = (dither[:groups, None] + dither[groups:]).frac_()
    steps = (grouped - low.to(x.dtype)[:, None]).mul_(step.to(x.dtype).reciprocal()[:, None]).add_(u)
    levels = steps.nan_to_num_(0, 0, 0).view(-1)[: len(x)].to(torch.int32)
    return pack(levels, width), torch.stack([low, step])


def _rebuild(packed: Tensor, size: int, ranges: Tensor, dither: Tensor, out: Tensor) -> Tensor:
    """``low + (level + ½ − u) · step`` by groups, in ``out`` ``[count]``."""
    groups = ranges.shape[1]
    if kernels.usable(out):
        tiny = out.numpy().dtype.type(torch.finfo(_RANGE_DTYPE).tiny)
        kernels.shared(
            kernels.rebuild,
            groups,
            size,
            packed.numpy(),
            size,
            ranges.float().numpy(),
            dither.numpy(),
            tiny,
            out.numpy(),
        )
        return out
    low, step = ranges[0].to(out.dtype)[:, None], _shown(ranges[1]).to(out.dtype)[:, None]
    grouped = _grouped(unpack(packed, len(packed), len(out)).to(out.dtype), size)
    grouped.add_(0.5 - (dither[:groups, None] + dither[groups:]).frac_())
    return out.copy_(grouped.mul_(step).add_(low).view(-1)[: len(out)])


def _grouped(x: Tensor, size: int) -> Tensor:
    """``x`` ``[count]`` as ``[groups, size]``, the last group filled up with the last value."""
    missing = -len(x) % size
    return (torch.cat([x, x[-1:].expand(missing)]) if missing else x).view(-1, size)
