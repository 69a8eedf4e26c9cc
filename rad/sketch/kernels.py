"""Compiled loops for the CPU, each the equal, bit for bit, of a plain PyTorch version beside its caller.

They need numba (the extra ``fast``) and only save time: one pass over memory and one call from Python where
PyTorch takes ten of each. Without numba, on other devices and in half precision the PyTorch versions run. Each runs for
a part of its work, ``first`` to ``last``; ``threads.shared`` calls it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

try:
    import numba
except ImportError:
    numba = None

__all__ = [
    "bits_to_bytes",
    "bytes_to_bits",
    "cached",
    "compiled",
    "flags_to_bits",
    "fraction",
    "gather",
    "hash_words",
    "indices_of_places",
    "integers",
    "masked",
    "pack_positive",
    "places_in_windows",
    "scatter",
    "seen_by_numpy",
    "signs",
    "uniform",
    "usable",
]

enabled = numba is not None


def usable(x: torch.Tensor, *half: torch.dtype) -> bool:
    """Whether loops can take a tensor: numba is there, numpy sees it, and it is in half precision only if they say."""
    return enabled and seen_by_numpy(x) and (x.dtype in _DTYPES or x.dtype in half)


def seen_by_numpy(x: torch.Tensor) -> bool:
    """Whether a tensor lies in the memory of the CPU, and is none that stands for another while a graph is traced."""
    return type(x) in _PLAIN and x.device.type == "cpu" and not x.is_neg()


_DTYPES = (torch.float32, torch.float64, torch.int64)
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def compiled(fn: Callable[..., Any] | None = None, **options: Any) -> Any:
    """A loop over numpy arrays, compiled and cached where numba is there; it releases the interpreter's lock."""
    if fn is None:
        return functools.partial(compiled, **options)
    if numba is None:
        return fn
    options = {"nogil": True, "error_model": "numpy", **options}  # which divides by zero as PyTorch does
    return cached(functools.partial(numba.njit, fn, **options))


def cached(make: Callable[..., Any]) -> Any:
    """``make(cache=True)`` of numba's; compiled anew by each process where there is nowhere to write a cache."""
    try:
        return make(cache=True)
    except RuntimeError:
        return make(cache=False)


# Unsigned arithmetic, which wraps around; every operand has to be of the type.
_U = np.uint64
_GOLDEN, _FIRST, _SECOND = _U(0x9E3779B97F4A7C15), _U(0xBF58476D1CE4E5B9), _U(0x94D049BB133111EB)
_1, _7, _14, _27, _28, _30, _31, _32, _41, _56 = (_U(n) for n in (1, 7, 14, 27, 28, 30, 31, 32, 41, 56))
# See rad.sketch.bits for eight flags in a word.
_ONES, _GATHER = _U(0x0101010101010101), _U(0x0102040810204080)
# What is exchanged where a matrix of bits is transposed.
_MATRIX_1, _MATRIX_2, _MATRIX_4 = _U(0x00AA00AA00AA00AA), _U(0x0000CCCC0000CCCC), _U(0x00000000F0F0F0F0)
_BLOCK = 4096  # flags that are held as bytes at a time


@compiled
def _hash(counter):
    z = counter * _GOLDEN
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    return z ^ (z >> _31)


@compiled
def hash_words(start, out, first, last):
    """``out[i]`` is the hash of ``start + i``."""
    for i in range(first, last):
        out[i] = _hash(_U(start) + _U(i))


@compiled
def integers(start, bound, out, first, last):
    """Hashes brought into [0, bound) by their upper halves."""
    for i in range(first, last):
        out[i] = ((_hash(_U(start) + _U(i)) >> _32) * _U(bound)) >> _32


@compiled
def fraction(counter):
    """A multiple of 2^-23 in [0, 1) by the upper bits of the hash."""
    return np.int64(_hash(_U(counter)) >> _41) * 2.0**-23


@compiled
def uniform(start, out, first, last):
    """Multiples of 2^-23 in [0, 1)."""
    for i in range(first, last):
        out[i] = fraction(start + i)


@compiled
def signs(start, out, first, last):
    """±1 by the bits of hashes, 64 to a word, for ``out`` of whole words."""
    for w in range(first, last):
        word = _hash(_U(start) + _U(w))
        for i in range(64):
            out[64 * w + i] = 2 * np.int64((word >> _U(i)) & _1) - 1


@compiled
def scatter(values, index, scale, out, first, last):
    """Adds ``values · scale`` ``[r, k]`` to places in the rows of ``out``, which are used in turns.

    ``index`` ``[i, k]`` holds the places, each row of it for ``r / i`` successive rows of ``values``.
    """
    shared, factor = values.shape[0] // index.shape[0], values.dtype.type(scale)
    for o in range(first, last):
        row = out[o]
        for r in range(o, values.shape[0], out.shape[0]):
            places = index[r // shared]
            for j in range(values.shape[1]):
                row[places[j]] += values[r, j] * factor


@compiled
def gather(rows, index, out, first, last):
    """``out[o, q, b, j] = rows[b, o, index[q, j]]``, and 0 where the index is negative."""
    # Such places find a zero behind the row: without a choice in it the loop is fast.
    size = rows.shape[2]
    row, places = np.zeros(size + 1, rows.dtype), np.empty(index.shape, np.int32)
    for q in range(index.shape[0]):
        for j in range(index.shape[1]):
            places[q, j] = index[q, j] if index[q, j] >= 0 else size
    for o in range(first, last):
        for b in range(rows.shape[0]):
            row[:size] = rows[b, o]
            for q in range(index.shape[0]):
                at, picked = places[q], out[o, q, b]
                for j in range(index.shape[1]):
                    picked[j] = row[np.uint32(at[j])]


@compiled
def places_in_windows(index, begin, table, out, first, last):
    """``out[r, i] = table[index[r, i] − begin[i]]``."""
    for r in range(first, last):
        row, to = index[r], out[r]
        for i in range(begin.size):
            to[i] = table[row[i] - begin[i]]


@compiled
def indices_of_places(places, begin, offsets, out, first, last):
    """Undoes ``places_in_windows``: ``out[r, i] = begin[i] + offsets[places[r, i]]``."""
    for r in range(first, last):
        row, to = places[r], out[r]
        for i in range(begin.size):
            to[i] = begin[i] + offsets[row[i]]


@compiled
def flags_to_bits(flags, place, packed):
    """Gathers the bits at ``place`` of all bytes of ``flags``, eight to a word, in one byte for each word."""
    for i in range(packed.size):
        packed[i] = (((flags[i] >> place) & _ONES) * _GATHER) >> _56


@compiled
def _transposed(word):
    """The matrix of 8 × 8 bits in a word with rows and columns exchanged: single bits, blocks of 2 × 2, of 4 × 4."""
    other = (word ^ (word >> _7)) & _MATRIX_1
    word ^= other ^ (other << _7)
    other = (word ^ (word >> _14)) & _MATRIX_2
    word ^= other ^ (other << _14)
    other = (word ^ (word >> _28)) & _MATRIX_4
    return word ^ other ^ (other << _28)


@compiled
def bits_to_bytes(planes, words, first, last):
    """Eight bytes in each of ``words``, bit ``j`` of them from row ``j`` of ``planes`` ``[≤ 8, words]``."""
    for j in range(planes.shape[0]):
        row, place = planes[j], _U(8 * j)
        for i in range(first, last):
            words[i] = (words[i] if j > 0 else _U(0)) | (_U(row[i]) << place)
    for i in range(first, last):
        words[i] = _transposed(words[i])


@compiled
def bytes_to_bits(words, planes, first, last):
    """Undoes ``bits_to_bytes``; ``words`` are overwritten."""
    for i in range(first, last):
        words[i] = _transposed(words[i])
    for j in range(planes.shape[0]):
        row, place = planes[j], _U(8 * j)
        for i in range(first, last):
            row[i] = np.uint8((words[i] >> place) & _U(255))


@compiled
def pack_positive(x, packed, first, last):
    """Bit ``i`` of ``packed`` says whether ``x[i] > 0``; NaN counts as positive, as in the gradient of ReLU."""
    flags = np.zeros(_BLOCK, np.uint8)
    for block in range(first, last, _BLOCK // 8):
        bits = packed[block : min(block + _BLOCK // 8, last)]
        values = x[8 * block : 8 * (block + bits.size)]
        flags[values.size : 8 * bits.size] = 0
        for i in range(values.size):
            flags[i] = not values[i] <= 0
        flags_to_bits(flags.view(np.uint64), _U(0), bits)


@compiled
def masked(x, packed, out, first, last):
    """``x`` where a bit of ``packed`` is set and 0 elsewhere, for integers of the size of the values."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    x, out, packed = x[8 * first : 8 * last], out[8 * first : 8 * last], packed[first:last]
    whole = x.size // 8
    for i in range(whole):
        flags = x.dtype.type(packed[i])
        for j in range(8):
            out[8 * i + j] = x[8 * i + j] & (zero - ((flags >> x.dtype.type(j)) & one))
    for j in range(8 * whole, x.size):
        out[j] = x[j] if (packed[whole] >> (j & 7)) & 1 else zero
