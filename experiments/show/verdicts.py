"""Whether a number lies where a claim puts it, by its interval: yes, no, or not decided."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["FAILS", "HOLDS", "IN_PART", "UNDECIDED", "UNKNOWN", "Interval", "Rule", "verdict"]

HOLDS, IN_PART, FAILS = "holds", "holds in part", "does not hold"
UNDECIDED, UNKNOWN = "not decided", "not measured"


@dataclass(frozen=True)
class Interval:
    """What a number may be. One whose spread is not known, as of a single seed, decides nothing.

    Attributes:
        low: Its lower end; NaN if not known.
        high: Its upper end.
    """

    low: float
    high: float

    @classmethod
    def around(cls, value: float, half: float) -> Interval:
        """``value ± half``."""
        return cls(value - half, value + half)

    def within(self, low: float = -math.inf, high: float = math.inf) -> bool | None:
        """Whether the number lies in ``[low, high]``; ``None`` if its interval has points inside and outside."""
        if low <= self.low and self.high <= high:
            return True
        return False if self.high < low or high < self.low else None

    def below(self, limit: float) -> bool | None:
        """Whether the number is less than ``limit``."""
        return _not(self.within(low=limit))

    def above(self, limit: float) -> bool | None:
        """Whether the number is greater than ``limit``."""
        return _not(self.within(high=limit))


@dataclass(frozen=True)
class Rule:
    """Where a claim puts each of its numbers.

    Attributes:
        low: Lower end.
        high: Upper end.
        strict: Whether an end itself is outside.
    """

    low: float = -math.inf
    high: float = math.inf
    strict: bool = False

    def met(self, by: Interval) -> bool | None:
        """Whether a number of this interval lies there; ``None`` if that is not decided."""
        if not self.strict:
            return by.within(self.low, self.high)
        return by.below(self.high) if math.isinf(self.low) else by.above(self.low)

    def __str__(self) -> str:
        if math.isinf(self.low):
            return f"{'<' if self.strict else '≤'} {self.high:g}"
        if math.isinf(self.high):
            return f"{'>' if self.strict else '≥'} {self.low:g}"
        return f"{self.low:g} to {self.high:g}"


def verdict(parts: Iterable[bool | None]) -> str:
    """Of a claim about several numbers: it holds for all, some or none of them, or for none of them for certain."""
    parts = list(parts)
    if not parts:
        return UNKNOWN
    if all(part is True for part in parts):
        return HOLDS
    if any(parts):
        return IN_PART
    return FAILS if all(part is False for part in parts) else UNDECIDED


def _not(decided: bool | None) -> bool | None:
    return None if decided is None else not decided
