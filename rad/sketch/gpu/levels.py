"""Rounding to levels of the range of a group and back, in Triton; see ``rad.sketch.levels``."""

# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportPrivateUsage=false

from __future__ import annotations

import triton
import triton.language as tl

from rad.sketch.gpu.numbers import _bfloat16, _counter, _dither, _load, _rounded, _store, _uniform
from rad.sketch.gpu.planes import _load_bits, _store_bits

_INF = tl.constexpr(float("inf"))
_TINY = tl.constexpr(2.0**-126)  # the smallest step


@triton.jit
def _inside(group, groups, count, SIZE: tl.constexpr, EIGHTS: tl.constexpr, EVEN: tl.constexpr):
    """Which elements of groups there are; ``EVEN`` says that the last group is as large as all others."""
    place = tl.arange(0, 8 * EIGHTS)[None, :]
    inside = (group < groups)[:, None] & (place < SIZE)
    if not EVEN:
        inside = inside & (group[:, None] * SIZE + place < count)
    return inside


@triton.jit
def _bytes(group, groups, row_bytes, SIZE: tl.constexpr, EIGHTS: tl.constexpr):
    """Where the bits of groups are in a row, ``[groups, eights]``, and which of them there are."""
    eight = tl.arange(0, EIGHTS)[None, :]
    byte = group[:, None] * (SIZE // 8) + eight
    return byte, (group < groups)[:, None] & (eight < SIZE // 8) & (byte < row_bytes)


@triton.jit
def _extremes(x, inside):
    """Lowest and highest number of each row, NaN outside of infinity."""
    # Integers in the order of the numbers whose bits they are, once these are flipped where the sign is set.
    KEY: tl.constexpr = tl.int64 if x.dtype == tl.float64 else tl.int32
    FLIP: tl.constexpr = 2**63 - 1 if x.dtype == tl.float64 else 2**31 - 1
    SIGN: tl.constexpr = 63 if x.dtype == tl.float64 else 31
    bits = x.to(KEY, bitcast=True)
    keys = bits ^ ((bits >> SIGN) & FLIP)
    low = tl.min(tl.where(inside, keys, FLIP), axis=1)
    high = tl.max(tl.where(inside, keys, -FLIP), axis=1)
    low, high = low ^ ((low >> SIGN) & FLIP), high ^ ((high >> SIGN) & FLIP)
    return low.to(x.dtype, bitcast=True), high.to(x.dtype, bitcast=True)


@triton.jit
def _stored_range(low, high, WIDTH: tl.constexpr):
    """``rad.sketch.levels.stored_range``, as float32."""
    STRETCH: tl.constexpr = (1 + 2.0**-7) / (2**WIDTH - 1)
    nearest = _bfloat16(low.to(tl.float32))
    less = _bfloat16(nearest - tl.abs(nearest) * 0.0078125)
    stored = tl.where(nearest.to(low.dtype) <= low, nearest, less)
    step = tl.maximum((high - stored.to(low.dtype)) * STRETCH, _TINY, propagate_nan=tl.PropagateNan.ALL)
    finite = (tl.abs(low) < _INF) & (tl.abs(high) < _INF)
    return tl.where(finite, stored, float("nan")), tl.where(finite, _bfloat16(step.to(tl.float32)), float("nan"))


@triton.jit
def _reciprocal(x):
    if x.dtype == tl.float64:
        y = 1.0 / x
    else:
        y = tl.math.div_rn(1.0, x)  # which is rounded as IEEE has it
    return y


@triton.jit
def _statistics(
    pointer,
    first,
    inner,
    stats,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    EIGHTS: tl.constexpr,
    NARROW: tl.constexpr,
):
    """Numbers of elements from ``first`` on, ``ROWS`` groups of them: one for ``inner`` in turn, ``stats`` in all.

    Eight elements have at most two of them, which are loaded once; more only where runs are shorter (``NARROW``).
    """
    place = tl.arange(0, ROWS)[:, None] * SIZE
    place += tl.arange(0, 8 * EIGHTS)[None, :] if NARROW else 8 * tl.arange(0, EIGHTS)[None, :]
    place += (first % inner).to(tl.int32)  # counted from where the statistics of the first begin
    run = place // inner
    stat = (((first // inner) % stats).to(tl.int32) + run) % stats
    here = tl.load(pointer + stat)
    if not NARROW:
        lane = tl.arange(0, 8)[None, None, :]
        left = tl.expand_dims((run + 1) * inner - place, 2)
        then = tl.load(pointer + tl.where(stat + 1 < stats, stat + 1, 0))
        each = tl.where(lane < left, tl.expand_dims(here, 2), tl.expand_dims(then, 2))
        here = tl.reshape(each, (ROWS, 8 * EIGHTS))
    return here


@triton.jit
def _estimates(
    packed,
    ranges,
    start,
    group,
    groups,
    row_bytes,
    REAL: tl.constexpr,
    SIZE: tl.constexpr,
    EIGHTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """What groups of levels stand for, and their steps."""
    byte, kept = _bytes(group, groups, row_bytes, SIZE, EIGHTS)
    levels = tl.reshape(_load_bits(packed, byte, row_bytes, kept, WIDTH), (group.shape[0], 8 * EIGHTS))
    there = group < groups
    low, step = _load(ranges, group, there).to(REAL), _load(ranges, groups + group, there).to(REAL)
    step = tl.where(step == _TINY, 0.0, step)
    by_group, by_place = _dither(start, group), _dither(start, groups + tl.arange(0, 8 * EIGHTS))
    values = (levels.to(REAL) + (0.5 - _uniform(by_group, by_place, REAL))) * step[:, None] + low[:, None]
    return values, step


@triton.jit(do_not_specialize=["groups", "row_bytes", "start", "inner", "stats"])
def round_groups(
    x,
    packed,
    ranges,
    mean,
    scale,
    count,
    groups,
    row_bytes,
    start,
    shift,
    inner,
    stats,
    SIZE: tl.constexpr,
    EIGHTS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    EVEN: tl.constexpr,
    NARROW: tl.constexpr,
    SCALED: tl.constexpr,
    CENTERED: tl.constexpr,
):
    """``rad.sketch.levels.round_to_levels`` for groups of ``SIZE`` elements, a multiple of 8; ``ROWS`` a program."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    group = first + tl.arange(0, ROWS)
    place = tl.arange(0, 8 * EIGHTS)
    at = group[:, None] * SIZE + place[None, :]
    inside = _inside(group, groups, count, SIZE, EIGHTS, EVEN)
    values = _load(x, at, inside)
    if CENTERED:
        values -= _statistics(mean, first * SIZE, inner, stats, ROWS, SIZE, EIGHTS, NARROW)
    if SCALED:
        values *= _statistics(scale, first * SIZE, inner, stats, ROWS, SIZE, EIGHTS, NARROW)
    low, high = _extremes(values, inside)
    low32, step32 = _stored_range(low, high, WIDTH)
    there = group < groups
    _store(ranges, group, low32, there)
    _store(ranges, groups + group, step32, there)
    low, step = low32.to(values.dtype), step32.to(values.dtype)
    whole = (tl.abs(low) < _INF) & (step < _INF)
    start = _counter(start, shift)
    by_group, by_place = _dither(start, group), _dither(start, groups + place)
    u = _uniform(by_group, by_place, values.dtype)
    steps = (values - low[:, None]) * _reciprocal(step)[:, None] + u
    levels = tl.where(inside & whole[:, None], steps, 0.0).to(tl.int32)
    byte, kept = _bytes(group, groups, row_bytes, SIZE, EIGHTS)
    _store_bits(packed, byte, row_bytes, kept, tl.reshape(levels, (ROWS, EIGHTS, 8)), WIDTH)


@triton.jit(do_not_specialize=["groups", "row_bytes", "start", "inner", "stats"])
def rebuild_groups(
    packed,
    ranges,
    grad,
    out,
    count,
    groups,
    row_bytes,
    start,
    shift,
    inner,
    stats,
    SIZE: tl.constexpr,
    EIGHTS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    EVEN: tl.constexpr,
    TIMES: tl.constexpr,
):
    """``rad.sketch.levels.rebuild``, times ``grad`` for each element, or one of ``stats`` for ``inner`` in turn."""
    REAL: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    first = tl.program_id(0).to(tl.int64) * ROWS
    group = first + tl.arange(0, ROWS)
    values, _ = _estimates(packed, ranges, _counter(start, shift), group, groups, row_bytes, REAL, SIZE, EIGHTS, WIDTH)
    at = group[:, None] * SIZE + tl.arange(0, 8 * EIGHTS)[None, :]
    inside = _inside(group, groups, count, SIZE, EIGHTS, EVEN)
    if TIMES == "each":
        values = _rounded(out, values) * _load(grad, at, inside)
    elif TIMES != "":
        factor = _statistics(grad, first * SIZE, inner, stats, ROWS, SIZE, EIGHTS, TIMES == "narrow")
        values = _rounded(out, values) * factor.to(values.dtype)
    _store(out, at, values, inside)
