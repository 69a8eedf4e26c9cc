"""Elements rounded to packed levels of the range of their group, and back, with replayed dither.

Plain PyTorch is the reference, on every device; the compiled loops do the same, bit for bit, in one pass over memory
each way. ``Rounding`` says what is computed.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from rad.sketch import gpu, kernels
from rad.sketch.bits import pack, packed_bytes, unpack
from rad.sketch.kernels import compiled
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
        x: Elements ``[count]``, in groups of ``size`` in turn, the last one maybe of fewer.
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
        return gpu.round_to_levels(x, size, width, stream.advance(groups + size), norm)
    x = x.to(compute_dtype(x.dtype))
    if kernels.usable(x):
        packed = x.new_empty(width, packed_bytes(count, 1), dtype=torch.uint8)
        ranges = x.new_empty(2, groups, dtype=_RANGE_DTYPE)
        start, like = stream.advance(groups + size), _NOTHING[x.dtype]
        real = like.dtype.type
        arrays = (x.numpy(), packed.numpy(), _array(ranges), _KEYS[real])
        shared(_round, groups, size, *arrays, start, size, real(_stretch(width)), real(_TINY), *_of_runs(norm, like))
        return packed, ranges
    dither = stream.uniform((groups + size,), x.dtype)
    rows = grouped(x, size)
    low, step = stored_range(rows.amin(1), rows.amax(1), width)
    u = (dither[:groups, None] + dither[groups:]).frac_()
    steps = (rows - low.to(u.dtype)[:, None]).mul_(step.to(u.dtype).reciprocal()[:, None]).add_(u)
    levels = steps.nan_to_num_(0, 0, 0).view(-1)[:count].to(torch.int32)
    return pack(levels, width), torch.stack([low, step])


def _of_runs(norm: tuple[Tensor | None, Tensor, int] | None, like: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """``norm`` for loops: nothing for what is missing."""
    if norm is None:
        return like, like, 1
    mean, scale, run = norm
    return like if mean is None else mean.detach().reshape(-1).numpy(), scale.detach().reshape(-1).numpy(), run


def rebuild(
    packed: Tensor, ranges: Tensor, size: int, stream: Stream, out: Tensor, times: Tensor | None = None
) -> Tensor:
    """``low + (level + ½ − u) · step`` by groups, written to ``out`` ``[count]``; see ``round_to_levels``.

    Where ``times`` ``[count]`` of the same dtype is given, ``out`` is the product with it.
    """
    groups = ranges.shape[1]
    if gpu.groups_of(out, size):
        return gpu.rebuild(packed, ranges, size, stream.advance(groups + size), out, times)
    if times is not None:
        return rebuild(packed, ranges, size, stream, out).mul_(times)
    if out.dtype == torch.float16:
        return out.copy_(rebuild(packed, ranges, size, stream, out.float()))
    real = compute_dtype(out.dtype)
    if kernels.usable(out, torch.bfloat16):
        start, like = stream.advance(groups + size), _NOTHING[real]
        arrays = (packed.numpy(), _array(ranges), _array(out), like)
        shared(_rebuild, groups, size, *arrays, start, size, like.dtype.type(_TINY))
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


def _array(x: Tensor) -> np.ndarray:
    """The memory of a tensor; bfloat16, which numpy does not know, as unsigned integers."""
    return x.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


# Bits of a floating-point number as an integer of the same order: these are flipped where the sign is set.
_KEYS = {np.float32: np.array([2**31 - 1, 31], np.int32), np.float64: np.array([2**63 - 1, 63], np.int64)}
_NOTHING = {torch.float32: np.empty(0, np.float32), torch.float64: np.empty(0, np.float64)}
_16 = np.uint32(16)


@compiled
def _together(size):
    """Groups whose levels are held at a time: they fill whole bytes, and some thousand elements have less overhead."""
    return 8 // math.gcd(size, 8) * max(1, 2048 // size)


@compiled
def _store(values, out):
    """``out = values``, rounded to the bits of bfloat16 where ``out`` holds such."""
    if out.itemsize == 2:
        bits = values.view(np.uint32)
        for i in range(out.size):
            out[i] = _bfloat16(bits[i])
    else:
        for i in range(out.size):
            out[i] = values[i]


@compiled
def _bfloat16(bits):
    """The upper half of the bits of a float32, rounded to nearest even."""
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> _16) & np.uint32(1))) >> _16)


@compiled
def _extremes(keys, flip, sign):
    """Lowest and highest of integers that stand for floating-point numbers, those of NaN outside those of infinity."""
    low = high = keys[0] ^ ((keys[0] >> sign) & flip)
    for i in range(keys.size):
        key = keys[i] ^ ((keys[i] >> sign) & flip)
        low, high = min(low, key), max(high, key)
    return low ^ ((low >> sign) & flip), high ^ ((high >> sign) & flip)


@compiled
def _to_levels(x, low, inverse, by_group, by_place, zero, one, lower, upper, width):
    """The two bytes of ``(x − low) · inverse + u``, the upper one only if levels are wider than a byte."""
    if width <= 8:
        for i in range(x.size):
            u = by_group + by_place[i]
            u -= one if u >= one else zero
            lower[i] = np.uint8(np.int32((x[i] - low) * inverse + u))
    else:
        for i in range(x.size):
            u = by_group + by_place[i]
            u -= one if u >= one else zero
            level = np.int32((x[i] - low) * inverse + u)
            lower[i], upper[i] = np.uint8(level & 255), np.uint8(level >> 8)


@compiled
def _from_levels(lower, upper, width, low, step, shift, by_place, half, one, zero, out):
    """``low + (level + ½ − u) · step``, with ``shift`` for ½ less the number of the group in ``u``."""
    if width <= 8:
        for i in range(out.size):
            u = shift - by_place[i]
            u += one if u <= -half else zero
            out[i] = (by_place.dtype.type(lower[i]) + u) * step + low
    else:
        for i in range(out.size):
            u = shift - by_place[i]
            u += one if u <= -half else zero
            out[i] = (by_place.dtype.type(np.int32(lower[i]) + (np.int32(upper[i]) << 8)) + u) * step + low


@compiled
def _normalize(x, start, mean, scale, run, out):
    """``(x − mean) · scale`` from element ``start`` on, with statistics that change after every ``run`` elements."""
    i, at = 0, (start // run) % scale.size
    end = min(out.size, run - start % run)
    while i < out.size:
        factor = scale[at]
        if mean.size:
            shift = mean[at]
            for j in range(i, end):
                out[j] = (x[start + j] - shift) * factor
        else:
            for j in range(i, end):
                out[j] = x[start + j] * factor
        i, end = end, min(out.size, end + run)
        at = at + 1 if at + 1 < scale.size else 0


@compiled
def _round(x, packed, ranges, flip, start, size, stretch, tiny, mean, scale, run, first, last):
    """``round_to_levels`` for the groups ``first`` to ``last``; ``first`` is a multiple of 8, for whole bytes."""
    groups, width = ranges.shape[1], packed.shape[0]
    by_group, by_place = np.empty(1, x.dtype), np.empty(size, x.dtype)
    kernels.uniform(start + groups, by_place)
    zero, one = x.dtype.type(0), x.dtype.type(1)
    together = _together(size)
    found, stored = np.empty((2, together), x.dtype), np.empty((2, together), np.float32)
    found_keys, stored_bits = found.view(flip.dtype), stored.view(np.uint32)
    lower, upper = np.zeros(together * size + 8, np.uint8), np.zeros(together * size + 8, np.uint8)
    values = np.empty(together * size if scale.size else 0, x.dtype)
    # A group's range takes some dozen steps that wait for each other: those of several groups overlap.
    for block in range(first, last, together):
        own, held = x[block * size : min(block + together, last) * size], min(together, last - block)
        if scale.size:
            _normalize(x, block * size, mean, scale, run, values[: own.size])
            own = values[: own.size]
        for g in range(held):
            keys = own[g * size : (g + 1) * size].view(flip.dtype)
            found_keys[0, g], found_keys[1, g] = _extremes(keys, flip[0], flip[1])
        for g in range(held):
            stored[0, g] = found[0, g]
            stored_bits[0, g] = np.uint32(_bfloat16(stored_bits[0, g])) << _16
            if x.dtype.type(stored[0, g]) > found[0, g]:
                stored[0, g] -= abs(stored[0, g]) * np.float32(2.0**-7)
                stored_bits[0, g] = np.uint32(_bfloat16(stored_bits[0, g])) << _16
            stored[1, g] = max((found[1, g] - x.dtype.type(stored[0, g])) * stretch, tiny)
            stored_bits[1, g] = np.uint32(_bfloat16(stored_bits[1, g])) << _16
            if not (np.isfinite(found[0, g]) and np.isfinite(found[1, g])):
                stored[0, g] = stored[1, g] = np.nan
            ranges[0, block + g], ranges[1, block + g] = stored_bits[0, g] >> _16, stored_bits[1, g] >> _16
        lower[own.size : own.size + 8] = 0
        upper[own.size : own.size + 8] = 0
        for g in range(held):
            part = own[g * size : (g + 1) * size]
            low_bytes, high_bytes = lower[g * size : (g + 1) * size], upper[g * size : (g + 1) * size]
            if np.isnan(stored[1, g]):
                low_bytes[:] = 0
                high_bytes[:] = 0
                continue
            low, inverse = x.dtype.type(stored[0, g]), one / x.dtype.type(stored[1, g])
            kernels.uniform(start + block + g, by_group)
            _to_levels(part, low, inverse, by_group[0], by_place, zero, one, low_bytes, high_bytes, width)
        byte, count = block * size // 8, (own.size + 7) // 8
        planes = packed[:, byte : byte + count]
        kernels.bytes_to_bits(lower[: 8 * count].view(np.uint64), planes[:8])
        if width > 8:
            kernels.bytes_to_bits(upper[: 8 * count].view(np.uint64), planes[8:])


@compiled
def _rebuild(packed, ranges, out, like, start, size, tiny, first, last):
    """``rebuild`` for the groups ``first`` to ``last``, a multiple of 8 the first."""
    groups, width = ranges.shape[1], packed.shape[0]
    by_group, by_place, values = np.empty(1, like.dtype), np.empty(size, like.dtype), np.empty(size, like.dtype)
    kernels.uniform(start + groups, by_place)
    half, one, zero = like.dtype.type(0.5), like.dtype.type(1), like.dtype.type(0)
    stored = np.empty(2, np.float32)
    stored_bits = stored.view(np.uint32)
    together = _together(size)
    lower, upper = np.zeros(together * size + 8, np.uint8), np.zeros(together * size + 8, np.uint8)
    for block in range(first, last, together):
        behind = min(min(block + together, last) * size, out.size) - block * size
        byte, count = block * size // 8, (behind + 7) // 8
        planes = packed[:, byte : byte + count]
        kernels.bits_to_bytes(planes[:8], lower[: 8 * count].view(np.uint64))
        if width > 8:
            kernels.bits_to_bytes(planes[8:], upper[: 8 * count].view(np.uint64))
        for g in range(block, min(block + together, last)):
            part = out[g * size : (g + 1) * size]
            at = (g - block) * size
            low_bytes, high_bytes = lower[at : at + part.size], upper[at : at + part.size]
            stored_bits[0], stored_bits[1] = np.uint32(ranges[0, g]) << _16, np.uint32(ranges[1, g]) << _16
            low, step = like.dtype.type(stored[0]), like.dtype.type(stored[1])
            if step == tiny:
                step = zero
            kernels.uniform(start + g, by_group)
            shift = half - by_group[0]
            numbers = (low_bytes, high_bytes, width, low, step, shift, by_place, half, one, zero)
            if out.itemsize == 2:
                _from_levels(*numbers, values[: part.size])
                _store(values[: part.size], part)
            else:
                _from_levels(*numbers, part)
