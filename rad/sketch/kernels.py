"""Compiled loops for the CPU, each the equal, bit for bit, of a plain PyTorch version beside its caller.

They need numba (the extra ``fast``) and only save time: one pass over memory and one call from Python where
PyTorch takes ten of each. Without numba, on other devices and in half precision the PyTorch versions run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

try:
    import numba
except ImportError:
    numba = None

__all__ = [
    "compiled",
    "gather",
    "hash_words",
    "integers",
    "masked",
    "pack_positive",
    "rebuild",
    "round_groups",
    "scatter",
    "signs",
    "uniform",
    "usable",
]

enabled = numba is not None


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the loops can take such tensors: numba is there, and they are on the CPU and not in half precision."""
    return enabled and device.type == "cpu" and dtype in (torch.float32, torch.float64)


def compiled(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A loop over numpy arrays, compiled and cached where numba is there; it releases the interpreter's lock."""
    if numba is None:
        return fn
    try:
        return numba.njit(fn, cache=True, nogil=True, **options)
    except RuntimeError:  # nowhere to write a cache: compiled anew by each process
        return numba.njit(fn, nogil=True, **options)


# Unsigned arithmetic, which wraps around; every operand has to be of the type.
_U = np.uint64
_GOLDEN, _FIRST, _SECOND = _U(0x9E3779B97F4A7C15), _U(0xBF58476D1CE4E5B9), _U(0x94D049BB133111EB)
_1, _27, _30, _31, _32, _41, _56 = (_U(n) for n in (1, 27, 30, 31, 32, 41, 56))
# See rad.sketch.bits for eight flags in a word.
_ONES, _DIAGONAL, _GATHER = _U(0x0101010101010101), _U(0x8040201008040201), _U(0x0102040810204080)


@compiled
def _hash(counter):
    z = counter * _GOLDEN
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    return z ^ (z >> _31)


@compiled
def hash_words(start, out):
    """``out[i]`` is the hash of ``start + i``."""
    for i in range(out.size):
        out[i] = _hash(_U(start) + _U(i))


@compiled
def integers(start, bound, out):
    """Hashes brought into [0, bound) by their upper halves."""
    for i in range(out.size):
        out[i] = ((_hash(_U(start) + _U(i)) >> _32) * _U(bound)) >> _32


@compiled
def uniform(start, out):
    """Multiples of 2^-23 in [0, 1) by the upper bits of hashes."""
    for i in range(out.size):
        out[i] = np.int64(_hash(_U(start) + _U(i)) >> _41) * 2.0**-23


@compiled
def signs(start, out):
    """±1 by the bits of hashes, 64 to a word, for ``out`` of whole words."""
    for w in range(out.size // 64):
        word = _hash(_U(start) + _U(w))
        for i in range(64):
            out[64 * w + i] = 2 * np.int64((word >> _U(i)) & _1) - 1


@compiled
def scatter(values, index, scale, out):
    """Adds ``values · scale`` ``[r, k]`` to places in the rows of ``out``, which are used in turns.

    ``index`` ``[i, k]`` holds the places, each row of it for ``r / i`` successive rows of ``values``.
    """
    shared = values.shape[0] // index.shape[0]
    for r in range(values.shape[0]):
        places, row = index[r // shared], out[r % out.shape[0]]
        for j in range(values.shape[1]):
            row[places[j]] += values[r, j] * scale


@compiled
def gather(rows, index, out):
    """``out[o, q, b, j] = rows[b, o, index[q, j]]``, and 0 where the index is negative."""
    for b in range(rows.shape[0]):
        for o in range(rows.shape[1]):
            row = rows[b, o]
            for q in range(index.shape[0]):
                places, picked = index[q], out[o, q, b]
                for j in range(index.shape[1]):
                    value = row[max(places[j], 0)]  # without a branch around the access the loop is fast
                    picked[j] = value if places[j] >= 0 else 0


@compiled
def pack_positive(x, packed):
    """Bit ``i`` of ``packed`` says whether ``x[i] > 0``."""
    flags = np.zeros(8 * packed.size, np.uint8)
    for i in range(x.size):
        flags[i] = x[i] > 0
    words = flags.view(np.uint64)
    for i in range(packed.size):
        packed[i] = (words[i] * _GATHER) >> _56


@compiled
def masked(x, packed, out):
    """``x`` where a bit of ``packed`` is set and 0 elsewhere."""
    words = np.empty(packed.size, np.uint64)
    for i in range(packed.size):
        words[i] = (_U(packed[i]) * _ONES) & _DIAGONAL  # bit i of the byte at bit i of byte i
    flags = words.view(np.uint8)
    for i in range(x.size):
        out[i] = x[i] if flags[i] else 0


def _extremes(x):
    low, high = x[0], x[0]
    for i in range(x.size):
        low, high = min(low, x[i]), max(high, x[i])
    return low, high


# Only without regard to NaN can a minimum be vectorized; a tensor with NaN in it has no range worth finding.
_extremes = compiled(_extremes, fastmath={"nnan", "nsz"})


@compiled
def round_groups(x, size, stretch, tiny, dither, levels, ranges):
    """Randomized rounding of ``x`` in groups of ``size``; see ``Rounding`` for what it computes.

    ``ranges`` is float32 ``[2, groups]`` and receives values that bfloat16 represents; ``dither`` has one number per
    group, then one per place in a group; ``stretch`` turns a group's width into its step.
    """
    bits = ranges.view(np.uint32)
    groups = ranges.shape[1]
    for g in range(groups):
        values, out = x[g * size : (g + 1) * size], levels[g * size : (g + 1) * size]
        low, high = _extremes(values)
        ranges[0, g] = low - abs(low) * values.dtype.type(2.0**-8)
        bits[0, g] = _to_bfloat16(bits[0, g])
        low = values.dtype.type(ranges[0, g])
        ranges[1, g] = max((high - low) * stretch, tiny)
        bits[1, g] = _to_bfloat16(bits[1, g])
        inverse = values.dtype.type(1) / values.dtype.type(ranges[1, g])
        by_group, by_place = dither[g], dither[groups:]
        for i in range(values.size):
            u = by_group + by_place[i]
            u -= np.floor(u)
            out[i] = np.int32((values[i] - low) * inverse + u)


@compiled
def _to_bfloat16(bits):
    """The bits of a float32 with its upper half rounded to nearest even and its lower half zero."""
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)) << np.uint32(16)


@compiled
def rebuild(flags, size, ranges, out):
    """``out = low + level · step`` by groups, with bit ``j`` of an element's level in row ``j`` of ``flags``."""
    for g in range(ranges.shape[1]):
        values = out[g * size : (g + 1) * size]
        low, step = values.dtype.type(ranges[0, g]), values.dtype.type(ranges[1, g])
        values[:] = 0
        weight = values.dtype.type(1)
        for j in range(flags.shape[0]):
            plane = flags[j, g * size : (g + 1) * size]
            for i in range(values.size):
                values[i] += plane[i] * weight
            weight += weight
        for i in range(values.size):
            values[i] = values[i] * step + low
