"""CUDA graphs of training steps of converted models."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from rad.nn.convert import Converted, check_module, seeds
from rad.sketch.random import counters
from rad.sketch.replay import shifting

__all__ = ["CUDAGraph"]


class CUDAGraph(torch.cuda.CUDAGraph):
    """A ``torch.cuda.CUDAGraph`` of steps of a converted model, with new random numbers in each replay.

    Launching kernels from Python takes longer than many of them run. A graph is launched at once: it is captured as
    PyTorch's own is, after a few steps on a side stream that compile what is to be compiled::

        graph = rad.nn.CUDAGraph(model)
        with torch.cuda.graph(graph):
            loss = model(x)
            loss.backward()
            optimizer.step()
        for x[:], y[:] in batches:
            graph.replay()

    Replays take the seeds of the model in turn, so that they draw what the same steps would draw without a graph, bit
    for bit, also where both alternate and where a run is resumed from the state of its seeds. What else holds for CUDA
    graphs holds here: shapes are fixed, and nothing may wait for the device.

    Args:
        model: A model whose modules were all converted by one ``rad.convert``, or with the same ``rad.nn.Seeds``.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If it is not converted, or its parts have seeds of their own.
        RuntimeError: If there is no CUDA device.
    """

    def __new__(cls, model: nn.Module) -> CUDAGraph:
        """Refuses what cannot be captured; see the class."""
        check_module(model)
        several = {id(m.recipe.seeds) for m in model.modules() if isinstance(m, Converted)}
        if len(several) > 1:
            raise ValueError(
                f"the parts of this {type(model).__name__} were converted with {len(several)} different seeds; convert "
                "them with one generator=rad.nn.Seeds()"
            )
        seeds(model)  # says that it is not converted
        if not torch.cuda.is_available():
            raise RuntimeError("a CUDA graph needs a CUDA device, and there is none")
        return super().__new__(cls)

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._seeds = seeds(model)
        device = next((p.device for p in model.parameters() if p.is_cuda), "cuda")
        self._shift = torch.zeros(1, dtype=torch.int64, device=device)
        self._capture = ExitStack()
        self._first = self._taken = 0

    def capture_begin(self, *args: Any, **options: Any) -> None:
        """See ``torch.cuda.CUDAGraph``."""
        super().capture_begin(*args, **options)
        self._first = int(self._seeds.get_state())
        self._capture.enter_context(shifting(self._shift))

    def capture_end(self) -> None:
        """See ``torch.cuda.CUDAGraph``."""
        self._capture.close()
        state = self._seeds.get_state()
        self._taken = int(state) - self._first
        self._seeds.set_state(state - self._taken)  # nothing has run yet
        super().capture_end()

    def replay(self) -> None:
        """See ``torch.cuda.CUDAGraph``; takes as many seeds as the capture did."""
        state = self._seeds.get_state()
        self._shift.fill_(counters(int(state) - self._first))
        self._seeds.set_state(state + self._taken)
        super().replay()
