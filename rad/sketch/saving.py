"""Saving tensors and summaries for the backward pass, where saved-tensor hooks can see all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rad.sketch import tracing
from rad.sketch.base import Compressed

__all__ = ["load", "once", "save"]

_TWICE = (
    b"this gradient is formed from a summary and once_differentiable; without rad, or after rad.revert(model), it can "
    b"be differentiated again"
)


def save(ctx: Any, *items: Tensor | Compressed | None) -> None:
    """Saves the tensors of ``items`` through ``save_for_backward``; the context keeps only their layout."""
    tensors: list[Tensor | None] = []
    ctx.layout = []
    for item in items:
        own, layout = item.split() if isinstance(item, Compressed) else ((item,), None)
        ctx.layout.append((len(own), layout))
        tensors.extend(own)
    ctx.save_for_backward(*tensors)


def load(ctx: Any) -> list[Any]:
    """The items given to ``save``, in the same order."""
    tensors, items, start = ctx.saved_tensors, [], 0
    for count, layout in ctx.layout:
        own = tensors[start : start + count]
        items.append(own[0] if layout is None else Compressed.join(own, layout))
        start += count
    return items


def once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a ``backward`` whose results have no derivative, and say so to whoever forms one.

    PyTorch's ``once_differentiable`` says it only where the gradient that comes in has a derivative itself. Of any
    other, like that of a loss, a second derivative would be zero in silence, though what goes out depends on weights
    and inputs.
    """
    stock = once_differentiable(backward)

    @functools.wraps(backward)
    def run(ctx: Any, *grads: Tensor | None) -> Any:
        if tracing.transformed():  # nothing can be marked there
            return stock(ctx, *grads)
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return found
        refuse = torch._C._functions.DelayedError(_TWICE, len(found))  # pyright: ignore[reportAttributeAccessIssue]
        return refuse(*[one if one is None else one.detach().requires_grad_() for one in found])

    return run
