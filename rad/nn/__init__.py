"""Converted layers, and the conversion of whole models."""

from rad.nn import layers as layers  # registers the layers
from rad.nn.convert import Converted, Recipe, convert, register, revert

__all__ = ["Converted", "Recipe", "convert", "register", "revert"]
