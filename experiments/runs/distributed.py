"""One run by several processes, as ``torchrun`` starts them: each takes its share of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from experiments.errors import UserError

__all__ = ["agree", "gathered", "group", "leads", "processes", "rank", "share", "synchronized", "total"]


def rank() -> int:
    """The number of this process; 0 leads: it records, saves, evaluates and prints."""
    return int(os.environ.get("RANK", 0))


def processes() -> int:
    """How many processes work on this run; 1 without ``torchrun``."""
    return int(os.environ.get("WORLD_SIZE", 1))


def leads() -> bool:
    """Whether this process is the one that speaks for all."""
    return rank() == 0


@contextmanager
def group() -> Iterator[None]:
    """Joins the processes of this run for as long as it lasts; of a single process nothing is asked.

    Raises:
        UserError: If they cannot be joined.
    """
    if processes() == 1:
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        # By purpose: tensors on a GPU through nccl; objects and tensors on the CPU through gloo.
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the {processes()} processes cannot be joined ({reason}); use torchrun --nproc_per_node=N run.py"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def agree(value: Any) -> Any:
    """What the leading process says, whatever the others do."""
    if processes() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said)
    return said[0]


def gathered(value: Any) -> list[Any]:
    """What each process says, in order; to be called by all of them."""
    if processes() == 1:
        return [value]
    said: list[Any] = [None] * processes()
    dist.all_gather_object(said, value)
    return said


def total(value: Tensor) -> Tensor:
    """The sum over all processes, to be called by all of them."""
    if processes() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def share(count: int) -> slice:
    """Which of so many examples this process takes: shares differ by one at most."""
    return slice(rank(), count, processes())


def synchronized(model: nn.Module) -> nn.Module:
    """The model's forward pass, after whose backward pass gradients are means over the processes."""
    return model if processes() == 1 else DistributedDataParallel(model)
