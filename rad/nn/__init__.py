"""Converted layers, and the conversion of whole models."""

from rad.nn import layers as layers  # registers the layers
from rad.nn.convert import Converted, Recipe, convert, register, revert
from rad.nn.recurrent import FinalState

__all__ = ["Converted", "FinalState", "Recipe", "convert", "register", "revert"]
