"""What to keep of each tensor of a model, so that the variance of the gradient is least within so many bytes."""

from __future__ import annotations

import math
import numbers
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from rad.budget.choose import cheapest, least_loss
from rad.budget.plan import Item, Plan, fingerprint, sketch_of
from rad.budget.probe import Contributions, contributions
from rad.budget.size import bytes_of, shown
from rad.budget.stand_in import EVERY
from rad.measure import gradients, saved_bytes
from rad.measure.explain import undisturbed
from rad.nn import Seeds
from rad.nn.convert import check_module, for_a_while
from rad.sketch import Exact, Sketch
from rad.sketch.bits import MAX_BITS

__all__ = ["AllExactWarning", "allocate"]

_FEW = range(1, 5)  # bits of what is sampled: where more are worth their bytes, so are more elements
_ATTEMPTS = 6
_LEFT = 0.005  # of the bytes asked for, which is not worth parting a tensor for


class AllExactWarning(UserWarning):
    """A budget is larger than all that exact gradients hold."""


def allocate(
    model: nn.Module,
    loss: Callable[[], Tensor],
    nbytes: int | str | None = None,
    *,
    variance: float | None = None,
    batches: int = 1,
    draws: int = 1,
    passes: int | None = None,
    seed: int = 0,
    start: Plan | None = None,
) -> Plan:
    """Finds how many bits each kept tensor should get, and of how many of its elements.

    A recorded backward pass, differentiated once more, tells what the noise of every kept tensor adds to the variance
    of the gradient (``rad.budget.probe``), and all bytes. The variance falls with ``(2^bits − 1)²`` while bytes grow
    with the bits; keeping one element in 2, 4, 8 or 16 takes less than one bit (``rad.SparseRounding``), wherever no
    two elements of a tensor meet in a product. So the best choice is a knapsack (``rad.budget.choose``); what it leaves
    over gives a part of one tensor another bit (``rad.MixedRounding``). The model is not changed::

        plan = rad.allocate(model, lambda: loss_fn(model(x), y), nbytes="50MB")
        print(plan)
        rad.convert(model, plan)

    Measure at a state that is typical of training: shares differ between initial weights and later ones, and
    ``rad.Allocator`` follows them.

    Args:
        model: Plain or converted, with the loss in it or not; what is outside of it stays exact and counts.
        loss: Runs a forward pass on a batch of the usual size and returns the loss. It is called
            once for each pass and batch, and once more where everything might be kept exactly; each call needs as much
            memory as exact gradients do, and more.
        nbytes: What autograd may hold between forward and backward pass, parameters apart: a number or a size such as
            ``"50MB"`` or ``"1.5GiB"``.
        variance: In place of ``nbytes``: what all summaries together may add to the variance of the gradient, summed
            over its entries, in units of its squared norm; the plan then takes the fewest bytes.
        batches: How many calls of ``loss`` the measurement is averaged over, where it draws a batch anew each time.
        draws: Of random signs for each; one is good to some per cent of the whole variance of a net of many layers.
        passes: How often to measure: each time but the first with the noise of the plan before, so that what noise does
            to noise counts as well; 2 by default, and 1 after a ``start``. One pass sees no more of that than its first
            order, and promises too little variance where that is most of it: with fewer than about two bits a value,
            and in nets that spend nearly all of theirs on a few tensors (vision transformers).
        seed: Of the signs. The global generator, and that of the model's summaries, are left as they were.
        start: A plan for this model that the new one is thought to be close to, the one in force say. The first pass
            then counts its noise, as a second pass would; ``loss`` is called once more for each batch.

    Returns:
        The plan, which holds no more than ``nbytes``.

    Raises:
        TypeError: If ``model`` is not a module, or ``nbytes`` no size.
        ValueError: If neither or both of ``nbytes`` and ``variance`` are given, if they lie outside of what is
            possible, or if the gradient cannot be measured.
    """
    limit = check(model, nbytes, variance, batches, draws, passes, seed)
    if start is not None:
        start.check(model)
    # A compiled model runs as it was written, for its graphs know nothing of all this.
    with undisturbed(model), torch.compiler.set_stance("force_eager"):
        found = contributions(model, loss, batches, draws, seed, _sketches(start))
        if start is not None:
            found = replace(found, norm2=_norm2(model, loss, batches))
        choices = _Choices(found)
        if limit < choices.least:
            raise ValueError(
                f"nbytes is {int(limit):,}, but what must be kept exactly and the coarsest summaries of the rest take "
                f"{choices.least:,} bytes ({shown(choices.least)}), the least that is possible"
            )
        if math.isfinite(limit) and limit >= choices.fine and (exact := _all_exact(model, loss, limit)) is not None:
            return exact
        plan = choices.plan(model, limit, variance)
        if passes is None:
            passes = 2 if start is None else 1
        for i in range(1, passes):
            again = contributions(model, loss, batches, draws, seed + i, _sketches(plan))
            choices = _Choices(replace(again, norm2=found.norm2, held=found.held))
            plan = choices.plan(model, limit, variance)
        return plan


def check(
    model: nn.Module,
    nbytes: int | str | None,
    variance: float | None,
    batches: int = 1,
    draws: int = 1,
    passes: int | None = None,
    seed: int = 0,
) -> float:
    """Refuses arguments of ``allocate`` before any work; returns the limit of bytes, infinite if there is none.

    Raises:
        TypeError, ValueError: See ``allocate``.
    """
    check_module(model)
    if (nbytes is None) == (variance is None):
        raise ValueError(f"either nbytes must be given or variance, got nbytes={nbytes!r} and variance={variance!r}")
    counts = {"batches": (batches, 1), "draws": (draws, 1), "passes": (1 if passes is None else passes, 1)}
    for name, (value, least) in {**counts, "seed": (seed, 0)}.items():
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**62:
            raise ValueError(f"{name} must be a whole number from {least} to 2⁶² − 1, got {value!r}")
    if variance is not None and (
        isinstance(variance, bool) or not isinstance(variance, numbers.Real) or not 0 < variance <= sys.float_info.max
    ):
        raise ValueError(
            f"variance must be a positive number, in units of the gradient's squared norm, got {variance!r:.60}"
        )
    return math.inf if nbytes is None else bytes_of(nbytes)


def _sketches(plan: Plan | None) -> Callable[[str], Sketch | None] | None:
    """What a plan keeps of each place."""
    return None if plan is None else {item.place: item.sketch for item in plan.items}.get


def _norm2(model: nn.Module, loss: Callable[[], Tensor], batches: int) -> float:
    """``‖g‖²`` of the exact gradient."""
    with for_a_while(model, Exact(), generator=Seeds(0)):
        found = [gradients(model, loss).values() for _ in range(batches)]
    return sum(g.double().square().sum().item() for each in found for g in each) / batches


@dataclass(frozen=True)
class _Option:
    """What a place may keep: all, or so many bits of one element in so many."""

    bits: float | None
    every: int = 1

    def held(self, counts: list[int]) -> int:
        """Bytes of tensors of so many elements, with a seed for each."""
        assert self.bits is not None
        sketch = sketch_of(self.bits, self.every)
        return sum(sketch.held(count) + 8 for count in counts)  # pyright: ignore[reportAttributeAccessIssue]

    def variance(self, rounded: float, sampled: Mapping[int, float]) -> float:
        """That it adds, of what one bit of each element does and what sampling alone does."""
        if self.bits is None:
            return 0.0
        whole = math.floor(self.bits)
        coarse, fine = (self.every * rounded / (2**bits - 1) ** 2 for bits in (whole, whole + 1))
        noise = coarse + (self.bits - whole) * (fine - coarse)
        return noise if self.every == 1 else noise + sampled.get(self.every, math.inf)


_OPTIONS = (
    *(_Option(bits, every) for every in reversed(EVERY) for bits in _FEW),
    *(_Option(bits) for bits in range(1, MAX_BITS + 1)),
    _Option(None),
)


class _Choices:
    """What can be chosen from, and what it takes and adds.

    Attributes:
        places: Their names.
        costs: Bytes ``[places, options]``; infinite where there is no such option.
        losses: Variance ``[places, options]``.
        whole: Of each place, by storage, the bytes of the tensors themselves, where these are not held anyway.
        other: Bytes held besides.
    """

    def __init__(self, found: Contributions) -> None:
        held = found.held
        # What torch.utils.checkpoint recomputes is held only then: it has a variance, but takes no bytes until then.
        self.places = [*held.counts, *(p for p in found.variance if p not in held.counts)]
        self.whole, self.other, self.found = held.whole, held.other, found
        shape = len(self.places), len(_OPTIONS)
        self.costs, self.losses = np.empty(shape), np.empty(shape)
        for i, place in enumerate(self.places):
            counts = held.counts.get(place, [])
            rounded, sampled = found.variance.get(place, 0.0), found.sampling.get(place, {})
            for j, option in enumerate(_OPTIONS):
                self.losses[i, j] = option.variance(rounded, sampled)
                self.costs[i, j] = option.held(counts) if option.bits else self._exact(place)
        self.costs[np.isinf(self.losses)] = np.inf
        self.losses[np.isinf(self.losses)] = 0.0

    @property
    def least(self) -> int:
        """Bytes of the coarsest summaries."""
        return self.other + int(self.costs.min(1).sum()) if self.places else self.other

    @property
    def fine(self) -> int:
        """Bytes of eight bits for each element, where it may be worth asking what exact gradients hold."""
        return self.other + int(self.costs[:, _OPTIONS.index(_Option(8))].sum())

    def _exact(self, place: str) -> float:
        return sum(self.whole[place].values()) if place in self.whole else math.inf

    def cheapest(self, variance: float) -> list[int]:
        """The options of the fewest bytes within a variance, in units of ``‖g‖²``."""
        return cheapest(self.costs, self.losses, variance * self.found.norm2).tolist()

    def best(self, limit: float) -> list[int]:
        """The options of the least variance within so many bytes."""
        room, best, most = limit - self.other, None, math.inf
        for _ in range(_ATTEMPTS):
            chosen = least_loss(self.costs, self.losses, room).tolist()
            held, loss = self.other + sum(self.held(chosen)), self._loss(chosen)
            if held <= limit and loss < most:
                best, most = chosen, loss
            spare = limit - held  # what two places keep whole is held once
            if held > limit or self.other + self._cost(chosen) == held:
                break
            room = self._cost(chosen) + spare
        assert best is not None
        return best

    def filled(self, chosen: list[int], limit: float) -> dict[int, tuple[float, int, float]]:
        """Bits, bytes and variance of one place that takes up what is left, a bit more for a part of its elements."""
        left = limit - self.other - sum(self.held(chosen))
        if left <= _LEFT * limit:
            return {}
        found: dict[int, tuple[float, int, float]] = {}
        most, one = 0.0, _OPTIONS.index(_Option(1))
        for i, j in enumerate(chosen):
            counts = self.found.held.counts.get(self.places[i], [])
            if _OPTIONS[j].bits is None or not counts:
                continue
            room, each = self.costs[i, j] + left, self.costs[i, one + 1] - self.costs[i, one]
            # Two ranges of parts, and borders of groups, may take a little more than as many bits do on average.
            for spare in (0.0, 1 / 64, 1 / 16, 1 / 4):
                bits = min(1 + math.floor(((room - self.costs[i, one]) / each - spare) * 1024) / 1024, MAX_BITS)
                if bits >= 1 and (cost := _Option(bits).held(counts)) <= room:
                    break
            else:
                continue
            loss = _Option(bits).variance(self.found.variance.get(self.places[i], 0.0), {})
            if self.losses[i, j] - loss > most:
                most, found = self.losses[i, j] - loss, {i: (bits, cost, loss)}
        return found

    def held(self, chosen: list[int]) -> list[int]:
        """Bytes of each place; what several keep whole counts for the first."""
        counted: set[int] = set()
        found = []
        for i, place in enumerate(self.places):
            if _OPTIONS[chosen[i]].bits is None:
                mine = {s: n for s, n in self.whole.get(place, {}).items() if s not in counted}
                counted.update(mine)
                found.append(sum(mine.values()))
            else:
                found.append(int(self.costs[i, chosen[i]]))
        return found

    def _cost(self, chosen: list[int]) -> float:
        return sum(self.costs[i, j] for i, j in enumerate(chosen))

    def _loss(self, chosen: list[int]) -> float:
        return sum(self.losses[i, j] for i, j in enumerate(chosen))

    def plan(self, model: nn.Module, limit: float, variance: float | None) -> Plan:
        """The plan of the least variance within so many bytes, or of the fewest bytes within a variance."""
        chosen = self.best(limit) if variance is None else self.cheapest(float(variance))
        filled = self.filled(chosen, limit) if math.isfinite(limit) else {}
        items = []
        for i, (place, j, nbytes) in enumerate(zip(self.places, chosen, self.held(chosen), strict=True)):
            if i in filled:
                items.append(Item(place, *filled[i]))
            else:
                items.append(Item(place, _OPTIONS[j].bits, nbytes, float(self.losses[i, j]), _OPTIONS[j].every))
        return Plan(tuple(items), self.other, self.found.norm2, type(model).__name__, fingerprint(model))


def _all_exact(model: nn.Module, loss: Callable[[], Tensor], limit: float) -> Plan | None:
    """The plan that keeps everything exactly, if that fits."""
    with for_a_while(model, Exact(), generator=Seeds(0)):
        exact = saved_bytes(loss).total
    if limit < exact:
        return None
    warnings.warn(
        f"nbytes is {int(limit):,}, but exact gradients hold no more than {exact:,} bytes; everything is kept exactly",
        AllExactWarning,
        stacklevel=3,
    )
    return Plan((), exact, 0.0, type(model).__name__, fingerprint(model), exact=True)
