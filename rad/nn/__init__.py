"""Converted layers, and the conversion of whole models."""

from rad.nn import layers as layers  # registers the layers
from rad.nn.convert import convert, recipe, register, revert

__all__ = ["convert", "recipe", "register", "revert"]
