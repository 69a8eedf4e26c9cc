"""Seeds for the summaries of a converted model."""

from __future__ import annotations

import threading

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["Seeds", "Split"]

_DISTRIBUTED = dist.is_available()
_RANK = 1 << 52  # between the seeds of two processes
_DRAW = 1 << 40  # between those of one call in a traced graph; more calls than that there will not be
_LOCK = threading.Lock()  # of all, so that seeds can be copied and pickled
_starts = torch.Generator()  # seeded like the global one when that was last looked at


class Seeds:
    """One seed after the other, from a state that can be saved; no global generator is touched.

    Where a process group exists each of its ranks has seeds of its own, whatever they started from.

    Args:
        first: Where to start: a number, a generator from which one is drawn, or ``None`` for the seed with which the
            global generator was initialized, which is only read. The n-th that starts from that seed starts from the
            n-th number drawn with it, so that a model and its loss have seeds of their own and a script finds the same
            ones in each run. Another seed counts from the first again; the same seed given again cannot be told from
            before, so whoever wants the same seeds twice in one process says where to start.

    Raises:
        TypeError: If it is anything else.
        ValueError: If the number has more than 64 bits.
    """

    def __init__(self, first: int | torch.Generator | None = None) -> None:
        if not isinstance(first, torch.Generator):
            if first is not None and (not isinstance(first, int) or isinstance(first, bool)):
                raise TypeError(f"seeds start from a whole number, a torch.Generator or None, got {first!r}")
            if first is not None and not -(2**63) <= first < 2**63:
                raise ValueError(f"seeds start from a whole number of 64 bits, got {first}")
            # Drawn, so that neighbouring numbers lead to seeds far apart.
            first = _from_the_global() if first is None else torch.Generator().manual_seed(first)
        start = int(torch.randint(2**51 - 1, (), generator=first, device=first.device))
        self._state = torch.tensor(start - 2**50, dtype=torch.int64, device="cpu")

    def next(self) -> Tensor:
        """A seed that was not given before, to no thread either, int64 scalar on the CPU."""
        if torch.compiler.is_dynamo_compiling():  # no lock can be traced: of a graph one thread at a time takes seeds
            seed = self._take()
        else:
            with _LOCK:
                seed = self._take()
        if _DISTRIBUTED and dist.is_initialized():
            seed = seed + dist.get_rank() * _RANK
        return seed

    def _take(self) -> Tensor:
        # Never in place, for a traced graph may keep the state and form the seeds of its backward pass from that.
        seed, self._state = self._state, self._state + 1
        return seed

    def get_state(self) -> Tensor:
        """Where the seeds have got to; ``set_state`` goes on from there, bit for bit."""
        return self._state

    def set_state(self, state: Tensor) -> None:
        """Goes on from what ``get_state`` returned.

        Raises:
            ValueError: If it is anything else.
        """
        if not isinstance(state, Tensor) or state.dtype != torch.int64 or state.dim():
            raise ValueError(f"state must be what get_state returned, one int64 number, got {state!r:.60}")
        self._state = state.clone()


def _from_the_global() -> torch.Generator:
    """The generator from which seeds start where nothing else is said."""
    if _starts.initial_seed() != torch.initial_seed():
        _starts.manual_seed(torch.initial_seed())
    return _starts


class Split:
    """Seeds made from one that ``Seeds`` gave, for a call whose draws are not known when it is taken.

    Args:
        first: The seed.
    """

    def __init__(self, first: Tensor) -> None:
        self._first, self._given = first, 0

    def next(self) -> Tensor:
        """A seed that was not given before, int64 scalar on the CPU."""
        self._given += 1
        return self._first if self._given == 1 else self._first + (self._given - 1) * _DRAW
