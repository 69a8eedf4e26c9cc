"""What one does without RAD: exact gradients in less memory, of fewer examples, in parts, or computed twice."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._functorch import config as functorch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

import rad
from experiments.errors import UserError, first_line
from experiments.methods import Batch, Loss, Method, Rad, measured
from experiments.schema import Count
from rad.nn import Seeds

__all__ = ["Accumulate", "Checkpoint", "CompileBudget", "SmallBatch"]


@dataclass(frozen=True)
class _Fitting(Method):
    """Exact gradients of the most examples that hold no more bytes than ``reference`` does on the full batch.

    Attributes:
        reference: A sketch.
        nbytes: In its place, the bytes themselves.
    """

    reference: rad.Sketch
    nbytes: int | None = None

    def settled(self, nbytes: int | None, model: nn.Module, batch: Batch, loss: Loss) -> Method:
        return replace(self, nbytes=nbytes)

    def prepare(self, model: nn.Module, seeds: Seeds) -> nn.Module:
        return rad.convert(model, rad.Exact())

    def largest(self, model: nn.Module, batch: Batch, loss: Loss) -> int:
        """So many examples.

        Raises:
            UserError: If a single one holds more.
        """
        allowed = self.nbytes or measured(Rad("reference", self.reference), model, batch, loss)
        fits, too_many = 0, len(batch[0]) + 1
        while too_many - fits > 1:  # more examples never hold fewer bytes
            middle = (fits + too_many) // 2
            if measured(self, model, (batch[0][:middle].clone(), batch[1][:middle].clone()), loss) <= allowed:
                fits = middle
            else:
                too_many = middle
        if fits == 0:
            whose = "of the budget" if self.nbytes else f"of {self.reference} on the full batch"
            raise UserError(
                f"a single example holds more than the {allowed:,} bytes {whose}; raise budget or batch_size"
            )
        return fits


class SmallBatch(_Fitting):
    """The gradient of a smaller batch."""

    def batch_size(self, model: nn.Module, batch: Batch, loss: Loss) -> int:
        return self.largest(model, batch, loss)


class Accumulate(_Fitting):
    """The gradient of the full batch, summed over micro-batches.

    BatchNorm normalizes each micro-batch by its own mean and variance, so that with it the gradient is not that of the
    full batch; a warning says so.
    """

    def at_once(self, model: nn.Module, batch: Batch, loss: Loss) -> int:
        size = self.largest(model, batch, loss)
        if size < len(batch[0]) and any(isinstance(m, _BatchNorm) for m in model.modules()):
            warnings.warn(
                f"BatchNorm normalizes each micro-batch of {size} for itself: method={self.name} trains another "
                f"function than the full batch of {len(batch[0])} does",
                stacklevel=2,
            )
        return size


@dataclass(frozen=True)
class Checkpoint(Method):
    """``torch.utils.checkpoint``: keeps what enters a part of a model and runs its forward pass twice.

    The parts of a sequential model are ``segments`` runs of its layers, of which the last is kept as it is. Of any
    other model they are its blocks: the outermost modules that have layers of their own and are called as a whole.
    """

    segments: Count

    def prepare(self, model: nn.Module, seeds: Seeds) -> nn.Module:
        if isinstance(model, nn.Sequential):
            if not 1 <= self.segments <= len(model):
                raise UserError(
                    f"method.segments must lie in [1, {len(model)}], the model's layers, got {self.segments}"
                )
            size = len(model) // self.segments
            starts = [size * i for i in range(self.segments)]
            parts = [nn.Sequential(*list(model)[a:b]) for a, b in zip(starts, [*starts[1:], None], strict=True)]
            # Not a submodule of the model, whose names stay what they were.
            model.forward = partial(_in_turn, parts)
            return model
        blocks = list(_blocks(model))
        if not blocks:
            raise UserError(
                f"method=checkpoint needs a model with blocks, modules that have layers of their own, but "
                f"{type(model).__name__} has none; make it an nn.Sequential, or choose another method"
            )
        for block in blocks:
            block.forward = partial(_twice, block, block.forward)
        return model


@dataclass(frozen=True)
class CompileBudget(Method):
    """``torch.compile``, whose partitioner recomputes until about ``budget`` of the activations is kept.

    What it keeps at 1 is what it takes to be fastest, already less than stock autograd; the budget is its own measure,
    not one of bytes, so look at the bytes measured. Evaluation runs the plain model.
    """

    budget: float
    backend: str

    def settled(self, nbytes: int | None, model: nn.Module, batch: Batch, loss: Loss) -> Method:
        if nbytes is not None:
            raise UserError(
                f"method={self.name} takes a fraction, for the compiler counts no bytes, got {nbytes:,} bytes; "
                "for example budget=0.3"
            )
        return self

    def prepare(self, model: nn.Module, seeds: Seeds) -> nn.Module:
        rad.sketch.check_budget(self.budget)
        if self.backend not in torch.compiler.list_backends(exclude_tags=()):
            raise UserError(
                f"method.backend must be one of {', '.join(torch.compiler.list_backends())}, got {self.backend!r}"
            )
        plain = model.forward
        torch.compiler.reset()  # models of earlier runs count as versions of the same function, of which few may be
        compiled = torch.compile(plain, backend=self.backend, fullgraph=True, dynamic=False)

        def forward(*args: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                return plain(*args)
            try:
                with functorch.patch(activation_memory_budget=self.budget):  # read when the first call compiles
                    return compiled(*args)
            except TorchDynamoException as error:
                raise UserError(
                    f"method={self.name} cannot compile {type(model).__name__} into one graph "
                    f"({first_line(error)}); choose another method"
                ) from error

        model.forward = forward
        return model


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    for child in model.children():
        layers = list(child.children())
        deep = isinstance(child, nn.Sequential) and any(any(layer.children()) for layer in layers)
        if deep or isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _blocks(child)
        elif layers:
            yield child


def _in_turn(parts: list[nn.Module], x: Tensor) -> Tensor:
    for part in parts[:-1]:
        x = _twice(part, part, x)
    return parts[-1](x)


def _twice(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Runs a module's forward pass, and again for the backward pass, which no buffer is to notice."""

    @contextmanager
    def again() -> Iterator[None]:
        before = [(b, b.clone()) for b in module.buffers()]  # running statistics of BatchNorm
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)

    return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), again()), **kwargs)
