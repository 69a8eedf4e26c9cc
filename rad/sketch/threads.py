"""Compiled loops on several threads: those of PyTorch itself, where they can be had, else some of our own."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

__all__ = ["shared"]

_SHARE = 2**16  # elements worth a call of their own
_PARTS = 4  # for each thread, so that one that is slowed down by other work takes fewer


def shared(loop: Callable[..., None], count: int, unit: int, *args: Any, step: int = 8) -> None:
    """``loop(*args, first, last)`` for parts of ``count``, by as many threads as PyTorch uses and the size is worth.

    Args:
        loop: Releases the interpreter's lock.
        count: Groups, each of about ``unit`` elements.
        unit: Elements to a group.
        args: What all parts share.
        step: Parts begin at multiples of so many groups, by default where bits of them fill whole bytes.
    """
    most = count * unit // _SHARE
    threads = min(torch.get_num_threads(), most // 2)
    if threads <= 1:
        return loop(*args, 0, count)
    size = step * -(-count // (step * min(_PARTS * threads, most)))
    starts = iter(range(0, count, size))  # each of which is taken once, whoever asks

    def work() -> None:
        for start in starts:
            loop(*args, start, min(start + size, count))

    if (openmp := _openmp()) is not None:
        return _by_team(openmp, work, threads)
    jobs = [_pool().submit(work) for _ in range(threads - 1)]
    work()
    for job in jobs:
        job.result()


def _by_team(openmp: Any, work: Callable[[], None], threads: int) -> None:
    """Runs ``work`` on so many of PyTorch's own threads.

    Between two of its operations these wait in a loop and keep the cores busy: threads of ours would have to share
    them, and two would do no more than one.
    """
    job = (work, errors := [])
    _jobs[id(job)] = job
    try:
        openmp(_enter, id(job), threads, 0)
    finally:
        del _jobs[id(job)]
    if errors:
        raise errors[0]


_jobs: dict[int, tuple[Callable[[], None], list[BaseException]]] = {}


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _enter(key: int) -> None:
    work, errors = _jobs[key]
    try:
        work()
    except BaseException as error:  # for there is nobody behind who would see it
        errors.append(error)


@functools.cache
def _openmp() -> Callable[..., None] | None:
    """``GOMP_parallel`` of the OpenMP library that PyTorch itself is linked to, if it can be called here."""
    if _forks:
        return None
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        function = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    function.restype, function.argtypes = None, [type(_enter), ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    return function


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), "rad")


_forks: list[None] = []


def _forked() -> None:
    """Threads do not survive a fork: a pool is made anew, but a team of OpenMP's is waited for in vain."""
    _forks.append(None)
    _pool.cache_clear()
    _openmp.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
