"""Pooling that does not keep its input.

Shapes: ``n`` images, ``c`` channels, ``h × w`` input and ``y × x`` output positions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rad.functional.geometry import Extent, pair, stand_in
from rad.sketch import load, save
from rad.sketch.bits import MAX_BITS, pack, unpack

__all__ = ["avg_pool2d", "max_pool2d", "window_bits"]


def avg_pool2d(
    x: Tensor,
    kernel_size: Extent,
    stride: Extent | None = None,
    padding: Extent = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Means over windows, with an exact gradient for which nothing is kept: only the shape is needed.

    Args:
        x: ``[n, c, h, w]`` or ``[c, h, w]``.
        kernel_size: Of the window; a pair is for height and width, here and below.
        stride: Of the window; its size if ``None``.
        padding: Zeros on each side.
        ceil_mode: Whether windows may reach over the edge.
        count_include_pad: Whether the zeros of the padding count in the mean.
        divisor_override: What to divide sums by in place of the size of the window.

    Returns:
        ``[(n,) c, y, x]``, bit for bit that of ``torch.nn.functional.avg_pool2d``.
    """
    stride = kernel_size if stride is None else stride
    args = (pair(kernel_size), pair(stride), pair(padding), ceil_mode, count_include_pad, divisor_override)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return F.avg_pool2d(x, *args)
    return _AvgPool2d.apply(x, *args)


class _AvgPool2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        ctx.shape, ctx.args = x.shape, args
        return F.avg_pool2d(x, *args)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        grad = torch.ops.aten.avg_pool2d_backward(grad_out, stand_in(ctx.shape, grad_out), *ctx.args)
        return grad, *[None] * 6


def max_pool2d(
    x: Tensor,
    kernel_size: Extent,
    stride: Extent | None = None,
    padding: Extent = 0,
    dilation: Extent = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """Maxima over windows, with an exact gradient for which the winner's place in its window is kept, in packed bits.

    Args:
        x: ``[n, c, h, w]`` or ``[c, h, w]``.
        kernel_size: Of the window, at most 65,536 places; a pair is for height and width, here and below.
        stride: Of the window; its size if ``None``.
        padding: Minus infinities on each side.
        dilation: Distance between the places of the window.
        ceil_mode: Whether windows may reach over the edge.

    Returns:
        ``[(n,) c, y, x]``, bit for bit that of ``torch.nn.functional.max_pool2d``.

    Raises:
        ValueError: If a window has more than 65,536 places.
    """
    stride = kernel_size if stride is None else stride
    args = (pair(kernel_size), pair(stride), pair(padding), pair(dilation), ceil_mode)
    if window_bits(args[0]) > MAX_BITS:
        raise ValueError(
            f"max_pool2d packs places of windows up to {2**MAX_BITS:,} of them, got kernel_size={kernel_size}; "
            "use torch.nn.functional.max_pool2d"
        )
    if not (torch.is_grad_enabled() and x.requires_grad):
        return F.max_pool2d(x, *args)
    return _MaxPool2d.apply(x, *args)


def window_bits(kernel_size: Extent) -> int:
    """Bits that name a place in a window, at least 1."""
    height, width = pair(kernel_size)
    return max((height * width - 1).bit_length(), 1)


class _MaxPool2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        out, index = F.max_pool2d_with_indices(x, *args)
        ctx.shape, ctx.args = x.shape, args
        (_, width), _, _, dilation, _ = args
        first = _first_places(out.shape, args, x.device)
        # The distance to a window's first place is so many rows, and less than a row of places.
        down = (index // x.shape[-1] - first[0]) // dilation[0]
        right = (index % x.shape[-1] - first[1]) // dilation[1]
        place = down.mul_(width).add_(right)
        bits = window_bits(args[0])
        save(ctx, pack(place.to(torch.uint8 if bits <= 8 else torch.int32), bits))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        (packed,), (kernel, _, _, dilation, _) = load(ctx), ctx.args
        place = unpack(packed, window_bits(kernel), grad_out.numel()).view(grad_out.shape).to(torch.int64)
        first = _first_places(grad_out.shape, ctx.args, grad_out.device)
        index = (place // kernel[1] * dilation[0] + first[0]) * ctx.shape[-1]
        index += place % kernel[1] * dilation[1] + first[1]
        x = stand_in(ctx.shape, grad_out)
        grad = torch.ops.aten.max_pool2d_with_indices_backward(grad_out, x, *ctx.args, index)
        return grad, *[None] * 5


def _first_places(size: torch.Size, args: tuple[Any, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows ``[y, 1]`` and columns ``[x]`` where the windows begin, in the padding perhaps."""
    _, stride, padding, _, _ = args
    rows, columns = (torch.arange(size[i - 2], device=device) * stride[i] - padding[i] for i in range(2))
    return rows[:, None], columns
