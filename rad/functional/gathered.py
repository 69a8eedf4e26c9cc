"""Weight gradients of convolutions whose input is known at a few positions, the same ones in all images and channels.

Shapes: ``n`` images, ``c`` input and ``o`` output channels, ``y × x`` output positions, ``q`` offsets of the kernel,
``k`` known input positions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rad.functional.geometry import Geometry
from rad.sketch import kernels
from rad.sketch.levels import compute_dtype
from rad.sketch.threads import shared

__all__ = ["grad_weight_at", "pays_to_gather"]

_GATHER = 15  # products that take as long as it takes to gather an element
_CHUNK = 2**19  # elements of gathered gradients held at a time: a few MB, which a processor's cache holds


def pays_to_gather(positions: int, grad_out: Tensor, to: Geometry) -> bool:
    """Whether to gather the gradients that so many positions meet takes less time than all products."""
    channels = to.weight[1]
    return positions * (_GATHER + channels) < math.prod(grad_out.shape[2:]) * channels


def grad_weight_at(index: Tensor, values: Tensor, grad_out: Tensor, to: Geometry) -> Tensor:
    """The weight gradient of images that are ``values`` ``[n, c, k]`` at the positions ``index`` and zero elsewhere.

    Per offset of the kernel, a position meets one output at most. The gradients of these are gathered, for some
    images and positions at a time, so that they take a quarter of the memory of the dense images, or of the result.
    """
    n, c, k = values.shape
    o, _, *kernel = to.weight
    offsets = kernel[0] * kernel[1]
    rows = grad_out.reshape(n, o, -1)
    room = min(max(to.input.numel() // 4, to.weight.numel()), _CHUNK) // (o * offsets)
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


def _outputs_met(index: Tensor, size: torch.Size, to: Geometry) -> Tensor:
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
    if kernels.usable(rows):
        out = rows.new_empty(o, q, b, j)
        shared(kernels.gather, o, q * b * j, rows.contiguous(), index.contiguous(), out)
        return out
    picked = rows.index_select(2, index.clamp(min=0).view(-1)).view(b, o, q, j)
    return picked.masked_fill_(index < 0, 0).permute(1, 2, 0, 3).contiguous()
