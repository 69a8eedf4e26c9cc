"""The methods that are compared: each turns a plain model into one that trains by its kind of gradient."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

import rad
from experiments.errors import UserError
from experiments.schema import Count
from rad.nn import Seeds

__all__ = ["Batch", "Checkpoint", "Exact", "Method", "Rad", "SmallBatch", "measured"]

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Method(ABC):
    """A way to form gradients.

    Attributes:
        name: What records, figures and tables call it.
    """

    name: str

    @abstractmethod
    def prepare(self, model: nn.Module, seeds: Seeds) -> nn.Module:
        """Changes a plain model in place; sketches take theirs from ``seeds``."""

    def batch_size(self, model: nn.Module, batch: Batch, loss: Loss) -> int:
        """How many examples of a full batch to train on, given a plain model and one such batch."""
        return len(batch[0])


@dataclass(frozen=True)
class Exact(Method):
    """Stock autograd."""

    def prepare(self, model: nn.Module, seeds: Seeds) -> nn.Module:
        return model


@dataclass(frozen=True)
class Rad(Method):
    """Every layer keeps a sketch of its input."""

    sketch: rad.Sketch

    def prepare(self, model: nn.Module, seeds: Seeds) -> nn.Module:
        return rad.convert(model, self.sketch, generator=seeds)


@dataclass(frozen=True)
class SmallBatch(Method):
    """Exact gradients of the largest batch that holds no more bytes than ``reference`` does on the full one."""

    reference: rad.Sketch

    def prepare(self, model: nn.Module, seeds: Seeds) -> nn.Module:
        return rad.convert(model, rad.Exact())

    def batch_size(self, model: nn.Module, batch: Batch, loss: Loss) -> int:
        allowed = measured(Rad("reference", self.reference), model, batch, loss)
        fits, too_many = 0, len(batch[0]) + 1
        while too_many - fits > 1:  # more examples never hold fewer bytes
            middle = (fits + too_many) // 2
            if measured(self, model, (batch[0][:middle].clone(), batch[1][:middle].clone()), loss) <= allowed:
                fits = middle
            else:
                too_many = middle
        if fits == 0:
            raise UserError(
                f"a single example holds more than the {allowed:,} bytes of {self.reference} on the full batch; "
                "raise budget or batch_size"
            )
        return fits


@dataclass(frozen=True)
class Checkpoint(Method):
    """``torch.utils.checkpoint`` over segments of a sequential model, in place of keeping their inner values."""

    segments: Count

    def prepare(self, model: nn.Module, seeds: Seeds) -> nn.Module:
        if not isinstance(model, nn.Sequential):
            raise UserError(f"method=checkpoint needs an nn.Sequential model, got {type(model).__name__}")
        if not 1 <= self.segments <= len(model):
            raise UserError(f"method.segments must lie in [1, {len(model)}], the model's layers, got {self.segments}")
        layers = nn.Sequential(*model)
        model.forward = partial(checkpoint_sequential, layers, self.segments, use_reentrant=False)
        return model


def measured(method: Method, model: nn.Module, batch: Batch, loss: Loss) -> int:
    """Bytes that autograd holds for one batch, parameters apart, under a method; ``model`` itself is not changed."""
    x, y = batch
    prepared = method.prepare(copy.deepcopy(model), Seeds(0))
    return rad.measure.saved_bytes(lambda: loss(prepared(x), y)).total
