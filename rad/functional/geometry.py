"""Shapes and sizes that operations on images share."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Extent", "Geometry", "Pair", "around", "extents", "pair", "stand_in"]

Extent = int | Sequence[int]
Pair = tuple[int, int]


def pair(extent: Extent) -> Pair:
    """Height and width from one number for both, or from one or two in a sequence, as PyTorch takes them."""
    given = extents(extent, 2)
    return given[0], given[-1]


def extents(extent: Extent, dims: int) -> tuple[int, ...]:
    """One number for each of ``dims`` dimensions, from one for all, or from one or all in a sequence."""
    single = isinstance(extent, int) or (hasattr(extent, "__index__") and not getattr(extent, "shape", ()))
    given = tuple(_number(e) for e in ((extent,) if single else extent))  # pyright: ignore
    return given * dims if len(given) == 1 else given


def _number(size: Any) -> int:
    """A size, which PyTorch takes from NumPy as well; in a graph in the making it may stand for any."""
    return size if isinstance(size, int | torch.SymInt) else index(size)  # pyright: ignore


def stand_in(shape: torch.Size, like: Tensor) -> Tensor:
    """A tensor of which only the shape may be read: it has the memory of a single element."""
    return like.new_empty(1).expand(shape)


def around(weight: torch.Size, padding: Extent | str, dilation: Extent) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Zeros before the input along each dimension, and how many more there are behind it, as ``"same"`` may need."""
    dims = len(weight) - 2
    if padding != "same":
        return extents(0 if isinstance(padding, str) else padding, dims), (0,) * dims
    total = [d * (size - 1) for d, size in zip(extents(dilation, dims), weight[2:], strict=True)]
    return tuple(t // 2 for t in total), tuple(t % 2 for t in total)


class Geometry(NamedTuple):
    """Shapes of a convolution's operands and how the kernel moves.

    ``padding`` is that above and to the left; ``extra`` rows below and columns to the right come on top of the same
    there, as ``padding="same"`` needs for a kernel of even size.
    """

    input: torch.Size
    weight: torch.Size
    stride: Pair
    padding: Pair
    extra: Pair
    dilation: Pair
    groups: int

    @classmethod
    def of(
        cls, x: Tensor, weight: Tensor, stride: Extent, padding: Extent | str, dilation: Extent, groups: int
    ) -> Geometry:
        """That of a call of ``torch.nn.functional.conv2d``."""
        before, extra = around(weight.shape, padding, dilation)
        return cls(x.shape, weight.shape, pair(stride), pair(before), pair(extra), pair(dilation), groups)
