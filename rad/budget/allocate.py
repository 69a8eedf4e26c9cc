"""Bits for each kept tensor of a model, so that the variance of the gradient is least within so many bytes."""

from __future__ import annotations

import math
import numbers
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from rad.budget.choose import cheapest, least_loss
from rad.budget.plan import Item, Plan, fingerprint
from rad.budget.probe import BASE, Contributions, contributions
from rad.budget.size import bytes_of, shown
from rad.functional import Assignment
from rad.measure import Ledger, saved_bytes
from rad.measure.explain import undisturbed
from rad.nn import Seeds
from rad.nn.convert import check_module, for_a_while
from rad.sketch import Exact, Rounding, Sketch
from rad.sketch.bits import MAX_BITS

__all__ = ["AllExactWarning", "allocate"]

_WIDTHS = range(1, MAX_BITS + 1)
_CLOSE = 0.99  # of the bytes asked for; more attempts are not worth their forward passes
_ATTEMPTS = 6


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
    passes: int = 1,
    seed: int = 0,
) -> Plan:
    """Finds how many bits each kept tensor should get.

    One recorded backward pass, differentiated once more, tells what the noise of every kept tensor adds to the variance
    of the gradient (``rad.budget.probe``). It falls with ``(2^bits − 1)²`` while bytes grow with the bits, so that the
    best choice is a knapsack (``rad.budget.choose``). The model is not changed::

        plan = rad.allocate(model, lambda: loss_fn(model(x), y), nbytes="50MB")
        print(plan)
        rad.convert(model, plan)

    Measure at a state that is typical of training: shares differ between initial weights and later ones, and
    ``rad.Allocator`` follows them.

    Args:
        model: Plain or converted, with the loss in it or not; what is outside of it stays exact and counts.
        loss: Runs a forward pass on a batch of the usual size and returns the loss. It is called some five times, and
            one of these needs as much memory as exact gradients do, and more.
        nbytes: What autograd may hold between forward and backward pass, parameters apart: a number or a size such as
            ``"50MB"`` or ``"1.5GiB"``.
        variance: In place of ``nbytes``: what all summaries together may add to the variance of the gradient, summed
            over its entries, in units of its squared norm; the plan then takes the fewest bytes.
        batches: How many calls of ``loss`` the measurement is averaged over, where it draws a batch anew each time.
        draws: Of random signs for each; one is good to some per cent of the whole variance of a net of many layers.
        passes: How often to measure: each time but the first with the noise of the plan before, so that what noise does
            to noise counts as well. Where most tensors get one or two bits, two passes predict better than one.
        seed: Of the signs. The global generator, and that of the model's summaries, are left as they were.

    Returns:
        The plan, which holds no more than ``nbytes``.

    Raises:
        TypeError: If ``model`` is not a module, or ``nbytes`` no size.
        ValueError: If neither or both of ``nbytes`` and ``variance`` are given, if they lie outside of what is
            possible, or if the gradient cannot be measured.
    """
    limit = check(model, nbytes, variance, batches, draws, passes, seed)
    # A compiled model runs as it was written, for its graphs know nothing of all this.
    with undisturbed(model), torch.compiler.set_stance("force_eager"):
        options = _Options.of(model, loss, limit)
        if isinstance(options, Plan):
            return options
        found, plan = contributions(model, loss, batches, draws, seed), None
        for i in range(passes):
            if plan is not None:
                bits = {item.place: item.bits for item in plan.items}
                again = contributions(model, loss, batches, draws, seed + i, lambda place, bits=bits: bits.get(place))
                found = replace(again, norm2=found.norm2)
            if variance is None:
                plan = options.best(model, loss, found, limit)
            else:
                plan = options.fewest(model, found, float(variance))
        assert plan is not None
        return plan


def check(
    model: nn.Module,
    nbytes: int | str | None,
    variance: float | None,
    batches: int = 1,
    draws: int = 1,
    passes: int = 1,
    seed: int = 0,
) -> float:
    """Refuses arguments of ``allocate`` before any work; returns the limit of bytes, infinite if there is none.

    Raises:
        TypeError, ValueError: See ``allocate``.
    """
    check_module(model)
    if (nbytes is None) == (variance is None):
        raise ValueError(f"either nbytes must be given or variance, got nbytes={nbytes!r} and variance={variance!r}")
    for name, value, least in (("batches", batches, 1), ("draws", draws, 1), ("passes", passes, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**62:
            raise ValueError(f"{name} must be a whole number from {least} to 2⁶² − 1, got {value!r}")
    if variance is not None and (
        isinstance(variance, bool) or not isinstance(variance, numbers.Real) or not 0 < variance <= sys.float_info.max
    ):
        raise ValueError(
            f"variance must be a positive number, in units of the gradient's squared norm, got {variance!r:.60}"
        )
    return math.inf if nbytes is None else bytes_of(nbytes)


class _Uniform(Assignment):
    """The same bits everywhere."""

    sketch = BASE

    def __init__(self, bits: int) -> None:
        self.bits, self.key = bits, f"{bits} bits"

    def at(self, place: str) -> Sketch:
        """See ``Assignment``."""
        return Rounding(bits=self.bits)


@dataclass(frozen=True)
class _Options:
    """What can be chosen from.

    Attributes:
        packed: Of each place, the bytes that one bit of every element takes.
        ranges: Of each place, bytes that it takes whatever the bits: ranges and seeds.
        other: Bytes held besides.
    """

    packed: dict[str, int]
    ranges: dict[str, int]
    other: int

    @classmethod
    def of(cls, model: nn.Module, loss: Callable[[], Tensor], limit: float) -> _Options | Plan:
        """Measures them; a plan already if everything may be exact."""
        ledger = _held(model, _Uniform(1), loss)
        if limit < ledger.total:
            raise ValueError(
                f"nbytes is {int(limit):,}, but what must be kept exactly and one bit for each element of the rest "
                f"take {ledger.total:,} bytes ({shown(ledger.total)}), the least that is possible"
            )
        packed: dict[str, int] = {}
        ranges: dict[str, int] = {}
        for entry in ledger.entries:
            if entry.place and not entry.parameter:
                own = packed if entry.dtype == torch.uint8 else ranges
                own[entry.place] = own.get(entry.place, 0) + entry.nbytes
        options = cls(packed, ranges, ledger.total - sum(packed.values()) - sum(ranges.values()))
        if limit >= options.other + sum(ranges.values()) + 8 * sum(packed.values()) and math.isfinite(limit):
            exact = _held(model, Exact(), loss).total
            if limit >= exact:
                warnings.warn(
                    f"nbytes is {int(limit):,}, but exact gradients hold no more than {exact:,} bytes; everything is "
                    "kept exactly",
                    AllExactWarning,
                    stacklevel=4,
                )
                return Plan((), exact, 0.0, type(model).__name__, fingerprint(model), exact=True)
        return options

    def fewest(self, model: nn.Module, found: Contributions, variance: float) -> Plan:
        """The plan of the fewest bytes within a variance."""
        places, costs, losses = self._choices(found)
        chosen = cheapest(costs, losses, variance * found.norm2)
        return self._plan(model, found, places, chosen, costs, losses, self.other)

    def best(self, model: nn.Module, loss: Callable[[], Tensor], found: Contributions, limit: float) -> Plan:
        """The plan of the least variance, tried out: what is exact may be held by others as well, for nothing."""
        places, costs, losses = self._choices(found)
        room, best, most = limit - self.other, None, 0
        for _ in range(_ATTEMPTS):
            chosen = least_loss(costs, losses, room)
            plan = self._plan(model, found, places, chosen, costs, losses, self.other)
            if all(item.bits for item in plan.items):
                return plan  # bytes of rounded tensors add up in any case
            held = _held(model, plan, loss).total
            if held <= limit and held >= most:
                best = self._plan(model, found, places, chosen, costs, losses, self.other + held - plan.nbytes)
                most = held
            if held <= limit and (held == plan.nbytes or held >= _CLOSE * limit):
                break
            room += limit - held
        if best is not None:
            return best
        costs[:, -1] = np.inf
        return self._plan(
            model, found, places, least_loss(costs, losses, limit - self.other), costs, losses, self.other
        )

    def _choices(self, found: Contributions) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Places, and bytes and variance of each by bits and, at last, exact."""
        # What torch.utils.checkpoint recomputes is held only then: it has a variance, but takes no bytes until then.
        places = [*self.packed, *(p for p in found.variance if p not in self.packed)]
        whole = {p: found.nbytes.get(p, np.inf) for p in self.packed}
        sizes = [
            [self.ranges.get(p, 0) + b * self.packed.get(p, 0) for b in _WIDTHS] + [whole.get(p, np.inf)]
            for p in places
        ]
        losses = [[found.variance.get(p, 0.0) / (2**b - 1) ** 2 for b in _WIDTHS] + [0.0] for p in places]
        shape = len(places), len(_WIDTHS) + 1
        return places, np.array(sizes, dtype=np.float64).reshape(shape), np.array(losses).reshape(shape)

    def _plan(
        self,
        model: nn.Module,
        found: Contributions,
        places: list[str],
        chosen: np.ndarray,
        costs: np.ndarray,
        losses: np.ndarray,
        other: int,
    ) -> Plan:
        items = tuple(
            Item(place, None if i == len(_WIDTHS) else _WIDTHS[i], int(math.ceil(cost[i])), float(loss[i]))
            for place, i, cost, loss in zip(places, chosen.tolist(), costs, losses, strict=True)
        )
        return Plan(items, other, found.norm2, type(model).__name__, fingerprint(model))


def _held(model: nn.Module, sketch: Sketch | Assignment, loss: Callable[[], Tensor]) -> Ledger:
    with for_a_while(model, sketch, generator=Seeds(0)):
        return saved_bytes(loss)
