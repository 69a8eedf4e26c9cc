"""Summaries that several operations of one forward pass share."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

__all__ = ["Sharing"]

T = TypeVar("T")


class Sharing:
    """Remembers which tensors were summarized, until the forward pass ends, a tensor dies or it is overwritten.

    A query, a key and a value formed from the same tensor need it only at the ends of their paths, in the gradients of
    their weights; one summary serves all three. A view is known by its base and its place in it.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], dict[Any, Any]]] = {}
        self.depth = 0  # how many converted modules are running, one inside the other

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        if self.depth == 0:
            self._known.clear()

    def summary(self, tensor: Tensor, how: Any, make: Callable[[], T]) -> T:
        """The summary of ``tensor`` made earlier in the same way, or a new one.

        Args:
            tensor: What is summarized.
            how: Anything hashable that says in which way.
            make: Makes the summary.
        """
        if self.depth == 0 or not tensor.is_contiguous():
            return make()
        base = tensor if tensor._base is None else tensor._base
        found = self._known.get(id(base))
        if found is None or found[0]() is not base:
            key = id(base)
            found = self._known[key] = (weakref.ref(base, lambda _: self._known.pop(key, None)), {})
        place = (tensor._version, tensor.storage_offset(), tensor.numel(), tensor.shape[-1:], tensor.dtype, how)
        if place not in found[1]:
            found[1][place] = make()
        return found[1][place]
