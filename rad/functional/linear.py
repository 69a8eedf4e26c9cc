"""Linear layers that keep a sketch of their input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rad.functional.autocast import autocast
from rad.sketch import Sketch, load, save

__all__ = ["linear"]


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sketch: Sketch,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``x weightᵀ + bias``, exact forwards, with a weight gradient formed from a sketch of ``x``.

    The gradients of ``x`` and ``bias`` are exact: along any path from a parameter to the loss only one Jacobian,
    ∂output/∂weight, is randomized (§4.2 of the paper). Without a gradient to come nothing is sketched or drawn.

    Args:
        x: Input ``[..., d]``; its leading dimensions are the rows of the sketch.
        weight: ``[o, d]``.
        bias: ``[o]`` or ``None``.
        sketch: The summary of ``x`` to keep.
        generator: CPU generator of the sketch's seeds; the global one if ``None``.

    Returns:
        Output ``[..., o]``, bit for bit that of ``torch.nn.functional.linear``.
    """
    x, weight, bias = autocast(x), autocast(weight), None if bias is None else autocast(bias)
    if not (torch.is_grad_enabled() and weight.requires_grad):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias, sketch, generator)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sketch: Sketch, generator: Any) -> Tensor:
        ctx.sketch = sketch
        compressed = sketch.compress(x.reshape(-1, x.shape[-1]), generator)
        save(ctx, compressed, weight if ctx.needs_input_grad[0] else None)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        compressed, weight = load(ctx)
        rows = grad_out.reshape(-1, grad_out.shape[-1])
        grad_x = grad_out @ weight if ctx.needs_input_grad[0] else None
        grad_weight = ctx.sketch.grad_weight(compressed, rows)
        grad_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias, None, None
