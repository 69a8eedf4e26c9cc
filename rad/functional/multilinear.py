"""Operations that are linear in each of several operands, by PyTorch's own gradient at estimates of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.functional.autocast import autocast
from rad.functional.operation import Call, Keep, Kept, operation
from rad.functional.registry import rule

__all__ = ["multilinear"]


@operation
def multilinear(keep: Keep, function: Callable[..., Tensor], *operands: Tensor) -> Any:
    """``function(*operands)``, linear in each operand; keeps a summary of each whose partners need a gradient.

    The gradient of one operand is PyTorch's own, of ``function`` at the estimates of the others. Each summary has a
    draw of its own, so that the product of two of them is unbiased as well.
    """
    wanted = [keep.wants(t) for t in operands]
    shapes = [t.shape for t in operands]
    handles = [keep.factor(t, any(wanted[:i] + wanted[i + 1 :])) for i, t in enumerate(operands)]

    def backward(kept: Kept, grad: Tensor) -> tuple[Tensor | None, ...]:
        # In the precision of the output, which may be autocast's.
        estimates = [None if handle is None else kept.dense(handle).to(grad.dtype) for handle in handles]
        grads: list[Tensor | None] = [None]  # of the function
        for i, (shape, want) in enumerate(zip(shapes, wanted, strict=True)):
            # Its value does not matter, for the function is linear in it.
            at = grad.new_zeros(shape).requires_grad_()
            if want:
                with torch.enable_grad():
                    out = function(*estimates[:i], at, *estimates[i + 1 :])
                recorded = torch.is_grad_enabled()
                grads.append(torch.autograd.grad(out, at, grad, create_graph=recorded)[0])
            else:
                grads.append(None)
        return tuple(grads)

    return function(*operands), backward


@rule(torch.einsum, torch.functional.einsum)
def einsum(call: Call, equation: Any, *operands: Any) -> Tensor:
    """``torch.einsum`` of up to two operands; longer ones and those given by sublists stay exact."""
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) > 2:
        return NotImplemented
    call.cast = autocast
    return multilinear(call, lambda *ts: torch.einsum(equation, *ts), *operands)


@rule(F.bilinear)
def bilinear(call: Call, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``input1ᵀ weight input2 + bias``, linear in all three."""
    call.cast = autocast
    out = multilinear(call, F.bilinear, input1, input2, weight)
    return out if bias is None else out + bias
