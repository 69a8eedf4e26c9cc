"""Every operation against stock autograd: equal values, equal or unbiased gradients, memory as promised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sketches import SKETCHES, assert_unbiased, held, normal, seeded
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import rad
from rad.functional import linear, relu

EXACT = {name: make(1) for name, make in SKETCHES.items()} | {"exact": rad.Exact()}
BUDGETED = {name: make(0.3) for name, make in SKETCHES.items()}

# A chain of operations whose in-place variant may overwrite what it is given, which a leaf forbids.
Chain = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """An operation, its stock counterpart, and the shapes of its parameters for ``d`` inputs and ``o`` outputs."""

    name: str
    ours: Chain
    stock: Chain
    parameters: Callable[[int, int], list[tuple[int, ...]]]

    def inputs(self, lead: tuple[int, ...] = (6,), d: int = 12, o: int = 4, dtype: torch.dtype = torch.float32):
        shapes = [(*lead, d), *self.parameters(d, o)]
        return [normal(*shape, seed=i, dtype=dtype).requires_grad_() for i, shape in enumerate(shapes)]


CASES = [
    Case(
        "linear",
        lambda x, w, b, sketch=None, generator=None: linear(x, w, b, sketch, generator),
        F.linear,
        lambda d, o: [(o, d), (o,)],
    ),
    Case(
        "linear without bias",
        lambda x, w, sketch=None, generator=None: linear(x, w, None, sketch, generator),
        F.linear,
        lambda d, o: [(o, d)],
    ),
    Case("relu", lambda x, sketch=None, generator=None: relu(x), F.relu, lambda d, o: []),
    Case(
        "relu in place",
        lambda x, sketch=None, generator=None: relu(x * 1, inplace=True),
        lambda x: F.relu(x * 1, inplace=True),
        lambda d, o: [],
    ),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_linear = pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.name)
# ReLU knows no sketch, so one will do.
pairs = pytest.mark.parametrize(
    ("case", "sketch"),
    [
        pytest.param(case, sketch, id=f"{case.name}-{name}")
        for case in CASES
        for name, sketch in EXACT.items()
        if case in CASES[:2] or name == "exact"
    ],
)
every_sketch = pytest.mark.parametrize("sketch", BUDGETED.values(), ids=BUDGETED)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def gradients(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a loss whose gradient with respect to the output is fixed and has no pattern."""
    return torch.autograd.grad(out, inputs, normal(*out.shape, seed=9, dtype=out.dtype))


@pairs
@both_dtypes
@given(lead=st.lists(st.integers(0, 4), max_size=3), d=st.integers(1, 7), o=st.integers(1, 5))
def test_whole_budget_is_stock_autograd(case, sketch, dtype, lead, d, o):
    inputs = case.inputs(tuple(lead), d, o, dtype)
    ours, stock = case.ours(*inputs, sketch=sketch), case.stock(*inputs)
    assert torch.equal(ours, stock)
    torch.testing.assert_close(gradients(ours, inputs), gradients(stock, inputs))


@every_case
@every_sketch
@both_dtypes
def test_only_the_weight_gradient_is_random(case, sketch, dtype):
    inputs = case.inputs((2, 3), dtype=dtype)
    ours, stock = case.ours(*inputs, sketch=sketch, generator=seeded(0)), case.stock(*inputs)
    assert torch.equal(ours, stock)
    for i, (mine, theirs) in enumerate(zip(gradients(ours, inputs), gradients(stock, inputs), strict=True)):
        if i != 1:
            torch.testing.assert_close(mine, theirs)
        else:
            assert not torch.allclose(mine, theirs, rtol=1e-6, atol=0)


# 48 entries for each of seven sketches at five standard errors: a false alarm in 1 of 5,000 choices of seeds.
@every_sketch
def test_weight_gradient_is_unbiased(sketch):
    x, weight, bias = CASES[0].inputs((2, 3))
    generator = seeded(0)
    draws = [gradients(linear(x, weight, bias, sketch, generator), [weight])[0] for _ in range(800)]
    assert_unbiased(torch.stack(draws), gradients(F.linear(x, weight, bias), [weight])[0])


@every_case
@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_gradcheck(case, lead):
    inputs = case.inputs(lead, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *t: case.ours(*t, sketch=rad.Exact()), inputs)


@every_linear
@every_sketch
def test_needed_gradients_decide_what_is_kept(case, sketch):
    inputs = case.inputs()
    x, weight, *bias = inputs
    summary = sketch.compress(x.detach()).nbytes + 8  # the seed
    for wanted in ([x], [weight], [x, weight], bias, [*bias, weight], inputs):
        for t in inputs:
            t.requires_grad_(any(t is w for w in wanted))
        if wanted:
            keeps_weight, keeps_summary = x.requires_grad, weight.requires_grad
            actual = held(lambda: case.ours(*inputs, sketch=sketch))
            assert actual == keeps_weight * weight.nbytes + keeps_summary * summary
            grads = gradients(case.ours(*inputs, sketch=sketch), wanted)
            assert [g.shape for g in grads] == [w.shape for w in wanted]


@every_case
def test_context_holds_no_tensors(case):
    def tensors(value):
        if isinstance(value, Tensor):
            return [value]
        if isinstance(value, dict):
            value = list(value.values())
        return [t for v in value for t in tensors(v)] if isinstance(value, (list, tuple)) else []

    out = case.ours(*case.inputs(), sketch=rad.Project(0.5))
    assert not tensors(vars(out.grad_fn))


@pytest.mark.parametrize(("count", "nbytes"), [(1, 1), (8, 1), (9, 2), (600, 75)])
def test_relu_keeps_a_bit_per_entry(count, nbytes):
    x = normal(1, count).requires_grad_()
    assert held(lambda: relu(x)) == nbytes
    x.requires_grad_(False)
    assert not relu(x).requires_grad


def test_relu_in_place_overwrites():
    x = normal(3, 5).requires_grad_()
    hidden, stock = x * 1, x * 1
    assert relu(hidden, inplace=True).data_ptr() == hidden.data_ptr()
    F.relu(stock, inplace=True)
    # The overwritten tensor, not only the one returned, is the result as far as autograd is concerned.
    assert torch.equal(hidden, stock)
    assert torch.equal(gradients(hidden, [x])[0], gradients(stock, [x])[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_relu_at_its_kink_and_beyond(dtype):
    x = torch.tensor([0.0, -0.0, 1e-30, -1e-30, torch.inf, -torch.inf], dtype=dtype, requires_grad=True)
    for upstream in (1.0, torch.inf, torch.nan):
        grad_out = torch.full_like(x, upstream)
        ours, stock = (torch.autograd.grad(f(x), x, grad_out)[0] for f in (relu, F.relu))
        torch.testing.assert_close(ours, stock, rtol=0, atol=0, equal_nan=True)


@every_linear
def test_nothing_is_drawn_without_a_gradient_to_come(case):
    generator, sketch, inputs = seeded(0), rad.Project(0.5), case.inputs()
    state, ambient = generator.get_state(), torch.get_rng_state()
    with torch.no_grad():
        case.ours(*inputs, sketch=sketch, generator=generator)
    case.ours(*(t.detach() for t in inputs), sketch=sketch, generator=generator)
    inputs[1].requires_grad_(False)
    case.ours(*inputs, sketch=sketch, generator=generator)
    assert torch.equal(generator.get_state(), state)
    inputs[1].requires_grad_()
    case.ours(*inputs, sketch=sketch, generator=generator)
    assert not torch.equal(generator.get_state(), state)
    assert torch.equal(torch.get_rng_state(), ambient)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_autocast_is_that_of_stock(case, dtype):
    inputs = case.inputs(dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        ours, stock = case.ours(*inputs, sketch=rad.Exact()), case.stock(*inputs)
    assert ours.dtype == stock.dtype
    assert torch.equal(ours, stock)
    grads = gradients(ours, inputs), gradients(stock, inputs)
    assert [g.dtype for g in grads[0]] == [t.dtype for t in inputs]
    torch.testing.assert_close(*grads)


@every_sketch
def test_autocast_keeps_the_low_precision_input(sketch):
    x, weight = CASES[1].inputs()
    x = x.detach()
    with torch.autocast("cpu", torch.bfloat16):
        assert held(lambda: linear(x, weight, None, sketch)) == sketch.compress(x.bfloat16()).nbytes + 8


@every_case
def test_double_backward_is_refused(case):
    inputs = case.inputs()
    out = case.ours(*inputs, sketch=rad.Exact())
    (grad,) = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@every_sketch
def test_checkpoint_recomputes_with_one_seed(sketch):
    inputs = x, weight, bias = CASES[0].inputs()
    generator = seeded(5)
    out = checkpoint(lambda x: relu(linear(x, weight, bias, sketch, generator)), x, use_reentrant=False)
    grads = gradients(out, inputs)
    stock = gradients(F.relu(F.linear(*inputs)), inputs)
    torch.testing.assert_close((grads[0], grads[2]), (stock[0], stock[2]))
    # The forward pass drew a seed and its recomputation another; either would do, a mixture would not.
    replayed, grad_out = seeded(5), normal(*out.shape, seed=9) * (out > 0)
    with torch.no_grad():
        consistent = [sketch.grad_weight(sketch.compress(x, replayed), grad_out) for _ in range(2)]
    assert any(torch.allclose(grads[1], g, rtol=1e-5, atol=1e-6) for g in consistent)
    assert not torch.allclose(*consistent, rtol=1e-5, atol=1e-6)


@every_sketch
def test_input_overwritten_afterwards(sketch):
    # A summary is no alias of the input: stock autograd would refuse this backward pass.
    x, weight = CASES[1].inputs()
    x = x.detach()
    out = linear(x, weight, None, sketch, seeded(0))
    expected = sketch.grad_weight(sketch.compress(x, seeded(0)), normal(*out.shape, seed=9))
    x.zero_()
    torch.testing.assert_close(gradients(out, [weight])[0], expected)


def test_kept_input_overwritten_afterwards():
    x, weight = CASES[1].inputs()
    x = x.detach()
    out = linear(x, weight, None, rad.Exact())
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(out, [weight])
