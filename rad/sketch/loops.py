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


@compiled(inline="always")
def _bfloat16(bits):
    """The upper half of the bits of a float32, rounded to nearest even."""
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> _16) & np.uint32(1))) >> _16)


@compiled(inline="always")
def _extremes(keys, flip, sign):
    """Lowest and highest of integers that stand for floating-point numbers, those of NaN outside those of infinity."""
    low = high = keys[0] ^ ((keys[0] >> sign) & flip)
    for i in range(keys.size):
        key = keys[i] ^ ((keys[i] >> sign) & flip)
        low, high = min(low, key), max(high, key)
    return low ^ ((low >> sign) & flip), high ^ ((high >> sign) & flip)


# Loops over groups hold nothing but one over elements: whether arrays overlap is then asked once for all of them.


@compiled(inline="always")
def _to_levels(x, size, means, scales, lows, inverses, by_group, by_place, zero, one, out):
    """``((x − mean) · scale − low) · inverse + u`` for some groups, truncated."""
    for g in range(-(-x.size // size)):
        mean, scale, low, inverse, dither = means[g], scales[g], lows[g], inverses[g], by_group[g]
        at = g * size
        end = min(at + size, x.size)
        part, to = x[at:end], out[at:end]
        for i in range(end - at):
            u = dither + by_place[i]
            u -= one if u >= one else zero
            to[i] = np.int32(((part[i] - mean) * scale - low) * inverse + u)


@compiled(inline="always")
def _from_levels(levels, size, lows, steps, shifts, by_place, half, one, zero, out):
    """``low + (level + ½ − u) · step`` for some groups, with ``shift`` for ½ less the number of the group in ``u``."""
    for g in range(-(-out.size // size)):
        low, step, shift = lows[g], steps[g], shifts[g]
        at = g * size
        end = min(at + size, out.size)
        part, to = levels[at:end], out[at:end]
        for i in range(end - at):
            u = shift - by_place[i]
            u += one if u <= -half else zero
            to[i] = (by_place.dtype.type(part[i]) + u) * step + low


@compiled(inline="always")
def _normalize(x, start, mean, scale, run, shifts, factors, out):
    """``(x − mean) · scale`` from element ``start`` on, with statistics that change after every ``run`` elements."""
    before = start // run
    at = before % scale.size
    runs = (start + out.size - 1) // run - before + 1
    for r in range(runs):
        shifts[r], factors[r] = mean[at] if mean.size else scale.dtype.type(0), scale[at]
        at = at + 1 if at + 1 < scale.size else 0
    for r in range(runs):
        shift, factor = shifts[r], factors[r]
        begin, end = max(start, (before + r) * run), min(start + out.size, (before + r + 1) * run)
        part, to = x[begin:end], out[begin - start : end - start]
        for i in range(end - begin):
            to[i] = (part[i] - shift) * factor


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
    lows, inverses, by_group = np.empty(together, x.dtype), np.empty(together, x.dtype), np.empty(together, x.dtype)
    means, scales = np.zeros(together, x.dtype), np.ones(together, x.dtype)
    wide = width > 8  # than a byte
    levels, levels16 = np.zeros(together * size + 8, np.uint8), np.zeros(together * size if wide else 0, np.uint16)
    upper = np.zeros(levels.size if wide else 0, np.uint8)
    # Where each group has statistics of its own they are applied where it is read; else to all groups beforehand.
    apart = scale.size > 0 and run % size != 0
    values = np.empty(together * size if apart else 0, x.dtype)
    shifts, factors = np.empty((2, together * size // run + 2 if apart else 0), x.dtype)
    # A group's range takes some dozen steps that wait for each other: those of several groups overlap.
    for block in range(first, last, together):
        own, held = x[block * size : min(block + together, last) * size], min(together, last - block)
        if apart:
            _normalize(x, block * size, mean, scale, run, shifts, factors, values[: own.size])
            own = values[: own.size]
        elif scale.size:
            for g in range(held):
                at = ((block + g) * size // run) % scale.size
                means[g], scales[g] = mean[at] if mean.size else zero, scale[at]
        for g in range(held):
            keys = own[g * size : (g + 1) * size].view(flip.dtype)
            found_keys[0, g], found_keys[1, g] = _extremes(keys, flip[0], flip[1])
        for g in range(held):
            # Scales are positive: the lowest stays the lowest, to the last bit.
            low, high = (found[0, g] - means[g]) * scales[g], (found[1, g] - means[g]) * scales[g]
            stored[0, g] = low
            stored_bits[0, g] = np.uint32(_bfloat16(stored_bits[0, g])) << _16
            if x.dtype.type(stored[0, g]) > low:
                stored[0, g] -= abs(stored[0, g]) * np.float32(2.0**-7)
                stored_bits[0, g] = np.uint32(_bfloat16(stored_bits[0, g])) << _16
            stored[1, g] = max((high - x.dtype.type(stored[0, g])) * stretch, tiny)
            stored_bits[1, g] = np.uint32(_bfloat16(stored_bits[1, g])) << _16
            if not (np.isfinite(low) and np.isfinite(high)):
                stored[0, g] = stored[1, g] = np.nan
            ranges[0, block + g], ranges[1, block + g] = stored_bits[0, g] >> _16, stored_bits[1, g] >> _16
            lows[g], inverses[g] = x.dtype.type(stored[0, g]), one / x.dtype.type(stored[1, g])
            by_group[g] = x.dtype.type(kernels.fraction(start + block + g))
        if wide:
            _to_levels(own, size, means, scales, lows, inverses, by_group, by_place, zero, one, levels16)
            for i in range(own.size):
                levels[i], upper[i] = np.uint8(levels16[i] & 255), np.uint8(levels16[i] >> 8)
            upper[own.size : own.size + 8] = 0
        else:
            _to_levels(own, size, means, scales, lows, inverses, by_group, by_place, zero, one, levels)
        levels[own.size : own.size + 8] = 0
        for g in range(held):
            if np.isnan(lows[g]):
                levels[g * size : (g + 1) * size] = 0
                upper[g * size : (g + 1) * size] = 0
        byte, count = block * size // 8, (own.size + 7) // 8
        planes = packed[:, byte : byte + count]
        kernels.bytes_to_bits(levels[: 8 * count].view(np.uint64), planes[:8], 0, count)
        if wide:
            kernels.bytes_to_bits(upper[: 8 * count].view(np.uint64), planes[8:], 0, count)


@compiled
def rebuild_groups(packed, ranges, start, like, out, size, tiniest, first, last):
    """``rebuild`` for the groups ``first`` to ``last``, a multiple of 8 the first, in the precision of ``like``."""
    groups, width = ranges.shape[1], packed.shape[0]
    by_place = _dithers(start, groups, np.empty(size, like.dtype))
    half, one, zero, tiny = like.dtype.type(0.5), like.dtype.type(1), like.dtype.type(0), like.dtype.type(tiniest)
    together = _together(size)
    stored = np.empty((2, together), np.float32)
    stored_bits = stored.view(np.uint32)
    lows, steps, shifts = np.empty(together, like.dtype), np.empty(together, like.dtype), np.empty(together, like.dtype)
    wide = width > 8
    levels, levels16 = np.zeros(together * size + 8, np.uint8), np.zeros(together * size if wide else 0, np.uint16)
    upper = np.zeros(levels.size if wide else 0, np.uint8)
    values = np.empty(together * size if out.itemsize == 2 else 0, like.dtype)
    value_bits = values.view(np.uint32)
    for block in range(first, last, together):
        held = min(together, last - block)
        part = out[block * size : min((block + held) * size, out.size)]
        byte, count = block * size // 8, (part.size + 7) // 8
        planes = packed[:, byte : byte + count]
        kernels.bits_to_bytes(planes[:8], levels[: 8 * count].view(np.uint64), 0, count)
        if wide:
            kernels.bits_to_bytes(planes[8:], upper[: 8 * count].view(np.uint64), 0, count)
            for i in range(part.size):
                levels16[i] = np.uint16(levels[i]) | (np.uint16(upper[i]) << np.uint16(8))
        for g in range(held):
            stored_bits[0, g] = np.uint32(ranges[0, block + g]) << _16
            stored_bits[1, g] = np.uint32(ranges[1, block + g]) << _16
            lows[g], step = like.dtype.type(stored[0, g]), like.dtype.type(stored[1, g])
            steps[g] = zero if step == tiny else step
            shifts[g] = half - like.dtype.type(kernels.fraction(start + block + g))
        if out.itemsize == 2:
            real = values[: part.size]
            if wide:
                _from_levels(levels16, size, lows, steps, shifts, by_place, half, one, zero, real)
            else:
                _from_levels(levels, size, lows, steps, shifts, by_place, half, one, zero, real)
            for i in range(part.size):
                part[i] = _bfloat16(value_bits[i])
        elif wide:
            _from_levels(levels16, size, lows, steps, shifts, by_place, half, one, zero, part)
        else:
            _from_levels(levels, size, lows, steps, shifts, by_place, half, one, zero, part)
