"""What methods are called and how they are drawn, in the order in which they are shown."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

__all__ = ["BUDGET_FREE", "METHODS", "Look", "look", "rank"]

_DASHED, _DOTTED = (0, (4, 1.5)), (0, (1.5, 1.5))


@dataclass(frozen=True)
class Look:
    """Of one method in tables and figures.

    Attributes:
        label: Its name.
        colour: Of its lines.
        dash: Of its lines; those that may lie on another's are dashed, so that it shows through.
        width: Of its lines; wide and below, exact gradients stay visible under a method that follows them.
    """

    label: str
    colour: str
    dash: str | tuple = "-"
    width: float = 1.5

    @property
    def short(self) -> str:
        """Its name where all are ours or the paper's."""
        return self.label.removeprefix("RAD, ")


# Okabe and Ito's palette, which stays apart under the common kinds of colour blindness.
METHODS = {
    "exact": Look("exact", "#000000", width=3.0),
    "checkpoint": Look("checkpointing", "#999999", _DASHED),
    "compile_budget": Look("compiler's budget", "#8C510A", _DOTTED),
    "accumulate": Look("gradient accumulation", "#F0E442", _DASHED),
    "small_batch": Look("smaller batch", "#E69F00"),
    "rad_same": Look("RAD, same sample", "#56B4E9"),
    "rad_even": Look("RAD, evenly spaced sample", "#332288", _DASHED),
    "rad_diff": Look("RAD, different sample", "#0072B2"),
    "rad_proj": Look("RAD, projection", "#D55E00", _DASHED),
    "rad_round": Look("RAD, rounding", "#009E73"),
    "rad_auto": Look("RAD, bits allocated", "#882255", _DASHED),
    "rad_mixed": Look("RAD, sampling and rounding", "#CC79A7", _DOTTED),
}
BUDGET_FREE = ("exact", "checkpoint")  # read no budget
_OTHERS = ["#117733", "#999933", "#661100", "#6699CC"]


def look(method: str) -> Look:
    """Of a method; an unknown one keeps its name and always gets the same spare colour."""
    return METHODS.get(method) or Look(method, _OTHERS[zlib.crc32(method.encode()) % len(_OTHERS)])


def rank(method: str) -> int:
    """Its place among the others; unknown ones come last."""
    return list(METHODS).index(method) if method in METHODS else len(METHODS)
