"""Random numbers by counters, and elements of any floating-point dtype, in Triton.

Whatever is rounded is computed in float32, or in float64 for float64, without contraction of products and sums.
bfloat16 is read and written as integers, which every device and Triton's interpreter can do.
"""

# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportPrivateUsage=false

from __future__ import annotations

import triton
import triton.language as tl

# SplitMix64 in unsigned arithmetic.
_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_FIRST = tl.constexpr(0xBF58476D1CE4E5B9)
_SECOND = tl.constexpr(0x94D049BB133111EB)
_PLACES = tl.constexpr(0x7FFFFF)  # the 23 bits of a uniform number
_UNIT = tl.constexpr(2.0**-23)
_ONE = tl.constexpr(0x3F800000)  # the bits of 1 in float32


@triton.jit
def _hash(counter):
    z = counter.to(tl.uint64) * _GOLDEN
    z = (z ^ (z >> 30)) * _FIRST
    z = (z ^ (z >> 27)) * _SECOND
    return z ^ (z >> 31)


@triton.jit
def _counter(start, shift):
    """Where a stream of numbers starts, in a replay of what was captured; see ``rad.sketch.replay``."""
    counter = start.to(tl.int64)
    if shift is not None:
        counter += tl.load(shift)
    return counter


@triton.jit
def _dither(start, index):
    """A uniform number in units of 2^-23."""
    return (_hash(start + index) >> 41).to(tl.int32)


@triton.jit
def _uniform(by_group, by_place, REAL: tl.constexpr):
    """Sums modulo 1 of the numbers of groups and of places, as a matrix."""
    sums = (by_group[:, None] + by_place[None, :]) & _PLACES
    if REAL == tl.float64:
        u = sums.to(tl.float64) * _UNIT
    else:
        u = (sums | _ONE).to(tl.float32, bitcast=True) - 1.0  # they are the fraction of a number from 1 to 2
    return u


@triton.jit
def _bfloat16(x):
    """float32 rounded to nearest even in bfloat16, still as float32."""
    bits = x.to(tl.uint32, bitcast=True)
    rounded = (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).to(tl.float32, bitcast=True)
    return tl.where(x == x, rounded, float("nan"))


@triton.jit
def _load(pointer, at, inside):
    """Elements as float32, float64 as it is."""
    if pointer.dtype.element_ty == tl.bfloat16:
        bits = tl.load(pointer.to(tl.pointer_type(tl.uint16), bitcast=True) + at, mask=inside, other=0)
        x = (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif pointer.dtype.element_ty == tl.float16:
        x = tl.load(pointer + at, mask=inside, other=0.0).to(tl.float32)
    else:
        x = tl.load(pointer + at, mask=inside, other=0.0)
    return x


@triton.jit
def _rounded(pointer, x):
    """Values as elements of ``pointer`` hold them."""
    if pointer.dtype.element_ty == tl.bfloat16:
        y = _bfloat16(x)
    elif pointer.dtype.element_ty == tl.float16:
        y = x.to(tl.float16).to(tl.float32)
    else:
        y = x
    return y


@triton.jit
def _store(pointer, at, x, inside):
    if pointer.dtype.element_ty == tl.bfloat16:
        bits = (_bfloat16(x).to(tl.uint32, bitcast=True) >> 16).to(tl.uint16)
        tl.store(pointer.to(tl.pointer_type(tl.uint16), bitcast=True) + at, bits, mask=inside)
    else:
        tl.store(pointer + at, x.to(pointer.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["start", "bound"])
def draw_words(out, count, start, shift, bound, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """Hashes of successive counters: themselves, brought into [0, bound), or as uniform numbers."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    words = _hash(_counter(start, shift) + at)
    if KIND == "integers":
        words = ((words >> 32) * bound.to(tl.uint64)) >> 32
    if KIND == "uniform":
        REAL: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
        _store(out, at, (words >> 41).to(tl.int32).to(REAL) * _UNIT, at < count)
    else:
        tl.store(out + at, words.to(tl.int64), mask=at < count)


@triton.jit(do_not_specialize=["start"])
def draw_signs(out, count, start, shift, BLOCK: tl.constexpr):
    """±1 by the bits of hashes, 64 to a word."""
    word = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bits = _hash(_counter(start, shift) + word)[:, None] >> tl.arange(0, 64)[None, :].to(tl.uint64)
    signs = tl.reshape((bits & 1).to(tl.int32) * 2 - 1, (64 * BLOCK,))
    at = tl.program_id(0).to(tl.int64) * (64 * BLOCK) + tl.arange(0, 64 * BLOCK)
    REAL: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    _store(out, at, signs.to(REAL), at < count)
