"""Random numbers inside of CUDA graphs, whose replays run the same kernels with the same arguments.

What a captured kernel draws is told by a counter among its arguments. To it the kernel adds a number that it reads from
the device, and that changes from replay to replay: as many seeds' worth of counters as were given since the capture.
A replay then draws what the step would draw without a graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["shift", "shifting"]

_shift: Tensor | None = None


def shift(device: torch.device) -> Tensor | None:
    """What is to be added to all counters on a device, int64 ``[1]``; ``None`` where nothing is captured.

    Raises:
        RuntimeError: Inside of a graph whose replays would all draw the same.
    """
    if _shift is not None and _shift.device == device:
        return _shift
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "every replay of this CUDA graph would draw the same summaries; capture with rad.nn.CUDAGraph(model) in "
            "place of torch.cuda.CUDAGraph(), which shifts their seeds from replay to replay"
        )
    return None


@contextmanager
def shifting(by: Tensor) -> Iterator[None]:
    """Within it what is drawn reads from ``by`` how far its counters are shifted."""
    global _shift
    before, _shift = _shift, by
    try:
        yield
    finally:
        _shift = before
