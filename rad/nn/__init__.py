"""The conversion of whole models, and how their calls are seen."""

from rad.nn.activations import elementwise
from rad.nn.convert import Converted, convert, revert, seeds
from rad.nn.graphs import CUDAGraph
from rad.nn.intercept import Recipe, Rules
from rad.nn.recurrent import FinalState
from rad.nn.seeds import Seeds

__all__ = [
    "CUDAGraph",
    "Converted",
    "FinalState",
    "Recipe",
    "Rules",
    "Seeds",
    "convert",
    "elementwise",
    "revert",
    "seeds",
]
