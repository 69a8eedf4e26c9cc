"""What the tests on a GPU share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from calls import Case, Outcome
from sketches import normal
from torch import Tensor

import rad

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

gpu = pytest.mark.gpu


def moved(value: Any, device: str) -> Any:
    """Tensors, also inside lists and dictionaries, on a device; leaves stay leaves."""
    if isinstance(value, Tensor):
        return value.detach().to(device).requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    return value


def run(case: Case, device: str, sketch: rad.Sketch | None, dtype: torch.dtype) -> Outcome:
    """``Case.run`` on a device."""
    torch.manual_seed(3)
    tensors = [moved(t, device) for t in case.tensors(dtype)]
    out = case.call(tensors, sketch)
    random = torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()
    outs = tuple(t for t in (out if isinstance(out, tuple) else (out,)) if t.requires_grad)
    upstream = [normal(*t.shape, seed=90 + i, dtype=t.dtype).to(device) for i, t in enumerate(outs)]
    leaves = [t for t in tensors if isinstance(t, Tensor) and t.requires_grad]
    grads = torch.autograd.grad(outs, leaves, upstream, allow_unused=True) if leaves else ()
    buffers = [t for t, g in zip(tensors, case.inputs, strict=True) if getattr(g, "role", "") == "buffer"]
    return Outcome(tuple(t.detach() for t in outs), grads, buffers, random)
