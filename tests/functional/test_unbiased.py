"""Gradients from few bits are right on average, and would not be without what is known of their noise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from calls import Case, leaf, path, quiet
from cases import CASES
from sketches import assert_unbiased, normal
from torch import Tensor

import rad
from rad.functional import Summary
from rad.nn import Seeds
from rad.sketch import normalized

pytestmark = quiet

# One of each kind of rule; all of them are held to the same below, with more draws.
FEW = (
    "gelu; F.glu; pow: both; mul; mul: leaf; mul: a column; div; div: a column; F.linear; "
    "F.linear: weight that was computed; "
    "matmul: stacks; addmm: scaled; functional.einsum; F.bilinear; F.conv1d: computed weight; F.conv2d; "
    "F.conv2d: computed weight; F.conv_transpose2d; F.log_softmax; F.cross_entropy: all of it"
).split("; ")

# What is normalized, few elements at a time: the second order matters there.
QUADRATIC = [
    Case("layer_norm", F.layer_norm, [path(16, 4), [4]]),
    Case("layer_norm, weights", F.layer_norm, [path(16, 4), [4], leaf(4), leaf(4)]),
    Case("rms_norm", F.rms_norm, [path(16, 4), [4]]),
    Case("group_norm", F.group_norm, [path(12, 4, 2), 2]),
    Case("instance_norm", F.instance_norm, [path(6, 4, 4)]),
    Case("batch_norm", F.batch_norm, [path(4, 16), None, None, None, None, True]),
    Case("softmax", F.softmax, [path(16, 4), -1]),
    Case("softmax, columns", F.softmax, [path(4, 16), 0]),
    Case("attention", F.scaled_dot_product_attention, [path(2, 2, 6, 8), leaf(2, 2, 6, 8), leaf(2, 2, 6, 8)]),
    Case(
        "attention, dropout and mask",
        F.scaled_dot_product_attention,
        [path(2, 2, 6, 8), leaf(2, 2, 6, 8), leaf(2, 2, 6, 8), leaf(6, 6), 0.2],
    ),
]


def gradients(case: Case, sketch: rad.Sketch, count: int, seed: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    """Estimates for each input ``[count, ...]``, and what they should be on average."""
    tensors, seeds, draws = case.tensors(), Seeds(seed), []
    leaves = [t for t in tensors if isinstance(t, Tensor) and t.requires_grad]
    for _ in range(count):
        torch.default_generator.manual_seed(3)
        out = case.call(tensors, sketch, seeds)
        outs = [t for t in (out if isinstance(out, tuple) else (out,)) if t.requires_grad]
        upstream = [normal(*t.shape, seed=90 + i, dtype=t.dtype) for i, t in enumerate(outs)]
        draws.append(torch.autograd.grad(outs, leaves, upstream))
    return [torch.stack(grads) for grads in zip(*draws, strict=True)], list(case.run().grads)


def bias(draws: list[Tensor], exact: list[Tensor]) -> float:
    """The squared bias of all gradients together in units of its standard error; itself without bias."""
    errors = torch.cat([(d - e).reshape(len(d), -1) for d, e in zip(draws, exact, strict=True)], 1)
    pairs = (errors @ errors.T).fill_diagonal_(0)
    return float(pairs.sum() / (2 * pairs.square().sum()).sqrt())


def hold(draws: list[Tensor], exact: list[Tensor]) -> None:
    for some, right in zip(draws, exact, strict=True):
        assert_unbiased(some, right)
    assert abs(bias(draws, exact)) < 5


@pytest.mark.parametrize("name", FEW)
def test_right_on_average(name):
    (case,) = [case for case in CASES if case.name == name]
    draws, exact = gradients(case, rad.Rounding(bits=2), 200)
    assert any(d.std(0).max() > 1e-6 for d in draws)
    hold(draws, exact)


@pytest.mark.parametrize("case", QUADRATIC, ids=lambda case: case.name)
def test_right_on_average_to_the_second_order(case, monkeypatch):
    hold(*gradients(case, rad.Rounding(bits=1), 300))
    monkeypatch.setattr(Summary, "noise", lambda summary: None)
    monkeypatch.setattr(normalized, "_noise", lambda steps, dtype: torch.zeros(steps.shape, dtype=dtype))  # of loops
    assert bias(*gradients(case, rad.Rounding(bits=1), 300)) > 8


@pytest.mark.montecarlo
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("bits", [2, 3])
def test_every_rule_is_right_on_average(case, bits):
    draws, exact = gradients(case, rad.Rounding(bits=bits), 2)
    if not any((d - e).abs().max() > 1e-6 for d, e in zip(draws, exact, strict=True) if e.numel()):
        return  # nothing is rounded
    draws, exact = gradients(case, rad.Rounding(bits=bits), 400)
    if abs(bias(draws, exact)) >= 5:
        # Among hundreds of cases, a sum of few squares goes so far by chance: once more, with other draws.
        draws, exact = gradients(case, rad.Rounding(bits=bits), 1600, seed=2)
    hold(draws, exact)
