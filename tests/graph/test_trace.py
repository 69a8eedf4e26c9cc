"""Functions run into graphs: the Jacobian is autograd's, and what cannot be differentiated is named."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sketches import normal

from rad.graph import linearize, trace
from rad.graph.rules import ELEMENTWISE

x3, m23, m34 = normal(3, dtype=torch.float64), normal(2, 3, dtype=torch.float64), normal(3, 4, dtype=torch.float64)

FUNCTIONS = {
    "operators": (lambda x, y: (2 * x - y) / (1 + y**2) + (3 - x) ** 3 + 2.0**x - abs(-y) / x + 1 / y, x3, x3 + 5),
    "power": (lambda x, y: x**y, x3.abs() + 0.1, x3),
    "elementwise": (
        lambda x: torch.exp(x) * torch.sin(x) + torch.cos(x) - torch.tanh(x) * torch.sigmoid(x) + F.softplus(x),
        m23,
    ),
    "logarithms": (lambda x: torch.log(x) + torch.sqrt(x) + x.log1p() + torch.rsqrt(x), m23.abs() + 0.1),
    "extremes": (lambda x, y: torch.maximum(x, y) + torch.min(x, 2 * y) + x.relu() + x.clamp(-0.5, 0.5), m23, -m23 / 3),
    "where": (lambda x, y: torch.where(x3 > 0, x, y) * x, x3, x3 + 1),
    "reductions": (lambda x: x.sum() * x.mean(0) + x.prod(1).sum() - x.amax() + x.logsumexp(1)[0], m23),
    "kept axes": (lambda x: x / x.sum(1, keepdim=True) - x.amin(0), m23 + 5),
    "matrix products": (lambda a, b: a @ b, m23, m34),
    "product and vector": (lambda a, v: torch.mv(a, v) + v[:2] @ a @ v, m23, x3),
    "inner": (lambda a, b: torch.inner(a, b) * torch.inner(a, x3)[:, None], m23, normal(4, 3, dtype=torch.float64)),
    "dot": (lambda u, v: u @ v + torch.dot(u, u), x3, x3 + 1),
    "stacked products": (lambda a, b: a @ b, normal(2, 2, 3, dtype=torch.float64), m34),
    "linear": (lambda x, w, b: F.linear(x, w, b).tanh(), m23, m34.T, normal(4, dtype=torch.float64)),
    "constants": (lambda x: x @ m34 + torch.ones(4, dtype=torch.float64) * 2 - normal(4, dtype=torch.float64), m23),
    "moves": (
        lambda x, y: torch.cat([x.T.reshape(-1), y[[0, 2]], torch.stack([y[0], y[1]]), x[1, :2] * y[-1]]),
        m23,
        x3,
    ),
    "joined constant": (lambda x: torch.cat([x, torch.ones(2, dtype=torch.float64)]).sum() * x, x3),
    "unpacked": (lambda x: sum(row.prod() * a for row, a in zip(x, x[0], strict=False)), m23),
    "loop": (lambda x, w: [x := torch.tanh(w @ x) for _ in range(3)][-1], x3, normal(3, 3, dtype=torch.float64)),
    "branch": (lambda x, y: x * y if x.sum() > 0 else y / x, x3, x3 + 7),
    "used twice": (lambda x: x * x + x, x3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jacobian_is_that_of_autograd(name):
    fn, *inputs = FUNCTIONS[name]
    jacobians = torch.autograd.functional.jacobian(fn, tuple(inputs))
    shape = fn(*inputs).numel(), -1
    graph = linearize(fn, *inputs)
    torch.testing.assert_close(graph.reverse(), torch.cat([j.reshape(shape) for j in jacobians], 1))
    torch.testing.assert_close(graph.forward(), graph.reverse())


@given(x=st.floats(-3, 3), y=st.floats(0.1, 3))
def test_numpy_functions_run_unchanged(x, y):
    def fn(x, y):
        return np.exp(x) * np.sin(y) + np.sqrt(y) - np.log(y) * np.tanh(x) + np.power(y, 2) / np.maximum(x - 9, y)

    step = 1e-6
    expected = [(fn(x + step, y) - fn(x - step, y)) / 2 / step, (fn(x, y + step) - fn(x, y - step)) / 2 / step]
    assert linearize(fn, x, y).reverse()[0].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


# For each elementary function a point at which it is smooth; of those of two operands the second is 0.7.
POINTS = dict.fromkeys(ELEMENTWISE - {"where"}, 0.4) | {"acosh": 1.4}
KEYWORDS = {"clamp": {"min": 0.1}}
TWO = {"add", "sub", "rsub", "mul", "div", "true_divide", "pow", "atan2", "maximum", "minimum"}


@pytest.mark.parametrize("name", sorted(POINTS))
def test_every_elementary_function_has_the_slope_of_autograd(name):
    fn = getattr(torch, name, None) or getattr(F, name)
    operands = (POINTS[name], 0.7)[: 1 + (name in TWO)]
    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in operands]
    expected = torch.autograd.grad(fn(*leaves, **KEYWORDS.get(name, {})), leaves)
    found = linearize(lambda *x: fn(*x, **KEYWORDS.get(name, {})), *operands)
    torch.testing.assert_close(found.reverse()[0], torch.stack(expected))


@pytest.mark.parametrize("name", sorted({*trace._NUMPY, "exp", "sin", "log1p", "maximum", "sqrt", "add", "arctan2"}))
def test_every_function_of_numpy_is_the_one_of_that_name(name):
    fn, step = getattr(np, name), 1e-6
    operands = (1.4 if name == "arccosh" else 0.4, 0.7)[: fn.nin]
    shifts = np.eye(fn.nin) * step
    expected = [(fn(*(operands + s)) - fn(*(operands - s))) / 2 / step for s in shifts]
    assert linearize(lambda *x: fn(*x), *operands).reverse()[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_inputs_are_named_as_in_the_function():
    assert linearize(lambda a, *rest: a * rest[0] * rest[1], 1.0, 2.0, 3.0).labels[:3] == ("a", "x2", "x3")


def test_constants_among_the_results_are_no_outputs():
    graph = linearize(lambda x: torch.cat([x, torch.ones(2, dtype=torch.float64)]), x3)
    torch.testing.assert_close(graph.reverse(), torch.eye(3, dtype=torch.float64))


def test_a_branch_may_ask_for_equality():
    assert linearize(lambda x: x * 3 if x == 2.0 else x, 2.0).reverse().item() == 3
    assert linearize(lambda x: x * 3 if x != 2.0 else x, 2.0).reverse().item() == 1


def test_numpy_arrays_as_constants():
    weight = np.arange(6.0).reshape(2, 3)
    graph = linearize(lambda x: np.tanh(x) * weight[0] + weight[1], x3)
    torch.testing.assert_close(graph.reverse(), torch.diag((1 - x3.tanh() ** 2) * torch.from_numpy(weight[0])))
    torch.testing.assert_close(linearize(lambda x: weight @ x, x3).reverse(), torch.from_numpy(weight))


def test_one_vertex_a_scalar_and_none_for_what_only_moves():
    graph = linearize(lambda x, w: (w @ x).tanh().reshape(2, 1)[:, 0].sum(), x3, m23)
    assert graph.vertices == 3 + 6 + 2 + 2 + 1
    assert graph.edges == 2 * 2 * 3 + 2 + 2
    assert graph.count_paths() == 12
    assert graph.labels[:4] == ("x[0]", "x[1]", "x[2]", "w[0, 0]")
    assert graph.labels[-1] == "sum"


def test_several_results():
    graph = linearize(lambda x, y: (x * y, x, 3.0), 2.0, 5.0)
    assert torch.equal(graph.reverse(), torch.tensor([[5.0, 2.0], [1.0, 0.0]], dtype=torch.float64))


NUMPY = {
    "sum": (np.sum, torch.sum),
    "sum of rows": (lambda x: np.sum(x, axis=1, keepdims=True), lambda x: torch.sum(x, dim=1, keepdim=True)),
    "mean": (np.mean, torch.mean),
    "prod": (np.prod, torch.prod),
    "max": (np.max, torch.amax),
    "min of columns": (lambda x: np.min(x, axis=0), lambda x: torch.amin(x, 0)),
    "dot": (lambda x: np.dot(x, np.arange(6.0).reshape(3, 2)), lambda x: x @ torch.arange(6.0).view(3, 2).double()),
    "maximum of a number": (lambda x: np.maximum(x, 0.1), lambda x: torch.clamp(x, min=0.1)),
    "minimum of an integer": (lambda x: np.minimum(1, x), lambda x: torch.clamp(x, max=1)),
    "where": (lambda x: np.where(x > 0, x, x * x), lambda x: torch.where(x > 0, x, x * x)),
    "concatenate": (lambda x: np.concatenate([x, x * 2], axis=1), lambda x: torch.cat([x, x * 2], 1)),
    "reshape": (lambda x: np.reshape(x, (3, 2)), lambda x: torch.reshape(x, (3, 2))),
}


@pytest.mark.parametrize(("ours", "stock"), NUMPY.values(), ids=NUMPY)
def test_functions_of_numpy_are_those_of_pytorch(ours, stock):
    x = torch.tensor([[0.5, -1.5, 2.5], [0.1 + 1e-9, 0.7, -0.3]], dtype=torch.float64)
    exact = torch.autograd.functional.jacobian(stock, x).reshape(-1, 6)
    np.testing.assert_allclose(linearize(ours, x).reverse(), exact, rtol=1e-12)


@pytest.mark.parametrize(
    ("fn", "inputs", "error", "message"),
    [
        (lambda x: x * 2, (3,), TypeError, "input x must be a float.* got int 3"),
        (lambda x: x * 2, (True,), TypeError, "got bool"),
        (lambda x, y: x * y, (1.0, torch.ones(2, dtype=torch.int64)), TypeError, "input y must .*int64"),
        (lambda x: 3.0, (1.0,), ValueError, "does not depend on its inputs"),
        (lambda x: torch.ones(2) * 3, (1.0,), ValueError, "does not depend on its inputs"),
        (torch.sqrt, (0.0,), ValueError, "sqrt is not differentiable"),
        (torch.log, (0.0,), ValueError, "log is not differentiable"),
        (torch.log, (-1.0,), ValueError, "log is not differentiable"),
        (lambda x: 1 / x, (0.0,), ValueError, "div is not differentiable"),
        (lambda x: x**0.5, (0.0,), ValueError, "pow is not differentiable"),
        (abs, (0.0,), ValueError, "abs is not differentiable at 0"),
        (torch.relu, (0.0,), ValueError, "relu is not differentiable at 0"),
        (torch.maximum, (1.0, 1.0), ValueError, "maximum is not differentiable where both values are equal"),
        (max, (1.0, 1.0), ValueError, "compares equal values"),
        (lambda x: x.amax(), (torch.ones(2),), ValueError, "amax is not differentiable .* occurs twice"),
        (lambda x: x.clamp(0, 1), (1.0,), ValueError, "clamp is not differentiable at its bounds"),
        (lambda x: x.clamp(min=1), (1.0,), ValueError, "clamp is not differentiable at its bounds"),
        (lambda x: x.clamp(max=1), (1.0,), ValueError, "clamp is not differentiable at its bounds"),
        (torch.floor, (1.5,), TypeError, "floor is not supported"),
        (np.floor, (1.5,), TypeError, "floor is not supported"),
        (np.heaviside, (1.5, 1.0), TypeError, "heaviside is not supported"),
        (lambda x: np.median(x), (x3,), TypeError, "median is not supported"),
        (lambda x: np.histogram(x), (x3,), TypeError, r"histogram is not supported"),
        (lambda x: np.vander(x), (x3,), TypeError, "vander is not supported"),
        (lambda x: np.percentile(x, 3), (x3,), TypeError, r"numpy\.percentile is not supported"),
        (lambda x: np.add.reduce(x), (x3,), TypeError, r"numpy\.add\.reduce is not supported"),
        (lambda x: torch.cumsum(x, 0), (x3,), TypeError, "cumsum is not supported"),
        (lambda x: x.add_(1), (1.0,), TypeError, "add_ is not supported"),
        (lambda x: x.item() * x, (1.0,), TypeError, "item is not supported"),
        (math.exp, (1.0,), TypeError, "in place of those of math"),
        (lambda x: torch.sum(input=x), (x3,), TypeError, "tensors as keywords"),
        (lambda x: x.nonsense(), (1.0,), AttributeError, "'nonsense'"),
    ],
)
def test_what_cannot_be_differentiated_is_named(fn, inputs, error, message):
    with pytest.raises(error, match=message):
        linearize(fn, *inputs)
