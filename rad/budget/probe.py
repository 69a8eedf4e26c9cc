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
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rad.budget.stand_in import EVERY, Probe, Probes, shares
from rad.measure.gradient import scalar, trainable
from rad.measure.saved import Ledger, saved_bytes, storage_id
from rad.nn import Seeds
from rad.nn.convert import for_a_while
from rad.sketch import Sketch
from rad.sketch.random import Stream

__all__ = ["Contributions", "Held", "contributions"]

_NO_MORE = "the gradient of this model cannot be differentiated once more, which tells what noise adds to it"


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
        ValueError: If no parameter requires a gradient, or it is not finite or cannot be differentiated once more.
    """
    parameters = [*trainable(model).values()]
    signs = Stream(seed, parameters[0].device)
    norm2 = 0.0
    variance: dict[str, float] = {}
    sampling: dict[str, dict[int, float]] = {}
    held: Held | None = None

    def add(probe: Probe, found: tuple[float, dict[int, float]], part: float) -> None:
        place = probe.place
        variance[place] = variance.get(place, 0.0) + found[0] * part
        sums = sampling.setdefault(place, dict.fromkeys(EVERY, 0.0))
        if probe.squared:
            sums.clear()
        for every in sums:
            sums[every] += found[1].get(every, 0.0) * part

    for _ in range(batches):
        probes = Probes(sketches, signs)
        with for_a_while(model, probes, generator=Seeds(0)), _uncollected():
            value: list[Tensor] = []
            ledger = saved_bytes(lambda value=value: value.append(loss()) or value[0])
            held = held or _held(ledger, probes)
            grads = torch.autograd.grad(scalar(value.pop()), parameters, create_graph=True, allow_unused=True)
            norm2 += sum(g.detach().norm().item() ** 2 for g in grads if g is not None) / batches
            if not math.isfinite(norm2):
                raise ValueError("the gradient is not finite on this batch; nothing can be said of its variance")
            for draw in range(draws):
                for probe, slope in _derivatives(grads, probes, signs, retain=draw < draws - 1):
                    found = (0.0, {}) if slope is None else shares(probe.x, slope, probe.squared)
                    add(probe, found, 1 / (batches * draws))
            for probe in probes.made:
                for told in probe.seen.told:
                    add(probe, told, 1 / batches)
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


def _held(ledger: Ledger, probes: Probes) -> Held:
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
    grads: tuple[Tensor | None, ...], probes: Probes, signs: Stream, retain: bool
) -> Iterator[tuple[Probe, Tensor | None]]:
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
