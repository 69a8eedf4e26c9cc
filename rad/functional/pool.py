"""Pooling and other moves that do not keep their input.

Shapes: ``n`` images, ``c`` channels, ``h × w`` input and ``y × x`` output positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.functional.autocast import full_precision
from rad.functional.geometry import Extent, extents, pair, stand_in
from rad.functional.operation import Call, Keep, Kept, operation
from rad.functional.registry import rule
from rad.sketch import kernels
from rad.sketch.bits import MAX_BITS
from rad.sketch.threads import shared

__all__ = ["avg_pool2d", "max_pool1d", "max_pool2d", "max_pool3d", "move", "window_bits"]


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
    window, steps = pair(kernel_size), pair(_stride(stride, kernel_size))
    return _avg_pool2d(call, input, (window, steps, pair(padding), ceil_mode, count_include_pad, divisor_override))


def _stride(stride: Extent | None, kernel_size: Extent) -> Extent:
    """From one window to the next: its size where there is none, which an empty list says as well."""
    return kernel_size if stride is None or (isinstance(stride, Sequence) and not stride) else stride


@operation
def _avg_pool2d(keep: Keep, x: Tensor, args: tuple[Any, ...]) -> Any:
    shape = x.shape

    def backward(kept: Kept, grad: Tensor) -> Tensor:
        return torch.ops.aten.avg_pool2d_backward(grad, stand_in(shape, grad), *args)

    return F.avg_pool2d(x, *args), backward


@rule(F.max_pool2d, torch.max_pool2d)
def max_pool2d(call: Call, input: Tensor, *args: Any, **options: Any) -> Any:
    """Maxima over windows; keeps the place of each winner in its window, in as many bits as a window needs."""
    return _max_pool(call, 2, input, *args, **options)


@rule(F.max_pool3d, torch.max_pool3d)
def max_pool3d(call: Call, input: Tensor, *args: Any, **options: Any) -> Any:
    """As ``max_pool2d``, of volumes."""
    return _max_pool(call, 3, full_precision(input, "cpu"), *args, **options)


@rule(F.max_pool1d, torch.max_pool1d)
def max_pool1d(call: Call, input: Tensor, *args: Any, **options: Any) -> Any:
    """As ``max_pool2d``, of sequences."""
    return _max_pool(call, 1, input, *args, **options)


def _max_pool(
    call: Call,
    dims: int,
    input: Tensor,
    kernel_size: Extent,
    stride: Extent | None = None,
    padding: Extent = 0,
    dilation: Extent = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    kernel, *others = (extents(e, dims) for e in (kernel_size, _stride(stride, kernel_size), padding, dilation))
    # Indices that are returned are held by somebody else anyway.
    if return_indices or window_bits(kernel) > MAX_BITS:
        return NotImplemented
    if dims > 1:
        return _pool(call, input, (kernel, *others, ceil_mode))
    single = ((1, *kernel), *((neutral, *e) for neutral, e in zip((1, 0, 1), others, strict=True)), ceil_mode)
    return _pool(call, input.unsqueeze(-2), single).squeeze(-2)  # sequences are images of one row


def window_bits(kernel_size: Sequence[int]) -> int:
    """Bits that name a place in a window, at least 1."""
    return max((math.prod(kernel_size) - 1).bit_length(), 1)


_BACKWARD = {
    2: torch.ops.aten.max_pool2d_with_indices_backward,
    3: torch.ops.aten.max_pool3d_with_indices_backward,
}


@operation
def _pool(keep: Keep, x: Tensor, args: tuple[Any, ...]) -> Any:
    (kernel, _, _, dilation, _), shape = args, x.shape
    dims = len(kernel)
    function = F.max_pool2d_with_indices if dims == 2 else F.max_pool3d_with_indices
    out, index = function(x, *args)
    bits, offsets = window_bits(kernel), _offsets(kernel, dilation, shape, x.device)
    # A table from the distance to the window's first place; a division for each winner would take longer.
    farthest = sum((k - 1) * d * s for k, d, s in zip(kernel, dilation, _strides(shape, dims), strict=True))
    place_of = torch.zeros(farthest + 1, dtype=torch.uint8 if bits <= 8 else torch.int32, device=x.device)
    place_of[offsets] = torch.arange(len(offsets), device=x.device).to(place_of.dtype)
    place_ = keep.bits(_places(index, _first_places(out.shape, args, shape, x.device), place_of), bits)

    def backward(kept: Kept, grad: Tensor) -> Tensor:
        offsets = _offsets(kernel, dilation, shape, grad.device)
        index = _indices(kept[place_], _first_places(grad.shape, args, shape, grad.device), offsets)
        return _BACKWARD[dims](grad, stand_in(shape, grad), *args, index)

    return out, backward


def _places(index: Tensor, first: Tensor, table: Tensor) -> Tensor:
    """``table[index − first]``, with ``first`` for the last dimensions."""
    if not (kernels.usable(index) and index.is_contiguous()):
        return table[index - first]
    out, size = torch.empty(index.shape, dtype=table.dtype), first.numel()
    source, target = index.view(-1, size), out.view(-1, size)
    shared(kernels.places_in_windows, len(source), size, source, first.reshape(-1), table, target)
    return out


def _indices(places: Tensor, first: Tensor, offsets: Tensor) -> Tensor:
    """``first + offsets[places]``, with ``first`` for the last dimensions."""
    if not (kernels.usable(first) and kernels.seen_by_numpy(places)):
        return offsets[places.to(torch.int64)].add_(first)
    out, size = torch.empty(places.shape, dtype=torch.int64), first.numel()
    source, target = places.reshape(-1, size), out.view(-1, size)
    shared(kernels.indices_of_places, len(source), size, source, first.reshape(-1), offsets, target)
    return out


def _strides(shape: torch.Size, dims: int) -> list[int]:
    """How far apart neighbours are along each of the last ``dims`` dimensions, among all places of a channel."""
    return [math.prod(shape[len(shape) - dims + i + 1 :]) for i in range(dims)]


def _offsets(kernel: Sequence[int], dilation: Sequence[int], shape: torch.Size, device: torch.device) -> Tensor:
    """Of each place in a window, the distance from its first one; int64, in order."""
    offsets = torch.zeros((), dtype=torch.int64, device=device)
    for size, apart, stride in zip(kernel, dilation, _strides(shape, len(kernel)), strict=True):
        offsets = offsets[..., None] + torch.arange(size, device=device) * (apart * stride)
    return offsets.flatten()


def _first_places(size: torch.Size, args: tuple[Any, ...], shape: torch.Size, device: torch.device) -> Tensor:
    """Where the windows begin, in the padding perhaps; to broadcast against the output."""
    kernel, steps, padding, *_ = args
    dims, first = len(kernel), torch.zeros((), dtype=torch.int64, device=device)
    for i, stride in enumerate(_strides(shape, dims)):
        first = first[..., None] + (torch.arange(size[i - dims], device=device) * steps[i] - padding[i]) * stride
    return first
