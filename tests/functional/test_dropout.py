"""Dropout against stock: equal values from equal draws, a bit an entry."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sketches import normal
from torch import Tensor

import rad
from rad.functional import dropout


def run(fn, x: Tensor, *args) -> tuple[Tensor, Tensor, Tensor]:
    """Output, gradient and the global generator's next number, all from the same beginning."""
    torch.manual_seed(3)
    x = x.detach().requires_grad_()
    out = fn(x * 1, *args)  # in place, a leaf may not be overwritten
    following = torch.rand(4)
    return out, torch.autograd.grad(out, x, normal(*out.shape, seed=9, dtype=out.dtype))[0], following


def agree(x: Tensor, *args) -> None:
    (out, grad, following), (expected, stock_grad, stock_following) = run(dropout, x, *args), run(F.dropout, x, *args)
    assert torch.equal(out, expected)
    assert torch.equal(following, stock_following)
    torch.testing.assert_close(grad, stock_grad)


@pytest.mark.usefixtures("kernels")
@given(
    shape=st.lists(st.integers(0, 9), max_size=4),
    p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    training=st.booleans(),
    inplace=st.booleans(),
)
def test_values_draws_and_gradients_are_those_of_stock(shape, p, training, inplace):
    agree(normal(*shape), p, training, inplace)
    # What is zero before has a gradient all the same, unless it is dropped.
    agree(normal(*shape).clamp(min=0), p, training, inplace)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(dtype):
    agree(normal(5, 7, dtype=dtype), 0.3)


@pytest.mark.parametrize("layout", ["channels last", "transposed", "expanded"])
def test_other_layouts(layout):
    x = normal(2, 3, 4, 5)
    layouts = {
        "channels last": x.to(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 3),
        "expanded": x[:, :1].expand(2, 3, 4, 5),
    }
    x = layouts[layout].requires_grad_()
    torch.manual_seed(3)
    ours = dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(ours, F.dropout(x, 0.5))


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_values_that_are_not_finite(p):
    x = torch.tensor([torch.inf, -torch.inf, torch.nan] * 5).requires_grad_()
    torch.manual_seed(3)
    ours = dropout(x, p)
    torch.manual_seed(3)
    torch.testing.assert_close(ours, F.dropout(x, p), equal_nan=True)


@pytest.mark.parametrize(("count", "nbytes"), [(1, 1), (8, 1), (9, 2), (600, 75)])
def test_a_bit_is_kept_for_each_entry(count, nbytes):
    x = normal(count).requires_grad_()
    assert rad.measure.saved_bytes(lambda: dropout(x, 0.5)).total == nbytes
    # Without a draw there is nothing to keep.
    assert rad.measure.saved_bytes(lambda: dropout(x, 0.0) * 1).total == 0
    assert rad.measure.saved_bytes(lambda: dropout(x, 0.5, training=False) * 1).total == 0
    assert rad.measure.saved_bytes(lambda: dropout(x, 1.0)).total <= 8  # the number zero


def test_in_place_overwrites():
    hidden = normal(3, 5).requires_grad_() * 1
    assert dropout(hidden, 0.5, inplace=True).data_ptr() == hidden.data_ptr()


def test_double_backward_is_refused():
    x = normal(3).requires_grad_()
    (grad,) = torch.autograd.grad(dropout(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_probability_out_of_range(p):
    with pytest.raises(ValueError, match=f"between 0 and 1, but got {p}"):
        dropout(normal(3).requires_grad_(), p)
