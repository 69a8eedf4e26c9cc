"""Pooling against stock autograd: equal to the bit, with next to nothing kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from calls import by_rules
from hypothesis import assume, given
from hypothesis import strategies as st
from sketches import normal
from torch import Tensor

import rad
from rad.functional.geometry import extents
from rad.functional.pool import window_bits

avg_pool2d, max_pool2d = by_rules(F.avg_pool2d), by_rules(F.max_pool2d)
POOLS = {"avg": (avg_pool2d, F.avg_pool2d), "max": (max_pool2d, F.max_pool2d)}
every_pool = pytest.mark.parametrize(("ours", "stock"), POOLS.values(), ids=POOLS)
pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def windows(draw: st.DrawFn) -> dict:
    """Options that both kinds of pooling have, one number or a pair each."""
    kernel = draw(st.one_of(st.integers(1, 4), pairs))
    half = min(kernel if isinstance(kernel, tuple) else (kernel,)) // 2  # PyTorch allows no more padding
    return {
        "kernel_size": kernel,
        "stride": draw(st.one_of(st.none(), st.integers(1, 5), pairs)),
        "padding": draw(st.one_of(st.integers(0, half), st.tuples(st.integers(0, half), st.integers(0, half)))),
        "ceil_mode": draw(st.booleans()),
    }


shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(4, 9), st.integers(4, 9))


def gradient(out: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(out, x, normal(*out.shape, seed=9, dtype=out.dtype))[0]


def agree(ours, stock, x: Tensor, **options) -> None:
    x.requires_grad_()
    try:
        expected = stock(x, **options)
    except RuntimeError:  # a dilated window larger than the image
        assume(False)
    actual = ours(x, **options)
    assert torch.equal(actual, expected)
    torch.testing.assert_close(gradient(actual, x), gradient(expected, x), rtol=0, atol=0)


@given(
    shape=shapes,
    window=windows(),
    single=st.booleans(),
    count_include_pad=st.booleans(),
    divisor=st.sampled_from([None, 1, 3]),
)
def test_avg_pool_is_stock(shape, window, single, count_include_pad, divisor):
    x = normal(*shape[single:])
    agree(avg_pool2d, F.avg_pool2d, x, **window, count_include_pad=count_include_pad, divisor_override=divisor)


# Few different values, so that places compete; and values that are not finite.
@given(shape=shapes, window=windows(), single=st.booleans(), dilation=st.one_of(st.integers(1, 3), pairs))
def test_max_pool_is_stock(shape, window, single, dilation):
    x = normal(*shape[single:]).round()
    agree(max_pool2d, F.max_pool2d, x, **window, dilation=dilation)
    x = torch.where(x > 0, -torch.inf, x).detach()
    x.view(-1)[::7] = torch.nan
    x.requires_grad_()
    ours, stock = max_pool2d(x, **window), F.max_pool2d(x, **window)
    assert torch.equal(ours.nan_to_num(), stock.nan_to_num())
    assert torch.equal(gradient(ours, x), gradient(stock, x))


@every_pool
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(ours, stock, dtype):
    agree(ours, stock, normal(2, 3, 6, 6, dtype=dtype), kernel_size=3, stride=2, padding=1)


@every_pool
def test_channels_last(ours, stock):
    x = normal(2, 3, 6, 6).to(memory_format=torch.channels_last)
    agree(ours, stock, x, kernel_size=3, stride=2, padding=1)
    assert ours(x, 2).stride() == stock(x, 2).stride()


@every_pool
def test_gradcheck(ours, stock):
    x = normal(2, 3, 6, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ours(x, 3, 2, 1), x)


@pytest.mark.parametrize(
    ("kernel", "bits"), [(1, 1), ((1, 2), 1), (2, 2), ((2, 3), 3), (3, 4), (4, 4), (5, 5), (16, 8), (17, 9)]
)
def test_max_pool_keeps_places_in_bits(kernel, bits):
    assert window_bits(extents(kernel, 2)) == bits
    x = normal(2, 3, 20, 20).requires_grad_()
    ledger = rad.measure.saved_bytes(lambda: max_pool2d(x, kernel))
    assert ledger.total == -(-max_pool2d(x, kernel).numel() // 8) * bits
    agree(max_pool2d, F.max_pool2d, x.detach(), kernel_size=kernel, stride=1)


def test_avg_pool_keeps_nothing():
    x = normal(2, 3, 20, 20).requires_grad_()
    assert not rad.measure.saved_bytes(lambda: avg_pool2d(x, 2)).entries


@every_pool
def test_no_gradient_to_come(ours, stock):
    x = normal(2, 3, 6, 6)
    assert torch.equal(ours(x, 2), stock(x, 2))
    assert not ours(x, 2).requires_grad
    with torch.no_grad():
        assert ours(x.requires_grad_(), 2).grad_fn is None


@every_pool
def test_double_backward_is_refused(ours, stock):
    x = normal(2, 3, 6, 6).requires_grad_()
    (grad,) = torch.autograd.grad(ours(x, 2).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@every_pool
def test_image_smaller_than_the_window(ours, stock):
    x = normal(1, 3, 2, 2).requires_grad_()
    with pytest.raises(RuntimeError, match=r"input size: \(3x2x2\).*Output size is too small"):
        ours(x, 3)


def test_window_beyond_what_is_packed():
    x = normal(1, 1, 300, 300).requires_grad_()
    assert type(max_pool2d(x, 257).grad_fn).__name__ == type(F.max_pool2d(x, 257).grad_fn).__name__


@given(shape=shapes, size=st.integers(1, 4), stride=st.sampled_from([None, 1, 2, 3]), dilation=st.integers(1, 2))
def test_max_pool_of_sequences_is_stock(shape, size, stride, dilation):
    x = normal(*shape[:3]).round()
    agree(by_rules(F.max_pool1d), F.max_pool1d, x, kernel_size=size, stride=stride, dilation=dilation)
