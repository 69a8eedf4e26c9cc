"""Bit packing: ``b`` bits per value as ``b`` planes of one bit each."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rad.sketch import gpu, kernels
from rad.sketch.threads import shared

__all__ = [
    "MAX_BITS",
    "masked",
    "pack",
    "pack_mask",
    "pack_positive",
    "packed_bytes",
    "unpack",
    "unpack_mask",
    "unpack_planes",
]

MAX_BITS = 16

_WORDS = {2: torch.uint16, 4: torch.uint32, 8: torch.uint64}

# Eight flags as the lowest bits of the eight bytes of a 64-bit word, for devices that numpy does not reach.
_ONES = 0x0101010101010101
_SEVENS = 0x7F7F7F7F7F7F7F7F
_DIAGONAL = 0x8040201008040201 - 2**64  # bit i of byte i
_GATHER = 0x0102040810204080  # times a word of flags: bit i of the top byte is flag i


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that ``count`` values of ``bits`` bits take: eight values share ``bits`` bytes."""
    return -(-count // 8) * bits


def pack(values: Tensor, bits: int) -> Tensor:
    """Packs small non-negative integers.

    Args:
        values: Integers in [0, 2^bits), any shape; with 1 bit, anything that is zero or not.
        bits: Bits per value, 1 to 16.

    Returns:
        uint8 ``[bits, ceil(count / 8)]``: bit ``j`` of all values in row ``j``.
    """
    _check(bits)
    if not values.is_floating_point() and gpu.usable(values):
        return gpu.pack(values, bits)
    values = values.reshape(1, -1)
    if 1 < bits <= 8 and values.dtype == torch.uint8 and kernels.enabled and kernels.seen_by_numpy(values):
        size = packed_bytes(values.numel(), 1)
        padded, packed = torch.zeros(8 * size, dtype=torch.uint8), torch.empty(bits, size, dtype=torch.uint8)
        padded[: values.numel()] = values[0]
        shared(kernels.bytes_to_bits, size, 8, (padded, torch.uint64), packed)
        return packed
    if kernels.seen_by_numpy(values):  # an order of magnitude faster than the words below
        array = values.numpy()
        flags = array if bits == 1 else array & _weights(bits, array.dtype)
        return torch.from_numpy(np.packbits(flags, axis=1, bitorder="little"))
    flags = values if bits == 1 else values & (1 << torch.arange(bits, device=values.device))[:, None]
    return _pack_words(flags)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Undoes ``pack``.

    Args:
        packed: uint8 ``[bits, ceil(count / 8)]``.
        bits: Bits per value, 1 to 16.
        count: Number of values.

    Returns:
        ``[count]``, uint8 up to 8 bits and int32 above.
    """
    _check(bits)
    if gpu.usable(packed):
        return gpu.unpack(packed, bits, count)
    if 1 < bits <= 8 and kernels.enabled and kernels.seen_by_numpy(packed):
        values = torch.empty(8 * packed.shape[1], dtype=torch.uint8)
        shared(kernels.bits_to_bytes, packed.shape[1], 8, packed.contiguous(), (values, torch.uint64))
        return values[:count]
    planes = unpack_planes(packed, count)
    values = planes[0].to(torch.uint8 if bits <= 8 else torch.int32, copy=bits > 1)
    for j in range(1, bits):
        values.add_(planes[j], alpha=1 << j)
    return values


def unpack_planes(packed: Tensor, count: int) -> Tensor:
    """Zeros and ones, uint8 ``[bits, count]``: bit ``j`` of all values in row ``j``."""
    if kernels.seen_by_numpy(packed):
        return torch.from_numpy(np.unpackbits(packed.numpy(), axis=1, count=count, bitorder="little"))
    return _unpack_words(packed, count)


def pack_mask(mask: Tensor) -> Tensor:
    """One bit for each entry of a boolean tensor of any shape: ``pack(mask, bits=1)``."""
    return pack(mask, bits=1)


def unpack_mask(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The boolean tensor of this shape that ``pack_mask`` was given."""
    return unpack(packed, 1, math.prod(shape)).view(torch.bool).view(*shape)


def pack_positive(x: Tensor) -> Tensor:
    """``pack(~(x <= 0), bits=1)``: where ReLU passes a gradient on."""
    if gpu.real(x):
        return gpu.bits_where_positive(x)
    if kernels.usable(x):
        size = packed_bytes(x.numel(), 1)
        packed = torch.empty(1, size, dtype=torch.uint8)
        shared(kernels.pack_positive, size, 8, (x.contiguous(), None), (packed, None))
        return packed
    return pack(~(x <= 0), bits=1)


def masked(x: Tensor, packed: Tensor) -> Tensor:
    """``x`` where the bits of ``pack(mask, bits=1)`` are set and 0 elsewhere."""
    recorded = x.requires_grad and torch.is_grad_enabled()  # which the loops know nothing of
    if gpu.real(x) and not recorded:
        return gpu.masked(x, packed)
    if kernels.usable(x, torch.bfloat16, torch.float16) and not recorded:
        words, out = _WORDS[x.element_size()], torch.empty(x.shape, dtype=x.dtype)
        shared(kernels.masked, packed.numel(), 8, (x.contiguous(), words), (packed, None), (out, words))
        return out
    return x.masked_fill(unpack(packed, 1, x.numel()).view(x.shape) == 0, 0)  # also where x is not finite


@functools.cache
def _weights(bits: int, dtype: np.dtype) -> np.ndarray:
    return (1 << np.arange(bits)).astype(dtype)[:, None]


def _pack_words(flags: Tensor) -> Tensor:
    if flags.shape[1] == 0:
        return flags.new_empty(flags.shape, dtype=torch.uint8)
    flags = torch.nn.functional.pad(flags != 0, (0, -flags.shape[1] % 8))
    # Sign extension by the shift only touches bits that the conversion to a byte drops.
    return (flags.contiguous().view(torch.int64) * _GATHER >> 56).to(torch.uint8)


def _unpack_words(packed: Tensor, count: int) -> Tensor:
    words = (packed.to(torch.int64) * _ONES).bitwise_and_(_DIAGONAL)  # flag i at bit i of byte i
    words = words.add_(_SEVENS).bitwise_right_shift_(7).bitwise_and_(_ONES)  # and now at its lowest bit
    return words.view(torch.uint8)[:, :count]


def _check(bits: int) -> None:
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits must lie in [1, {MAX_BITS}], got {bits}")
