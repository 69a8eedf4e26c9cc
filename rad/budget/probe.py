"""What the noise of each kept tensor contributes to the variance of the gradient, from one pass for all of them.

Let ``x̂`` be the estimate of a kept tensor, ``x`` itself but for independent errors of variance ``noise_j``. To first
order it adds ``V = Σ_j noise_j ‖∂g/∂x̂_j‖²`` to the variance of the gradient ``g``, summed over all its entries. With
signs ``r`` drawn at random for the entries of ``g``, ``(∂(r·g)/∂x̂_j)²`` has the expectation ``‖∂g/∂x̂_j‖²``: one
derivative of the scalar ``r·g`` by all estimates at once gives an unbiased estimate of every ``V``. So each tensor is
kept as it is, the backward pass is recorded, and differentiated. ``noise_j`` is step²/12, known from the ranges alone.

To second order noise of two tensors that meet on a path adds a term for the pair. With *half* the variance of the noise
to come put into each tensor while it is measured, a pair adds half of that term to the ``V`` of either: the sum over
all places is right again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from rad.functional import Assignment
from rad.measure.gradient import scalar
from rad.nn import Seeds
from rad.nn.convert import for_a_while
from rad.sketch import Compressed, Rounding, Sketch
from rad.sketch.random import Stream

__all__ = ["BASE", "Contributions", "contributions"]

BASE = Rounding(bits=3)  # decides what is kept at all, whatever the bits
_NO_MORE = "the gradient of this model cannot be differentiated once more, which tells what noise adds to it"
_COARSE = Rounding(bits=1)  # noise falls with (2^bits − 1)² from here


@dataclass(frozen=True)
class Contributions:
    """What was measured, averaged over batches and draws.

    Attributes:
        norm2: ``‖g‖²``; with noise put in, that of a noisy gradient.
        variance: Of each place, ``V`` if it kept one bit.
        nbytes: Of each place, the bytes held if it keeps the tensors themselves and nobody else does.
    """

    norm2: float
    variance: dict[str, float]
    nbytes: dict[str, float]


def contributions(
    model: nn.Module,
    loss: Callable[[], Tensor],
    batches: int,
    draws: int,
    seed: int,
    bits: Callable[[str], int | None] | None = None,
) -> Contributions:
    """Measures ``V`` of every place.

    Args:
        model: Plain or converted.
        loss: Runs a forward pass and returns the loss.
        batches: How many to run.
        draws: Of signs for each.
        seed: Of the signs, and of noise.
        bits: Those that a place is likely to get, for terms of second order; else none are counted.

    Raises:
        ValueError: If the gradient is not finite, or cannot be differentiated once more.
    """
    signs = Stream(seed, next(model.parameters()).device)
    norm2 = 0.0
    variance: dict[str, float] = {}
    nbytes: dict[str, float] = {}
    for _ in range(batches):
        probes = _Probes(bits, signs)
        with for_a_while(model, probes, generator=Seeds(0)):
            parameters = [p for p in model.parameters() if p.requires_grad]
            grads = torch.autograd.grad(scalar(loss()), parameters, create_graph=True, allow_unused=True)
            norm2 += sum(g.detach().norm().item() ** 2 for g in grads if g is not None) / batches
            if not math.isfinite(norm2):
                raise ValueError("the gradient is not finite on this batch; nothing can be said of its variance")
            for draw in range(draws):
                for place, size, found in _derivatives(grads, probes, signs, retain=draw < draws - 1):
                    variance[place] = variance.get(place, 0.0) + found / (batches * draws)
                    nbytes[place] = nbytes.get(place, 0.0) + size / (batches * draws)
        del probes, grads
    return Contributions(norm2, variance, nbytes)


def _derivatives(
    grads: tuple[Tensor | None, ...], probes: _Probes, signs: Stream, retain: bool
) -> Iterator[tuple[str, int, float]]:
    """Place, bytes and ``V`` of each kept tensor."""
    used = [(place, *probe.leaf) for place, probe in probes.made if probe.leaf]
    noisy = [g for g in grads if g is not None and g.requires_grad]
    if not used or not noisy:
        return
    _check(noisy)
    try:
        found = torch.autograd.grad(
            noisy,
            [leaf for *_, leaf in used],
            [signs.signs(tuple(g.shape), g.dtype) for g in noisy],
            retain_graph=retain,
            allow_unused=True,
        )
    except RuntimeError as error:
        raise ValueError(f"{_NO_MORE}: {error}") from error
    for (place, x, _), slope in zip(used, found, strict=True):
        size = x.untyped_storage().nbytes()  # a view holds all of its base
        if slope is None:
            yield place, size, 0.0
        else:
            noise = _COARSE.noise(_COARSE.compress(x, seed=torch.zeros((), dtype=torch.int64)))
            yield place, size, slope.square_().mul_(noise).sum(dtype=torch.float64).item()


def _check(grads: list[Tensor]) -> None:
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


@dataclass(frozen=True, eq=False)
class _Probe(Sketch):
    """Keeps the tensor itself; ``leaf`` then holds it, and what stands for it in the backward pass."""

    budget: float = 1.0
    bits: int | None = None
    seed: Tensor | None = None
    leaf: list[Tensor] = field(default_factory=list)

    serves_factors: ClassVar[bool] = True

    def expand(self, compressed: Compressed) -> Tensor:
        """See ``Sketch``."""
        return super().expand(self._by_leaf(compressed))

    def grad_weight(self, compressed: Compressed, grad_out: Tensor) -> Tensor:
        """See ``Sketch``."""
        return super().grad_weight(self._by_leaf(compressed), grad_out)

    def columns(self, compressed: Compressed) -> tuple[Tensor | None, Tensor]:
        """See ``Sketch``."""
        return super().columns(self._by_leaf(compressed))

    def _by_leaf(self, compressed: Compressed) -> Compressed:
        if not self.leaf:
            x = compressed.kept[0].detach()
            self.leaf.extend((x, self._noisy(x).detach().requires_grad_()))
        return replace(compressed, kept=(self.leaf[1],))

    def _noisy(self, x: Tensor) -> Tensor:
        """With half the variance of the noise of so many bits."""
        if self.bits is None:
            return x
        few = Rounding(bits=self.bits)
        return torch.lerp(x, few.expand(few.compress(x, seed=self.seed)), math.sqrt(0.5))

    def _compress(self, x: Tensor, stream: Stream) -> tuple[Tensor, ...]:
        return (x,)

    def _expand(self, compressed: Compressed) -> Tensor:
        return compressed.kept[0]


class _Probes(Assignment):
    """A probe for each tensor."""

    sketch = BASE
    key = "probes"
    differentiable = True

    def __init__(self, bits: Callable[[str], int | None] | None, stream: Stream) -> None:
        self.made: list[tuple[str, _Probe]] = []
        self._bits, self._stream = bits, stream

    def at(self, place: str) -> Sketch:
        """See ``Assignment``."""
        bits = None if self._bits is None else self._bits(place)
        probe = _Probe(bits=bits, seed=self._stream.words(1)[0].cpu())
        self.made.append((place, probe))
        return probe
