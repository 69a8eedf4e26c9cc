"""Compiled loops of ``rad.sketch.levels``: groups of elements rounded to packed levels of their ranges, and back."""

from __future__ import annotations

import math

import numpy as np

from rad.sketch import kernels
from rad.sketch.kernels import compiled

__all__ = ["rebuild_groups", "round_groups"]

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
def _dithers(start, groups, real):
    """The numbers for places in a group, which follow on those of so many groups."""
    for i in range(real.size):
        real[i] = kernels.fraction(start + groups + i)
    return real


@compiled
def round_groups(x, start, packed, ranges, flip, size, widening, tiniest, mean, scale, run, first, last):
    """``round_to_levels`` for the groups ``first`` to ``last``; ``first`` is a multiple of 8, for whole bytes."""
    groups, width = ranges.shape[1], packed.shape[0]
    by_place = _dithers(start, groups, np.empty(size, x.dtype))
    stretch, tiny = x.dtype.type(widening), x.dtype.type(tiniest)
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
            by_group = x.dtype.type(kernels.fraction(start + block + g))
            _to_levels(part, low, inverse, by_group, by_place, zero, one, low_bytes, high_bytes, width)
        byte, count = block * size // 8, (own.size + 7) // 8
        planes = packed[:, byte : byte + count]
        kernels.bytes_to_bits(lower[: 8 * count].view(np.uint64), planes[:8], 0, count)
        if width > 8:
            kernels.bytes_to_bits(upper[: 8 * count].view(np.uint64), planes[8:], 0, count)


@compiled
def rebuild_groups(packed, ranges, start, like, out, size, tiniest, first, last):
    """``rebuild`` for the groups ``first`` to ``last``, a multiple of 8 the first, in the precision of ``like``."""
    groups, width = ranges.shape[1], packed.shape[0]
    by_place, values = _dithers(start, groups, np.empty(size, like.dtype)), np.empty(size, like.dtype)
    half, one, zero, tiny = like.dtype.type(0.5), like.dtype.type(1), like.dtype.type(0), like.dtype.type(tiniest)
    stored = np.empty(2, np.float32)
    stored_bits = stored.view(np.uint32)
    together = _together(size)
    lower, upper = np.zeros(together * size + 8, np.uint8), np.zeros(together * size + 8, np.uint8)
    for block in range(first, last, together):
        behind = min(min(block + together, last) * size, out.size) - block * size
        byte, count = block * size // 8, (behind + 7) // 8
        planes = packed[:, byte : byte + count]
        kernels.bits_to_bytes(planes[:8], lower[: 8 * count].view(np.uint64), 0, count)
        if width > 8:
            kernels.bits_to_bytes(planes[8:], upper[: 8 * count].view(np.uint64), 0, count)
        for g in range(block, min(block + together, last)):
            part = out[g * size : (g + 1) * size]
            at = (g - block) * size
            low_bytes, high_bytes = lower[at : at + part.size], upper[at : at + part.size]
            stored_bits[0], stored_bits[1] = np.uint32(ranges[0, g]) << _16, np.uint32(ranges[1, g]) << _16
            low, step = like.dtype.type(stored[0]), like.dtype.type(stored[1])
            if step == tiny:
                step = zero
            shift = half - like.dtype.type(kernels.fraction(start + g))
            numbers = (low_bytes, high_bytes, width, low, step, shift, by_place, half, one, zero)
            if out.itemsize == 2:
                _from_levels(*numbers, values[: part.size])
                _store(values[: part.size], part)
            else:
                _from_levels(*numbers, part)
