"""The sketch that keeps everything."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rad.sketch.base import Compressed, Sketch
from rad.sketch.random import Stream

__all__ = ["Exact"]


@dataclass(frozen=True)
class Exact(Sketch):
    """Keeps the tensor itself: exact gradients through the same lean layers as every other sketch.

    Raises:
        ValueError: If ``budget`` is not 1.
    """

    budget: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget != 1:
            raise ValueError(f"Exact keeps everything, so its budget is 1, got {self.budget!r}; choose another sketch")

    def _compress(self, x: Tensor, stream: Stream) -> tuple[Tensor, ...]:
        return (x,)

    def _expand(self, compressed: Compressed) -> Tensor:
        return compressed.kept[0]
