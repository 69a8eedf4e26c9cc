"""Derivatives of functions that are applied to each element, by autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["derivative", "derivatives"]


@contextmanager
def _graph_apart() -> Iterator[None]:
    """A graph made and used up at once, which hooks that follow what is saved for backward passes need not know of."""
    # Inside torch.func there are no such hooks.
    hooks = torch._C._autograd._saved_tensors_hooks_is_enabled()  # pyright: ignore
    with torch.enable_grad(), saved_tensors_hooks(lambda t: t, lambda t: t) if hooks else nullcontext():
        yield


def derivatives(
    function: Callable[..., Tensor], operands: Sequence[Any], wanted: Sequence[bool], shape: torch.Size
) -> tuple[Tensor, list[Tensor | None]]:
    """Values of a function whose elements depend on one place of each operand, and its derivatives by autograd.

    Args:
        function: Takes the operands.
        operands: Tensors that broadcast to ``shape``, and whatever else the function takes.
        wanted: By which of them to differentiate.
        shape: Shape of the operands that are differentiated by and of their derivatives.

    Returns:
        The values, without a graph, and a derivative for each operand that is wanted, else ``None``.
    """
    at = [t.detach().expand(shape).requires_grad_() if want else t for t, want in zip(operands, wanted, strict=True)]
    with _graph_apart():
        out = function(*at)
    leaves = [t for t, want in zip(at, wanted, strict=True) if want]
    found = iter(torch.autograd.grad(out, leaves, out.new_ones(()).expand_as(out)))
    return out.detach(), [next(found) if want else None for want in wanted]


# The fewest elements of a piece, and how many there are at most: small ones on a CPU, for its cache, but where many
# operations share them; and ones that keep a GPU busy.
_FEW, _MANY, _ON_GPU = (2**17, 16), (2**19, 8), (2**25, 8)


def derivative(function: Callable[[Tensor], Tensor], x: Tensor, chain: bool = False) -> tuple[Tensor, Tensor]:
    """Values of an elementwise function of one tensor, without a graph, and its derivative.

    Of a large tensor the derivative is formed by pieces, for each of which the function runs again: autograd then holds
    all that leads to the derivative of a piece, and not of the whole.

    Args:
        function: The function.
        x: What to apply it to.
        chain: Whether it is made of many operations.
    """
    least, most = _ON_GPU if x.is_cuda else _MANY if chain else _FEW
    size = max(least, -(-x.numel() // most))
    if x.numel() <= 4 * size:
        out, (slope,) = derivatives(function, [x], [True], x.shape)
        assert slope is not None
        return out, slope
    out, rows = function(x.detach()), x.detach().reshape(-1, x.shape[-1])
    slopes = torch.empty_like(rows)
    count = -(-size // x.shape[-1])
    for piece, place in zip(rows.split(count), slopes.split(count), strict=True):
        place.copy_(derivatives(function, [piece], [True], piece.shape)[1][0])  # pyright: ignore
    return out, slopes.view(x.shape)
