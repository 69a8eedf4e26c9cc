"""Dropout that keeps one bit per entry."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rad.sketch import load, save
from rad.sketch.bits import masked, pack_positive

__all__ = ["dropout"]


def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zeros entries with probability ``p`` and scales the others by ``1/(1 − p)``; keeps one packed bit per entry.

    Which entries is up to the global generator, exactly as for ``torch.nn.functional.dropout``: conversion changes
    neither the values nor what is drawn after them.

    Args:
        x: Any shape.
        p: Probability of an entry to be zeroed, in [0, 1].
        training: Whether to do so at all.
        inplace: Whether to overwrite ``x``.

    Returns:
        A tensor like ``x``, bit for bit that of ``torch.nn.functional.dropout``. (In half precision on a GPU the
        scale is rounded before the product, not after it.)

    Raises:
        ValueError: If ``p`` lies outside [0, 1].
    """
    if not (torch.is_grad_enabled() and x.requires_grad and training and p != 0):
        return F.dropout(x, p, training, inplace)
    if p == 1:  # nothing is drawn
        return x.mul_(0) if inplace else x * 0
    return _Dropout.apply(x, p, inplace)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, inplace: bool) -> Tensor:
        # The result does not tell an entry that was dropped from one that was zero before; the scales do.
        scales = F.dropout(torch.ones_like(x), p)
        ctx.p = p
        save(ctx, pack_positive(scales))
        if not inplace:
            return x * scales
        ctx.mark_dirty(x)
        return x.mul_(scales)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = load(ctx)
        return masked(grad_out, packed).div_(1 - ctx.p), None, None
