"""Normalized values rounded where they are formed, and the backward pass of a normalization from packed ones.

Only where there are loops for that: then the normalized values are never dense, and estimates of them only in the
memory of the gradient that they become. Elsewhere the functions say so by ``None``, and
``rad.functional.normalization`` does the same in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rad.sketch import gpu, kernels, tracing
from rad.sketch.base import Compressed, Sketch
from rad.sketch.kernels import compiled
from rad.sketch.levels import compute_dtype, rebuild, round_to_levels
from rad.sketch.random import Stream
from rad.sketch.rounding import Rounding
from rad.sketch.threads import shared

__all__ = ["backward", "compress", "softmax_backward"]

_LONGEST = 8192  # elements of a row that one program holds


def compress(
    sketch: Sketch, x: Tensor, norm: tuple[Tensor | None, Tensor, int], features: int, seed: Callable[[], Tensor]
) -> Compressed | None:
    """A summary of ``(x − mean) · scale`` as a matrix of so many ``features``.

    Args:
        sketch: The summary.
        x: What is normalized.
        norm: Means or ``None``, positive scales, both with one number for each run of so many elements, again and
            again; and that number of elements.
        features: Columns of the matrix.
        seed: Returns a seed.
    """
    mean, scale, run = norm
    real = compute_dtype(x.dtype)
    if not isinstance(sketch, Rounding) or sketch.exact or tracing.traced(x) or scale.dtype != real:
        return None
    count = x.numel()
    size = sketch.size(count)
    on_cpu = kernels.usable(x, torch.bfloat16, torch.float16) and (mean is None or mean.dtype == real)
    if not (on_cpu or gpu.groups_of(x, size, run)):
        return None
    number, width = seed(), sketch.width(count, scale.element_size())
    kept = round_to_levels(x.detach(), size, width, Stream(number, x.device), norm)
    return Compressed(kept, number, torch.Size((count // features, features)), scale.dtype)


def backward(
    sketch: Sketch,
    compressed: Compressed,
    grad: Tensor,
    scale: Tensor,
    gain: Tensor | None,
    view: tuple[int, ...],
    centered: bool,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Gradients of the input, of the gains and of the offsets, the last two flat.

    Args:
        sketch: The summary's.
        compressed: Of the normalized values.
        grad: Of the output.
        scale: One number for each row, or for each channel.
        gain: Weights, of columns or channels.
        view: ``[rows, d]`` where rows are normalized, ``[n, channels, space]`` where channels are.
        centered: Whether there are means.
    """
    if not isinstance(sketch, Rounding) or compressed.exact or scale.dtype != compute_dtype(grad.dtype):
        return None
    if tracing.traced(grad) or torch.is_grad_enabled():  # to be differentiated, which loops know nothing of
        return None
    size, grad = sketch.size(grad.numel()), grad.reshape(view).contiguous()
    packed, ranges = compressed.kept
    gain = None if gain is None else gain.contiguous()
    if gpu.groups_of(grad, size, view[-1]) and (len(view) == 3 or view[1] <= _LONGEST):
        run = gpu.rows_backward if len(view) == 2 else gpu.channels_backward
        grad_x, sums = run(grad, packed, ranges, size, compressed.stream(), scale, gain, centered)
    elif kernels.usable(grad):
        out = rebuild(packed, ranges, size, compressed.stream(), torch.empty(grad.numel(), dtype=grad.dtype))
        gain = torch.ones(view[1], dtype=grad.dtype) if gain is None else gain.detach().to(grad.dtype)
        run = _rows_on_cpu if len(view) == 2 else _channels_on_cpu
        grad_x, sums = run(grad, out.view(view), _noise(ranges[1], grad.dtype), size, scale, gain, centered)
    else:
        return None
    return grad_x, sums[0], sums[1]


def softmax_backward(p: Tensor, grad: Tensor, steps: Tensor, size: int) -> Tensor | None:
    """``p ∘ (grad − Σ p grad) + noise ∘ grad`` over the last dimension, in the memory of ``p``.

    Args:
        p: Estimates of the values of a softmax, to be overwritten.
        grad: Of these values.
        steps: Of groups of so many elements.
        size: That number.
    """
    if tracing.traced(grad) or torch.is_grad_enabled() or not (kernels.usable(grad) and p.dtype == grad.dtype):
        return None
    d = p.shape[-1]
    rows, noise = p.numel() // d, _noise(steps, grad.dtype)
    shared(_softmax_backward, rows, d, (p, None), (grad.contiguous(), None), noise, d, size)
    return p


# Elements, and at least so many rows, that have partial sums of their own: the same ones for any number of threads.
_CHUNK, _ROWS = 2**15, 16


def _rows_on_cpu(
    grad: Tensor, h: Tensor, noise: Tensor, size: int, scale: Tensor, gain: Tensor, centered: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of the input, in the memory of the estimates ``h``, and sums over rows ``[2, d]``."""
    rows, d = grad.shape
    chunk = max(_CHUNK // d, _ROWS)
    parts = -(-rows // chunk)
    sums = torch.zeros(parts, 2, d, dtype=grad.dtype)
    shared(_rows_backward, parts, chunk * d, grad, h, noise, (scale, None), (gain, None), sums, size, chunk, centered)
    return h, sums.sum(0)


def _channels_on_cpu(
    grad: Tensor, h: Tensor, noise: Tensor, size: int, scale: Tensor, gain: Tensor, centered: bool
) -> tuple[Tensor, Tensor]:
    """Gradients ``[n, channels, space]`` in the memory of the estimates ``h``, and sums ``[2, channels]``."""
    n, channels, space = grad.shape
    chunk = max(_CHUNK // (channels * space), -(-_ROWS // space))  # of examples
    parts = -(-n // chunk)
    sums = torch.zeros(parts, 2, channels, dtype=grad.dtype)
    shared(_channel_sums, parts, chunk * channels * space, grad, h, sums, chunk)
    total, share = sums.sum(0), 1 / (n * space)
    factors, slopes, shifts = scale.view(-1) * gain, total[0] * share, total[1] * (share if centered else 0.0)
    rows = (grad.view(-1, space), h.view(-1, space))
    shared(_channels_backward, n * channels, space, *rows, noise, factors, slopes, shifts, size, share)
    return h, total


def _noise(steps: Tensor, dtype: torch.dtype) -> Tensor:
    """The variance of estimates, by groups."""
    groups = steps.numel()
    noise = torch.empty(groups, dtype=dtype)
    shared(_noise_of_steps, groups, 1, steps, noise)
    return noise


@compiled
def _noise_of_steps(steps, noise, first, last):
    """The variance of what is uniform in ± half a step, given by bits of bfloat16; the smallest one has none."""
    bits = np.empty(1, np.uint32)
    for g in range(first, last):
        bits[0] = np.uint32(steps[g]) << np.uint32(16)
        step = noise.dtype.type(bits.view(np.float32)[0])
        noise[g] = step * step / noise.dtype.type(12)


_REORDERED = {"reassoc", "nsz"}  # sums may be formed in vectors
_HELD = 4096  # elements that loops go over again while they are near


@compiled(inline="always")
def _of_elements(noise, start, size, out):
    """The noise of elements from ``start`` on, of groups of so many."""
    before = start // size
    for g in range((start + out.size - 1) // size - before + 1):
        value = noise[before + g]
        begin, end = max(start, (before + g) * size), min(start + out.size, (before + g + 1) * size)
        part = out[begin - start : end - start]
        for i in range(end - begin):
            part[i] = value


@compiled(fastmath=_REORDERED)
def _rows_backward(grad, h, noise, scale, gain, sums, size, chunk, centered, first, last):
    """Some chunks of rows."""
    rows, d = grad.shape
    zero, one = grad.dtype.type(0), grad.dtype.type(1)
    share = one / grad.dtype.type(d)
    most = max(1, _HELD // d)
    slopes, shifts, more = np.empty(most, grad.dtype), np.empty(most, grad.dtype), np.empty(most * d, grad.dtype)
    for part in range(first, last):
        of_weight, of_bias = sums[part, 0], sums[part, 1]
        for begin in range(part * chunk, min((part + 1) * chunk, rows), most):
            held = min(most, (part + 1) * chunk - begin, rows - begin)
            for r in range(held):
                g, x = grad[begin + r], h[begin + r]
                slope = shift = zero
                for i in range(d):
                    slope += g[i] * gain[i] * x[i]
                    shift += g[i] * gain[i]
                slopes[r], shifts[r] = slope * share, shift * share if centered else zero
            for r in range(held):
                g, x = grad[begin + r], h[begin + r]
                for i in range(d):
                    of_weight[i] += g[i] * x[i]
                    of_bias[i] += g[i]
            _of_elements(noise, begin * d, size, more[: held * d])
            for r in range(held):
                g, x, own = grad[begin + r], h[begin + r], more[r * d : (r + 1) * d]
                slope, shift, factor = slopes[r], shifts[r], scale[begin + r]
                for i in range(d):
                    x[i] = (g[i] * gain[i] * (own[i] * share + one) - shift - x[i] * slope) * factor


@compiled(fastmath=_REORDERED)
def _channel_sums(grad, h, sums, chunk, first, last):
    """Some chunks of examples."""
    n, channels, space = grad.shape
    for part in range(first, last):
        for example in range(part * chunk, min((part + 1) * chunk, n)):
            for channel in range(channels):
                g, x = grad[example, channel], h[example, channel]
                of_weight = of_bias = grad.dtype.type(0)
                for i in range(space):
                    of_weight += g[i] * x[i]
                    of_bias += g[i]
                sums[part, 0, channel] += of_weight
                sums[part, 1, channel] += of_bias


@compiled
def _channels_backward(grad, h, noise, factors, slopes, shifts, size, share, first, last):
    """Some channels of examples, which are rows ``[n, space]`` here."""
    space, channels = grad.shape[1], factors.size
    most, one, share = max(1, _HELD // space), grad.dtype.type(1), grad.dtype.type(share)
    more = np.empty(most * space, grad.dtype)
    for begin in range(first, last, most):
        held = min(most, last - begin)
        _of_elements(noise, begin * space, size, more[: held * space])
        for r in range(held):
            g, x, own = grad[begin + r], h[begin + r], more[r * space : (r + 1) * space]
            channel = (begin + r) % channels
            factor, slope, shift = factors[channel], slopes[channel], shifts[channel]
            for i in range(space):
                x[i] = (g[i] * (own[i] * share + one) - shift - x[i] * slope) * factor


@compiled(fastmath=_REORDERED)
def _softmax_backward(p, grad, noise, d, size, first, last):
    """Some rows."""
    most = max(1, _HELD // d)
    totals, more = np.empty(most, grad.dtype), np.empty(most * d, grad.dtype)
    for begin in range(first, last, most):
        held = min(most, last - begin)
        xs, gs = p[begin * d : (begin + held) * d], grad[begin * d : (begin + held) * d]
        for r in range(held):
            x, g = xs[r * d : (r + 1) * d], gs[r * d : (r + 1) * d]
            total = grad.dtype.type(0)
            for i in range(d):
                total += x[i] * g[i]
            totals[r] = total
        _of_elements(noise, begin * d, size, more[: held * d])
        for r in range(held):
            x, g, own, total = xs[r * d : (r + 1) * d], gs[r * d : (r + 1) * d], more[r * d : (r + 1) * d], totals[r]
            for i in range(d):
                x[i] = x[i] * (g[i] - total) + own[i] * g[i]
