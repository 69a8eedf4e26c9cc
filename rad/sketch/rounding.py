"""Randomized rounding to a few bits."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rad.sketch.base import Compressed, Sketch, product
from rad.sketch.bits import MAX_BITS, packed_bytes
from rad.sketch.levels import (
    RANGE_BYTES,
    compute_dtype,
    grouped,
    read_step,
    rebuild,
    round_to_levels,
    stored_range,
)
from rad.sketch.random import Stream
from rad.sketch.units import check_budget, kept_count

__all__ = ["LowBitsWarning", "Rounding", "check_group"]


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
        if bits == 1 <= allowed:  # else it is said already that it is more than the budget
            warnings.warn(
                f"a budget of {self.budget} leaves one bit for each element of {8 * itemsize}; "
                "Rounding(bits=3) keeps three whatever the precision",
                LowBitsWarning,
                stacklevel=2,
            )
        return bits

    def size(self, count: int) -> int:
        """Elements to a group of ``count`` elements, the last one apart."""
        return _group_size(count, self.group)

    def held(self, count: int) -> int:
        """Bytes kept of so many elements in ``bits`` bits each, the seed apart."""
        assert self.bits is not None
        return packed_bytes(count, 1) * self.bits + -(-count // self.size(count)) * RANGE_BYTES

    def fraction(self, itemsize: int) -> float:
        """The share of a large tensor's bytes that is kept."""
        if self.bits is None:
            assert self.budget is not None
            return self.budget
        return (self.bits + 8 * RANGE_BYTES / self.group) / (8 * itemsize)

    def noise(self, compressed: Compressed) -> Tensor:
        """The variance of each element of the estimate, ``step²/12``: one for each row where groups are whole rows."""
        if compressed.exact:
            return super().noise(compressed)
        step = read_step(compressed.kept[1][1]).to(compute_dtype(compressed.dtype))
        return _of_elements(step.square_().div_(12), compressed.shape, self.group)

    def times(self, compressed: Compressed, grad: Tensor, out: Tensor | None = None) -> Tensor:
        """See ``Sketch.times``; formed at once, where there are loops for that."""
        if compressed.exact:
            return super().times(compressed, grad, out)
        return self._rebuilt(compressed, grad.dtype, grad.view(-1), None if out is None else out.view(-1))

    def _compress(self, x: Tensor, stream: Stream) -> tuple[Tensor, ...]:
        width, size = self.width(x.numel(), x.element_size()), _group_size(x.numel(), self.group)
        return round_to_levels(x.detach(), size, width, stream)

    def _expand(self, compressed: Compressed) -> Tensor:
        return self._rebuilt(compressed, compressed.dtype)

    def _grad_weight(self, compressed: Compressed, grad_out: Tensor) -> Tensor:
        if compressed.dtype != torch.float16:
            return super()._grad_weight(compressed, grad_out)
        return product_in_half(grad_out, self._rebuilt(compressed, torch.float32))

    def _rebuilt(
        self, compressed: Compressed, dtype: torch.dtype, times: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        count = compressed.shape.numel()
        found = self.rebuilt(compressed.kept, count, dtype, compressed.stream(), times, out)
        return found.view(compressed.shape)

    def rebuilt(
        self,
        kept: tuple[Tensor, ...],
        count: int,
        dtype: torch.dtype,
        stream: Stream,
        times: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """The estimate of ``count`` elements, times others if they are given, in their order; see ``rebuild``."""
        packed, ranges = kept
        out = packed.new_empty(count, dtype=dtype) if out is None else out
        return rebuild(packed, ranges, self.size(count), stream, out, times)

    def noise_of_groups(self, x: Tensor) -> Tensor:
        """What ``noise`` will be, for each group of ``size(x.numel())`` elements in turn; float64."""
        rows = grouped(x.reshape(-1).to(compute_dtype(x.dtype)), self.size(x.numel()))
        _, step = stored_range(rows.amin(1), rows.amax(1), self.width(x.numel(), x.element_size()))
        return read_step(step).double().square_().div_(12)

    def _variance(self, x: Tensor, grad_out: Tensor) -> Tensor:
        noise = _of_elements(self.noise_of_groups(x), x.shape, self.group)
        return (noise.expand(x.shape).sum(2) * grad_out.square().sum(2)).sum()


def product_in_half(grad_out: Tensor, estimate: Tensor) -> Tensor:
    """``product`` of an estimate of float16 values in float32, which is overwritten."""
    # It lies up to a step outside of its range, perhaps beyond what float16 holds; a quarter of it fits.
    return product(grad_out, estimate.mul_(0.25).to(grad_out.dtype)).mul_(4)


def _of_elements(groups: Tensor, shape: torch.Size, limit: int) -> Tensor:
    """The values of groups for each of their elements, one for each row of ``shape`` where groups are whole rows."""
    count, size, features = shape.numel(), _group_size(shape.numel(), limit), shape[-1]
    if size % features == 0:
        return groups.repeat_interleave(size // features)[: count // features].view(*shape[:-1], 1)
    return groups[:, None].expand(-1, size).reshape(-1)[:count].view(shape)


@functools.cache
def _group_size(count: int, limit: int) -> int:
    """Elements to a group: the largest divisor of ``count`` in (limit/2, limit], or ``limit`` if there is none."""
    return next((size for size in range(limit, limit // 2, -1) if count % size == 0), limit)


def check_group(group: int) -> None:
    """Refuses a number of elements that cannot share a range.

    Raises:
        ValueError: If it is not a whole number from 1 to 2²⁰; a range shared by so many is no better than one for all.
    """
    if isinstance(group, bool) or not isinstance(group, int) or not 1 <= group <= 2**20:
        raise ValueError(f"group must be a positive whole number of elements, at most {2**20:,}, got {group!r}")
