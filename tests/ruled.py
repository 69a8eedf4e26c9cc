"""A torch function as a converted module calls it."""

from __future__ import annotations

from typing import Any

import torch

import rad
from rad.functional import Sharing
from rad.nn import Recipe, Rules, Seeds
from rad.nn.intercept import known

__all__ = ["ruled"]


def ruled(function: Any, sketch: rad.Sketch | None = None, generator: torch.Generator | None = None) -> Any:
    """``function`` with its calls answered by the rules, for a sketch that starts its seeds from ``generator``."""
    few = rad.Exact() if sketch is None else sketch
    known(few)
    rules = Rules(Recipe("", few, Seeds(generator), Sharing()))

    def call(*args: Any, **kwargs: Any) -> Any:
        with rules:
            return function(*args, **kwargs)

    return call
