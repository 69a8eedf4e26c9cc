"""What a run takes of the machine: a device, random numbers, memory."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from experiments.errors import StoppedError, UserError, first_line

__all__ = ["device", "generator", "memory", "undisturbed", "without_subnormals"]


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator of its own for each purpose, so that no choice of method disturbs another's numbers."""
    words = np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))


def device(name: str) -> torch.device:
    """The device of a name; ``auto`` is CUDA where there is one.

    Raises:
        UserError: If there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.zeros((), device=found).item()  # "meta" holds no values
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device must be one that is there, or auto, got {name!r} ({first_line(error)})") from error
    return found


@contextmanager
def undisturbed() -> Iterator[None]:
    """What exists by now stays meanwhile; the garbage collector need not look through it again and again."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def without_subnormals() -> Iterator[None]:
    """Takes numbers below the least normal one, 1e-38 in single precision, for zero meanwhile, on CPUs that can.

    Weight decay takes the weights of dead units there, with which a convolution takes up to a hundred times as long.
    Threads that were started before are left as they are.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def memory() -> Iterator[None]:
    """Makes one sentence of a lack of memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("allocate memory|out of memory", str(error)):
            raise
        raise StoppedError(f"there is not enough memory ({first_line(error)}); choose smaller sizes") from error
