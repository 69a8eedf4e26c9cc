"""Compiled loops on several threads: those of PyTorch itself, where they can be had, else some of our own."""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from rad.sketch.entry import openmp, prepared

__all__ = ["shared"]

_SHARE = 2**14  # elements worth a part of their own
_PARTS = 4  # for each thread, so that one that is slowed down by other work takes fewer


def shared(loop: Any, count: int, unit: int, *args: Any, step: int = 1) -> None:
    """``loop(*args, first, last)`` for parts of ``count``, by as many threads as PyTorch uses and the size is worth.

    Args:
        loop: Made by ``kernels.compiled``.
        count: Groups, each of about ``unit`` elements.
        unit: Elements to a group.
        args: What all parts share; see ``entry.prepared``.
        step: Parts begin at multiples of so many groups: of eight where bits of them fill whole bytes.
    """
    entry, values = prepared(loop, args)
    most = count * unit // _SHARE
    threads = min(torch.get_num_threads(), most // 2)
    if threads <= 1:
        return entry.run(entry.layout.pack(False, 0, count, *values))
    size = step * -(-count // (step * min(_PARTS * threads, most)))
    if (team := _team()) is not None:
        # Between two of its operations PyTorch's threads wait in a loop and keep the cores busy: threads of ours would
        # have to share them, and two would do no more than one.
        return team(entry.address, entry.layout.pack(True, 0, 0, *values), threads, 0, count, 1, size, 0)
    parts = [(first, min(first + size, count)) for first in range(0, count, size)]
    list(_pool(threads).map(lambda part: entry.run(entry.layout.pack(False, *part, *values)), parts))


def _team() -> Any:
    return None if _forks else openmp()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "rad")


_forks: list[None] = []


def _forked() -> None:
    """Threads do not survive a fork: a pool is made anew, but a team of OpenMP's is waited for in vain."""
    _forks.append(None)
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
