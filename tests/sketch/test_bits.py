"""Bit packing against lists of Python integers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sketches import normal

from rad.sketch.bits import _pack_words, _unpack_words, masked, pack, pack_positive, packed_bytes, unpack, unpack_planes

cases = st.integers(1, 16).flatmap(
    lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=70))
)
SPECIAL = [1.0, -1.0, 0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, -1e-45, 3e38, 0.5]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@given(case=cases)
def test_round_trip(case):
    bits, values = case
    packed = pack(torch.tensor(values, dtype=torch.int32), bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_bytes(len(values), bits) == -(-len(values) // 8) * bits
    # Bit j of value i: bit i mod 8 of byte i div 8 in row j.
    for j, row in enumerate(packed.tolist()):
        bytes_of_eight = [values[start : start + 8] for start in range(0, len(values), 8)]
        assert row == [sum((v >> j & 1) << i for i, v in enumerate(eight)) for eight in bytes_of_eight]
    back = unpack(packed, bits, len(values))
    assert back.tolist() == values
    assert back.dtype == (torch.uint8 if bits <= 8 else torch.int32)
    assert unpack_planes(packed, len(values)).tolist() == [[v >> j & 1 for v in values] for j in range(bits)]


@given(case=cases)
def test_other_devices_pack_alike(case):
    bits, values = case
    packed = pack(torch.tensor(values, dtype=torch.int32), bits)
    flags = torch.tensor(values) & (1 << torch.arange(bits))[:, None]
    assert torch.equal(_pack_words(flags), packed)
    assert torch.equal(_unpack_words(packed, len(values)), unpack_planes(packed, len(values)))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32])
def test_levels_of_seven_bits_in_any_integer(dtype):
    values = torch.arange(128, dtype=dtype)
    assert unpack(pack(values, 7), 7, 128).tolist() == list(range(128))


@pytest.mark.parametrize("bits", [0, 17])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match=f"got {bits}"):
        pack(torch.zeros(8, dtype=torch.int32), bits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_pack_positive(dtype, requires_grad):
    x = torch.tensor(SPECIAL, dtype=dtype).requires_grad_(requires_grad)
    assert unpack(pack_positive(x), 1, len(SPECIAL)).tolist() == [int(not v <= 0) for v in x.tolist()]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strided", [False, True])
def test_masked(dtype, strided):
    x = torch.tensor([SPECIAL, SPECIAL[::-1]], dtype=dtype)
    x = x.t().contiguous().t() if strided else x
    mask = torch.tensor([[i % 3 == 0 for i in range(len(SPECIAL))], [i % 2 == 0 for i in range(len(SPECIAL))]])
    expected = [v if keep else 0.0 for v, keep in zip(x.flatten().tolist(), mask.flatten().tolist(), strict=True)]
    actual = masked(x, pack(mask, 1))
    assert actual.shape == x.shape
    # What is masked vanishes even where it is not finite, as 0 times it would not.
    torch.testing.assert_close(actual.flatten(), torch.tensor(expected, dtype=dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_masked_can_be_differentiated(dtype):
    x, mask = normal(5, 7, dtype=dtype).requires_grad_(), normal(5, 7, seed=1) > 0
    (grad,) = torch.autograd.grad(masked(x, pack(mask, 1)).sum(), x)
    assert torch.equal(grad, mask.to(dtype))
