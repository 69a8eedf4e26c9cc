"""What is too small for a summary to be smaller, and numbers that belong to whole rows, are kept as they are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from calls import answered, by_rules
from sketches import normal

import rad
from rad.functional import slopes

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("serving", [True, False])
def test_a_small_input_is_no_summary(serving):
    sketch = rad.Rounding(0.1) if serving else rad.Project(0.1)
    x, weight = normal(4, 16).requires_grad_(), normal(5, 16).requires_grad_()
    with answered(sketch):
        out = F.linear(x * 1, weight)
    (grad,) = torch.autograd.grad(out.sum(), weight)
    exact = torch.ones(4, 5).T @ x
    assert torch.equal(grad, exact) == serving


STEEP = {
    "rsqrt": lambda x: torch.rsqrt(x),
    "sqrt": lambda x: x.sqrt(),
    "reciprocal": lambda x: x.reciprocal(),
    "power": lambda x: x**-0.5,
}


@pytest.mark.parametrize("name", STEEP)
def test_a_row_of_zeros_drowns_no_others(name):
    """The scale of a padded token's row is some thousand times that of others, with which it would share a range."""
    x = normal(128, 32)  # whose scales are too many to be kept for being few
    x[5] = 0
    x.requires_grad_()

    def normalized(x):
        return x * STEEP[name](x.square().mean(-1, keepdim=True) + 1e-6)

    upstream = normal(128, 32, seed=1)
    upstream[5] = 0  # a loss leaves padding out
    (exact,) = torch.autograd.grad(normalized(x), x, upstream)
    with answered(rad.Rounding(bits=8)):
        out = normalized(x)
    (ours,) = torch.autograd.grad(out, x, upstream)
    assert float((ours - exact).norm() / exact.norm()) < 0.02


POWERS = (lambda x: torch.pow(x, 3), lambda x: torch.pow(2.0, x))


@pytest.mark.parametrize("function", [F.gelu, F.mish, torch.erf, *POWERS], ids=["gelu", "mish", "erf", "of x", "to x"])
@pytest.mark.parametrize("shape", [(70, 9), (700,), (2, 5, 70)], ids=str)
def test_derivatives_by_pieces(function, shape, monkeypatch):
    """Of a large tensor autograd holds what a piece needs; values are those of the whole."""
    monkeypatch.setattr(slopes, "_FEW", (32, 16))
    leaf = normal(*shape).requires_grad_()
    found = []
    for x in (leaf * 1, (leaf.mT if leaf.dim() > 1 else leaf.flip(0)) * 1):
        out = by_rules(function, rad.Rounding(bits=16))(x)
        upstream = normal(*out.shape, seed=1)
        assert torch.equal(out, function(x))
        found.append(torch.autograd.grad(out, leaf, upstream, retain_graph=True)[0])
        exact = torch.autograd.grad(function(x), leaf, upstream)[0]
        torch.testing.assert_close(found[-1], exact, rtol=1e-3, atol=1e-3)
