"""Backward passes of normalizations from packed normalized values, in Triton; see ``rad.sketch.normalized``."""

# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportPrivateUsage=false

from __future__ import annotations

import triton
import triton.language as tl

from rad.sketch.gpu.levels import _TINY
from rad.sketch.gpu.numbers import _load, _store


@triton.jit
def _estimate(packed, ranges, dither, at, inside, row_bytes, groups, SIZE: tl.constexpr, WIDTH: tl.constexpr):
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
        h, noise = _estimate(packed, ranges, dither, at, inside, row_bytes, groups, SIZE, WIDTH)
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


@triton.jit(do_not_specialize=["count", "space", "channels", "chunk", "row_bytes", "groups"])
def channel_sums(
    grad,
    packed,
    ranges,
    dither,
    sums,
    count,
    space,
    channels,
    chunk,
    row_bytes,
    groups,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums over a part of the ``count`` elements of a channel: of the gradients times the values, of the gradients."""
    REAL: tl.constexpr = dither.dtype.element_ty
    channel, part = tl.program_id(0) % channels, tl.program_id(0) // channels
    of_weight, of_bias = tl.zeros((BLOCK,), REAL), tl.zeros((BLOCK,), REAL)
    for first in range(part * chunk, min((part + 1) * chunk, count), BLOCK):
        place = first + tl.arange(0, BLOCK)
        inside = place < count
        example = place // space
        at = (example.to(tl.int64) * channels + channel) * space + (place - example * space)
        g = _load(grad, at, inside).to(REAL)
        h, _ = _estimate(packed, ranges, dither, at, inside, row_bytes, groups, SIZE, WIDTH)
        of_weight += tl.where(inside, g * h, 0.0)
        of_bias += g
    at = part * 2 * channels + channel
    tl.store(sums + at, tl.sum(of_weight))
    tl.store(sums + at + channels, tl.sum(of_bias))


@triton.jit(do_not_specialize=["total", "n", "space", "channels", "row_bytes", "groups"])
def channels_backward(
    grad,
    packed,
    ranges,
    dither,
    scale,
    gain,
    sums,
    out,
    total,
    n,
    space,
    channels,
    row_bytes,
    groups,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    CENTERED: tl.constexpr,
    GAIN: tl.constexpr,
):
    """The gradient of the input from the sums over each channel, of ``n`` elements."""
    REAL: tl.constexpr = dither.dtype.element_ty
    first, place = tl.program_id(0).to(tl.int64) * BLOCK, tl.arange(0, BLOCK)
    at = first + place
    inside = at < total
    run = (first // space) % channels + ((first % space).to(tl.int32) + place) // space
    channel = run.to(tl.int32) % channels
    g = _load(grad, at, inside).to(REAL)
    h, noise = _estimate(packed, ranges, dither, at, inside, row_bytes, groups, SIZE, WIDTH)
    share = tl.full((), 1.0, REAL) / n
    result = g - h * (tl.load(sums + channel) * share) + g * (noise * share)
    if CENTERED:
        result -= tl.load(sums + channels + channel) * share
    stretch = tl.load(scale + channel)
    if GAIN:
        stretch = stretch * _load(gain, channel, inside).to(REAL)
    _store(out, at, result * stretch, inside)
