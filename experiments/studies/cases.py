"""A task made of cases that do not depend on each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm

from experiments.runs.study import Record

__all__ = ["Cases"]


class Cases:
    """One record for each case, in order; an interrupted run goes on with the first case that is missing.

    Args:
        cases: Each computes its record, from a random seed of its own.
        device: Where they compute.
    """

    def __init__(self, cases: Sequence[Callable[[], Record]], device: torch.device) -> None:
        self.cases, self.device = cases, device
        self.iteration, self.iterations = 0, len(cases)
        self.seconds = 0.0

    def run(self, record: Callable[[Record], None], save: Callable[[Record], None]) -> None:
        """Computes the cases that are missing."""
        for case in tqdm(self.cases[self.iteration :], initial=self.iteration, total=self.iterations, disable=None):
            start = time.perf_counter()
            entry = case()
            self.seconds += time.perf_counter() - start
            self.iteration += 1
            record({"iteration": self.iteration, **entry})
            save({"iteration": self.iteration, "seconds": self.seconds})

    def restore(self, state: Record) -> None:
        """Goes back to a state."""
        self.iteration, self.seconds = state["iteration"], state["seconds"]
