"""The methods that are compared: each turns a plain model into one that trains by its kind of gradient."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

import rad
from experiments.errors import UserError
from experiments.schema import Count
from rad.nn import Seeds

__all__ = ["Auto", "Batch", "Exact", "Loss", "Method", "Rad", "measured", "peak"]

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]

_FRACTIONS = 1024  # as finely as they are tried


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

    def settled(self, nbytes: int | None, model: nn.Module, batch: Batch, loss: Loss) -> Method:
        """The method with all that depends on a plain model and a full batch.

        Args:
            nbytes: What autograd may hold, where the budget is a size.
            model: Is not changed.
            batch: A full one.
            loss: Of outputs and targets.

        Raises:
            UserError: If no budget of the method holds so little.
        """
        return self

    def batch_size(self, model: nn.Module, batch: Batch, loss: Loss) -> int:
        """How many examples of a full batch to train on, given a plain model and one such batch."""
        return len(batch[0])

    def at_once(self, model: nn.Module, batch: Batch, loss: Loss) -> int:
        """How many of the examples trained on pass forward and backward at a time; gradients of parts add up."""
        return len(batch[0])

    def allocator(self, model: nn.Module, seeds: Seeds) -> rad.Allocator | None:
        """What plans the prepared model anew during training, if anything does."""
        return None


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

    def settled(self, nbytes: int | None, model: nn.Module, batch: Batch, loss: Loss) -> Method:
        """With the largest fraction that holds no more than ``nbytes``."""
        if nbytes is None:
            return self
        with warnings.catch_warnings():  # of fractions that are only tried
            warnings.simplefilter("ignore")
            return self._within(nbytes, model, batch, loss)

    def _within(self, nbytes: int, model: nn.Module, batch: Batch, loss: Loss) -> Method:
        fits, too_much, least = 0, _FRACTIONS + 1, 0
        while too_much - fits > 1:  # a larger fraction never holds fewer bytes
            middle = (fits + too_much) // 2 if least else _FRACTIONS
            tried = replace(self, sketch=replace(self.sketch, budget=middle / _FRACTIONS))  # pyright: ignore
            least = measured(tried, model, batch, loss)
            fits, too_much = (middle, too_much) if least <= nbytes else (fits, middle)
        if fits == 0:
            raise UserError(
                f"budget is {nbytes:,} bytes, but {self.name} holds {least:,} at the least; raise budget, or lower "
                "batch_size"
            )
        return replace(self, sketch=replace(self.sketch, budget=fits / _FRACTIONS))  # pyright: ignore


@dataclass(frozen=True)
class Auto(Method):
    """Every kept tensor is rounded to bits of its own, by a plan that is made anew during training.

    Attributes:
        budget: Fraction of the bytes of stock autograd, where the budget is no size.
        every: Iterations between two plans.
        plan: The first one, once it is settled.
        nbytes: What it may hold, likewise.
    """

    budget: Annotated[float, Field(gt=0, le=1)]
    every: Count
    plan: rad.Plan | None = None
    nbytes: int | None = None

    def settled(self, nbytes: int | None, model: nn.Module, batch: Batch, loss: Loss) -> Method:
        x, y = batch
        if nbytes is None:
            nbytes = int(self.budget * measured(Exact("exact"), model, batch, loss))
        try:
            return replace(self, plan=rad.allocate(model, lambda: loss(model(x), y), nbytes), nbytes=nbytes)
        except ValueError as error:
            raise UserError(f"budget cannot be kept to: {error}") from error

    def prepare(self, model: nn.Module, seeds: Seeds) -> nn.Module:
        assert self.plan is not None, "settled first"
        return rad.convert(model, self.plan, generator=seeds)

    def allocator(self, model: nn.Module, seeds: Seeds) -> rad.Allocator:
        return rad.Allocator(model, self.nbytes, every=self.every, generator=seeds)


def measured(method: Method, model: nn.Module, batch: Batch, loss: Loss) -> int:
    """Bytes that autograd holds for one batch, parameters apart, under a method; ``model`` itself is not changed."""
    x, y = batch
    prepared = method.prepare(copy.deepcopy(model), Seeds(0))
    return rad.measure.saved_bytes(lambda: loss(prepared(x), y)).total


def peak(method: Method, model: nn.Module, batch: Batch, loss: Loss) -> int:
    """The most bytes that PyTorch's allocator holds at once for one batch, gradients and all; likewise."""
    (x, y), model = batch, copy.deepcopy(model)

    def step() -> nn.Module:
        prepared = method.prepare(model, Seeds(0))  # within, for what it holds already may be released on the way
        loss(prepared(x), y).backward()
        return prepared

    return rad.measure.peak_bytes(step, x.device)
