"""What a model would hold for its backward pass, told before any training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rad.measure.saved import Ledger, saved_bytes
from rad.nn import Converted, seeds
from rad.nn.convert import check_module

__all__ = ["MostlyExactWarning", "explain", "undisturbed"]


class MostlyExactWarning(UserWarning):
    """A converted model still keeps most of its bytes exactly."""


def explain(model: nn.Module, *args: Any, **kwargs: Any) -> Ledger:
    """Runs a model once and tells which operation of which module keeps what, and how.

    ``print(rad.explain(model, x))`` is a table whose end says what is still exact. Buffers, the state of the global
    generator and the seeds of the summaries are afterwards what they were.

    Args:
        model: Plain or converted.
        args: What it is called with.
        kwargs: Likewise; with labels the ledger includes the loss, where the model forms it.

    Returns:
        The ledger.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If nothing that the model returns requires a gradient.
    """
    check_module(model)
    with undisturbed(model):
        ledger = saved_bytes(lambda: _scalar(model(*args, **kwargs)))
    converted = any(isinstance(module, Converted) for module in model.modules())
    if converted and ledger.exact > ledger.total / 2:
        warnings.warn(
            f"{ledger.summary()}; print(rad.explain(model, ...)) names every operation",
            MostlyExactWarning,
            stacklevel=2,
        )
    return ledger


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Gradients can be formed within; buffers, the global generators and the model's seeds are then what they were."""
    buffers = [(b, b.clone()) for b in model.buffers()]
    converted = any(isinstance(module, Converted) for module in model.modules())
    state = seeds(model).get_state() if converted else None
    try:
        with torch.enable_grad(), torch.random.fork_rng():
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        if state is not None:
            seeds(model).set_state(state)


def _scalar(out: Any) -> Tensor:
    """The sum of all that is returned, for which nothing more is saved."""
    parts = [t.sum() for t in _tensors(out) if t.requires_grad]
    if not parts:
        raise ValueError("nothing that the model returns requires a gradient; are all its parameters frozen?")
    return sum(parts[1:], parts[0])


def _tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, Mapping):
        yield from _tensors(list(out.values()))
    elif isinstance(out, (list, tuple)):
        for item in out:
            yield from _tensors(item)
