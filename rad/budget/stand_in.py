"""What stands in for kept tensors while ``rad.budget.probe`` measures them, and what follows from each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.functional import Assignment
from rad.sketch import Compressed, Rounding, Sketch
from rad.sketch.levels import compute_dtype
from rad.sketch.random import Stream

__all__ = ["BASE", "EVERY", "Probe", "Probes", "shares", "shares_of_weight"]

BASE = Rounding(bits=3)  # decides what is kept at all, whatever the bits
EVERY = (2, 4, 8, 16)  # of how many elements one may be kept
_COARSE = Rounding(bits=1)  # noise falls with (2^bits − 1)² from here


def shares(x: Tensor, slope: Tensor, squared: bool) -> tuple[float, dict[int, float]]:
    """``V`` at one bit, and by ``k`` that of keeping one of ``k``."""
    x = x.reshape(-1)
    slope = slope.reshape(-1).to(compute_dtype(x.dtype))
    noise, size = _COARSE.noise_of_groups(x), _COARSE.size(len(x))
    whole = len(x) // size * size
    squares = [torch.linalg.vector_norm(part, dim=1) for part in (slope[:whole].view(-1, size), slope[None, whole:])]
    rounded = torch.cat(squares)[: len(noise)].double().square_().dot(noise).item()
    return rounded, {} if squared else _sampled(slope * x)


def shares_of_weight(x: Tensor, reach: Tensor) -> tuple[float, dict[int, float]]:
    """The same for ``x`` ``[n, d]``, known by what its elements reach; see ``Sketch.note``."""
    d = x.shape[-1]
    x, reach = (t.to(compute_dtype(x.dtype)) for t in (x, reach))
    blocks = x.reshape(len(reach), -1, d)
    noise, size = _COARSE.noise_of_groups(x), _COARSE.size(x.numel())
    each = reach.expand_as(blocks).reshape(-1)
    each = F.pad(each, (0, -len(each) % size)).view(-1, size).sum(1)
    rounded = torch.dot(each.double(), noise).item()
    # Elements of a row of features reach entries of their own, so that no squares of sums are to be subtracted; the
    # positions of a convolution share theirs, and are taken for independent.
    total = (blocks.square() * reach).sum(dtype=torch.float64).item()
    return rounded, {every: (every - 1) * total for every in EVERY}


def _sampled(products: Tensor) -> dict[int, float]:
    """``k Σ (a x)² − Σ_runs (Σ a x)²`` of products ``a x``, by ``k``."""
    total, found = _square(products), {}
    for every in EVERY:  # each twice the one before
        products = F.pad(products, (0, 1)) if len(products) % 2 else products
        products = products[::2] + products[1::2]
        found[every] = every * total - _square(products)
    return found


def _square(x: Tensor) -> float:
    return torch.dot(x, x).item()


@dataclass(eq=False)
class _Seen:
    """What a probe was given."""

    x: Tensor | None = None
    leaf: Tensor | None = None
    empty: Tensor | None = None
    squared: bool = False
    told: list[tuple[float, dict[int, float]]] = field(default_factory=list)


@dataclass(frozen=True, eq=False, repr=False)
class Probe(Sketch):
    """Holds the tensor itself, and what stands for it in the backward pass; autograd is given an empty one."""

    budget: float = 1.0
    place: str = ""
    sketch: Sketch | None = None
    seed: Tensor | None = None
    last: bool = False
    made: list[Probe] = field(default_factory=list)
    seen: _Seen = field(default_factory=_Seen)

    serves_factors: ClassVar[bool] = True

    @property
    def x(self) -> Tensor:
        """The tensor."""
        assert self.seen.x is not None
        return self.seen.x

    @property
    def empty(self) -> Tensor:
        """What autograd holds for it."""
        assert self.seen.empty is not None
        return self.seen.empty

    @property
    def leaf(self) -> Tensor | None:
        """What stands for it in the backward pass, if anything did."""
        return self.seen.leaf

    @property
    def squared(self) -> bool:
        """Whether two of its elements meet in a product, which asks for their noise."""
        return self.seen.squared

    @property
    def exact(self) -> bool:
        """See ``Sketch``; it asks to be called."""
        return False

    def compress(self, x: Tensor, generator: torch.Generator | None = None, seed: Tensor | None = None) -> Compressed:
        """See ``Sketch``."""
        self.seen.x, self.seen.empty = x.detach(), x.new_empty(0)
        self.made.append(self)
        return Compressed((self.empty,), None, x.shape, x.dtype)

    def expand(self, compressed: Compressed) -> Tensor:
        """See ``Sketch``."""
        return self._leaf(compressed)

    def grad_weight(self, compressed: Compressed, grad_out: Tensor) -> Tensor:
        """See ``Sketch``."""
        self.note(
            compressed, lambda: grad_out.detach().reshape(-1, 1, grad_out.shape[-1]).square().sum(2, keepdim=True)
        )
        return super().grad_weight(replace(compressed, kept=(self._estimate(compressed),)), grad_out)

    def columns(self, compressed: Compressed) -> tuple[Tensor | None, Tensor]:
        """See ``Sketch``."""
        return None, self._estimate(compressed)

    def note(self, compressed: Compressed, reach: Callable[[], Tensor]) -> None:
        """See ``Sketch``; nothing then has to be differentiated."""
        if self.last and self.seen.x is not None:
            self.seen.told.append(shares_of_weight(self.seen.x, reach()))

    def noise(self, compressed: Compressed) -> Tensor:
        """See ``Sketch``."""
        self.seen.squared = True
        return compressed.kept[0].new_zeros(())

    def _estimate(self, compressed: Compressed) -> Tensor:
        """Of which all is known if the probe was told: what is last on its paths has no part in other noise."""
        return self._leaf(compressed) if not self.seen.told else self.x

    def _leaf(self, compressed: Compressed) -> Tensor:
        if self.seen.x is None:  # of no elements, and not asked to be summarized
            return compressed.kept[0]
        if self.seen.leaf is None:
            self.seen.leaf = self._noisy(self.seen.x).detach().requires_grad_()
        return self.seen.leaf

    def _noisy(self, x: Tensor) -> Tensor:
        """With half the variance of the noise to come."""
        if self.sketch is None or self.sketch.exact:
            return x
        few = self.sketch
        return torch.lerp(x, few.expand(few.compress(x, seed=self.seed)), math.sqrt(0.5))

    def _compress(self, x: Tensor, stream: Stream) -> tuple[Tensor, ...]:
        raise AssertionError("compress is its own")

    def _expand(self, compressed: Compressed) -> Tensor:
        raise AssertionError("expand is its own")


class Probes(Assignment):
    """A probe for each tensor."""

    sketch = BASE
    key = "probes"
    differentiable = True

    def __init__(self, sketches: Callable[[str], Sketch | None] | None, stream: Stream) -> None:
        self.made: list[Probe] = []
        self._sketches, self._stream = sketches, stream

    def at(self, place: str, last: bool = False) -> Sketch:
        """See ``Assignment``."""
        sketch = None if self._sketches is None else self._sketches(place)
        return Probe(place=place, sketch=sketch, seed=self._stream.words(1)[0].cpu(), last=last, made=self.made)
