"""Converting a model in place to memory-cheap gradients, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from rad.sketch import Sketch

__all__ = ["Recipe", "convert", "recipe", "register", "revert"]

M = TypeVar("M", bound=type[nn.Module])

_CONVERTED: dict[type[nn.Module], type[nn.Module]] = {}


@dataclass(frozen=True)
class Recipe:
    """How a converted layer forms its gradient.

    Attributes:
        sketch: The summary that is kept of the layer's input.
        generator: CPU generator of the seeds, shared by all layers of one conversion.
    """

    sketch: Sketch
    generator: torch.Generator | None


def register(stock: type[nn.Module]) -> Callable[[M], M]:
    """Class decorator: layers of exactly the type ``stock`` become the decorated class when a model is converted.

    The decorated class derives from ``stock``, adds no state, and finds its sketch by ``recipe(self)``.

    Raises:
        TypeError: If it does not derive from ``stock``.
    """

    def decorate(converted: M) -> M:
        if not issubclass(converted, stock):
            raise TypeError(f"{converted.__name__} must derive from {stock.__name__}, whose place it takes")
        _CONVERTED[stock] = converted
        return converted

    return decorate


def recipe(module: nn.Module) -> Recipe:
    """The recipe of a converted layer."""
    return module.__dict__["_rad_recipe"]


def convert(
    model: nn.Module,
    sketch: Sketch,
    skip: Iterable[str] = (),
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Makes the layers of a model keep a sketch of their input in place of the input.

    The model is changed in place: parameters, state_dict keys and forward values stay what they were, only the
    gradients of the weights become random, unbiased estimates. Layers of other types than those registered, and
    subclasses with a forward pass of their own, stay as they are. Functional calls inside a ``forward`` (such as
    ``F.relu``) cannot be seen; use modules. A model converted before is converted anew.

    Args:
        model: Any module, itself a layer or a tree of layers.
        sketch: The summary to keep; ``budget=1`` and ``Exact()`` give exact gradients.
        skip: Names, as in ``model.named_modules()``, of modules to leave as they are with all they contain.
        generator: CPU generator from which one seed is drawn for each sketch. Checkpoint its state to resume a
            run. By default a new one with a fixed seed, so that the global generator is never touched.

    Returns:
        ``model`` itself.

    Raises:
        TypeError: If ``sketch`` is not a ``Sketch``.
        ValueError: If a name in ``skip`` is unknown or no layer could be converted.
    """
    if not isinstance(sketch, Sketch):
        raise TypeError(f"sketch must be a Sketch such as rad.Project(budget=0.1), got {sketch!r}")
    skipped = (skip,) if isinstance(skip, str) else tuple(skip)
    names = dict(model.named_modules(remove_duplicate=False))
    for name in skipped:
        if name not in names:
            raise ValueError(f"skip names {name!r}, but the model has only {', '.join(filter(None, names))}")
    left = {module for name in skipped for module in names[name].modules()}
    chosen = [m for m in model.modules() if _stock(m) in _CONVERTED and m not in left]
    if not chosen:
        known = ", ".join(sorted(stock.__name__ for stock in _CONVERTED))
        raise ValueError(f"nothing to convert: the model has no layer of the types {known} outside skip={skipped}")
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    revert(model)
    for module in chosen:
        module.__class__ = _CONVERTED[type(module)]
        module.__dict__["_rad_recipe"] = Recipe(sketch, generator)
    return model


def revert(model: nn.Module) -> nn.Module:
    """Undoes ``convert`` in place.

    Args:
        model: A converted module; anything not converted in it is left alone.

    Returns:
        ``model`` itself.
    """
    for module in model.modules():
        if module.__dict__.pop("_rad_recipe", None) is not None:
            module.__class__ = _stock(module)
    return model


def _stock(module: nn.Module) -> type[nn.Module]:
    """The type of a module before it was converted."""
    return next((stock for stock, converted in _CONVERTED.items() if type(module) is converted), type(module))
