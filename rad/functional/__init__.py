"""Operations with exact values and memory-cheap gradients, one ``autograd.Function`` a file."""

from rad.functional.linear import linear
from rad.functional.relu import relu

__all__ = ["linear", "relu"]
