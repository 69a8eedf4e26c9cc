"""Products of matrices: each operand's gradient is formed from a summary of the other.

Shapes: ``n`` rows, ``d`` input and ``o`` output features; ``[..., n, d]`` stacks of matrices.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.functional.autocast import autocast
from rad.functional.operation import Call, Keep, Kept, Summary, operation
from rad.functional.registry import rule

__all__ = ["addmm", "baddbmm", "linear", "matmul"]


@rule(F.linear)
def linear(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``input weightᵀ + bias`` for ``input`` ``[..., d]``, ``weight`` ``[o, d]``; keeps a summary of the input.

    The gradients of input and bias are exact where ``weight`` is a parameter: along any path from a parameter to the
    loss only one Jacobian, ∂output/∂weight, is randomized (§4.2 of the paper).
    """
    call.cast = autocast
    return _linear(call, input, weight, bias) if weight.dim() == 2 else NotImplemented


@operation
def _linear(keep: Keep, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
    wants_bias = keep.wants(bias)
    x_, weight_ = keep.end(x, weight), keep.factor(weight, keep.wants(x))

    def backward(kept: Kept, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows = torch.atleast_2d(grad).flatten(0, -2)
        grad_weight = None if x_ is None else kept[x_].grad_weight(rows)
        grad_x = None if weight_ is None else grad @ kept.dense(weight_).to(grad.dtype)
        return grad_x, grad_weight, rows.sum(0) if wants_bias else None

    return F.linear(keep.cast(x), weight, bias), backward


@rule(torch.matmul, Tensor.matmul, Tensor.__matmul__)
def matmul(call: Call, input: Tensor, other: Tensor) -> Tensor:
    """Product of (stacks of) matrices, as ``torch.matmul``; keeps a summary of each operand whose partner needs it."""
    if input.dim() < 2 or other.dim() < 2:
        return NotImplemented
    call.cast = autocast
    return _addmm(call, None, input, other, torch.matmul)


@rule(torch.mm, Tensor.mm)
def _mm(call: Call, input: Tensor, mat2: Tensor, **options: Any) -> Tensor:
    # Of one name or another for the second matrix, and of no stacks: stock says what is wrong.
    return NotImplemented if options or input.dim() != 2 or mat2.dim() != 2 else matmul(call, input, mat2)


@rule(torch.bmm, Tensor.bmm)
def _bmm(call: Call, input: Tensor, mat2: Tensor, **options: Any) -> Tensor:
    if options or input.dim() != 3 or mat2.dim() != 3 or len(input) != len(mat2):
        return NotImplemented
    return matmul(call, input, mat2)


@rule(Tensor.__rmatmul__)
def _rmatmul(call: Call, other: Tensor, input: Tensor) -> Tensor:
    return matmul(call, input, other)


@rule(torch.addmm, Tensor.addmm)
def addmm(call: Call, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``beta · input + alpha · mat1 mat2``."""
    call.cast = autocast
    return _addmm(call, input, mat1, mat2, torch.addmm, beta=beta, alpha=alpha)


@rule(torch.baddbmm, Tensor.baddbmm)
def baddbmm(call: Call, input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``beta · input + alpha · batch1 batch2``."""
    call.cast = autocast
    return _addmm(call, input, batch1, batch2, torch.baddbmm, beta=beta, alpha=alpha)


@operation
def _addmm(keep: Keep, bias: Tensor | None, a: Tensor, b: Tensor, function: Any, **scales: float) -> Any:
    alpha, beta = scales.get("alpha", 1), scales.get("beta", 1)
    shapes, wants_bias = tuple(None if t is None else t.shape for t in (bias, a, b)), keep.wants(bias)
    rows = b.dim() == 2  # all matrices of the stack are multiplied by the same
    a_ = keep.end(a, b) if rows and keep.is_leaf(b) else keep.factor(a, keep.wants(b))
    b_ = keep.factor(b, keep.wants(a))

    def backward(kept: Kept, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_bias = (grad if beta == 1 else grad * beta).sum_to_size(shapes[0]) if wants_bias else None  # pyright: ignore
        grad = grad if alpha == 1 else grad * alpha
        grad_a = grad_b = None
        # One estimate at a time.
        if a_ is not None:
            item, flat = kept[a_], grad.flatten(0, -2)
            if rows and isinstance(item, Summary):
                grad_b = item.grad_weight(flat).mT
            elif rows:
                grad_b = item.flatten(0, -2).to(grad.dtype).mT @ flat
            else:
                grad_b = (kept.dense(a_).to(grad.dtype).mT @ grad).sum_to_size(shapes[2])  # pyright: ignore
            del item
        if b_ is not None:
            grad_a = (grad @ kept.dense(b_).to(grad.dtype).mT).sum_to_size(shapes[1])  # pyright: ignore
        return grad_bias, grad_a, grad_b

    a = keep.cast(a)
    return function(a, b) if bias is None else function(bias, a, b, **scales), backward
