"""Sampling and rounding in one: fewer features in fewer bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.sketch.base import Compressed, Sketch, incoherent, kept_count
from rad.sketch.bits import MAX_BITS, pack, packed_bytes, unpack
from rad.sketch.levels import RANGE_BYTES, compute_dtype, stored_range
from rad.sketch.random import Stream
from rad.sketch.rounding import check_group
from rad.sketch.sample import systematic

__all__ = ["RoundedSample"]


@dataclass(frozen=True)
class RoundedSample(Sketch):
    """Keeps ``k`` of the ``d`` features of each row in ``b`` bits: of the pairs within the budget, the least variance.

    The total variance of ``grad_outᵀ x̂`` is ``(d/k − 1) Σ_b ‖x_b‖² ‖grad_out_b‖²`` for the sampling (without
    replacement, with a draw of its own for every row) and ``d/k Σ_b ‖grad_out_b‖² Σ_i step²/12`` for the rounding, with
    the replayed dither of ``Rounding``. ``b`` minimizes that for rows of equal ``‖grad_out_b‖``; it depends on the
    tensor, but on no random number, and can be told from the summary. With ``k = d`` it is plain rounding; sampling
    adds budgets below one bit and between two numbers of bits.

    As many successive rows share a range as have about ``group`` kept elements. It is the range of all of their
    features, kept or not: so the variance is known exactly.

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

    def split(self, x: Tensor) -> tuple[int, int]:
        """Kept features of each row and bits of each, for a stack ``[m, n, d]``."""
        d, power = x.shape[2], x.double().square().mean().item()
        low, high = _row_ranges(x)
        ranks = [self.rank(x.shape, x.element_size(), bits) for bits in range(1, MAX_BITS + 1)]
        first = max(1, ranks.count(d))  # while all features are kept, more bits are better
        best, choice = torch.inf, None
        for bits, k in enumerate(ranks[first - 1 :], first):
            if k == 0:
                break
            widths = torch.sub(*reversed(_group_ranges(low, high, self._sharing(k)))).double()
            rounding = widths.square().mean().item() / (12 * (2**bits - 1) ** 2)
            variance = (d / k - 1) * power + d / k * rounding
            if choice is not None and not variance < best:  # it is convex in the bits
                break
            best, choice = variance, (k, bits)
        return choice or (self._floor(x.shape, x.element_size()), 1)

    def _compress(self, x: Tensor, stream: Stream) -> tuple[Tensor, ...]:
        m, n, d = x.shape
        k, bits = self.split(x)
        shared = self._sharing(k)
        kept = x.to(compute_dtype(x.dtype))
        kept = kept.gather(2, systematic(d, k, (m, n), stream)).view(-1, k) if k < d else kept.reshape(-1, d)
        low, step = self._ranges(x, k, bits)
        # Any two sums of a number for a group and one for a place in it are independent: see ``Rounding``.
        dither = self._dither(stream, len(low), k, m * n, kept.dtype)
        inverse = _by_rows(step.to(kept.dtype).reciprocal(), shared, m * n)
        steps = (kept - _by_rows(low.to(kept.dtype), shared, m * n)).mul_(inverse)
        levels = steps.add_(dither).nan_to_num_(0, 0, 0).to(torch.int32)
        return pack(levels, bits), torch.stack([low, step])

    def _expand(self, compressed: Compressed) -> Tensor:
        (packed, ranges), (m, n, d) = compressed.kept, compressed.stack
        bits, itemsize = len(packed), compressed.dtype.itemsize
        k = self.rank(compressed.stack, itemsize, bits) or self._floor(compressed.stack, itemsize)
        low, step = (_by_rows(t, self._sharing(k), m * n) for t in ranges.to(compute_dtype(compressed.dtype)))
        stream = compressed.stream()
        index = systematic(d, k, (m, n), stream) if k < d else None
        levels = unpack(packed, bits, m * n * k).view(-1, k).to(low.dtype)
        levels.add_(0.5).sub_(self._dither(stream, ranges.shape[1], k, m * n, low.dtype))
        values = levels.mul_(step).add_(low).mul_(d / k).view(m, n, k)
        if index is None:
            return values.to(compressed.dtype)
        return values.new_zeros(m, n, d).scatter_(2, index, values).to(compressed.dtype)

    def _variance(self, x: Tensor, grad_out: Tensor) -> Tensor:
        (m, n, d), (k, bits) = x.shape, self.split(x)
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
        rows = _row_ranges(x.to(compute_dtype(x.dtype)))
        return stored_range(*_group_ranges(*rows, self._sharing(k)), bits)

    def _sharing(self, k: int) -> int:
        """Rows that share a range."""
        return max(1, round(self.group / k))

    def _floor(self, stack: torch.Size, itemsize: int) -> int:
        """The one feature that is kept where there is no room for it, with a warning."""
        return kept_count(self.budget * stack[2] * itemsize * 8 / (8 * RANGE_BYTES + 1), f"of {stack[2]} features")


def _row_ranges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each row, ``[rows]``."""
    low, high = x.reshape(-1, x.shape[2]).aminmax(dim=1)
    return low, high


def _group_ranges(low: Tensor, high: Tensor, shared: int) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each group of ``shared`` rows, the last one maybe of fewer."""
    low, high = (torch.cat([t, t[-1:].expand(-len(t) % shared)]).view(-1, shared) for t in (low, high))
    return low.amin(1), high.amax(1)


def _by_rows(groups: Tensor, shared: int, rows: int) -> Tensor:
    """The values of groups for each of their rows, ``[rows, 1]``."""
    return groups.repeat_interleave(shared)[:rows, None]
