"""Convolutions against stock autograd on the very estimate that the sketch gives of their input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from calls import answered, by_rules
from hypothesis import given
from hypothesis import strategies as st
from sketches import SKETCHES, assert_unbiased, held, normal
from torch import Tensor

import rad
from rad.functional import convolution, gathered
from rad.measure import peak_bytes
from rad.nn import Seeds
from rad.sketch import kernels

EXACT = {name: make(1) for name, make in SKETCHES.items()} | {"exact": rad.Exact()}
BUDGETED = {name: make(0.4) for name, make in SKETCHES.items()}
every_sketch = pytest.mark.parametrize("sketch", BUDGETED.values(), ids=BUDGETED)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@dataclass(frozen=True)
class Case:
    """A convolution: shapes, and how its kernel moves."""

    n: int | None = 2  # None: a single image without a batch
    c: int = 2
    o: int = 3
    size: tuple[int, int] = (6, 5)
    kernel: tuple[int, int] = (3, 2)
    groups: int = 1
    bias: bool = True
    moves: dict[str, Any] = field(default_factory=dict)

    def inputs(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        lead = () if self.n is None else (self.n,)
        shapes: list[tuple[int, ...]] = [(*lead, self.c, *self.size), (self.o, self.c // self.groups, *self.kernel)]
        shapes += [(self.o,)] * self.bias
        return [normal(*shape, seed=i, dtype=dtype).requires_grad_() for i, shape in enumerate(shapes)]

    def stock(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(x, weight, bias, **self.moves, groups=self.groups)

    def ours(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        sketch: rad.Sketch = rad.Exact(),  # noqa: B008
        seeds: Seeds | int = 0,
    ) -> Tensor:
        with answered(sketch, seeds):
            return self.stock(x, weight, bias)


CASES = {
    "plain": Case(),
    "as in the paper": Case(size=(8, 8), kernel=(5, 5), moves={"padding": 2}),
    "no bias": Case(bias=False),
    "single image": Case(n=None),
    "stride": Case(moves={"stride": (2, 3), "padding": (1, 0)}),
    "dilation": Case(moves={"dilation": (2, 3), "padding": (2, 2)}),
    "groups": Case(c=4, o=6, groups=2),
    "depthwise": Case(c=3, o=6, groups=3, moves={"stride": 2}),
    "same": Case(moves={"padding": "same"}),
    "same, dilated": Case(moves={"padding": "same", "dilation": (1, 3)}),
    "valid": Case(moves={"padding": "valid"}),
    "pointwise": Case(kernel=(1, 1)),
    "padding beyond the kernel": Case(moves={"padding": 4}),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
# PyTorch warns of the copy that padding="same" makes for even kernels.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


@st.composite
def geometries(draw: st.DrawFn) -> Case:
    groups = draw(st.integers(1, 3))
    kernel, dilation, stride = (draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) for _ in range(3))
    padding = draw(st.one_of(st.integers(0, 3), st.tuples(st.integers(0, 3), st.integers(0, 3))))
    if draw(st.booleans()) and stride == (1, 1):
        padding = "same"
    size = [d * (k - 1) + 1 + draw(st.integers(0, 4)) for d, k in zip(dilation, kernel, strict=True)]
    return Case(
        n=draw(st.sampled_from([None, 1, 3])),
        c=groups * draw(st.integers(1, 3)),
        o=groups * draw(st.integers(1, 3)),
        size=(size[0], size[1]),
        kernel=kernel,
        groups=groups,
        bias=draw(st.booleans()),
        moves={"stride": stride, "padding": padding, "dilation": dilation},
    )


def gradients(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a loss whose gradient with respect to the output is fixed and has no pattern."""
    return torch.autograd.grad(out, inputs, normal(*out.shape, seed=9, dtype=out.dtype))


def estimate(x: Tensor, sketch: rad.Sketch, seed: int) -> Tensor:
    """Of images, as the sketch sees them: a row for each channel, a feature for each position."""
    rows = x.detach().reshape(-1, x.shape[-2] * x.shape[-1])
    if sketch.serves_factors and x.nbytes <= 256:
        return x  # not worth a seed
    return sketch.expand(sketch.compress(rows, seed=Seeds(seed).next())).view(x.shape)


def agree(case: Case, sketch: rad.Sketch, dtype: torch.dtype) -> None:
    """Holds values and all gradients to those of stock autograd, the weight's to that on the estimate."""
    inputs = case.inputs(dtype)
    ours, stock = case.ours(*inputs, sketch=sketch, seeds=0), case.stock(*inputs)
    assert torch.equal(ours, stock)
    expected = list(gradients(stock, inputs))
    rebuilt = [estimate(inputs[0], sketch, 0), *inputs[1:]]
    expected[1] = gradients(case.stock(*rebuilt), rebuilt[1:])[0]
    torch.testing.assert_close(list(gradients(ours, inputs)), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(autouse=True)
def _gathered(monkeypatch):
    """Small convolutions as well, which compute all products in less time."""
    monkeypatch.setattr(gathered, "_GATHER", -(2**40))


def test_gradients_are_gathered_where_that_takes_less_time(monkeypatch):
    monkeypatch.undo()
    used, real = [], convolution.grad_weight_at
    monkeypatch.setattr(convolution, "grad_weight_at", lambda *args: used.append(real(*args)) or used[-1])
    for n, c, o, size, kernel, stride, gathers in (
        (2, 3, 16, 32, 5, 1, True),
        (2, 16, 8, 16, 3, 1, True),
        (2, 3, 16, 64, 7, 2, False),  # of large strides most positions meet nothing
        (2, 1, 4, 8, 3, 1, False),
    ):
        used.clear()
        x, weight = normal(n, c, size, size), normal(o, c, kernel, kernel).requires_grad_()
        sketch = rad.Sample(0.1)
        with answered(sketch, Seeds(0)):
            out = F.conv2d(x, weight, None, stride, kernel // 2)
        (grad,) = gradients(out, [weight])
        rebuilt = F.conv2d(estimate(x, sketch, 0), weight, None, stride, kernel // 2)
        torch.testing.assert_close(grad, gradients(rebuilt, [weight])[0], rtol=1e-4, atol=1e-3)
        assert bool(used) == gathers


@every_case
@every_sketch
@both_dtypes
@pytest.mark.usefixtures("kernels")
def test_weight_gradient_is_that_of_the_estimate(case, sketch, dtype):
    agree(case, sketch, dtype)


@every_sketch
@pytest.mark.usefixtures("kernels")
@pytest.mark.filterwarnings("ignore::rad.BudgetFloorWarning")
@given(case=geometries())
def test_weight_gradient_over_geometries(sketch, case):
    agree(case, sketch, torch.float64)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("room", [1, 40, 300], ids="room for {} gathered elements".format)
@pytest.mark.parametrize("name", ["plain", "groups"])
def test_chunks_add_up(monkeypatch, room, name):
    # Down to one position of one image at a time.
    monkeypatch.setattr(gathered, "_CHUNK", room)
    agree(CASES[name], rad.Sample(0.4), torch.float64)


@every_case
@pytest.mark.parametrize("sketch", EXACT.values(), ids=EXACT)
def test_whole_budget_is_stock_autograd(case, sketch):
    inputs = case.inputs()
    ours, stock = case.ours(*inputs, sketch=sketch), case.stock(*inputs)
    assert torch.equal(ours, stock)
    torch.testing.assert_close(gradients(ours, inputs), gradients(stock, inputs))


def test_empty_batch():
    inputs = Case(n=0).inputs()
    grads = gradients(Case(n=0).ours(*inputs, sketch=rad.Sample(0.4)), inputs)
    assert [g.shape for g in grads] == [t.shape for t in inputs]
    assert not grads[1].any()


@pytest.mark.montecarlo
# 48 entries for each of seven sketches at five standard errors: a false alarm in 1 of 5,000 choices of seeds.
@every_sketch
def test_weight_gradient_is_unbiased(sketch):
    case, seeds = Case(c=4, o=2, moves={"padding": 1, "stride": (1, 2)}), Seeds(0)
    inputs = case.inputs()
    draws = [gradients(case.ours(*inputs, sketch=sketch, seeds=seeds), inputs[1:2])[0] for _ in range(600)]
    assert_unbiased(torch.stack(draws), gradients(case.stock(*inputs), inputs[1:2])[0])


@every_case
def test_gradcheck(case):
    assert torch.autograd.gradcheck(case.ours, case.inputs(torch.float64))


@every_sketch
@pytest.mark.parametrize("name", ["plain", "single image", "same"])
def test_needed_gradients_decide_what_is_kept(name, sketch):
    case = CASES[name]
    inputs = x, weight, bias = case.inputs()
    summary = sketch.compress(x.detach().flatten(-2).flatten(0, -2)).nbytes + 8  # the seed
    if sketch.serves_factors and x.nbytes <= 256:
        summary = x.nbytes
    for wanted in ([x], [weight], [x, weight], [bias], [bias, weight], inputs):
        for t in inputs:
            t.requires_grad_(any(t is w for w in wanted))
        actual = held(lambda: case.ours(*inputs, sketch=sketch))
        assert actual == x.requires_grad * weight.nbytes + weight.requires_grad * summary
        grads = gradients(case.ours(*inputs, sketch=sketch), wanted)
        assert [g.shape for g in grads] == [w.shape for w in wanted]


def test_nothing_is_drawn_without_a_gradient_to_come():
    seeds, inputs = Seeds(0), Case().inputs()
    state = seeds.get_state()
    with torch.no_grad():
        Case().ours(*inputs, sketch=rad.Sample(0.4), seeds=seeds)
    inputs[1].requires_grad_(False)
    Case().ours(*inputs, sketch=rad.Sample(0.4), seeds=seeds)
    assert torch.equal(seeds.get_state(), state)
    inputs[1].requires_grad_()
    Case().ours(*inputs, sketch=rad.Sample(0.4), seeds=seeds)
    assert not torch.equal(seeds.get_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_autocast_is_that_of_stock(dtype):
    case = CASES["as in the paper"]
    inputs = case.inputs(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        ours, stock = case.ours(*inputs), case.stock(*inputs)
        low = torch.bfloat16 if dtype != torch.float64 else dtype
        kept = rad.Sample(0.4).compress(inputs[0].detach().to(low).flatten(2).flatten(0, 1)).nbytes
        weight = inputs[1].detach().requires_grad_()
        assert held(lambda: case.ours(inputs[0].detach(), weight, sketch=rad.Sample(0.4))) == kept + 8
    assert ours.dtype == stock.dtype
    assert torch.equal(ours, stock)
    grads = gradients(ours, inputs), gradients(stock, inputs)
    assert [g.dtype for g in grads[0]] == [t.dtype for t in inputs]
    torch.testing.assert_close(*grads, rtol=2e-2, atol=2e-2)


def test_half_precision_is_summed_in_single(monkeypatch):
    case, sketch = Case(n=2048), rad.Sample(0.4)  # sums of so many terms would be off by some per cent
    monkeypatch.setattr(gathered, "_CHUNK", 400)  # many small chunks
    inputs = case.inputs(torch.bfloat16)
    ours = gradients(case.ours(*inputs, sketch=sketch, seeds=0), inputs)[1]
    rebuilt = [
        estimate(inputs[0], sketch, 0).float(),
        *(t.detach().float().requires_grad_() for t in inputs[1:]),
    ]
    exact = gradients(case.stock(*rebuilt), rebuilt[1:])[0]
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), exact, rtol=1e-2, atol=0.01 * float(exact.abs().max()))


@pytest.mark.parametrize("sketch", [rad.Sample(0.4), rad.Project(0.4), rad.Exact()], ids=str)
def test_channels_last(sketch):
    case = Case(n=3, c=4, o=8)
    inputs = case.inputs()
    x, weight = (t.detach().to(memory_format=torch.channels_last).requires_grad_() for t in inputs[:2])
    ours = case.ours(x, weight, inputs[2], sketch=sketch, seeds=0)
    stock = case.stock(x, weight, inputs[2])
    assert torch.equal(ours, stock)
    assert ours.stride() == stock.stride()
    expected = gradients(case.ours(*inputs, sketch=sketch, seeds=0), inputs)
    torch.testing.assert_close(gradients(ours, [x, weight, inputs[2]]), expected, rtol=1e-4, atol=1e-4)


def test_gradient_of_one_value_everywhere():
    # The gradient that a sum sends back has no memory of its own.
    inputs = Case().inputs()
    ours, stock = Case().ours(*inputs, sketch=rad.Sample(1)), Case().stock(*inputs)
    torch.testing.assert_close(torch.autograd.grad(ours.sum(), inputs), torch.autograd.grad(stock.sum(), inputs))
    (grad,) = torch.autograd.grad(Case().ours(*inputs, sketch=rad.Sample(0.4)).sum(), inputs[1:2])
    assert grad.shape == inputs[1].shape


def test_gradients_that_are_not_finite_stay_where_they_are():
    # Positions outside the output meet nothing, not zero times infinity.
    x, weight = normal(1, 1, 4, 4), normal(1, 1, 3, 3).requires_grad_()
    out = by_rules(F.conv2d, rad.Sample(0.99, replacement=False))(x, weight, None, 1, 1)
    grad_out = torch.zeros_like(out)
    grad_out[0, 0, 0, 0] = torch.inf
    (grad,) = torch.autograd.grad(out, weight, grad_out)
    # The output's first position meets no input at the first row and column of the kernel.
    assert grad[0, 0, 0].eq(0).all() or not grad[0, 0, 0].isinf().any()
    assert grad[0, 0, 1:, 1:].isinf().any()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("n", "c", "o", "size"), [(32, 16, 32, 32), (1, 3, 64, 128), (32, 3, 64, 32)])
def test_sampled_gradient_needs_less_memory_than_a_dense_input(n, c, o, size):
    x, weight = normal(n, c, size, size), normal(o, c, 5, 5).requires_grad_()
    out = by_rules(F.conv2d, rad.Sample(0.1))(x, weight, None, 1, 2)
    grad_out = normal(*out.shape)
    assert 0 < peak_bytes(lambda: torch.autograd.grad(out, weight, grad_out)) < x.nbytes


@pytest.mark.parametrize("sketch", [rad.Sample(0.1, per="element"), rad.Project(0.1), rad.Rounding(0.1)], ids=str)
def test_one_dense_input_at_a_time(sketch):
    if sketch == rad.Rounding(0.1) and kernels.numba is None:
        pytest.skip("levels are unpacked as numbers of their own without numba")
    x, weight = normal(32, 16, 32, 32).requires_grad_(), normal(8, 16, 5, 5).requires_grad_()
    out = by_rules(F.conv2d, sketch)(x, weight, None, 1, 2)
    grad_out = normal(*out.shape)
    ours = peak_bytes(lambda: torch.autograd.grad(out, [x, weight], grad_out))
    # PyTorch's routines have copies of their own, whatever calls them. They hold the gradient of the input while that
    # of the weight is formed; here the dense estimate takes its place, and the two never meet.
    stock = F.conv2d(x, weight, None, 1, 2)
    assert ours < peak_bytes(lambda: torch.autograd.grad(stock, [x, weight], grad_out)) + 0.3 * x.nbytes
