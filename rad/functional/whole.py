"""A function of numbers that is made of many operations, applied to each element of a tensor: answered as one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rad.functional.operation import Call, Keep, Kept, operation
from rad.functional.slopes import derivative

__all__ = ["at_once"]


def at_once(
    call: Call, function: Callable[[Tensor], Any], x: Tensor, slope: Callable[[Tensor, Tensor], Tensor] | None = None
) -> Any:
    """``function(x)``; keeps a summary of its derivative.

    Args:
        call: The call that is answered.
        function: Made of differentiable operations; it runs a second time for the derivative of a large tensor.
        x: Real, and to be differentiated by.
        slope: Its derivative from ``x`` and the value, where that is known; the function runs once then.

    Returns:
        What the function returns; ``NotImplemented`` where that is no real tensor of the shape of ``x`` that depends on
        it, or the sketch serves no factors.
    """
    try:
        return _at_once(call, functools.partial(_alike, function), slope, x) if call.serves_factors else NotImplemented
    except _NotAlike:
        return NotImplemented


@operation
def _at_once(keep: Keep, function: Callable[[Tensor], Tensor], slope: Any, x: Tensor) -> Any:
    out, found = derivative(function, x, slope, chain=True)
    slope_ = keep.factor(found)

    def backward(kept: Kept, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, kept.times(slope_, grad)  # pyright: ignore

    return out, backward


class _NotAlike(Exception):
    """What came out is no function of each element of what went in."""


def _alike(function: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    out = function(x)
    same = isinstance(out, Tensor) and out.shape == x.shape and out.is_floating_point()
    if not same or (torch.is_grad_enabled() and not out.requires_grad):
        raise _NotAlike
    return out
