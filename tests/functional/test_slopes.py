"""Derivatives for which PyTorch has a kernel are those that autograd finds, in one pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from calls import by_rules
from sketches import normal
from torch import nn

import rad
from rad.functional import slopes

LAYOUTS = {
    "plain": lambda dtype: normal(37, 5, dtype=dtype),
    "transposed": lambda dtype: normal(5, 37, dtype=dtype).mT,
    "repeated": lambda dtype: normal(37, 1, dtype=dtype).expand(37, 5),
    "empty": lambda dtype: normal(0, 5, dtype=dtype),
    "0-d": lambda dtype: normal(1, dtype=dtype)[0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("function", "options"),
    [*((function, {}) for function in slopes._KERNELS), (F.gelu, {"approximate": "tanh"})],
    ids=lambda value: getattr(value, "__qualname__", str(value)),
)
def test_to_the_bit_as_by_autograd(function, options, dtype, layout):
    x = LAYOUTS[layout](dtype).requires_grad_()
    out = function(x, **options)
    (exact,) = torch.autograd.grad(out, x, torch.ones_like(out))
    slope = slopes.in_one_pass(function, **options)
    assert slope is not None
    found = slope(x.detach(), out.detach())
    assert found.dtype == x.dtype
    assert torch.equal(found, exact)
    if x.numel():  # a constant derivative would show nothing
        assert found.min() < found.max() or x.dim() == 0


def test_only_of_functions_with_a_kernel():
    assert slopes.in_one_pass(F.mish) is None
    assert slopes.in_one_pass(torch.pow) is None


@pytest.mark.parametrize("function", slopes._KERNELS, ids=lambda f: f.__qualname__)
def test_an_operation_takes_it(function, monkeypatch):
    def no_graph(*_):
        raise AssertionError("autograd was asked")

    x = normal(64, 64).requires_grad_()
    exact = torch.autograd.grad(function(x).square().sum(), x)[0]
    monkeypatch.setattr(slopes, "derivatives", no_graph)
    monkeypatch.setattr("rad.functional.elementwise.derivatives", no_graph)
    out = by_rules(function, rad.Rounding(bits=14))(x * 1)
    assert torch.equal(out, function(x))
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), x)[0], exact, rtol=1e-3, atol=1e-3)


def test_options_reach_the_kernel():
    x = normal(64, 64).requires_grad_()
    gelu = by_rules(lambda x: F.gelu(x, approximate="tanh"), rad.Rounding(bits=16))
    (found,) = torch.autograd.grad(gelu(x * 1).sum(), x)
    errors = [
        (found - torch.autograd.grad(F.gelu(x, approximate=kind).sum(), x)[0]).abs().max() for kind in ("tanh", "none")
    ]
    assert errors[0] < 1e-4 < errors[1]


@pytest.mark.parametrize("name", ["FastGELUActivation", "NewGELUActivation"])
def test_chains_of_transformers_that_are_a_gelu(name, monkeypatch):
    kind = getattr(pytest.importorskip("transformers.activations"), name)
    module = kind()
    x = normal(64, 64, dtype=torch.float64).requires_grad_()
    (exact,) = torch.autograd.grad(module(x).square().sum(), x)
    monkeypatch.setattr(slopes, "_MANY", (64, 8))  # by pieces, were it not for the kernel
    calls, tanh = [], torch.tanh
    monkeypatch.setattr(torch, "tanh", lambda x: calls.append(1) or tanh(x))
    expected = module(x)
    out = rad.convert(nn.Sequential(module), rad.Rounding(bits=16))(x * 1)
    assert torch.equal(out, expected)
    assert len(calls) == 2  # once each: not a second time for the derivative
    (found,) = torch.autograd.grad(out.square().sum(), x)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-3)
    # The derivative is the same function, not one that is near it.
    slope = slopes.in_one_pass(F.gelu, approximate="tanh")
    assert slope is not None
    at = torch.linspace(-8, 8, 1001, dtype=torch.float64).requires_grad_()
    value = kind()(at)
    (chain,) = torch.autograd.grad(value.sum(), at)
    torch.testing.assert_close(slope(at.detach(), value.detach()), chain, rtol=1e-8, atol=1e-9)
