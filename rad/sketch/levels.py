"""Elements rounded to packed levels of the range of their group, and back, with replayed dither.

Plain PyTorch is the reference, on every device; the compiled loops do the same, bit for bit, in one pass over memory
each way. ``Rounding`` says what is computed.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from rad.sketch import gpu, kernels, loops
from rad.sketch.bits import pack, packed_bytes, unpack
from rad.sketch.random import Stream
from rad.sketch.threads import shared

__all__ = [
    "RANGE_BYTES",
    "compute_dtype",
    "grouped",
    "lowest",
    "read_step",
    "rebuild",
    "round_to_levels",
    "stored_range",
]

_RANGE_DTYPE = torch.bfloat16  # of a group's two range values: the exponents of float32 in two bytes
_TINY = torch.finfo(_RANGE_DTYPE).tiny  # the smallest step, for groups of equal values
RANGE_BYTES = 2 * _RANGE_DTYPE.itemsize


@functools.cache
def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def stored_range(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Lowest value and step, bfloat16 and rounded outward, for values that lie between ``low`` and ``high``."""
    stored_low = lowest(low)
    step = (high - stored_low.to(high.dtype)).mul_(_stretch(bits)).clamp_min_(_TINY).to(_RANGE_DTYPE)
    finite = torch.isfinite(low) & torch.isfinite(high)
    return stored_low.where(finite, torch.nan), step.where(finite, torch.nan)


def lowest(low: Tensor) -> Tensor:
    """``low`` in bfloat16, where that is not the number itself one that is less."""
    nearest = low.to(_RANGE_DTYPE)
    # A 128th of a number of eight significant bits is at least their last one; in bfloat16 it would itself be rounded
    # where it is less than the smallest normal number.
    wide = nearest.to(torch.float32)
    return nearest.where(nearest.to(low.dtype) <= low, torch.sub(wide, wide.abs(), alpha=2.0**-7).to(_RANGE_DTYPE))


def read_step(step: Tensor) -> Tensor:
    """Steps as they are read: none at all in groups of equal values, whose step is the smallest there is."""
    return step.where(step != _TINY, 0)


def _stretch(bits: int) -> float:
    """What turns a group's width into its step."""
    # The step must stay too large, by a margin that covers the arithmetic with it, after it has been rounded to eight
    # significant bits: a stretch of 2^-7 outweighs that.
    return (1 + 2.0**-7) / (2**bits - 1)


def round_to_levels(
    x: Tensor, size: int, width: int, stream: Stream, norm: tuple[Tensor | None, Tensor, int] | None = None
) -> tuple[Tensor, Tensor]:
    """``⌊v + u⌋`` for elements at ``v`` steps above the lowest of their group.

    Args:
        x: Elements, any shape, in groups of ``size`` in turn, the last one maybe of fewer.
        size: Elements to a group.
        width: Bits of a level.
        stream: Draws the dither: a number in [0, 1) for each group, then one for each place in a group; ``u`` is their
            sum modulo 1.
        norm: Only where there are loops: means or ``None``, scales, lengths of runs, as in ``rad.sketch.normalized``;
            what is rounded is then ``(x − mean) · scale``.

    Returns:
        Packed levels ``[width, ceil(count / 8)]``, and bfloat16 ``[2, groups]``: lowest values and steps, NaN for a
        group with an element that is not finite.
    """
    count = x.numel()
    groups = -(-count // size)
    if gpu.groups_of(x, size):
        return gpu.round_to_levels(x.reshape(-1), size, width, stream.advance(groups + size), norm)
    if x.dtype not in _KEYS:
        x = x.to(compute_dtype(x.dtype))
    if kernels.usable(x):
        packed = x.new_empty(width, packed_bytes(count, 1), dtype=torch.uint8)
        ranges = x.new_empty(2, groups, dtype=_RANGE_DTYPE)
        arrays = ((x.contiguous(), None), stream.advance(groups + size), packed, ranges, _KEYS[x.dtype])
        args = (*arrays, size, _stretch(width), _TINY, *_of_runs(norm, x.dtype))
        shared(loops.round_groups, groups, size, *args, step=8)
        return packed, ranges
    rows = grouped(x.reshape(-1), size)
    low, step = stored_range(rows.amin(1), rows.amax(1), width)
    dither = stream.uniform((groups + size,), x.dtype)
    u = (dither[:groups, None] + dither[groups:]).frac_()
    steps = (rows - low.to(u.dtype)[:, None]).mul_(step.to(u.dtype).reciprocal()[:, None]).add_(u)
    levels = steps.nan_to_num_(0, 0, 0).view(-1)[:count].to(torch.int32)
    ranges = x.new_empty(2, groups, dtype=_RANGE_DTYPE)  # autocast would have a say in what is stacked
    ranges[0], ranges[1] = low, step
    return pack(levels, width), ranges


def _of_runs(norm: tuple[Tensor | None, Tensor, int] | None, dtype: torch.dtype) -> tuple[Any, Any, int]:
    """``norm`` for loops: nothing for what is missing."""
    nothing = _NOTHING[dtype]
    if norm is None:
        return nothing, nothing, 1
    mean, scale, run = norm
    return nothing if mean is None else (mean.contiguous(), None), (scale.contiguous(), None), run


def rebuild(
    packed: Tensor, ranges: Tensor, size: int, stream: Stream, out: Tensor, times: Tensor | None = None
) -> Tensor:
    """``low + (level + ½ − u) · step`` by groups, written to ``out`` ``[count]``; see ``round_to_levels``.

    Where ``times`` of the same dtype is given, ``out`` is the product with it: ``[count]``, or fewer numbers,
    each for as many elements in turn.
    """
    groups = ranges.shape[1]
    if gpu.groups_of(out, size, 1 if times is None else len(out) // max(len(times), 1)):
        return gpu.rebuild(packed, ranges, size, stream.advance(groups + size), out, times)
    if times is not None:
        rebuild(packed, ranges, size, stream, out).view(len(times), -1).mul_(times[:, None])
        return out
    if out.dtype == torch.float16:
        return out.copy_(rebuild(packed, ranges, size, stream, out.float()))
    real = compute_dtype(out.dtype)
    if kernels.usable(out, torch.bfloat16):
        args = (packed, ranges, stream.advance(groups + size), _NOTHING[real], out, size, _TINY)
        shared(loops.rebuild_groups, groups, size, *args, step=8)
        return out
    dither = stream.uniform((groups + size,), real)
    low, step = ranges[0].to(dither.dtype)[:, None], read_step(ranges[1]).to(dither.dtype)[:, None]
    rows = grouped(unpack(packed, len(packed), len(out)).to(dither.dtype), size)
    rows.add_(0.5 - (dither[:groups, None] + dither[groups:]).frac_())
    return out.copy_(rows.mul_(step).add_(low).view(-1)[: len(out)])


def grouped(x: Tensor, size: int) -> Tensor:
    """``x`` ``[count]`` as ``[groups, size]``, the last group filled up with the last value."""
    missing = -len(x) % size
    return (torch.cat([x, x[-1:].expand(missing)]) if missing else x).view(-1, size)


# Bits of a floating-point number as an integer of the same order: these are flipped where the sign is set.
_KEYS = {
    torch.float32: torch.tensor([2**31 - 1, 31], dtype=torch.int32, device="cpu"),
    torch.float64: torch.tensor([2**63 - 1, 63], device="cpu"),
}
_NOTHING = {dtype: torch.empty(0, dtype=dtype, device="cpu") for dtype in _KEYS}
