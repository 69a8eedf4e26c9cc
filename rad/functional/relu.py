"""ReLU that keeps one bit per entry."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rad.sketch import load, save
from rad.sketch.bits import masked, pack_positive

__all__ = ["relu"]


def relu(x: Tensor, inplace: bool = False) -> Tensor:
    """``max(x, 0)`` with an exact gradient from one packed bit per entry (§4.2 of the paper).

    Args:
        x: Any shape.
        inplace: Whether to overwrite ``x``.

    Returns:
        A tensor like ``x``, bit for bit that of ``torch.nn.functional.relu``.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return F.relu(x, inplace)
    return _ReLU.apply(x, inplace)


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        if inplace:
            ctx.mark_dirty(x)
        out = F.relu(x, inplace)
        save(ctx, pack_positive(out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None]:
        (packed,) = load(ctx)
        return masked(grad_out, packed), None
