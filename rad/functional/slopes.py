"""Derivatives of functions that are applied to each element, by autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from rad.sketch import tracing

__all__ = ["derivative", "derivatives", "in_one_pass"]

_aten = torch.ops.aten
# What PyTorch has one kernel for: the gradient of the argument from that of the value, the argument and the value.
_KERNELS: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    F.gelu: lambda grad, x, value, **options: _aten.gelu_backward(grad, x, **options),
    F.silu: lambda grad, x, value, **options: _aten.silu_backward(grad, x, **options),
    **dict.fromkeys(
        (torch.sigmoid, Tensor.sigmoid, F.sigmoid),
        lambda grad, x, value, **options: _aten.sigmoid_backward(grad, value, **options),
    ),
    **dict.fromkeys(
        (torch.tanh, Tensor.tanh, F.tanh),
        lambda grad, x, value, **options: _aten.tanh_backward(grad, value, **options),
    ),
}


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
    slopes = [next(found) if want else None for want in wanted]
    tensors = [t for t in operands if isinstance(t, Tensor)]
    if len({t.dtype for t in tensors}) > 1 and not all(t.dim() for t in tensors):
        # Without dimensions an operand leaves the precision to the others, but not once it is expanded.
        with torch.no_grad():
            return function(*operands), slopes
    return out.detach(), slopes


def in_one_pass(function: Callable[..., Tensor], **options: Any) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The derivative of ``function(x, **options)`` from ``x`` and its value, if PyTorch has a kernel for that."""
    kernel = _KERNELS.get(function)
    if kernel is None:
        return None

    def slope(x: Tensor, value: Tensor) -> Tensor:
        if x.is_cuda or type(x) is not Tensor or not tracing.eager():
            return kernel(x.new_ones(()).expand_as(x), x, value, **options)
        ones = torch.ones_like(x)  # read twice as fast on a CPU as one for all, and overwritten
        return kernel(ones, x, value, **options, grad_input=ones)

    return slope


# The fewest elements of a piece, and how many there are at most: small ones on a CPU, for its cache, but where many
# operations share them; and ones that keep a GPU busy.
_FEW, _MANY, _ON_GPU = (2**17, 16), (2**19, 8), (2**25, 8)


def derivative(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    slope: Callable[[Tensor, Tensor], Tensor] | None = None,
    chain: bool = False,
) -> tuple[Tensor, Tensor]:
    """Values of an elementwise function of one tensor, without a graph, and its derivative.

    Of a large tensor the derivative is formed by pieces, for each of which the function runs again: autograd then holds
    all that leads to the derivative of a piece, and not of the whole.

    Args:
        function: The function.
        x: What to apply it to.
        slope: The derivative from ``x`` and the value, if there is a function for that; see ``in_one_pass``.
        chain: Whether it is made of many operations.
    """
    if slope is not None:
        out = function(x.detach())
        return out, slope(x.detach(), out)
    least, most = _ON_GPU if x.is_cuda else _MANY if chain else _FEW
    size = max(least, -(-x.numel() // most))
    if x.numel() <= 4 * size:
        out, (found,) = derivatives(function, [x], [True], x.shape)
        assert found is not None
        return out, found
    out, rows = function(x.detach()), x.detach().reshape(-1, x.shape[-1])
    slopes = torch.empty_like(rows)
    count = -(-size // x.shape[-1])
    for piece, place in zip(rows.split(count), slopes.split(count), strict=True):
        place.copy_(derivatives(function, [piece], [True], piece.shape)[1][0])  # pyright: ignore
    return out, slopes.view(x.shape)
