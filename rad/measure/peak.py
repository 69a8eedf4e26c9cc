"""The most memory that was in use at once while something ran."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch._C._profiler import _ExtraFields_Allocation
from torch.profiler import ProfilerActivity, profile

__all__ = ["peak_bytes", "peak_resident"]

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(fn: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """The most bytes that PyTorch's allocator held at once while ``fn`` ran, of those allocated by ``fn``.

    What is allocated without PyTorch (by numpy, or inside a library) is not seen; see ``peak_resident``. On the CPU
    nor is the release of what was there before: let ``fn`` run the forward pass along with the backward pass.

    Args:
        fn: Runs forward and backward passes, or parts of them; what it returns is alive to the end.
        device: Where its tensors are.

    Raises:
        ValueError: If the device is neither the CPU nor a CUDA device that is there.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be a torch.device or its name, such as cpu or cuda, got {device!r}") from error
    if found.type == "cuda" and (found.index or 0) < torch.cuda.device_count():
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        fn()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if found.type != "cpu":
        raise ValueError(f"memory can be followed on cpu, and on cuda where there is such a device, got {device}")
    # On the CPU PyTorch counts nothing itself, but its profiler sees every allocation and every release. It tells the
    # terminal when it starts and ends, and what it misses of a GPU, unless it is asked not to before it first runs.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watch:
        result = fn()
    events = list(_allocations(watch.profiler.kineto_results.experimental_event_tree()))  # pyright: ignore
    sizes: dict[int, int] = {}  # by address: the profiler may also report the release of what it saw in an earlier run
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_time_ns):
        block = event.extra_fields
        held -= sizes.pop(block.ptr, 0)
        if block.alloc_size > 0:
            sizes[block.ptr] = block.alloc_size
            held += block.alloc_size
        most = max(most, held)
    del result
    return most


def peak_resident(fn: Callable[[], object]) -> int:
    """Growth of this process's resident memory, in bytes, from before ``fn`` to its high-water mark within it.

    Everything counts, whoever allocated it; but memory that the process had freed and not given back is used again
    without any growth. Measure in a fresh process.

    Args:
        fn: What to run; for example one training step.

    Raises:
        OSError: If the system keeps no such mark that can be reset; Linux does.
    """
    _RESET.write_text("5")  # the mark falls to what is resident now
    before = _mark()
    fn()
    return _mark() - before


def _allocations(events: list) -> Iterator:
    for event in events:
        if isinstance(event.extra_fields, _ExtraFields_Allocation):
            yield event
        yield from _allocations(event.children)


def _mark() -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])
