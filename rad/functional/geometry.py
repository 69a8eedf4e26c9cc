"""Shapes and sizes that operations on images share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Extent", "Pair", "extents", "pair", "stand_in"]

Extent = int | Sequence[int]
Pair = tuple[int, int]


def pair(extent: Extent) -> Pair:
    """Height and width from one number for both, or from one or two in a sequence, as PyTorch takes them."""
    height, width = (extent, extent) if isinstance(extent, int) else (extent[0], extent[-1])
    return height, width


def extents(extent: Extent, dims: int) -> tuple[int, ...]:
    """One number for each of ``dims`` dimensions, from one for all, or from one or all in a sequence."""
    given = (extent,) if isinstance(extent, int) else tuple(extent)
    return given * dims if len(given) == 1 else given


def stand_in(shape: torch.Size, like: Tensor) -> Tensor:
    """A tensor of which only the shape may be read: it has the memory of a single element."""
    return like.new_empty(1).expand(shape)
