"""What is not finite, not real, not kept as it was, or differentiated twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from calls import answered, by_rules, quiet
from cases import CASES
from sketches import normal
from torch import Tensor

import rad
from rad.functional import bilinear
from rad.functional.autocast import autocast
from rad.functional.summary import Summary
from rad.sketch import Compressed

pytestmark = quiet
FEW = rad.Rounding(bits=3)
KINDS = [rad.Rounding(bits=3), rad.Rounding(1.0), rad.Project(0.5), rad.Exact()]

# Functions whose derivative is a choice: as that of stock at whatever is given.
CHOICES = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "clamp": lambda x: torch.clamp(x, -1, 1),
    "clamp from below": lambda x: torch.clamp(x, min=0),
    "threshold": lambda x: F.threshold(x, 0.0, 3.0),
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "abs": torch.abs,
    "dropout": lambda x: F.dropout(x, 0.4),
    "dropout1d": lambda x: F.dropout1d(x.view(1, -1, 1), 0.4),
    "where": lambda x: torch.where(x > 0, x, 2 * x),
    "masked_fill": lambda x: x.masked_fill(x > 0, 1.0),
    "maximum": lambda x: torch.maximum(x, x.flip(0)),
    "minimum": lambda x: torch.minimum(x, x.flip(0)),
    "max_pool2d": lambda x: F.max_pool2d(x.view(1, 1, -1, 2), 2),
}
ODD = [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 6.0, 7.0, 1e-30, -1e-30, torch.inf, -torch.inf, torch.nan, torch.nan, 2.0, -2.0]


@pytest.mark.parametrize("function", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("upstream", [1.0, torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_choices_at_kinks_and_beyond(function, upstream, dtype):
    values = torch.tensor(ODD, dtype=dtype)
    if function in (F.relu6, F.hardtanh, F.hardshrink, F.softshrink):
        values = values.nan_to_num(3, torch.inf, -torch.inf)  # of NaN, stock makes this or that by its place in memory
    x = values.requires_grad_()
    results = []
    for sketch in (None, FEW):
        torch.default_generator.manual_seed(3)
        if sketch is None:
            out = function(x * 1)
        else:
            with answered(sketch):
                out = function(x * 1)
        results.append((out, *torch.autograd.grad(out, x, torch.full_like(out, upstream))))
    torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.function is not F.binary_cross_entropy], ids=lambda case: case.name
)  # which refuses what is no probability
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_what_is_not_finite_is_not_hidden(case, bad):
    def gradients(sketch: rad.Sketch | None) -> tuple[Tensor | None, ...]:
        torch.default_generator.manual_seed(3)
        tensors = case.tensors()
        for place in case.places:
            if tensors[place].numel():
                tensors[place].detach()[(0,) * tensors[place].dim()] = bad
        out = case.call(tensors, sketch)
        outs = [t for t in (out if isinstance(out, tuple) else (out,)) if t.requires_grad]
        return torch.autograd.grad([t.sum() for t in outs], [tensors[place] for place in case.places])

    for ours, stock in zip(gradients(FEW), gradients(None), strict=True):
        assert not (ours.isfinite() & ~stock.isfinite()).any()


OTHERS = {
    "complex product": lambda: (torch.mul, _complex(40, 2), _complex(40, 2)),
    "complex matrices": lambda: (torch.matmul, _complex(6, 8), _complex(8, 5)),
    "complex exponential": lambda: (torch.exp, _complex(40, 2)),
    "real by complex": lambda: (torch.mul, normal(40, 2).requires_grad_(), _complex(40, 2)),
    "complex layer": lambda: (F.linear, _complex(6, 8), _complex(5, 8)),
    "sparse": lambda: (torch.mm, normal(6, 8).to_sparse().requires_grad_(), normal(8, 5).requires_grad_()),
}


def _complex(*shape: int) -> Tensor:
    return torch.complex(normal(*shape, seed=1), normal(*shape, seed=2)).requires_grad_()


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("sketch", KINDS, ids=str)
def test_what_is_not_real_and_dense_is_left_to_stock(make, sketch):
    results = []
    for with_rules in (True, False):
        function, *tensors = make()
        if with_rules:
            with answered(sketch):
                out = function(*tensors)
        else:
            out = function(*tensors)
        results.append(
            [out, *torch.autograd.grad(torch.view_as_real(out).sum() if out.is_complex() else out.sum(), tensors)]
        )
    for ours, stock in zip(*results, strict=True):
        assert torch.equal(ours.to_dense(), stock.to_dense())


def test_integers_are_left_to_stock():
    x = torch.arange(12).view(3, 4)
    with answered(FEW):
        assert torch.equal(x * x, torch.arange(12).view(3, 4) ** 2)
        assert torch.equal(x.clamp(1, 5), torch.arange(12).view(3, 4).clamp(1, 5))
        assert torch.equal(torch.relu(x), x)


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.name in ("gelu", "mul", "F.linear", "F.layer_norm", "F.softmax", "F.relu", "F.max_pool2d")],
    ids=lambda case: case.name,
)
def test_double_backward_is_refused(case):
    tensors = case.tensors()
    out = case.call(tensors, FEW)
    (grad,) = torch.autograd.grad(out.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_double_backward_is_refused_where_the_first_one_begins_with_a_constant():
    """As in a penalty on gradients, of which nothing would be left without a word."""
    x, weight = normal(32, 64).requires_grad_(), normal(1, 64).requires_grad_()
    with answered(rad.Rounding(bits=8)):
        out = F.linear(torch.tanh(x), weight)
    (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable; without rad"):
        (out.mean() + grad.norm()).backward()
    torch.autograd.grad(out.sum(), x, create_graph=False, retain_graph=True)


@pytest.mark.parametrize("sketch", [rad.Exact(), rad.Rounding(1.0)], ids=str)
@pytest.mark.parametrize("function", [F.linear, torch.mul], ids=["linear", "mul"])
def test_a_kept_tensor_that_is_overwritten(function, sketch):
    x, weight = normal(6, 8), normal(6, 8).requires_grad_()
    with answered(sketch):
        out = function(x, weight)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_kept_output_that_is_overwritten():
    x = normal(6, 8).requires_grad_()
    with answered(rad.Rounding(1.0)):
        out = torch.softmax(x, 1)
    out.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("sketch", [FEW, rad.Project(0.5), rad.Sample(0.5)], ids=str)
def test_a_summarized_tensor_may_be_overwritten(sketch):
    # A summary is no alias of what it summarizes.
    grads = []
    for overwrite in (False, True):
        x, weight = normal(6, 80), normal(5, 80).requires_grad_()
        with answered(sketch):
            out = F.linear(x, weight)
        if overwrite:
            x.zero_()
        grads.append(torch.autograd.grad(out.sum(), weight)[0])
    assert torch.equal(*grads)


def test_in_place_on_a_view_and_a_leaf():
    x = normal(4, 6).requires_grad_()
    with answered(FEW):
        hidden = x * 2
        F.relu(hidden[:2], inplace=True)
        (grad,) = torch.autograd.grad(hidden.sum(), x)
        with pytest.raises(RuntimeError, match="leaf"):
            F.relu(x, inplace=True)
    assert torch.equal(grad, 2 * torch.cat([x[:2] > 0, torch.ones(2, 6)]))


def test_a_wrong_call_raises_what_stock_raises():
    x, weight = normal(6, 8).requires_grad_(), normal(5, 7).requires_grad_()
    calls = [
        lambda: F.linear(x, weight),
        lambda: x @ weight,
        lambda: x * weight,
        lambda: F.layer_norm(x, [7]),
        lambda: F.group_norm(x, 3),
        lambda: F.conv2d(x, weight),
        lambda: F.conv2d(x[None, None], weight[None, None, :, :, 0]),
        lambda: F.dropout(x, 1.5),
        lambda: F.softmax(x, 5),
        lambda: F.cross_entropy(x, torch.full((6,), 8)),
        lambda: F.max_pool2d(x, 2, 2, 2),
        lambda: F.scaled_dot_product_attention(x[None], weight[None], weight[None]),
        lambda: F.gelu(x, approximate="much"),
        lambda: torch.where(x > 0, x, weight),
    ]
    for call in calls:
        with pytest.raises(Exception) as stock:  # noqa: B017, PT011
            call()
        with pytest.raises(type(stock.value)) as ours, answered(FEW):  # noqa: PT012
            call()
        assert str(ours.value).splitlines()[0] == str(stock.value).splitlines()[0]


OTHERWISE = {
    "mm": lambda x: torch.mm(x, mat2=x.T * 1),
    "mm of a method": lambda x: x.mm(mat2=x.T * 1),
    "bmm": lambda x: torch.bmm(x[None], mat2=x.T[None] * 1),
    "softmax": lambda x: torch.softmax(x, axis=0),
    "softmax of a method": lambda x: x.softmax(axis=0, dtype=torch.float64),
    "log_softmax": lambda x: torch.log_softmax(x, axis=0),
    "log_softmax of a method": lambda x: x.log_softmax(axis=0),
    "stride": lambda x: F.conv2d(x[None, None], x[None, None, :3, :3], stride=np.int64(2)),
    "strides": lambda x: F.conv2d(x[None, None], x[None, None, :3, :3], stride=(np.int64(2), 1), padding=np.int64(1)),
    "stride of a sequence": lambda x: F.conv1d(x[None], x[None, :, :3], stride=np.int32(2)),
    "stride of a tensor": lambda x: F.conv2d(x[None, None], x[None, None, :3, :3], stride=torch.tensor(2)),
    "maxima": lambda x: F.max_pool2d(x[None], np.int64(2)),
    "maxima of sequences": lambda x: F.max_pool1d(x, np.int64(3), np.int64(2)),
    "maxima of pairs": lambda x: F.max_pool2d(x[None], (np.int64(2), np.int64(3)), ()),
    "means": lambda x: F.avg_pool2d(x[None], np.int64(2), np.int64(1)),
    "means of pairs": lambda x: F.avg_pool2d(x[None], (np.int64(2), 3), []),
    "slope of a single number": lambda x: F.prelu(x[0, 0], x[0, :1]),
    "no outputs": lambda x: F.linear(x, x[:0]),
    "group_norm of one": lambda x: F.group_norm(x[:1], 80),
    "batch_norm of one": lambda x: F.batch_norm(x[:1], None, None, training=True),
    "batch_norm of one, unchecked": lambda x: torch.batch_norm(x[:1], *[None] * 4, True, 0.1, 1e-5, False),
    "batch_norm of one channel": lambda x: F.batch_norm(x[:, :1], None, None, training=True),
    "batch_norm of none": lambda x: F.batch_norm(x[:0], None, None, training=True),
    "batch_norm of none, by statistics": lambda x: F.batch_norm(x[:0], torch.zeros(80), torch.ones(80)),
    "instance_norm of one": lambda x: F.instance_norm(x[..., None]),
    "instance_norm of one, unchecked": lambda x: torch.instance_norm(x[..., None], *[None] * 4, True, 0.1, 1e-5, False),
    "instance_norm of none": lambda x: F.instance_norm(x[:0, :, None].expand(-1, -1, 9)),
    "both names": lambda x: torch.softmax(x, 0, axis=0),
    "neither name": lambda x: torch.log_softmax(x),
    "mm of stacks": lambda x: torch.mm(x[None], x.T),
    "bmm of one and many": lambda x: torch.bmm(x[None], x.T.expand(2, -1, -1)),
}


@pytest.mark.parametrize("function", OTHERWISE.values(), ids=OTHERWISE)
def test_calls_that_are_rare_give_what_they_give_by_stock(function):
    """Arguments by other names or of other types, nothing at all, and a single value to be normalized."""
    x = normal(64, 80).requires_grad_()
    results = []
    for run in (function, by_rules(function, rad.Rounding(bits=16))):
        try:
            out = run(x * 1)
            results.append((out, *torch.autograd.grad(out, x, normal(*out.shape, seed=1, dtype=out.dtype))))
        except (ValueError, TypeError, RuntimeError) as error:
            results.append((type(error), str(error).splitlines()[0]))
    stock, ours = results
    if not isinstance(stock[0], Tensor):
        assert ours == stock
        return
    assert ours[0].dtype == stock[0].dtype
    assert torch.equal(ours[0], stock[0])
    torch.testing.assert_close(ours[1], stock[1], rtol=0, atol=2e-3 * float(stock[1].abs().max()))


AUTOCAST = "F.linear; matmul; F.conv2d; F.layer_norm; F.scaled_dot_product_attention; functional.einsum; F.bilinear"


@pytest.mark.parametrize("case", [c for c in CASES if c.name in AUTOCAST.split("; ")], ids=lambda case: case.name)
def test_gradients_formed_within_autocast_are_those_formed_after_it(case):
    # Only the forward pass is to be cast; PyTorch's own functions know that.
    results = []
    for within in (True, False):
        tensors = case.tensors(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            out = case.call(tensors, rad.Rounding(bits=8))
        leaves, upstream = [tensors[i] for i in case.places], normal(*out.shape, seed=9, dtype=out.dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=within):
            results.append(torch.autograd.grad(out, leaves, upstream))
    assert all(map(torch.equal, *results))


def test_low_precision_statistics():
    # As in stock the variance of a batch in half precision is formed in single.
    x = (100 + normal(64, 40)).bfloat16().requires_grad_()
    running = torch.zeros(40), torch.ones(40)
    grads = []
    for with_rules in (True, False):

        def call() -> Tensor:
            return F.batch_norm(x, *running, torch.ones(40), torch.zeros(40), True)

        if with_rules:
            with answered(rad.Rounding(bits=16)):
                out = call()
        else:
            out = call()
        grads.append(torch.autograd.grad(out, x, normal(64, 40).bfloat16())[0].float())
    torch.testing.assert_close(*grads, rtol=2e-2, atol=2e-3 * float(grads[1].abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_the_epsilon_of_small_rows(dtype):
    """If none is given it is that of the precision in which the statistics are formed."""
    x = normal(64, 40).mul(1e-3).to(dtype).requires_grad_()
    out = F.rms_norm(x, (40,))
    upstream = normal(*out.shape, seed=1).to(dtype)
    (exact,) = torch.autograd.grad(out, x, upstream)
    (ours,) = torch.autograd.grad(by_rules(F.rms_norm, rad.Rounding(bits=16))(x * 1, (40,)), x, upstream)
    torch.testing.assert_close(ours, exact, rtol=0, atol=2e-2 * float(exact.abs().max()))


@pytest.mark.parametrize("function", [F.linear, torch.matmul], ids=lambda f: f.__name__)
def test_an_operand_is_cast_once(function, monkeypatch):
    """For the product and for what is kept of it."""
    casts = []
    monkeypatch.setattr(bilinear, "autocast", lambda t: (casts.append(t), autocast(t))[1])
    x, w = normal(64, 32), normal(32, 32, seed=1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = by_rules(function)(x, w)
    assert out.dtype == torch.bfloat16
    assert [t is x for t in casts] == [True]


def test_gradients_in_full_precision_of_estimates_in_half():
    """An estimate is not rounded to half precision on its way into a product in single precision."""
    x = normal(64, 32).bfloat16().requires_grad_()
    with answered(rad.Rounding(bits=3), 0):
        out = torch.exp(x)
    item = out.grad_fn.job.items[0][0]
    grad = normal(64, 32, seed=2)
    kept = Compressed.join(list(out.grad_fn.saved_tensors), item[1])
    wide = item[0].rebuilt(kept.kept, x.numel(), torch.float32, kept.stream()).view_as(x)
    found = Summary(item[0], kept, x.shape).times(grad)
    assert torch.equal(found, wide * grad)
    assert not torch.equal(found, wide.bfloat16() * grad)
