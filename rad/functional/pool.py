"""Pooling and other moves that do not keep their input.

Shapes: ``n`` images, ``c`` channels, ``h × w`` input and ``y × x`` output positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.functional.geometry import Extent, pair, stand_in
from rad.functional.operation import Call, Keep, Kept, operation
from rad.functional.registry import rule
from rad.sketch.bits import MAX_BITS

__all__ = ["avg_pool2d", "max_pool2d", "move", "window_bits"]


@operation
def move(keep: Keep, x: Tensor, function: Callable[[Tensor], Tensor]) -> Any:
    """``function(x)``, linear in ``x``, whose gradient needs only the shape of ``x``; keeps nothing."""
    shape = x.shape

    def backward(kept: Kept, grad: Tensor) -> Tensor:
        at = stand_in(shape, grad).detach().requires_grad_()
        with torch.enable_grad():
            out = function(at)
        return torch.autograd.grad(out, at, grad, create_graph=torch.is_grad_enabled())[0]

    return function(x), backward


def _register_moves(functions: list[Callable[..., Tensor]]) -> None:
    for function in functions:

        @rule(function)
        def answer(call: Call, input: Tensor, *args: Any, _function: Any = function, **kwargs: Any) -> Tensor:
            return move(call, input, lambda x: _function(x, *args, **kwargs))


# PyTorch keeps the input of each of these, only to know its shape.
_register_moves([F.avg_pool1d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d])


@rule(F.pad)
def _pad(call: Call, input: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    if mode == "constant":
        return NotImplemented  # PyTorch keeps nothing
    return move(call, input, lambda x: F.pad(x, pad, mode, value))


@rule(F.avg_pool2d)
def avg_pool2d(
    call: Call,
    input: Tensor,
    kernel_size: Extent,
    stride: Extent | None = None,
    padding: Extent = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Means over windows; only the shape of the input is kept."""
    stride = kernel_size if stride is None or stride == [] else stride
    return _avg_pool2d(
        call, input, (pair(kernel_size), pair(stride), pair(padding), ceil_mode, count_include_pad, divisor_override)
    )


@operation
def _avg_pool2d(keep: Keep, x: Tensor, args: tuple[Any, ...]) -> Any:
    shape = x.shape

    def backward(kept: Kept, grad: Tensor) -> Tensor:
        return torch.ops.aten.avg_pool2d_backward(grad, stand_in(shape, grad), *args)

    return F.avg_pool2d(x, *args), backward


@rule(F.max_pool2d, torch.max_pool2d)
def max_pool2d(
    call: Call,
    input: Tensor,
    kernel_size: Extent,
    stride: Extent | None = None,
    padding: Extent = 0,
    dilation: Extent = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Maxima over windows; keeps the place of each winner in its window, in as many bits as a window needs."""
    stride = kernel_size if stride is None or stride == [] else stride
    # Indices that are returned are held by somebody else anyway.
    if return_indices or window_bits(kernel_size) > MAX_BITS:
        return NotImplemented
    return _max_pool2d(call, input, (pair(kernel_size), pair(stride), pair(padding), pair(dilation), ceil_mode))


@rule(F.max_pool1d)
def _max_pool1d(
    call: Call,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    size, step, around, apart = (
        t if t is None or isinstance(t, int) else t[0] for t in (kernel_size, stride, padding, dilation)
    )
    if return_indices or window_bits((1, size)) > MAX_BITS:  # pyright: ignore
        return NotImplemented
    args = ((1, size), (1, size if step is None else step), (0, around), (1, apart), ceil_mode)
    return _max_pool2d(call, input.unsqueeze(-2), args).squeeze(-2)


def window_bits(kernel_size: Extent) -> int:
    """Bits that name a place in a window, at least 1."""
    height, width = pair(kernel_size)
    return max((height * width - 1).bit_length(), 1)


@operation
def _max_pool2d(keep: Keep, x: Tensor, args: tuple[Any, ...]) -> Any:
    out, index = F.max_pool2d_with_indices(x, *args)
    (kernel, _, _, dilation, _), shape = args, x.shape
    first = _first_places(out.shape, args, x.device)
    # The distance to a window's first place is so many rows, and less than a row of places.
    down = (index // shape[-1] - first[0]) // dilation[0]
    right = (index % shape[-1] - first[1]) // dilation[1]
    place = down.mul_(kernel[1]).add_(right)
    bits = window_bits(kernel)
    place_ = keep.bits(place.to(torch.uint8 if bits <= 8 else torch.int32), bits)

    def backward(kept: Kept, grad: Tensor) -> Tensor:
        place = kept[place_].to(torch.int64)
        first = _first_places(grad.shape, args, grad.device)
        index = (place // kernel[1] * dilation[0] + first[0]) * shape[-1]
        index += place % kernel[1] * dilation[1] + first[1]
        return torch.ops.aten.max_pool2d_with_indices_backward(grad, stand_in(shape, grad), *args, index)

    return out, backward


def _first_places(size: torch.Size, args: tuple[Any, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows ``[y, 1]`` and columns ``[x]`` where the windows begin, in the padding perhaps."""
    _, stride, padding, _, _ = args
    rows, columns = (torch.arange(size[i - 2], device=device) * stride[i] - padding[i] for i in range(2))
    return rows[:, None], columns
