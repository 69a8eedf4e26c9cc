"""What each place may keep, what that takes and adds, and the plan of the best options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from rad.budget.choose import cheapest, least_loss
from rad.budget.plan import Item, Plan, fingerprint, sketch_of
from rad.budget.probe import Contributions
from rad.budget.stand_in import EVERY
from rad.sketch.bits import MAX_BITS

__all__ = ["Choices"]

_FEW = range(1, 5)  # bits of what is sampled: where more are worth their bytes, so are more elements
_ATTEMPTS = 6
_LEFT = 0.005  # of the bytes asked for, which is not worth parting a tensor for


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


class Choices:
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
