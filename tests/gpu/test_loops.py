"""Triton's loops on the device itself, against plain PyTorch."""

from __future__ import annotations

import parity
import pytest
import torch
from on_device import gpu as on_gpu
from sketches import SKETCHES

import rad
from rad.sketch import bits, gpu

pytestmark = on_gpu


def test_triton_runs_here():
    pytest.importorskip("triton")
    assert gpu.usable(torch.zeros(1, device="cuda"))


@pytest.mark.parametrize("kind", ["round", "norm", "others"])
@pytest.mark.parametrize("dtype", ["torch.bfloat16", "torch.float32", "torch.float16", "torch.float64"])
def test_bit_for_bit(dtype, kind):
    def chosen(name):
        own = "norm" if "norm " in name else "round" if name.startswith("round") else "others"
        return own == kind and name.endswith(dtype)

    assert not parity.differing("cuda", chosen)


def test_bit_for_bit_whatever_the_dtype():
    assert not parity.differing("cuda", lambda name: "torch." not in name)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int16", "int32", "int64"])
def test_integers_bit_for_bit(dtype):
    assert not parity.differing("cuda", lambda name: name.endswith(f" torch.{dtype}"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SKETCHES)
@pytest.mark.filterwarnings("ignore::rad.LowBitsWarning")
def test_a_gpu_keeps_what_a_cpu_keeps(name, dtype):
    x = parity.normal(64, 512, dtype=dtype, device="cpu")
    sketch, seed = SKETCHES[name](0.2), torch.tensor(11)
    here, there = (sketch.compress(x.to(device), seed=seed) for device in ("cuda", "cpu"))
    for a, b in zip(here.kept, there.kept, strict=True):
        if name == "project":  # sums in another order
            torch.testing.assert_close(a.cpu(), b, rtol=1e-2, atol=1e-2 * float(b.abs().max()))
        else:
            assert parity.same(a.cpu(), b)
    if name.startswith("round"):
        assert parity.same(sketch.expand(here).cpu(), sketch.expand(there))


def test_more_than_two_to_the_31_elements():
    """Places are counted in 64 bits: the end of a tensor that large is what it is of a small one."""
    count = 2**31 + 2**20 + 8
    x = torch.empty(1, count, dtype=torch.bfloat16, device="cuda")
    part = torch.randn(2**20, device="cuda").bfloat16()
    x.view(-1)[:] = 0
    x[0, -(2**20) :] = part
    packed = bits.pack_positive(x)
    assert torch.equal(packed[0, -(2**17) :], bits.pack_positive(part)[0])
    kept = bits.masked(x, packed)
    assert torch.equal(kept[0, -(2**20) :], part.clamp(min=0))
    del kept, packed
    sketch = rad.Rounding(bits=3)
    compressed = sketch.compress(x, seed=torch.tensor(3))
    estimate = sketch.expand(compressed)
    assert not estimate[0, : 2**20].any()
    step = compressed.kept[1][1, -1].float()
    assert (estimate[0, -(2**20) :].float() - part.float()).abs().max() <= step
    grad = torch.ones_like(x)
    assert torch.equal(sketch.times(compressed, grad), estimate)
