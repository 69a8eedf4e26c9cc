"""Convolutions that keep a sketch of their input.

Shapes: ``n`` images, ``c`` input and ``o`` output channels, ``h × w`` input and ``y × x`` output positions, ``q``
offsets of the kernel (its height times its width), ``k`` kept input positions, ``g`` groups.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rad.functional.autocast import autocast
from rad.functional.geometry import Extent, Pair, pair, stand_in
from rad.sketch import Compressed, Sketch, kernels, load, save
from rad.sketch.rounding import compute_dtype

__all__ = ["conv2d"]

_CHUNK = 2**19  # elements of gathered gradients held at a time: a few MB, which a processor's cache holds


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Extent,
    padding: Extent | str,
    dilation: Extent,
    groups: int,
    sketch: Sketch,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A convolution, exact forwards, with a weight gradient formed from a sketch of ``x``.

    The sketch summarizes the positions of each channel: its matrix has the ``n · c`` channels for rows and their
    ``h · w`` positions for features, as in the paper. Where all rows keep the same few positions, the weight gradient
    is computed from them alone. The gradients of ``x`` and ``bias`` are exact (§4.2). Without a gradient to come
    nothing is sketched or drawn.

    Args:
        x: Images ``[n, c, h, w]``, or one image ``[c, h, w]``.
        weight: ``[o, c / groups, height, width]``.
        bias: ``[o]`` or ``None``.
        stride: Of the kernel; a pair is for height and width, here and below.
        padding: Zeros on each side, ``"valid"`` for none or ``"same"`` for as many as keep the size.
        dilation: Distance between the offsets of the kernel.
        groups: Into how many the channels are divided.
        sketch: The summary of ``x`` to keep.
        generator: CPU generator of the sketch's seeds; the global one if ``None``.

    Returns:
        Output ``[n, o, y, x]`` or ``[o, y, x]``, bit for bit that of ``torch.nn.functional.conv2d``.

    Raises:
        TypeError: If ``x`` is not of floating point.
        RuntimeError: By PyTorch, if shapes do not fit: the number of channels, or an image smaller than the kernel.
    """
    if not x.is_floating_point():
        raise TypeError(f"conv2d takes images of floating point, got {x.dtype}; convert them, for example by x.float()")
    x, weight, bias = autocast(x), autocast(weight), None if bias is None else autocast(bias)
    if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    batch = x[None] if x.dim() == 3 else x
    out = _Conv2d.apply(batch, weight, bias, stride, padding, dilation, groups, sketch, generator)
    return out.squeeze(0) if x.dim() == 3 else out


class _Geometry(NamedTuple):
    """Shapes of a convolution's operands and how the kernel moves.

    ``padding`` is that above and to the left; ``extra`` rows below and columns to the right come on top of the same
    there, as ``padding="same"`` needs for a kernel of even size.
    """

    input: torch.Size
    weight: torch.Size
    stride: Pair
    padding: Pair
    extra: Pair
    dilation: Pair
    groups: int

    @classmethod
    def of(
        cls, x: Tensor, weight: Tensor, stride: Extent, padding: Extent | str, dilation: Extent, groups: int
    ) -> _Geometry:
        around, extra = 0, 0
        if padding == "same":
            total = [d * (size - 1) for d, size in zip(pair(dilation), weight.shape[2:], strict=True)]
            around, extra = [t // 2 for t in total], [t % 2 for t in total]
        elif not isinstance(padding, str):
            around = padding
        return cls(x.shape, weight.shape, pair(stride), pair(around), pair(extra), pair(dilation), groups)


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        sketch: Sketch,
        generator: torch.Generator | None,
    ) -> Tensor:
        out = F.conv2d(x, weight, bias, stride, padding, dilation, groups)  # checks all shapes
        ctx.sketch = sketch
        ctx.geometry = _Geometry.of(x, weight, stride, padding, dilation, groups)
        rows = x.reshape(-1, x.shape[2] * x.shape[3])
        compressed = sketch.compress(rows, generator) if ctx.needs_input_grad[1] else None
        save(ctx, compressed, weight if ctx.needs_input_grad[0] else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        compressed, weight = load(ctx)
        # The weight first: the dense estimate that it may need is gone when the gradient of the input is formed.
        grad_weight = None if compressed is None else _grad_weight(ctx.sketch, compressed, grad_out, ctx.geometry)
        grad_x = None if weight is None else _grad_input(weight, grad_out, ctx.geometry)
        grad_bias = grad_out.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias, *[None] * 6


def _grad_input(weight: Tensor, grad_out: Tensor, to: _Geometry) -> Tensor:
    # As a transposed convolution: PyTorch's own routine for this gradient would ask for an input to read its shape,
    # and copy even one that has no memory of its own.
    beyond = [
        to.input[2 + i] + to.extra[i] + 2 * to.padding[i] - to.dilation[i] * (to.weight[2 + i] - 1) - 1
        for i in range(2)
    ]
    rest = [b % stride for b, stride in zip(beyond, to.stride, strict=True)]  # of rows and columns no kernel reaches
    grad = F.conv_transpose2d(grad_out, weight, None, to.stride, to.padding, rest, to.groups, to.dilation)
    return grad[:, :, : to.input[2], : to.input[3]]


def _grad_weight(sketch: Sketch, compressed: Compressed, grad_out: Tensor, to: _Geometry) -> Tensor:
    index, values = sketch.columns(compressed)
    if index is not None:
        return _grad_weight_at(index, values.view(*to.input[:2], -1), grad_out, to)
    x = values.view(to.input)
    if any(to.extra):
        x = F.pad(x, (0, to.extra[1], 0, to.extra[0]))
    # Of the weight only the shape is read.
    moves = (to.stride, to.padding, to.dilation, False, (0, 0), to.groups)  # no transposed convolution
    weight = stand_in(to.weight, grad_out)
    return torch.ops.aten.convolution_backward(grad_out, x, weight, None, *moves, [False, True, False])[1]


def _grad_weight_at(index: Tensor, values: Tensor, grad_out: Tensor, to: _Geometry) -> Tensor:
    """The weight gradient of images that are ``values`` ``[n, c, k]`` at the positions ``index`` and zero elsewhere.

    Per offset of the kernel, a position meets one output at most. The gradients of these are gathered, for some
    images and positions at a time, so that they take a quarter of the memory of the dense images at most.
    """
    n, c, k = values.shape
    o, _, *kernel = to.weight
    offsets = kernel[0] * kernel[1]
    rows = grad_out.reshape(n, o, -1)
    room = min(to.input.numel() // 4, _CHUNK) // (o * offsets)
    positions = min(k, max(room, 1))
    images = max(room // positions, 1)
    # Sums of many chunks, so not in half precision.
    total = values.new_zeros(to.groups, c // to.groups, o // to.groups * offsets, dtype=compute_dtype(values.dtype))
    for places, part in zip(index.split(positions), values.split(positions, 2), strict=True):
        met = _outputs_met(places, grad_out.shape[2:], to)
        for kept, grads in zip(part.split(images), rows.split(images), strict=True):
            kept = kept.transpose(0, 1).reshape(to.groups, c // to.groups, -1)
            total += kept @ _gather(grads, met).view(to.groups, -1, kept.shape[2]).mT
    grad = total.view(to.groups, c // to.groups, o // to.groups, *kernel).transpose(1, 2)
    return grad.reshape(to.weight).to(values.dtype)


def _outputs_met(index: Tensor, size: torch.Size, to: _Geometry) -> Tensor:
    """The output position that each kernel offset takes each input position ``index`` ``[k]`` to; ``[q, k]``.

    int32 among the ``y · x`` outputs, or −1 if there is none.
    """
    inside, place = torch.ones((), dtype=torch.bool, device=index.device), torch.zeros_like(index)
    coordinates = (index // to.input[3], index % to.input[3])
    for axis, at in enumerate(coordinates):
        offsets = to.dilation[axis] * torch.arange(to.weight[2 + axis], device=index.device)
        offsets = offsets[:, None, None] if axis == 0 else offsets[None, :, None]
        start = at + to.padding[axis] - offsets  # stride times the output's coordinate
        out = start // to.stride[axis]
        inside = inside & (start % to.stride[axis] == 0) & (out >= 0) & (out < size[axis])
        place = place * size[axis] + out
    return place.where(inside, -1).view(-1, len(index)).to(torch.int32)


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    """``rows`` ``[b, o, y · x]`` at the places ``index`` ``[q, j]``, zero at negative ones; ``[o, q, b, j]``."""
    (b, o), (q, j) = rows.shape[:2], index.shape
    if kernels.usable(rows.device, rows.dtype):
        out = rows.new_empty(o, q, b, j)
        kernels.gather(rows.numpy(), index.numpy(), out.numpy())
        return out
    picked = rows.index_select(2, index.clamp(min=0).view(-1)).view(b, o, q, j)
    return picked.masked_fill_(index < 0, 0).permute(1, 2, 0, 3).contiguous()
