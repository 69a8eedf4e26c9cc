"""A random part of the elements, rounded: what takes less than one bit for each."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.sketch.base import Compressed, Sketch, product
from rad.sketch.levels import compute_dtype
from rad.sketch.random import Stream
from rad.sketch.rounding import Rounding

__all__ = ["SparseRounding"]


@dataclass(frozen=True)
class SparseRounding(Sketch):
    """Keeps one of each ``every`` successive elements, drawn at random, in ``bits`` bits, and scales it by ``every``.

    Those that are kept are rounded as by ``Rounding``, whose range is theirs alone. The draw is uniform in each run of
    ``every`` elements and independent between any two runs, so that a linear function ``Σ a_i x̂_i`` of the estimate has
    the mean ``Σ a_i x_i`` and the variance::

        Σ_runs (every Σ (a_i x_i)² − (Σ a_i x_i)²) + every Σ a_i² E[step²]/12

    A quarter in two bits takes half a bit for each element; half of them in two is better than all in one for what is
    about normal (1 + 2 · .31 of the second moment against 2.76).

    No two elements of a run are ever kept together, so that it serves nowhere where these meet in a product: at the
    ends of paths, or for factors that each path takes one of, as ``rad.allocate`` finds them.

    Attributes:
        bits: Of each element that is kept, 1 to 16.
        every: Of how many elements one is kept, 2 to 2¹⁶.
        group: The most kept elements that share a range.

    Raises:
        ValueError: If one of them is out of range.
    """

    budget: float | None = field(default=None, init=False, repr=False)  # pyright: ignore
    bits: int = 2
    every: int = 4
    group: int = 256

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or not 2 <= self.every <= 2**16:
            raise ValueError(f"every must be a whole number from 2 to {2**16:,}, got {self.every!r}; 4 keeps a quarter")
        _ = self.rounding  # refuses the others

    @property
    def rounding(self) -> Rounding:
        """Of those that are kept."""
        return Rounding(bits=self.bits, group=self.group)

    def fraction(self, itemsize: int) -> float:
        """The share of a large tensor's bytes that is kept."""
        return self.rounding.fraction(itemsize) / self.every

    def held(self, count: int) -> int:
        """Bytes kept of so many elements, the seed apart."""
        return self.rounding.held(-(-count // self.every))

    def _compress(self, x: Tensor, stream: Stream) -> tuple[Tensor, ...]:
        flat = x.reshape(-1)
        runs = F.pad(flat, (0, -len(flat) % self.every)).view(-1, self.every)
        kept = runs.gather(1, self._places(len(runs), stream)).view(-1)
        return self.rounding._compress(kept[None, None], stream)

    def _expand(self, compressed: Compressed) -> Tensor:
        return self._unscaled(compressed).mul_(self.every).to(compressed.dtype)

    def _grad_weight(self, compressed: Compressed, grad_out: Tensor) -> Tensor:
        values, scale = self._unscaled(compressed), self.every
        if compressed.dtype == torch.float16:  # which may not hold an estimate, but a quarter of an unscaled one
            values, scale = values.mul_(0.25), 4 * scale
        return product(grad_out, values.to(grad_out.dtype)).mul_(scale)

    def _unscaled(self, compressed: Compressed) -> Tensor:
        """Kept elements at their places, in float32 at least."""
        count, stream = compressed.shape.numel(), compressed.stream()
        runs = -(-count // self.every)
        places = self._places(runs, stream)
        kept = self.rounding.rebuilt(compressed.kept, runs, compute_dtype(compressed.dtype), stream)
        dense = kept.new_zeros(runs, self.every).scatter_(1, places, kept[:, None])
        return dense.view(-1)[:count].view(compressed.stack)

    def _places(self, runs: int, stream: Stream) -> Tensor:
        """Which one of each run ``[runs, 1]``: sums modulo ``every`` of a number a group and one a place in it."""
        size = self.rounding.size(runs)
        groups = -(-runs // size)
        drawn = stream.integers(self.every, (groups + size,))
        return (drawn[:groups, None] + drawn[groups:]).remainder_(self.every).view(-1)[:runs, None]
