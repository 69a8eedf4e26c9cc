"""Operations with exact values and memory-cheap gradients, one ``autograd.Function`` a file."""

from rad.functional.conv import conv2d
from rad.functional.dropout import dropout
from rad.functional.linear import linear
from rad.functional.pool import avg_pool2d, max_pool2d
from rad.functional.relu import relu
from rad.functional.rnn import rnn

__all__ = ["avg_pool2d", "conv2d", "dropout", "linear", "max_pool2d", "relu", "rnn"]
