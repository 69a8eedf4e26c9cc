"""What claims are judged by, and what becomes of one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pandas as pd

from experiments.runs.records import Runs
from experiments.show.verdicts import UNKNOWN, Rule, verdict

__all__ = ["Evidence", "Finding"]


@dataclass
class Evidence:
    """What there is to judge by; ``None`` and missing keys are what there is not.

    Attributes:
        targets: Training losses to count iterations to, by experiment.
        training: Runs at one budget, by experiment.
        reactor: As from ``reactor_table``.
        graphs: Records of ``experiment=graph_depth`` on graphs.
        nets: Its records on nets.
        noise: ``noise.csv`` of ``experiment=gradient_noise``.
        steps: Its ``steps.csv``.
        rates: Final training losses of methods that share a learning rate, as from ``final_losses``.
        table1: ``table1.csv``.
    """

    targets: dict[str, tuple[float, ...]]
    training: dict[str, Runs] = field(default_factory=dict)
    reactor: pd.DataFrame | None = None
    graphs: pd.DataFrame | None = None
    nets: pd.DataFrame | None = None
    noise: pd.DataFrame | None = None
    steps: pd.DataFrame | None = None
    rates: pd.DataFrame | None = None
    table1: pd.DataFrame | None = None


@dataclass(frozen=True)
class Finding:
    """A claim and what became of it.

    Attributes:
        claim: Where in the paper it stands.
        statement: What it says, in our words.
        experiment: Whose commands make the number.
        rule: When it holds.
        measured: Our number with its interval.
        n: Seeds, or draws.
        verdict: One of `experiments.show.verdicts`.
    """

    claim: str
    statement: str
    experiment: str
    rule: Rule | str
    measured: str = "–"
    n: str = "0"
    verdict: str = UNKNOWN

    def judged(self, measured: str, n: str, parts: Iterable[bool | None]) -> Finding:
        """With what was measured, and whether each of its numbers lies where the claim puts it."""
        return replace(self, measured=measured, n=n, verdict=verdict(parts))
