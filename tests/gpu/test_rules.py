"""Every rule on a GPU: values of stock, gradients of stock where nothing is rounded, and the bits that a CPU keeps."""

from __future__ import annotations

import pytest
import torch
from calls import quiet
from cases import CASES, aliases, kin
from on_device import gpu, run
from sketches import Whole

import rad

pytestmark = [gpu, *quiet]


def _marked(cases):
    """The first case of each function; the others are slow, all together."""
    first = {}
    for case in cases:
        first.setdefault(kin(case.function), case)
    return [
        pytest.param(case, id=case.name, marks=[] if first[kin(case.function)] is case else pytest.mark.slow)
        for case in cases
    ]


every_name = pytest.mark.parametrize("case", _marked(CASES + aliases()))
every_case = pytest.mark.parametrize("case", _marked(CASES))

# With dropout stock attention takes a fused kernel on a GPU, which does not tell what it dropped; ours are the values
# and random numbers of the composite one.
OWN_NUMBERS = ("scaled_dot_product_attention: dropout", "scaled_dot_product_attention: groups, causal, dropout")


@pytest.fixture(autouse=True)
def _precise(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def drops_by_itself(case):
    return any(name in case.name for name in OWN_NUMBERS)


@every_name
def test_values_statistics_and_random_numbers_are_those_of_stock(case):
    for dtype in (torch.float32, torch.bfloat16):
        try:
            stock = run(case, "cuda", None, dtype)
        except (RuntimeError, NotImplementedError):  # stock does not know this precision
            assert dtype == torch.bfloat16
            continue
        ours = run(case, "cuda", rad.Rounding(bits=3), dtype)
        assert [t.shape for t in ours.out] == [t.shape for t in stock.out]
        if not drops_by_itself(case):
            assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(ours.out, stock.out, strict=True))
            assert torch.equal(ours.random, stock.random)
        for a, b in zip(ours.buffers, stock.buffers, strict=True):
            assert torch.equal(a, b)
        assert all(g is None or g.device.type == "cuda" for g in ours.grads)


@every_case
def test_gradients_are_those_of_stock_where_nothing_is_rounded(case):
    if drops_by_itself(case):
        return
    stock = run(case, "cuda", None, torch.float64).grads
    for sketch in (Whole(), rad.Exact()):
        ours = run(case, "cuda", sketch, torch.float64).grads
        torch.testing.assert_close(ours, stock, rtol=1e-7, atol=1e-9)
    for a, b in zip(run(case, "cuda", rad.Rounding(bits=16), torch.float64).grads, stock, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3 * float(b.abs().max()) if b.numel() else 0)


@every_case
def test_the_same_seeds_keep_the_same_bits_on_every_device(case):
    """So gradients agree as far as those of stock do; what draws from global generators differs in any case."""
    if "drop" in case.name:
        return
    for sketch in (rad.Rounding(bits=3), rad.Sample(0.5), rad.Project(0.5), rad.RoundedSample(0.5)):
        here, there = (run(case, device, sketch, torch.float64).grads for device in ("cuda", "cpu"))
        for a, b in zip(here, there, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=1e-6, atol=1e-6 * float(b.abs().max()) if b.numel() else 0)
