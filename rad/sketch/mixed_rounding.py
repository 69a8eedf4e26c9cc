"""Rounding to a number of bits that is no whole one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from rad.sketch.base import Compressed, Sketch
from rad.sketch.random import Stream
from rad.sketch.rounding import Rounding, product_in_half

__all__ = ["MixedRounding"]


@dataclass(frozen=True)
class MixedRounding(Sketch):
    """Rounds the first ``finer`` of all elements to ``bits + 1`` bits and the rest to ``bits``, each as ``Rounding``.

    So a single large tensor can take all of a budget that lies between two numbers of bits.

    Attributes:
        bits: Of most elements, 1 to 15.
        finer: The share of elements that get one bit more, in [0, 1].
        group: The most elements that share a range.

    Raises:
        ValueError: If one of them is out of range.
    """

    serves_factors: ClassVar[bool] = True

    budget: float | None = field(default=None, init=False, repr=False)  # pyright: ignore
    bits: int = 2
    finer: float = 0.5
    group: int = 256

    def __post_init__(self) -> None:
        if isinstance(self.finer, bool) or not isinstance(self.finer, int | float) or not 0 <= self.finer <= 1:
            raise ValueError(f"finer must be a share of the elements in [0, 1], got {self.finer!r}")
        for bits in (self.bits, self.bits + 1):
            Rounding(bits=bits, group=self.group)

    def fraction(self, itemsize: int) -> float:
        """The share of a large tensor's bytes that is kept."""
        return Rounding(bits=self.bits, group=self.group).fraction(itemsize) + self.finer / (8 * itemsize)

    def held(self, count: int) -> int:
        """Bytes kept of so many elements, the seed apart."""
        return sum(rounding.held(stop - start) for rounding, start, stop in self._parts(count))

    def noise(self, compressed: Compressed) -> Tensor:
        """The variance of each element of the estimate."""
        found = []
        for i, (rounding, start, stop) in enumerate(self._parts(compressed.shape.numel())):
            kept, shape = compressed.kept[2 * i : 2 * i + 2], torch.Size((1, stop - start))
            noise = rounding.noise(Compressed(kept, compressed.seed, shape, compressed.dtype))
            found.append(noise.expand(shape).reshape(-1))
        return torch.cat(found).view(compressed.shape)

    def _compress(self, x: Tensor, stream: Stream) -> tuple[Tensor, ...]:
        flat = x.reshape(1, 1, -1)
        parts = (rounding._compress(flat[..., start:stop], stream) for rounding, start, stop in self._parts(x.numel()))
        return tuple(t for part in parts for t in part)

    def _expand(self, compressed: Compressed) -> Tensor:
        return self._rebuilt(compressed, compressed.dtype)

    def _grad_weight(self, compressed: Compressed, grad_out: Tensor) -> Tensor:
        if compressed.dtype != torch.float16:
            return super()._grad_weight(compressed, grad_out)
        return product_in_half(grad_out, self._rebuilt(compressed, torch.float32))

    def _rebuilt(self, compressed: Compressed, dtype: torch.dtype) -> Tensor:
        stream, found = compressed.stream(), []  # it goes on from part to part
        for i, (rounding, start, stop) in enumerate(self._parts(compressed.shape.numel())):
            found.append(rounding.rebuilt(compressed.kept[2 * i : 2 * i + 2], stop - start, dtype, stream))
        return torch.cat(found).view(compressed.stack)

    def _parts(self, count: int) -> Iterator[tuple[Rounding, int, int]]:
        """How to round which elements, in order; none of no elements."""
        whole = Rounding(bits=self.bits, group=self.group)
        size = whole.size(count)
        border = min(count, round(self.finer * count / size) * size)
        finer = Rounding(bits=self.bits + 1, group=self.group)
        for rounding, start, stop in ((finer, 0, border), (whole, border, count)):
            if start < stop:
                yield rounding, start, stop
