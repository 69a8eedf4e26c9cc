"""Compiled loops for the CPU, each the equal, bit for bit, of a plain PyTorch version beside its caller.

They need numba (the extra ``fast``) and only save time: one pass over memory and one call from Python where
PyTorch takes ten of each. Without numba, on other devices and in half precision the PyTorch versions run.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
    "shared",
    "signs",
    "uniform",
    "usable",
]

enabled = numba is not None


def usable(x: torch.Tensor) -> bool:
    """Whether the loops can take a tensor: numba is there, and it lies on the CPU, not in half precision."""
    return enabled and type(x) in _PLAIN and x.device.type == "cpu" and x.dtype in _DTYPES


_DTYPES = (torch.float32, torch.float64, torch.int64)
_PLAIN = (torch.Tensor, torch.nn.Parameter)  # and none that stands for a tensor while a graph is traced


def compiled(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A loop over numpy arrays, compiled and cached where numba is there; it releases the interpreter's lock."""
    if numba is None:
        return fn
    try:
        return numba.njit(fn, cache=True, nogil=True, **options)
    except RuntimeError:  # nowhere to write a cache: compiled anew by each process
        return numba.njit(fn, nogil=True, **options)


_SHARE = 2**16  # elements worth a thread of their own


def shared(loop: Callable[..., None], count: int, unit: int, *args: Any) -> None:
    """``loop(*args, first, last)`` for parts of ``count``, by as many threads as PyTorch uses and the size is worth.

    Args:
        loop: Releases the interpreter's lock.
        count: Groups, each of about ``unit`` elements.
        unit: Elements to a group; parts begin at multiples of eight groups.
        args: What all parts share.
    """
    parts = min(torch.get_num_threads(), max(1, count * unit // _SHARE))
    marks = [min(count, 8 * -(-count * i // (8 * parts))) for i in range(parts + 1)]
    jobs = [_pool().submit(loop, *args, *span) for span in zip(marks[1:], marks[2:], strict=False)] if parts > 1 else []
    loop(*args, marks[0], marks[1])
    for job in jobs:
        job.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), "rad")


# The threads of a pool do not survive a fork.
os.register_at_fork(after_in_child=_pool.cache_clear)

# Unsigned arithmetic, which wraps around; every operand has to be of the type.
_U = np.uint64
_GOLDEN, _FIRST, _SECOND = _U(0x9E3779B97F4A7C15), _U(0xBF58476D1CE4E5B9), _U(0x94D049BB133111EB)
_1, _7, _27, _30, _31, _32, _41, _56 = (_U(n) for n in (1, 7, 27, 30, 31, 32, 41, 56))
# See rad.sketch.bits for eight flags in a word.
_ONES, _DIAGONAL, _GATHER = _U(0x0101010101010101), _U(0x8040201008040201), _U(0x0102040810204080)
_SEVENS = _U(0x7F7F7F7F7F7F7F7F)


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
    """Bit ``i`` of ``packed`` says whether ``x[i] > 0``; NaN counts as positive, as in the gradient of ReLU."""
    flags = np.zeros(8 * packed.size, np.uint8)
    for i in range(x.size):
        flags[i] = not x[i] <= 0
    words = flags.view(np.uint64)
    for i in range(packed.size):
        packed[i] = (words[i] * _GATHER) >> _56


@compiled
def masked(x, packed, out):
    """``x`` where a bit of ``packed`` is set and 0 elsewhere, for unsigned integers of the size of the values."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    whole = x.size // 8
    for i in range(whole):
        flags = x.dtype.type(packed[i])
        for j in range(8):
            out[8 * i + j] = x[8 * i + j] & (zero - ((flags >> x.dtype.type(j)) & one))
    for i in range(8 * whole, x.size):
        out[i] = x[i] if (packed[i >> 3] >> (i & 7)) & 1 else zero


def _extremes(x):
    low, high = x[0], x[0]
    for i in range(x.size):
        low, high = min(low, x[i]), max(high, x[i])
    return low, high


# Only without regard to NaN can a minimum be vectorized; whether there is any is found apart.
_extremes = compiled(_extremes, fastmath={"nnan", "nsz"})


def _finite(x):
    total = x[0] - x[0]
    for i in range(x.size):
        total += x[i] - x[i]
    return total == 0


_finite = compiled(_finite, fastmath={"reassoc"})


@compiled
def _to_bfloat16(bits):
    """The bits of a float32 with its upper half rounded to nearest even and its lower half zero."""
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)) << np.uint32(16)


@compiled
def round_groups(x, size, width, stretch, tiny, dither, packed, ranges, first, last):
    """Randomized rounding of the groups ``first`` to ``last`` of ``x``, packed; see ``Rounding`` for what it computes.

    ``ranges`` is float32 ``[2, groups]`` and receives values that bfloat16 represents; ``dither`` has one number per
    group, then one per place in a group; ``stretch`` turns a group's width into its step. ``first`` is a multiple of 8,
    so that bytes are whole.
    """
    bits = ranges.view(np.uint32)
    by_place = dither[ranges.shape[1] :]
    one = x.dtype.type(1)
    low_bytes, high_bytes = np.zeros(8 * size, np.uint8), np.zeros(8 * size, np.uint8)
    low_words, high_words = low_bytes.view(np.uint64), high_bytes.view(np.uint64)
    steps = np.empty(size, np.int32)
    for block in range(first, last, 8):
        if block + 8 >= last:  # bits behind the last element are zero
            low_bytes[:] = 0
            high_bytes[:] = 0
        for g in range(block, min(block + 8, last)):
            values = x[g * size : (g + 1) * size]
            at = (g - block) * size
            if not _finite(values):
                ranges[0, g] = ranges[1, g] = np.nan
                low_bytes[at : at + size] = 0
                high_bytes[at : at + size] = 0
                continue
            low, high = _extremes(values)
            ranges[0, g] = low - abs(low) * values.dtype.type(2.0**-8)
            bits[0, g] = _to_bfloat16(bits[0, g])
            low = values.dtype.type(ranges[0, g])
            ranges[1, g] = max((high - low) * stretch, tiny)
            bits[1, g] = _to_bfloat16(bits[1, g])
            inverse = one / values.dtype.type(ranges[1, g])
            by_group = dither[g]
            for i in range(values.size):
                u = by_group + by_place[i]
                u -= one if u >= one else one - one
                steps[i] = np.int32((values[i] - low) * inverse + u)
            for i in range(values.size):
                low_bytes[at + i] = np.uint8(steps[i] & 255)
            if width > 8:
                for i in range(values.size):
                    high_bytes[at + i] = np.uint8(steps[i] >> 8)
        start = block * size // 8
        count = min(packed.shape[1] - start, size)
        for j in range(width):
            source, by = (low_words, _U(j)) if j < 8 else (high_words, _U(j - 8))
            row = packed[j, start : start + count]
            for i in range(count):
                row[i] = (((source[i] >> by) & _ONES) * _GATHER) >> _56


@compiled
def rebuild(packed, size, ranges, dither, tiny, out, first, last):
    """``out = low + (level + ½ − u) · step`` for the groups ``first`` to ``last``, a multiple of 8 the first."""
    width, groups = packed.shape[0], ranges.shape[1]
    by_place = dither[groups:]
    half, one = out.dtype.type(0.5), out.dtype.type(1)
    levels = np.zeros(8 * size, np.uint8)
    words = levels.view(np.uint64)
    higher = np.zeros(8 * size, np.uint8)
    high_words = higher.view(np.uint64)
    for block in range(first, last, 8):
        start = block * size // 8
        count = min(packed.shape[1] - start, size)
        for j in range(width):
            row = packed[j, start : start + count]
            target, by = (words, _U(j)) if j < 8 else (high_words, _U(j - 8))
            for i in range(count):
                flags = (((((_U(row[i]) * _ONES) & _DIAGONAL) + _SEVENS) >> _7) & _ONES) << by
                target[i] = flags if by == _U(0) else target[i] | flags
        for g in range(block, min(block + 8, last)):
            values = out[g * size : (g + 1) * size]
            at = (g - block) * size
            low, step = values.dtype.type(ranges[0, g]), values.dtype.type(ranges[1, g])
            if step <= tiny:
                step = one - one
            shift = half - dither[g]
            if width > 8:
                for i in range(values.size):
                    values[i] = np.int32(levels[at + i]) + (np.int32(higher[at + i]) << 8)
            else:
                for i in range(values.size):
                    values[i] = levels[at + i]
            for i in range(values.size):
                u = shift - by_place[i]
                u += one if u <= -half else one - one
                values[i] = (values[i] + u) * step + low
