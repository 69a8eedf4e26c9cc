"""Normalized values rounded where they are formed, and the backward pass of a normalization from packed ones.

Only where there are loops for that: then neither the normalized values nor estimates of them are ever dense. Elsewhere
the functions say so by ``None``, and ``rad.functional.normalization`` does the same in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rad.sketch import gpu, tracing
from rad.sketch.base import Compressed, Sketch
from rad.sketch.levels import compute_dtype
from rad.sketch.random import Stream
from rad.sketch.rounding import Rounding

__all__ = ["backward", "compress"]

_LONGEST = 8192  # elements of a row that one program holds


def compress(
    sketch: Sketch, x: Tensor, norm: tuple[Tensor | None, Tensor, int], features: int, seed: Callable[[], Tensor]
) -> Compressed | None:
    """A summary of ``(x − mean) · scale`` as a matrix of so many ``features``.

    Args:
        sketch: The summary.
        x: What is normalized.
        norm: Means or ``None``, scales, both with one number for each run of so many elements, again and again; and
            that number of elements.
        features: Columns of the matrix.
        seed: Returns a seed.
    """
    _, scale, _ = norm
    if not isinstance(sketch, Rounding) or sketch.exact or tracing.traced(x) or scale.dtype != compute_dtype(x.dtype):
        return None
    count = x.numel()
    size = sketch.size(count)
    if not gpu.groups_of(x, size):
        return None
    number = seed()
    start = Stream(number, x.device).advance(-(-count // size) + size)
    width = sketch.width(count, scale.element_size())
    kept = gpu.round_to_levels(x.detach().reshape(-1), size, width, start, norm)
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
    if not isinstance(sketch, Rounding) or compressed.exact or tracing.traced(grad):
        return None
    if scale.dtype != compute_dtype(grad.dtype):
        return None
    size, grad = sketch.size(grad.numel()), grad.reshape(view).contiguous()
    if not gpu.groups_of(grad, size) or (len(view) == 2 and view[1] > _LONGEST):
        return None
    packed, ranges = compressed.kept
    dither = compressed.stream().uniform((ranges.shape[1] + size,), scale.dtype)
    run = gpu.rows_backward if len(view) == 2 else gpu.channels_backward
    gain = None if gain is None else gain.contiguous()
    grad_x, sums = run(grad, packed, ranges, size, dither, scale, gain, centered)
    return grad_x, sums[0], sums[1]
