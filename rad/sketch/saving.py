"""Saving tensors and summaries for the backward pass, where saved-tensor hooks can see all of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rad.sketch.base import Compressed

__all__ = ["load", "save"]


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
