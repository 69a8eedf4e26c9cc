"""Counter-based random numbers: number ``i`` of a stream is a hash of ``seed + i``.

Nothing but the seed is needed to draw the same numbers again, on any device: the integer arithmetic is the same
everywhere. The hash is SplitMix64.

References:
    Steele, Lea, Flood. Fast splittable pseudorandom number generators. OOPSLA 2014. doi:10.1145/2660193.2660195.
    Salmon, Moraes, Dror, Shaw. Parallel random numbers: as easy as 1, 2, 3. SC 2011. doi:10.1145/2063384.2063405.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rad.sketch import gpu, kernels
from rad.sketch.replay import shift
from rad.sketch.threads import shared

__all__ = ["Stream", "bounded", "counters"]

_SPREAD = 0x2545F4914F6CDD1D  # any odd number of some size that the hash does not use itself


class Stream:
    """Random numbers from one seed, in the order in which they are asked for.

    Attributes:
        seed: The 64-bit seed, a number or a tensor while a graph is traced; small changes of it give unrelated streams.
        device: Where the numbers are made.
        counter: Of the number that comes next.
    """

    def __init__(self, seed: int | Tensor, device: torch.device) -> None:
        if isinstance(seed, Tensor) and type(seed) is Tensor:
            seed = int(seed)
        self.seed = seed
        self.device = device
        # Spread out, so that the counters of neighbouring seeds lie far apart.
        self.counter = counters(seed)

    def words(self, count: int) -> Tensor:
        """int64 ``[count]`` of 64 random bits each."""
        start, out = self.advance(count), torch.empty(count, dtype=torch.int64, device=self.device)
        if gpu.usable(out):
            return gpu.draw(out, start, "words")
        if kernels.usable(out):
            shared(kernels.hash_words, count, 1, start, out)
            return out
        counters = torch.arange(count, device=self.device) + start
        more = shift(self.device)
        return _hash(counters if more is None else counters + more)

    def integers(self, bound: int, shape: tuple[int, ...]) -> Tensor:
        """int64 of the given shape, uniform in [0, bound) up to a relative bound/2^32."""
        count = math.prod(shape)
        out = torch.empty(shape, dtype=torch.int64, device=self.device)
        if gpu.usable(out):
            return gpu.draw(out, self.advance(count), "integers", bound)
        if kernels.usable(out):
            shared(kernels.integers, count, 1, self.advance(count), bound, (out, None))
            return out
        return bounded(self.words(count), bound).view(shape)

    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Multiples of 2^-23, uniform in [0, 1): the sum of two is exact in float32."""
        count = math.prod(shape)
        out = torch.empty(shape, dtype=dtype, device=self.device)
        if gpu.usable(out):
            return gpu.draw(out, self.advance(count), "uniform")
        if kernels.usable(out):
            shared(kernels.uniform, count, 1, self.advance(count), (out, None))
            return out
        return (self.words(count) >> 41 & 0x7FFFFF).to(dtype).mul_(2.0**-23).view(shape)

    def signs(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Independent Rademacher signs ±1, of one random bit each."""
        count = math.prod(shape)
        words = -(-count // 64)
        out = torch.empty(64 * words, dtype=dtype, device=self.device)
        if gpu.usable(out):
            gpu.signs(out, self.advance(words))
        elif kernels.usable(out):
            shared(kernels.signs, words, 64, self.advance(words), out)
        else:
            bits = self.words(words)[:, None] >> torch.arange(64, device=self.device) & 1
            out = bits.view(-1).to(dtype).mul_(2).sub_(1)
        return out[:count].view(shape)

    def advance(self, count: int) -> Any:
        """Skips ``count`` numbers, for loops that draw them themselves, and returns the counter of the first."""
        start = self.counter
        self.counter = _signed(start + count)
        return start


def counters(seeds: int | Tensor) -> Any:
    """By how much the counters of streams differ whose seeds differ by so many."""
    return _signed(seeds * _SPREAD)


def bounded(words: Tensor, bound: int | Tensor) -> Tensor:
    """Words brought into [0, bound) by their upper halves; ``bound`` broadcasts against them."""
    return (words >> 32 & 0xFFFFFFFF) * bound >> 32


def _signed(value: int | Tensor) -> Any:
    """Wraps around as 64-bit integers do."""
    if isinstance(value, Tensor):  # of a graph that is traced; it does so by itself
        return value
    return (value + 2**63) % 2**64 - 2**63


# SplitMix64 in signed arithmetic, which torch has on every device: the masks make its shifts logical.
_GOLDEN, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def _hash(counter: Tensor) -> Tensor:
    z = counter * _GOLDEN
    z = (z ^ (z >> 30 & 2**34 - 1)) * _FIRST
    z = (z ^ (z >> 27 & 2**37 - 1)) * _SECOND
    return z ^ (z >> 31 & 2**33 - 1)
