"""Backward passes of normalizations from packed normalized values, in Triton; see ``rad.sketch.normalized``."""

# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportPrivateUsage=false

from __future__ import annotations

import triton
import triton.language as tl

from rad.sketch.gpu.levels import _TINY, _estimates, _inside, _statistics
from rad.sketch.gpu.numbers import _counter, _load, _store
from rad.sketch.gpu.planes import _load_bits


@triton.jit
def _estimate_at(packed, ranges, dither, at, inside, row_bytes, groups, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """The elements at any places, as ``rebuild_groups`` has them, and their noise ``step²/12``."""
    REAL: tl.constexpr = dither.dtype.element_ty
    lane = (at & 7).to(tl.int32)
    level = tl.zeros_like(lane)
    for j in tl.static_range(0, WIDTH):
        byte = tl.load(packed + j * row_bytes.to(tl.int64) + (at >> 3), mask=inside, other=0).to(tl.int32)
        level |= ((byte >> lane) & 1) << j
    group = at // SIZE
    low, step = _load(ranges, group, inside).to(REAL), _load(ranges, groups + group, inside).to(REAL)
    step = tl.where(step == _TINY, 0.0, step)
    u = tl.load(dither + group, mask=inside, other=0.0) + tl.load(dither + groups + at % SIZE, mask=inside, other=0.0)
    u = tl.where(u >= 1.0, u - 1.0, u)
    return (level.to(REAL) + (0.5 - u)) * step + low, step * step * (1 / 12)


@triton.jit(do_not_specialize=["rows", "row_bytes", "groups"])
def rows_backward(
    grad,
    packed,
    ranges,
    dither,
    scale,
    gain,
    out,
    sums,
    rows,
    d,
    row_bytes,
    groups,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    CENTERED: tl.constexpr,
    GAIN: tl.constexpr,
):
    """A row at a time, and the sums over those of a program of the gradients times the values, and of the gradients."""
    REAL: tl.constexpr = dither.dtype.element_ty
    place = tl.arange(0, BLOCK)
    inside = place < d
    share = tl.full((), 1.0, REAL) / d
    of_weight, of_bias = tl.zeros((BLOCK,), REAL), tl.zeros((BLOCK,), REAL)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.cast(row, tl.int64) * d + place
        g = _load(grad, at, inside).to(REAL)
        h, noise = _estimate_at(packed, ranges, dither, at, inside, row_bytes, groups, SIZE, WIDTH)
        h = tl.where(inside, h, 0.0)
        of_weight += g * h
        of_bias += g
        if GAIN:
            g = g * _load(gain, place, inside).to(REAL)
        result = g - h * (tl.sum(g * h) * share) + g * (noise * share)
        if CENTERED:
            result -= tl.sum(g) * share
        _store(out, at, result * tl.load(scale + row), inside)
    at = tl.program_id(0).to(tl.int64) * 2 * d + place
    tl.store(sums + at, of_weight, mask=inside)
    tl.store(sums + at + d, of_bias, mask=inside)


@triton.jit(do_not_specialize=["planes", "space", "eights", "channels", "chunk", "row_bytes", "groups"])
def channel_sums(
    grad,
    packed,
    ranges,
    dither,
    sums,
    planes,
    space,
    eights,
    channels,
    chunk,
    row_bytes,
    groups,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    PLANES: tl.constexpr,
    EIGHTS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Sums over ``chunk`` planes of a channel: of the gradients times the values, and of the gradients.

    A plane, ``space`` elements of one example, touches ``eights`` bytes of bits; ``ALIGNED`` says that it fills them.
    """
    REAL: tl.constexpr = dither.dtype.element_ty
    channel, part = tl.program_id(0) % channels, tl.program_id(0) // channels
    lane = tl.arange(0, 8)[None, None, :]
    of_weight, of_bias = tl.zeros((PLANES, EIGHTS, 8), REAL), tl.zeros((PLANES, EIGHTS, 8), REAL)
    for first in range(part * chunk, min((part + 1) * chunk, planes), PLANES):
        plane = first + tl.arange(0, PLANES)
        base = ((plane.to(tl.int64) * channels + channel) * space)[:, None]
        for piece in range(0, eights, EIGHTS):
            eight = piece + tl.arange(0, EIGHTS)
            byte = (base >> 3) + eight[None, :]
            there = (plane < planes)[:, None] & (eight < eights)[None, :] & (byte < row_bytes)
            at = 8 * tl.expand_dims(byte, 2) + lane
            inside = tl.expand_dims(there, 2) & (lane >= 0)
            if not ALIGNED:
                begin = tl.expand_dims(base, 2)
                inside = inside & (at >= begin) & (at < begin + space)
            level = _load_bits(packed, byte, row_bytes, there, WIDTH)
            group = byte // (SIZE // 8)
            low, step = _load(ranges, group, there).to(REAL), _load(ranges, groups + group, there).to(REAL)
            step = tl.where(step == _TINY, 0.0, step)
            place = 8 * tl.expand_dims(byte % (SIZE // 8), 2) + lane
            u = tl.load(dither + groups + place, mask=tl.expand_dims(there, 2) & (lane >= 0), other=0.0)
            u += tl.expand_dims(tl.load(dither + group, mask=there, other=0.0), 2)
            u = tl.where(u >= 1.0, u - 1.0, u)
            h = (level.to(REAL) + (0.5 - u)) * tl.expand_dims(step, 2) + tl.expand_dims(low, 2)
            g = _load(grad, at, inside).to(REAL)
            of_weight += tl.where(inside, g * h, 0.0)
            of_bias += g
    at = part * 2 * channels + channel
    tl.store(sums + at, tl.sum(of_weight))
    tl.store(sums + at + channels, tl.sum(of_bias))


@triton.jit(do_not_specialize=["parts", "n", "channels"])
def channel_terms(
    sums,
    scale,
    gain,
    total,
    terms,
    parts,
    n,
    channels,
    CENTERED: tl.constexpr,
    GAIN: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sums over all parts, and for each channel what gradients and values are multiplied by, and what is taken off.

    ``n`` elements have the same statistics.
    """
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    of_weight, of_bias = tl.zeros((BLOCK,), total.dtype.element_ty), tl.zeros((BLOCK,), total.dtype.element_ty)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)[:, None]
        at, there = part * 2 * channels + channel[None, :], (part < parts) & inside[None, :]
        of_weight += tl.sum(tl.load(sums + at, mask=there, other=0.0), axis=0)
        of_bias += tl.sum(tl.load(sums + at + channels, mask=there, other=0.0), axis=0)
    tl.store(total + channel, of_weight, mask=inside)
    tl.store(total + channels + channel, of_bias, mask=inside)
    factor = tl.load(scale + channel, mask=inside, other=0.0)
    if GAIN:
        factor = factor * _load(gain, channel, inside).to(factor.dtype)
    share = factor / n
    tl.store(terms + channel, factor, mask=inside)
    tl.store(terms + channels + channel, of_weight * share, mask=inside)
    if CENTERED:
        tl.store(terms + 2 * channels + channel, of_bias * share, mask=inside)


@triton.jit(do_not_specialize=["groups", "row_bytes", "start", "n", "space", "channels"])
def channels_backward(
    grad,
    packed,
    ranges,
    terms,
    out,
    count,
    groups,
    row_bytes,
    start,
    shift,
    n,
    space,
    channels,
    SIZE: tl.constexpr,
    EIGHTS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    EVEN: tl.constexpr,
    NARROW: tl.constexpr,
    CENTERED: tl.constexpr,
):
    """The gradient of the input from ``channel_terms``, for ``ROWS`` groups a program."""
    REAL: tl.constexpr = terms.dtype.element_ty
    first = tl.program_id(0).to(tl.int64) * ROWS
    group = first + tl.arange(0, ROWS)
    h, step = _estimates(packed, ranges, _counter(start, shift), group, groups, row_bytes, REAL, SIZE, EIGHTS, WIDTH)
    at = group[:, None] * SIZE + tl.arange(0, 8 * EIGHTS)[None, :]
    inside = _inside(group, groups, count, SIZE, EIGHTS, EVEN)
    g = _load(grad, at, inside).to(REAL)
    more = step * step / (tl.full((), 12.0, REAL) * n) + 1.0
    factor = _statistics(terms, first * SIZE, space, channels, ROWS, SIZE, EIGHTS, NARROW)
    slope = _statistics(terms + channels, first * SIZE, space, channels, ROWS, SIZE, EIGHTS, NARROW)
    result = g * more[:, None] * factor - h * slope
    if CENTERED:
        result -= _statistics(terms + 2 * channels, first * SIZE, space, channels, ROWS, SIZE, EIGHTS, NARROW)
    _store(out, at, result, inside)
