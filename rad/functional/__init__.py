"""Operations with exact values and memory-cheap gradients, one ``autograd.Function`` a file."""

from rad.functional.linear import linear
from rad.functional.relu import relu
from rad.functional.rnn import rnn

__all__ = ["linear", "relu", "rnn"]
