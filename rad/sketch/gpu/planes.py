"""Bits of values in planes, in Triton: eight elements share a byte, so blocks are seen as rows of eight."""

# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportPrivateUsage=false

from __future__ import annotations

import triton
import triton.language as tl

from rad.sketch.gpu.numbers import _load


@triton.jit
def _store_bits(packed, byte, row_bytes, kept, values, WIDTH: tl.constexpr):
    """Bit ``j`` of ``values`` ``[..., 8]`` in row ``j``, the eight of them in one byte."""
    axis: tl.constexpr = len(values.shape) - 1
    lane = tl.arange(0, 8)
    lane = lane[None, None, :] if axis == 2 else lane[None, :]
    for first in tl.static_range(0, WIDTH, 4):
        # Four bits apart, one at the low end of each byte of a word: no two of the products meet.
        spread = ((((values >> first) & 15) * 0x204081) & 0x1010101).to(tl.uint32)
        words = tl.sum(spread << lane, axis=axis)
        for j in tl.static_range(first, min(first + 4, WIDTH)):
            bits = ((words >> (8 * (j - first))) & 255).to(tl.uint8)
            tl.store(packed + j * row_bytes.to(tl.int64) + byte, bits, mask=kept)


@triton.jit
def _load_bits(packed, byte, row_bytes, kept, WIDTH: tl.constexpr):
    """Undoes ``_store_bits``: the values ``[..., 8]`` whose bits are at ``byte`` of all rows."""
    axis: tl.constexpr = len(byte.shape)
    lane = tl.arange(0, 8)
    lane = lane[None, None, :] if axis == 2 else lane[None, :]
    for first in tl.static_range(0, WIDTH, 4):
        words = tl.load(packed + first * row_bytes.to(tl.int64) + byte, mask=kept, other=0).to(tl.uint32)
        for j in tl.static_range(first + 1, min(first + 4, WIDTH)):
            bits = tl.load(packed + j * row_bytes.to(tl.int64) + byte, mask=kept, other=0).to(tl.uint32)
            words |= bits << (8 * (j - first))
        spread = (tl.expand_dims(words, axis) >> lane) & 0x1010101
        few = (((spread * 0x1020408) >> 24) & 15).to(tl.int32)
        if first == 0:
            values = few
        else:
            values |= few << first
    return values


@triton.jit(do_not_specialize=["row_bytes"])
def pack_values(x, packed, count, row_bytes, WIDTH: tl.constexpr, POSITIVE: tl.constexpr, BLOCK: tl.constexpr):
    """Bits of small integers, whether values are not zero (width 1), or whether they are not ``<= 0``."""
    at = tl.program_id(0).to(tl.int64) * (8 * BLOCK) + tl.arange(0, 8 * BLOCK)
    inside = at < count
    if POSITIVE:
        values = tl.where(_load(x, at, inside) <= 0, 0, 1)
    else:
        values = tl.load(x + at, mask=inside, other=0)
        if WIDTH == 1:
            values = tl.where(values != 0, 1, 0)
    values = tl.reshape(tl.where(inside, values.to(tl.int32), 0), (BLOCK, 8))
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    _store_bits(packed, byte, row_bytes, byte < row_bytes, values, WIDTH)


@triton.jit(do_not_specialize=["row_bytes"])
def unpack_values(packed, out, count, row_bytes, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Undoes ``pack_values``."""
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    values = _load_bits(packed, byte, row_bytes, byte < row_bytes, WIDTH)
    at = tl.program_id(0).to(tl.int64) * (8 * BLOCK) + tl.arange(0, 8 * BLOCK)
    tl.store(out + at, tl.reshape(values, (8 * BLOCK,)).to(out.dtype.element_ty), mask=at < count)


@triton.jit(do_not_specialize=["row_bytes"])
def mask_values(x, packed, out, count, row_bytes, BLOCK: tl.constexpr):
    """``x`` where bits are set and 0 elsewhere, for integers of the size of the values."""
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bits = tl.load(packed + byte, mask=byte < row_bytes, other=0).to(tl.int32)
    flags = tl.reshape((bits[:, None] >> tl.arange(0, 8)[None, :]) & 1, (8 * BLOCK,))
    at = tl.program_id(0).to(tl.int64) * (8 * BLOCK) + tl.arange(0, 8 * BLOCK)
    values = tl.load(x + at, mask=at < count, other=0)
    tl.store(out + at, tl.where(flags != 0, values, 0), mask=at < count)
