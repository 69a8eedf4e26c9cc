"""Convolutions that keep a sketch of their input.

Shapes: ``n`` images, ``c`` input and ``o`` output channels, ``h × w`` input and ``y × x`` output positions, ``q``
offsets of the kernel (its height times its width), ``k`` kept input positions, ``g`` groups.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.functional.autocast import autocast
from rad.functional.gathered import grad_weight_at, pays_to_gather
from rad.functional.geometry import Extent, Geometry, around, extents, stand_in
from rad.functional.operation import Call, Keep, Kept, Summary, operation
from rad.functional.registry import rule
from rad.sketch import once

__all__ = ["convolution"]


def _register(function: Any, dims: int, transposed: bool) -> None:
    last = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
    names = ("input", "weight", "bias", "stride", "padding", *last)
    defaults = {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}

    @rule(function)
    def answer(call: Call, *args: Any, **kwargs: Any) -> Tensor:
        given = defaults | dict(zip(names, args, strict=False)) | kwargs
        return convolution(call, function, dims, transposed, **given)


def convolution(
    call: Call,
    function: Any,
    dims: int,
    transposed: bool,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Extent,
    padding: Extent | str,
    output_padding: Extent,
    dilation: Extent,
    groups: int,
) -> Tensor:
    """A convolution or transposed convolution over ``dims`` dimensions, with a weight gradient from a summary of ``x``.

    The sketch summarizes the positions of each channel: its matrix has the ``n · c`` channels for rows and their
    ``h · w`` positions for features, as in the paper. Where all rows keep the same few positions, the weight gradient
    of a plain 2d convolution is computed from them alone. The gradients of input and bias are exact (§4.2).

    Args:
        call: The call that is answered.
        function: The torch function, such as ``torch.nn.functional.conv2d``.
        dims: Dimensions of space.
        transposed: Whether it is a transposed convolution.
        input: Images ``[n, c, h, w]``, or one image ``[c, h, w]``.
        weight: ``[o, c / groups, height, width]``; transposed ``[c, o / groups, height, width]``.
        bias: ``[o]`` or ``None``.
        stride: Of the kernel, for all dimensions or each, here and below.
        padding: Zeros on each side, ``"valid"`` for none or ``"same"`` for as many as keep the size.
        output_padding: Of a transposed convolution: what is added to the size of the output.
        dilation: Distance between the offsets of the kernel.
        groups: Into how many the channels are divided.

    Returns:
        What ``function`` returns, bit for bit.
    """
    if input.dim() not in (dims + 1, dims + 2) or weight.dim() != dims + 2:
        return NotImplemented  # the stock function says what is wrong
    call.cast = autocast
    single = input.dim() == dims + 1
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if transposed:
        options["output_padding"] = output_padding
    out = _convolution(call, input[None] if single else input, weight, bias, function, transposed, options)
    return out.squeeze(0) if single else out


@operation
def _convolution(
    keep: Keep, x: Tensor, weight: Tensor, bias: Tensor | None, function: Any, transposed: bool, options: dict[str, Any]
) -> Any:
    out = function(x, weight, bias, **options)  # checks all shapes
    wants_bias, shape, sizes = keep.wants(bias), x.shape, weight.shape
    x_ = keep.end(x, weight, math.prod(shape[2:]))
    weight_ = keep.factor(weight, keep.wants(x))
    moves = _moves(sizes, transposed, **options)
    geometry = Geometry.of(x, weight, **options) if not transposed and len(shape) == 4 else None

    def backward(kept: Kept, grad: Tensor) -> tuple[Tensor | None, ...]:
        summary, weight = kept[x_], kept.dense(weight_)
        grad_bias = grad.sum([0, *range(2, grad.dim())]) if wants_bias else None
        weight = None if weight is None else weight.to(grad.dtype)
        later = math.prod(shape) > math.prod(sizes) and not (summary and summary.compressed.exact)
        together = weight is not None and not later and not torch.is_grad_enabled()  # faster; else one by one
        grad_x, grad_weight = _of_weight(summary, weight, grad, together) if summary is not None else (None, None)
        if weight is not None and grad_x is None:
            grad_x = _of_input(weight, grad)
        return grad_x, grad_weight, grad_bias

    def _of_weight(
        summary: Summary, weight: Tensor | None, grad: Tensor, together: bool
    ) -> tuple[Tensor | None, Tensor]:
        if geometry is not None:
            summary.note(lambda to=geometry: _reach(grad.detach(), to).reshape(-1, 1, math.prod(shape[2:])))
        index, values = summary.columns() if geometry is not None else (None, summary.dense())
        if geometry is not None and index is not None:
            if pays_to_gather(len(index), grad, geometry):
                return None, grad_weight_at(index, values.view(*shape[:2], -1), grad, geometry)
            values = summary.dense()
        # Of a weight stock reads the shape here, and yet copies one that has no memory of its own.
        read = stand_in(sizes, grad) if weight is None else weight
        dense = values.view(shape).to(grad.dtype)
        if torch.is_grad_enabled():
            return None, _OfWeight.apply(grad, dense, moves, sizes, function, options)  # pyright: ignore
        grad_x, grad_weight, _ = _stock_backward(grad, dense, read, moves, [together, True, False])
        return grad_x, grad_weight

    def _of_input(weight: Tensor, grad: Tensor) -> Tensor:
        if geometry is not None:
            return _grad_input(weight, grad, geometry)
        return _stock_backward(grad, stand_in(shape, grad), weight, moves, [True, False, False])[0]

    return out, backward


class _Moves(NamedTuple):
    """The arguments of PyTorch's own gradient; ``extra`` columns and rows of zeros come behind the input."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    extra: tuple[int, ...]


def _moves(
    weight: torch.Size,
    transposed: bool,
    stride: Extent,
    padding: Extent | str,
    dilation: Extent,
    groups: int,
    output_padding: Extent = 0,
) -> _Moves:
    dims = len(weight) - 2
    before, extra = around(weight, padding, dilation)
    return _Moves(
        extents(stride, dims), before, extents(dilation, dims), transposed, extents(output_padding, dims), groups, extra
    )


def _stock_backward(grad: Tensor, x: Tensor, weight: Tensor, moves: _Moves, mask: list[bool]) -> tuple[Tensor, ...]:
    size = x.shape
    if any(moves.extra):
        x = F.pad(x, [n for extra in reversed(moves.extra) for n in (0, extra)])
    grads = torch.ops.aten.convolution_backward(grad, x, weight, None, *moves[:-1], mask)
    if mask[0] and any(moves.extra):
        for axis, length in enumerate(size[2:], 2):
            grads = (grads[0].narrow(axis, 0, length), *grads[1:])
    return grads


class _OfWeight(torch.autograd.Function):
    """The weight's gradient where it is differentiated itself: PyTorch forms what nobody asks for along with that."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, moves: _Moves, sizes: torch.Size, *run: Any) -> Tensor:
        ctx.save_for_backward(grad, x)
        ctx.moves, ctx.run = moves, run
        return _stock_backward(grad, x, stand_in(sizes, grad), moves, [False, True, False])[1]

    @staticmethod
    @once
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        (grad, x), (function, options) = ctx.saved_tensors, ctx.run
        by_x = _stock_backward(grad, x, slope, ctx.moves, [ctx.needs_input_grad[1], False, False])[0]
        return function(x, slope, None, **options), by_x, *(None,) * 4


def _grad_input(weight: Tensor, grad_out: Tensor, to: Geometry) -> Tensor:
    # As a transposed convolution: PyTorch's own routine for this gradient would ask for an input to read its shape,
    # and copy even one that has no memory of its own.
    beyond = [
        to.input[2 + i] + to.extra[i] + 2 * to.padding[i] - to.dilation[i] * (to.weight[2 + i] - 1) - 1
        for i in range(2)
    ]
    rest = [b % stride for b, stride in zip(beyond, to.stride, strict=True)]  # of rows and columns no kernel reaches
    grad = F.conv_transpose2d(grad_out, weight, None, to.stride, to.padding, rest, to.groups, to.dilation)
    return grad[:, :, : to.input[2], : to.input[3]]


def _reach(grad_out: Tensor, to: Geometry) -> Tensor:
    """The sum of the squares of all outputs' gradients that each position meets, of each group; ``[n, g, h, w]``."""
    squares = grad_out.square().unflatten(1, (to.groups, -1)).sum(2)
    return _grad_input(grad_out.new_ones(to.groups, 1, *to.weight[2:]), squares, to)


for _dims in (1, 2, 3):
    _register(getattr(F, f"conv{_dims}d"), _dims, transposed=False)
    _register(getattr(F, f"conv_transpose{_dims}d"), _dims, transposed=True)
