"""The closed-form variance of each sketch against many draws, and against the formulas of the paper's estimators."""

from __future__ import annotations

import pytest
import torch
from sketches import SKETCHES, normal, seeded

import rad

every_sketch = pytest.mark.parametrize("make", SKETCHES.values(), ids=SKETCHES.keys())


def squared_errors(sketch, x, grad_out, count):
    """Of independent estimates of ``grad_outᵀ x``, each summed over all entries."""
    exact, generator = sketch.grad_weight(rad.Exact().compress(x), grad_out), seeded(0)
    draws = (sketch.grad_weight(sketch.compress(x, generator), grad_out) for _ in range(count))
    return torch.stack([(draw - exact).square().sum() for draw in draws])


def uneven(*shape):
    """Rows and features of very different size, some zero, none centred: where closed forms differ."""
    x = normal(*shape, dtype=torch.float64).relu() * torch.linspace(0.2, 3, shape[-1], dtype=torch.float64)
    return x * torch.linspace(0.5, 2, shape[-2], dtype=torch.float64)[:, None] + 0.1


@pytest.mark.montecarlo
# Three standard errors: each case fails with probability 0.3 % for a new choice of seeds.
@every_sketch
@pytest.mark.parametrize(("stack", "budget"), [((), 0.3), ((3,), 0.3), ((), 0.15), ((), 0.6)])
def test_closed_form_is_that_of_many_draws(make, stack, budget):
    x, grad_out = uneven(*stack, 7, 30), normal(*stack, 7, 4, seed=1, dtype=torch.float64)
    errors = squared_errors(make(budget), x, grad_out, 1500)
    expected = make(budget).variance(x, grad_out)
    assert expected.dtype == torch.float64
    assert abs(errors.mean() - expected) < 3 * errors.std() / len(errors) ** 0.5


@pytest.mark.montecarlo
@every_sketch
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_closed_form_tightly(make, dtype):
    x, grad_out = uneven(20, 50).to(dtype), normal(20, 6, seed=1, dtype=dtype)
    errors = squared_errors(make(0.25), x, grad_out, 5_000)
    assert abs(errors.mean() - make(0.25).variance(x, grad_out)) < 3 * errors.std() / len(errors) ** 0.5


@pytest.mark.montecarlo
# Below one bit, between two numbers of bits, and where no feature is left out.
@pytest.mark.parametrize(("budget", "split"), [(0.025, (11, 2)), (0.05, (22, 2)), (0.08, (30, 2)), (0.11, (30, 3))])
def test_closed_form_of_sampling_and_rounding(budget, split):
    x, grad_out = uneven(60, 30).float(), normal(60, 4, seed=1)
    sketch = rad.RoundedSample(budget)
    assert sketch.split(x[None].shape, 4) == split
    errors = squared_errors(sketch, x, grad_out, 1500)
    assert abs(errors.mean() - sketch.variance(x, grad_out)) < 3 * errors.std() / len(errors) ** 0.5


@pytest.mark.parametrize("budget", [0.02, 0.03, 0.05, 0.08, 0.12, 0.2])
@pytest.mark.parametrize("activation", [torch.relu, torch.clone], ids=["relu", "normal"])
def test_the_split_has_the_least_variance(budget, activation, monkeypatch):
    x, grad_out = activation(normal(200, 64)), normal(200, 4, seed=1)
    sketch = rad.RoundedSample(budget)
    chosen, ranks = sketch.split(x[None].shape, 4), [sketch.rank(x[None].shape, 4, bits) for bits in range(1, 17)]
    variances = {}
    for bits, k in enumerate(ranks, 1):
        if k > 0:
            monkeypatch.setattr(rad.RoundedSample, "split", lambda self, *_, k=k, bits=bits: (k, bits))
            variances[k, bits] = sketch.variance(x, grad_out).item()
    assert variances[chosen] <= 1.1 * min(variances.values())


D, K = 12, 3
FORMULAS = {
    "project": (D - 1, "product"),
    "sample-batch": (D - 1, "product"),
    "sample-batch-without": (D - K, "product"),
    "sample-element": (D - 1, "elements"),
    "sample-element-without": (D - K, "elements"),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas(name):
    x, grad_out = normal(5, D, dtype=torch.float64), normal(5, 4, seed=1, dtype=torch.float64)
    factor, of = FORMULAS[name]
    moments = {
        "product": (grad_out.t() @ x).square().sum(),
        "elements": x.square().sum(1) @ grad_out.square().sum(1),
    }
    torch.testing.assert_close(SKETCHES[name](K / D).variance(x, grad_out), factor / K * moments[of])


@pytest.mark.parametrize("make", [*SKETCHES.values(), rad.Exact], ids=[*SKETCHES, "exact"])
def test_nothing_varies_at_the_whole_budget(make):
    assert make(1).variance(normal(4, 8), normal(4, 3)) == 0
    assert make(1).variance(normal(0, 8), normal(0, 3)) == 0


def test_a_sketch_without_closed_form_says_so():
    class Mine(rad.Project):
        _variance = rad.Sketch._variance

    with pytest.raises(NotImplementedError, match=r"Mine has no closed form.*gradient_noise"):
        Mine(0.5).variance(normal(4, 8), normal(4, 3))
