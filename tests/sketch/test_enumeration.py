"""Exact expectations on tiny cases: the mean over every outcome of the random numbers, each as likely as any other."""

from __future__ import annotations

import math
from itertools import cycle, product

import pytest
import torch
from sketches import normal

import rad
from rad.sketch import kernels
from rad.sketch.random import Stream


@pytest.fixture
def plain(monkeypatch):
    """Compiled loops draw for themselves; their bits are those of plain PyTorch, as test_contract shows."""
    monkeypatch.setattr(kernels, "enabled", False)


QUARTERS = (0.0, 0.25, 0.5, 0.75)


def enumerate_draws(monkeypatch, sketch, x, method, outcomes, estimate=None):
    """The estimate for each of the equally likely ``outcomes`` of a method of ``Stream``."""
    estimates = []
    for numbers in outcomes:
        # Whatever else a sketch asks for, it gets the same numbers in compress and expand.
        def fixed(self, *args, numbers=numbers):
            dtype = next((a for a in args if isinstance(a, torch.dtype)), torch.int64)
            shape = next((a for a in args if isinstance(a, tuple)), (len(numbers),))
            return torch.tensor(numbers, dtype=dtype).view(shape)

        with monkeypatch.context() as patch:
            patch.setattr(Stream, method, fixed)
            compressed = sketch.compress(x)
            estimates.append(sketch.expand(compressed) if estimate is None else estimate(compressed))
    return torch.stack(estimates)


@pytest.mark.parametrize(
    ("sketch", "method", "outcomes"),
    [
        pytest.param(rad.Project(0.67), "signs", product((-1, 1), repeat=3 * 2), id="project"),
        pytest.param(rad.Sample(0.67), "integers", product(range(3), repeat=2), id="sample-batch"),
        pytest.param(rad.Sample(0.67, "element"), "integers", product(range(3), repeat=2 * 2), id="sample-element"),
        pytest.param(rad.Sample(0.67, "batch", False), "integers", product(range(3)), id="sample-batch-without"),
        pytest.param(
            rad.Sample(0.67, "element", False), "integers", product(range(3), repeat=2), id="sample-element-without"
        ),
    ],
)
def test_every_draw_of_a_matrix(monkeypatch, sketch, method, outcomes):
    x, grad_out, outcomes = normal(2, 3, dtype=torch.float64), normal(2, 4, seed=1, dtype=torch.float64), [*outcomes]
    draws = enumerate_draws(monkeypatch, sketch, x, method, outcomes)
    assert (draws.mean(0) - x).abs().max() < 1e-12
    assert draws.std(0).min() > 0.1
    grads = enumerate_draws(monkeypatch, sketch, x, method, outcomes, lambda c: sketch.grad_weight(c, grad_out))
    assert (grads.mean(0) - grad_out.t() @ x).abs().max() < 1e-12


def rounding_case(monkeypatch, group_numbers=QUARTERS):
    """Two groups of four in 2 bits whose inner elements lie on quarters of the step that is really stored."""
    sketch = rad.Rounding(10 / 64, group=4)
    x = torch.tensor([[-1.0, 0, 0, 0.5], [3.0, 3, 3, 7.0]], dtype=torch.float64)
    low, step = sketch.compress(x).kept[1].double()[:, :, None]
    x[:, 1:3] = low + step * torch.tensor([[0.75, 1.25], [1.5, 2.0]], dtype=torch.float64)
    draws = enumerate_draws(monkeypatch, sketch, x, "uniform", product(*2 * [group_numbers], *4 * [QUARTERS]))
    assert len(sketch.compress(x).kept[0]) == 2
    return x, draws, step


@pytest.mark.usefixtures("plain")
def test_every_dither(monkeypatch):
    x, draws, step = rounding_case(monkeypatch)
    # Of numbers that are quarters, ½ − u is an eighth on average; of multiples of 2^-23 it is nothing to speak of.
    bias = draws.mean(0) - x - step / 8
    assert bias[:, 1:3].abs().max() < 1e-12
    # The ends of a range are off the grid, on which the mean is the next quarter below.
    assert ((-step / 4 < bias) & (bias < 1e-12)).all()


@pytest.mark.usefixtures("plain")
def test_roundings_are_pairwise_independent(monkeypatch):
    x, draws, _ = rounding_case(monkeypatch)
    errors = (draws - x).view(len(draws), -1).t()
    for values in (errors, errors.square(), (errors > 0).double()):
        covariance = torch.cov(values, correction=0)
        assert (covariance - covariance.diag().diag()).abs().max() < 1e-12
        assert covariance.diag().max() > 0.01


@pytest.mark.usefixtures("plain")
def test_products_of_two_elements_are_unbiased_less_the_noise_on_the_diagonal(monkeypatch):
    # Dither of 1/8, 3/8, 5/8 and 7/8: ½ − u is nothing on average, its square (1 − 1/16)/12.
    x, draws, step = rounding_case(monkeypatch, [u + 1 / 8 for u in QUARTERS])
    inner = torch.tensor([1, 2, 5, 6])  # those that lie on the grid
    x, draws = x.view(-1)[inner], draws.flatten(1)[:, inner]
    excess = (draws[:, :, None] * draws[:, None, :]).mean(0) - x[:, None] * x
    noise = (step.square() / 12 * 15 / 16).view(-1).repeat_interleave(2)
    assert (draws.mean(0) - x).abs().max() < 1e-12
    assert (excess - noise.diag()).abs().max() < 1e-12


@pytest.mark.filterwarnings("ignore::rad.BudgetFloorWarning")
def test_projection_has_no_bias_from_rounding_in_half_precision(monkeypatch):
    """√3 and √5 are no bfloat16 numbers; with signs that cancel off the diagonal the estimate is the input itself."""
    x = torch.ones(1, 1, 1, dtype=torch.bfloat16)
    monkeypatch.setattr(Stream, "signs", lambda self, shape, dtype: torch.ones(1, 1, 3, dtype=dtype))
    sketch = rad.Project(0.5)
    compressed = rad.sketch.Compressed(
        (sketch._compress(x, Stream(0, x.device))[0],), torch.tensor(0), x.shape, x.dtype
    )
    assert abs(sketch.expand(compressed).item() - 1) <= torch.finfo(torch.bfloat16).eps / 2


def test_every_draw_of_sampling_and_rounding(monkeypatch):
    """Two of three features in two bits: every start of the sample with every dither."""
    sketch = rad.RoundedSample(0.25, group=2)
    # Bytes are whole: a budget for just this of so few elements does not exist.
    monkeypatch.setattr(rad.RoundedSample, "split", lambda self, stack, itemsize: (2, 2))
    monkeypatch.setattr(rad.RoundedSample, "rank", lambda self, stack, itemsize, bits: 2)
    x = torch.tensor([[-1.0, 0, 3]], dtype=torch.float64)
    low, step = sketch.compress(x).kept[1].double()
    x[0, 1] = low + 1.75 * step
    draws = []
    for start, *dither in product(range(3), *[QUARTERS] * 3):
        numbers = cycle(dither)  # drawn, and replayed
        monkeypatch.setattr(Stream, "integers", lambda self, bound, shape, start=start: torch.full(shape, start))
        monkeypatch.setattr(
            Stream,
            "uniform",
            lambda self, shape, dtype, numbers=numbers: torch.tensor(
                [next(numbers) for _ in range(math.prod(shape))], dtype=dtype
            ).view(shape),
        )
        draws.append(sketch.expand(sketch.compress(x)))
    # Of numbers that are quarters, ½ − u is an eighth on average.
    assert abs(torch.stack(draws).mean(0)[0, 1] - step.item() / 8 - x[0, 1]) < 1e-12


def test_each_element_of_a_run_is_as_likely(monkeypatch):
    # One group of two runs of three: numbers of the group, then of both places in it; without rounding errors.
    sketch = rad.SparseRounding(bits=16, every=3, group=2)
    x = torch.tensor([[1.0, 2, 3, 4, 5, 6]], dtype=torch.float64)
    outcomes = [(a, b, c) for a in range(3) for b in range(3) for c in range(3)]
    found = enumerate_draws(monkeypatch, sketch, x, "integers", outcomes)
    assert (found.mean(0) - x).abs().max() < 1e-3
    kept = found[:, 0] != 0
    assert (kept[:, :3].sum(1) == 1).all()
    assert (kept[:, 3:].sum(1) == 1).all()
    pairs = (kept[:, :3, None] & kept[:, None, 3:]).double().mean(0)
    assert torch.allclose(pairs, torch.full((3, 3), 1 / 9, dtype=torch.float64))
