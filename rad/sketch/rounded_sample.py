"""Sampling and rounding in one: fewer features in fewer bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.sketch.base import Compressed, Sketch, incoherent, product
from rad.sketch.bits import MAX_BITS, pack, packed_bytes, unpack
from rad.sketch.levels import RANGE_BYTES, compute_dtype, stored_range
from rad.sketch.random import Stream
from rad.sketch.rounding import check_group
from rad.sketch.sample import systematic
from rad.sketch.units import kept_count

__all__ = ["RoundedSample"]

_WIDTH = 20  # of a range, squared, in units of the mean square


@dataclass(frozen=True)
class RoundedSample(Sketch):
    """Keeps ``k`` of the ``d`` features of each row in ``b`` bits: of the pairs within the budget, the least variance.

    The total variance of ``grad_outᵀ x̂`` is ``(d/k − 1) Σ_b ‖x_b‖² ‖grad_out_b‖²`` for the sampling (without
    replacement, with a draw of its own for every row) and ``d/k Σ_b ‖grad_out_b‖² Σ_i step²/12`` for the rounding, with
    the replayed dither of ``Rounding``. ``b`` minimizes that for rows of equal ``‖grad_out_b‖`` with squared ranges of
    20 times their mean square, between the 16 of 256 numbers after ReLU and the 31 of normal ones. So it depends on the
    tensor's shape alone, and is the best choice for most others too. With ``k = d`` it is plain rounding; sampling adds
    budgets below one bit and between two numbers of bits.

    As many successive rows share a range as have about ``group`` kept elements. It is the range of all of their
    features, kept or not: so the variance is known exactly.

    It does not tell the noise of an estimate without the values, for that of the sampling depends on them.

    Attributes:
        group: Elements that share a range, about.

    Raises:
        ValueError: If ``group`` is less than 1.
    """

    group: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_group(self.group)

    def rank(self, stack: torch.Size, itemsize: int, bits: int) -> int:
        """How many features of each row can be kept in ``bits`` bits; 0 if there is no room for one."""
        m, n, d = stack
        allowed, rows = self.budget * stack.numel() * itemsize * (1 + 1e-12), m * n
        # Fewer features need not take fewer bytes, for they may take more ranges: all are looked at.
        for k in range(min(d, int(allowed * 8 / (rows * bits))), 0, -1):
            ranges = -(-rows // self._sharing(k)) * RANGE_BYTES
            if packed_bytes(rows * k, 1) * bits + ranges <= allowed:
                return k
        return 0

    def split(self, stack: torch.Size, itemsize: int) -> tuple[int, int]:
        """Kept features of each row and bits of each, for a stack ``[m, n, d]`` of elements of ``itemsize`` bytes."""
        d = stack[2]
        ranks = [self.rank(stack, itemsize, bits) for bits in range(1, MAX_BITS + 1)]
        # While all features are kept, more bits are better; the sampling leaves the constant −1 aside.
        variances = {
            (k, bits): d / k * (1 + _WIDTH / (12 * (2**bits - 1) ** 2)) for bits, k in enumerate(ranks, 1) if k > 0
        }
        return min(variances, key=variances.__getitem__) if variances else (self._floor(stack, itemsize), 1)

    def _compress(self, x: Tensor, stream: Stream) -> tuple[Tensor, ...]:
        m, n, d = x.shape
        k, bits = self.split(x.shape, x.element_size())
        shared = self._sharing(k)
        kept = x.gather(2, systematic(d, k, (m, n), stream)).view(-1, k) if k < d else x.reshape(-1, d)
        kept = kept.to(compute_dtype(x.dtype))
        low, step = self._ranges(x, k, bits)
        # Any two sums of a number for a group and one for a place in it are independent: see ``Rounding``.
        dither = self._dither(stream, len(low), k, m * n, kept.dtype)
        inverse = _by_rows(step.to(kept.dtype).reciprocal(), shared, m * n)
        steps = (kept - _by_rows(low.to(kept.dtype), shared, m * n)).mul_(inverse)
        levels = steps.add_(dither).nan_to_num_(0, 0, 0).to(torch.int32)
        return pack(levels, bits), torch.stack([low, step])

    def _expand(self, compressed: Compressed) -> Tensor:
        values, scale = self._unscaled(compressed)
        return values.mul_(scale).to(compressed.dtype)

    def _grad_weight(self, compressed: Compressed, grad_out: Tensor) -> Tensor:
        values, scale = self._unscaled(compressed)
        if compressed.dtype == torch.float16:  # which may not hold an estimate, but a quarter of an unscaled one
            values, scale = values.mul_(0.25), 4 * scale
        return product(grad_out, values.to(grad_out.dtype)).mul_(scale)

    def _unscaled(self, compressed: Compressed) -> tuple[Tensor, float]:
        """Kept features at their places, ``[m, n, d]`` in float32 at least, and what they are multiplied by."""
        (packed, ranges), (m, n, d) = compressed.kept, compressed.stack
        bits, itemsize = len(packed), compressed.dtype.itemsize
        k = self.rank(compressed.stack, itemsize, bits) or self._floor(compressed.stack, itemsize)
        low, step = (_by_rows(t, self._sharing(k), m * n) for t in ranges.to(compute_dtype(compressed.dtype)))
        stream = compressed.stream()
        index = systematic(d, k, (m, n), stream) if k < d else None
        levels = unpack(packed, bits, m * n * k).view(-1, k).to(low.dtype)
        levels.add_(0.5).sub_(self._dither(stream, ranges.shape[1], k, m * n, low.dtype))
        values = levels.mul_(step).add_(low).view(m, n, k)
        return (values if index is None else values.new_zeros(m, n, d).scatter_(2, index, values)), d / k

    def _variance(self, x: Tensor, grad_out: Tensor) -> Tensor:
        (m, n, d), (k, bits) = x.shape, self.split(x.shape, x.element_size())
        _, step = self._ranges(x, k, bits)
        rounding = _by_rows(step.double().square_().mul_(d / 12), self._sharing(k), m * n).view(m, n)
        return (d / k - 1) * incoherent(x, grad_out) + d / k * (rounding * grad_out.square().sum(2)).sum()

    def _dither(self, stream: Stream, groups: int, k: int, rows: int, dtype: torch.dtype) -> Tensor:
        """Uniform numbers ``[rows, k]``, any two independent: sums of one for a group and one for a place in it."""
        shared = self._sharing(k)
        by_group = _by_rows(stream.uniform((groups,), dtype), shared, rows)
        return (by_group + stream.uniform((shared, k), dtype).repeat(groups, 1)[:rows]).frac_()

    def _ranges(self, x: Tensor, k: int, bits: int) -> tuple[Tensor, Tensor]:
        """Stored lowest values and steps of all groups."""
        low, high = (t.to(compute_dtype(x.dtype)) for t in x.flatten(0, 1).aminmax(dim=1))
        return stored_range(*_group_ranges(low, high, self._sharing(k)), bits)

    def _sharing(self, k: int) -> int:
        """Rows that share a range."""
        return max(1, round(self.group / k))

    def _floor(self, stack: torch.Size, itemsize: int) -> int:
        """The one feature that is kept where there is no room for it, with a warning."""
        return kept_count(self.budget * stack[2] * itemsize * 8 / (8 * RANGE_BYTES + 1), f"of {stack[2]} features")


def _group_ranges(low: Tensor, high: Tensor, shared: int) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each group of ``shared`` rows, the last one maybe of fewer."""
    low, high = (torch.cat([t, t[-1:].expand(-len(t) % shared)]).view(-1, shared) for t in (low, high))
    return low.amin(1), high.amax(1)


def _by_rows(groups: Tensor, shared: int, rows: int) -> Tensor:
    """The values of groups for each of their rows, ``[rows, 1]``."""
    return groups.repeat_interleave(shared)[:rows, None]
