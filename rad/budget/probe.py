"""What the noise of each kept tensor contributes to the variance of the gradient, from one pass for all of them.

Let ``x̂`` be the estimate of a kept tensor, ``x`` itself but for independent errors of variance ``noise_j``. To first
order it adds ``V = Σ_j noise_j ‖∂g/∂x̂_j‖²`` to the variance of the gradient ``g``, summed over all its entries. With
signs ``r`` drawn at random for the entries of ``g``, ``a_j = ∂(r·g)/∂x̂_j`` has a square of the expectation
``‖∂g/∂x̂_j‖²``: one derivative of the scalar ``r·g`` by all estimates at once gives an unbiased estimate of every ``V``.
So each tensor is kept as it is, the backward pass is recorded, and differentiated. ``noise_j`` is step²/12, known from
the ranges alone. Of one element in each run of ``k`` kept in its place, ``Σ_runs (k Σ (a_j x_j)² − (Σ a_j x_j)²)`` is
the variance likewise.

To second order noise of two tensors that meet on a path adds a term for the pair. With *half* the variance of the noise
to come put into each tensor while it is measured, a pair adds half of that term to the ``V`` of either: the sum over
all places is right again.

The same pass tells all bytes: in place of each kept tensor autograd is given an empty one, and what else it holds then
is what it holds in any case.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad.functional import Assignment
from rad.measure.gradient import scalar
from rad.measure.saved import Ledger, saved_bytes, storage_id
from rad.nn import Seeds
from rad.nn.convert import for_a_while
from rad.sketch import Compressed, Rounding, Sketch
from rad.sketch.levels import compute_dtype
from rad.sketch.random import Stream

__all__ = ["BASE", "EVERY", "Contributions", "Held", "contributions"]

BASE = Rounding(bits=3)  # decides what is kept at all, whatever the bits
EVERY = (2, 4, 8, 16)  # of how many elements one may be kept
_NO_MORE = "the gradient of this model cannot be differentiated once more, which tells what noise adds to it"
_COARSE = Rounding(bits=1)  # noise falls with (2^bits − 1)² from here


@dataclass(frozen=True)
class Held:
    """Bytes held for the backward pass of one batch.

    Attributes:
        other: Whatever the places keep.
        counts: Of each place, the elements of each of its tensors.
        whole: Of each place, by storage, the bytes that it takes to keep the tensors themselves, where no others do.
    """

    other: int
    counts: dict[str, list[int]]
    whole: dict[str, dict[int, int]]


@dataclass(frozen=True)
class Contributions:
    """What was measured, averaged over batches and draws.

    Attributes:
        norm2: ``‖g‖²``; with noise put in, that of a noisy gradient.
        variance: Of each place, ``V`` if it kept one bit of each element.
        sampling: Of each place where no two elements meet in a product, by ``k``, the variance of keeping one element
            of each run of ``k``.
        held: Of the first batch.
    """

    norm2: float
    variance: dict[str, float]
    sampling: dict[str, dict[int, float]]
    held: Held


def contributions(
    model: nn.Module,
    loss: Callable[[], Tensor],
    batches: int,
    draws: int,
    seed: int,
    sketches: Callable[[str], Sketch | None] | None = None,
) -> Contributions:
    """Measures ``V`` of every place.

    Args:
        model: Plain or converted.
        loss: Runs a forward pass and returns the loss.
        batches: How many to run.
        draws: Of signs for each.
        seed: Of the signs, and of noise.
        sketches: Those that a place is likely to get, for terms of second order; else none are counted.

    Raises:
        ValueError: If the gradient is not finite, or cannot be differentiated once more.
    """
    signs = Stream(seed, next(model.parameters()).device)
    norm2 = 0.0
    variance: dict[str, float] = {}
    sampling: dict[str, dict[int, float]] = {}
    held: Held | None = None

    def add(probe: _Probe, shares: tuple[float, dict[int, float]], part: float) -> None:
        place = probe.place
        variance[place] = variance.get(place, 0.0) + shares[0] * part
        sums = sampling.setdefault(place, dict.fromkeys(EVERY, 0.0))
        if probe.squared:
            sums.clear()
        for every in sums:
            sums[every] += shares[1].get(every, 0.0) * part

    for _ in range(batches):
        probes = _Probes(sketches, signs)
        with for_a_while(model, probes, generator=Seeds(0)), _uncollected():
            parameters = [p for p in model.parameters() if p.requires_grad]
            value: list[Tensor] = []
            ledger = saved_bytes(lambda value=value: value.append(loss()) or value[0])
            held = held or _held(ledger, probes)
            grads = torch.autograd.grad(scalar(value.pop()), parameters, create_graph=True, allow_unused=True)
            norm2 += sum(g.detach().norm().item() ** 2 for g in grads if g is not None) / batches
            if not math.isfinite(norm2):
                raise ValueError("the gradient is not finite on this batch; nothing can be said of its variance")
            for draw in range(draws):
                for probe, slope in _derivatives(grads, probes, signs, retain=draw < draws - 1):
                    add(probe, (0.0, {}) if slope is None else _shares(probe, slope), 1 / (batches * draws))
            for probe in probes.made:
                for shares in probe.seen.told:
                    add(probe, shares, 1 / batches)
        del probes, grads
    assert held is not None
    return Contributions(norm2, variance, sampling, held)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which would go through all of a large graph in the making, to find nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _held(ledger: Ledger, probes: _Probes) -> Held:
    by_storage = {storage_id(probe.empty): probe for probe in probes.made}
    found = Held(sum(e.nbytes for e in ledger.entries if not e.parameter and not e.place), {}, {})
    others = {e.storage for e in ledger.entries if e.storage not in by_storage}
    for entry in ledger.entries:
        probe = by_storage.pop(entry.storage, None)
        if probe is None:
            continue
        storage = storage_id(probe.x)
        found.counts.setdefault(probe.place, []).append(probe.x.numel())
        whole = found.whole.setdefault(probe.place, {})
        if storage not in others:
            whole[storage] = probe.x.untyped_storage().nbytes()  # a view holds all of its base
    return found


def _derivatives(
    grads: tuple[Tensor | None, ...], probes: _Probes, signs: Stream, retain: bool
) -> Iterator[tuple[_Probe, Tensor | None]]:
    """The derivative of each kept tensor."""
    used = [(probe, leaf) for probe in probes.made if (leaf := probe.leaf) is not None]
    noisy = [g for g in grads if g is not None and g.requires_grad]
    if not used or not noisy:
        return
    _check(noisy)
    try:
        found = torch.autograd.grad(
            noisy,
            [leaf for _, leaf in used],
            [signs.signs(tuple(g.shape), g.dtype) for g in noisy],
            retain_graph=retain,
            allow_unused=True,
        )
    except RuntimeError as error:
        raise ValueError(f"{_NO_MORE}: {error}") from error
    for (probe, _), slope in zip(used, found, strict=True):
        yield probe, slope


def _shares(probe: _Probe, slope: Tensor) -> tuple[float, dict[int, float]]:
    """``V`` at one bit, and by ``k`` that of keeping one of ``k``."""
    x = probe.x.reshape(-1)
    slope = slope.reshape(-1).to(compute_dtype(x.dtype))
    noise, size = _COARSE.noise_of_groups(x), _COARSE.size(len(x))
    whole = len(x) // size * size
    squares = [torch.linalg.vector_norm(part, dim=1) for part in (slope[:whole].view(-1, size), slope[None, whole:])]
    rounded = torch.cat(squares)[: len(noise)].double().square_().dot(noise).item()
    return rounded, {} if probe.squared else _sampled(slope * x, EVERY)


def _shares_of_weight(x: Tensor, reach: Tensor) -> tuple[float, dict[int, float]]:
    """The same for ``x`` ``[n, d]``, known by what its elements reach; see ``Sketch.note``."""
    d = x.shape[-1]
    x, reach = (t.to(compute_dtype(x.dtype)) for t in (x, reach))
    blocks = x.reshape(len(reach), -1, d)
    noise, size = _COARSE.noise_of_groups(x), _COARSE.size(x.numel())
    each = reach.expand_as(blocks).reshape(-1)
    each = F.pad(each, (0, -len(each) % size)).view(-1, size).sum(1)
    rounded = torch.dot(each.double(), noise).item()
    scaled = (blocks * reach.sqrt()).view(-1)
    # Where all elements of a row reach the same, squares of sums are known; else they are taken for independent.
    alike = tuple(every for every in EVERY if reach.shape[-1] == 1 and d % every == 0)
    total = _square(scaled)
    return rounded, {every: (every - 1) * total for every in EVERY} | _sampled(scaled, alike)


def _sampled(products: Tensor, which: Sequence[int]) -> dict[int, float]:
    """``k Σ (a x)² − Σ_runs (Σ a x)²`` of products ``a x``, for numbers ``k`` of which each is twice the one before."""
    total, found = _square(products), {}
    for every in which:
        products = F.pad(products, (0, 1)) if len(products) % 2 else products
        products = products[::2] + products[1::2]
        found[every] = every * total - _square(products)
    return found


def _square(x: Tensor) -> float:
    return torch.dot(x, x).item()


def _check(grads: Sequence[Tensor]) -> None:
    """Refuses gradients that went through an operation which gives them no derivative of their own.

    Such an operation ends the graph in a node that would raise an error, but nobody passes there on the way to a leaf.
    """
    seen, todo = set(), [g.grad_fn for g in grads]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            raise ValueError(f"{_NO_MORE}: one of its autograd.Functions is once_differentiable")
        seen.add(node)
        todo += [function for function, _ in node.next_functions]


@dataclass(eq=False)
class _Seen:
    """What a probe was given."""

    x: Tensor | None = None
    leaf: Tensor | None = None
    empty: Tensor | None = None
    squared: bool = False
    told: list[tuple[float, dict[int, float]]] = field(default_factory=list)


@dataclass(frozen=True, eq=False, repr=False)
class _Probe(Sketch):
    """Holds the tensor itself, and what stands for it in the backward pass; autograd is given an empty one."""

    budget: float = 1.0
    place: str = ""
    sketch: Sketch | None = None
    seed: Tensor | None = None
    last: bool = False
    made: list[_Probe] = field(default_factory=list)
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
        self.note(compressed, lambda: grad_out.detach().reshape(-1, 1, grad_out.shape[-1]).square().sum(2, keepdim=True))
        return super().grad_weight(replace(compressed, kept=(self._estimate(compressed),)), grad_out)

    def columns(self, compressed: Compressed) -> tuple[Tensor | None, Tensor]:
        """See ``Sketch``."""
        return None, self._estimate(compressed)

    def note(self, compressed: Compressed, reach: Callable[[], Tensor]) -> None:
        """See ``Sketch``; nothing then has to be differentiated."""
        if self.last and self.seen.x is not None:
            self.seen.told.append(_shares_of_weight(self.seen.x, reach()))

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


class _Probes(Assignment):
    """A probe for each tensor."""

    sketch = BASE
    key = "probes"
    differentiable = True

    def __init__(self, sketches: Callable[[str], Sketch | None] | None, stream: Stream) -> None:
        self.made: list[_Probe] = []
        self._sketches, self._stream = sketches, stream

    def at(self, place: str, last: bool = False) -> Sketch:
        """See ``Assignment``."""
        sketch = None if self._sketches is None else self._sketches(place)
        return _Probe(place=place, sketch=sketch, seed=self._stream.words(1)[0].cpu(), last=last, made=self.made)
