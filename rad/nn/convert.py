"""Converting a model in place to memory-cheap gradients, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from rad.sketch import Sketch

__all__ = ["Converted", "Recipe", "convert", "register", "revert"]

M = TypeVar("M", bound=type[nn.Module])

_RECIPE = "_rad_recipe"  # in the __dict__ of a converted layer

_CONVERTED: dict[type[nn.Module], type[nn.Module]] = {}


@dataclass(frozen=True)
class Recipe:
    """How a converted layer forms its gradient.

    Attributes:
        sketch: The summary that is kept of the layer's input.
        generator: CPU generator of the seeds, shared by all layers of one conversion.
    """

    sketch: Sketch
    generator: torch.Generator


class Converted(nn.Module):
    """What a converted layer is besides the stock one; a mixin before the stock class."""

    @property
    def recipe(self) -> Recipe:
        """Sketch and generator given to ``convert``."""
        return self.__dict__[_RECIPE]

    def unsupported(self) -> str | None:
        """The option for which the layer runs as the stock one, such as ``"padding_mode=reflect"``, if there is one."""
        return None

    def keeps(self) -> str:
        """What the layer keeps for its backward pass, in a few words."""
        option = self.unsupported()
        return str(self.recipe.sketch) if option is None else f"exact ({option} is not supported)"

    def extra_repr(self) -> str:
        """The stock description and what is kept."""
        return ", ".join(filter(None, (super().extra_repr(), f"keeps {self.keeps()}")))


def register(stock: type[nn.Module]) -> Callable[[M], M]:
    """Class decorator: layers of exactly the type ``stock`` become the decorated class when a model is converted.

    The decorated class derives from ``Converted`` and ``stock``, in this order, and adds no state; its ``forward``
    finds sketch and generator in ``self.recipe``.

    Raises:
        TypeError: If it does not derive from both.
    """

    def decorate(converted: M) -> M:
        if not (issubclass(converted, Converted) and issubclass(converted, stock)):
            raise TypeError(
                f"{converted.__name__} must derive from Converted and {stock.__name__}, whose place it takes"
            )
        _CONVERTED[stock] = converted
        return converted

    return decorate


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
            run. By default a new one that starts from the seed of the global generator, which is not touched.

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
        generator = torch.Generator().manual_seed(torch.initial_seed())
    revert(model)
    for module in chosen:
        module.__class__ = _CONVERTED[type(module)]
        module.__dict__[_RECIPE] = Recipe(sketch, generator)
    return model


def revert(model: nn.Module) -> nn.Module:
    """Undoes ``convert`` in place.

    Args:
        model: A converted module; anything not converted in it is left alone.

    Returns:
        ``model`` itself.
    """
    for module in model.modules():
        module.__dict__.pop(_RECIPE, None)
        module.__class__ = _stock(module)
    return model


def _stock(module: nn.Module) -> type[nn.Module]:
    """The type of a module before it was converted."""
    return next((stock for stock, converted in _CONVERTED.items() if type(module) is converted), type(module))
