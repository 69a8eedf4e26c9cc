"""Sketches that differ from one kept tensor to the next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from rad.sketch import Sketch

__all__ = ["Assignment"]


class Assignment(ABC):
    """Says for each place, where an operation keeps a summary, by which sketch.

    A place reads ``module / function n / role``: the ``n``-th call of a function in one forward pass of a module, and
    what is kept there. It is the same in every run of the same model.

    Attributes:
        sketch: By which rules decide what they keep at all, so that the places do not depend on what they are assigned.
        key: A name that no other assignment has.
        differentiable: Whether gradients are to be differentiated by the estimates from which they are formed.
    """

    sketch: Sketch
    key: str
    differentiable: ClassVar[bool] = False

    def check(self, model: nn.Module) -> None:  # noqa: B027
        """Refuses a model for which it was not made.

        Raises:
            ValueError: If it was made for another.
        """

    @abstractmethod
    def at(self, place: str, last: bool = False) -> Sketch:
        """The sketch of a place.

        Args:
            place: Its name.
            last: Whether what is kept there forms the gradient of a parameter, or another leaf, and nothing else.
        """
