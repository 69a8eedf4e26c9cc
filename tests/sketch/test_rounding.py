"""Randomized rounding: the right bits, ranges that hold, errors within a step. Its expectation is in the contract."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sketches import assert_unbiased, normal, seeded

import rad
from rad.sketch.random import Stream

pytestmark = pytest.mark.usefixtures("kernels")

ODD = 37  # no multiple of a group, a byte or a word

VALUES = {
    "constant": torch.full((1, ODD), 0.1),
    "negative constant": torch.full((1, ODD), -77.7),
    "negative": -1 - normal(1, ODD).abs(),
    "far from zero": 1000 + normal(1, ODD),
    "huge": 1e30 * normal(1, ODD),
    "tiny": 1e-30 * normal(1, ODD),
    "outlier": torch.cat([normal(1, ODD - 1), torch.tensor([[1e6]])], 1),
    "relu": normal(1, ODD).relu(),
}


def of_bits(bits, x, group=16):
    """The sketch whose budget is that of so many bits for the elements of ``x``, and no more."""
    size = next((s for s in range(group, group // 2, -1) if x.numel() % s == 0), group)
    kept = -(-x.numel() // 8) * bits + -(-x.numel() // size) * 4
    sketch = rad.Rounding(kept / (x.numel() * x.element_size()), group)
    assert len(sketch.compress(x).kept[0]) == bits
    return sketch


def step_of(sketch, compressed, count):
    """The stored step of each element's group."""
    steps = compressed.kept[1][1].float()
    return steps.repeat_interleave(-(-count // len(steps)) if count % len(steps) == 0 else 16)[:count]


@given(
    count=st.integers(1, 3000),
    budget=st.floats(0.01, 1, exclude_max=True),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    group=st.sampled_from([1, 16, 256]),
)
@pytest.mark.filterwarnings("ignore::rad.BudgetFloorWarning")
def test_takes_as_many_bits_as_the_budget_allows(count, budget, dtype, group):
    packed, ranges = rad.Rounding(budget, group).compress(torch.ones(1, count, dtype=dtype)).kept
    allowed = budget * count * dtype.itemsize * (1 + 1e-12)
    affordable = [b for b in range(1, 17) if b * -(-count // 8) + 4 * ranges.shape[1] <= allowed]
    assert len(packed) == max(affordable, default=1)
    assert ranges.shape[1] <= max(1, -(-count // (group // 2 + 1)))


# 37 entries for each of ten cases and two implementations: a false alarm in 1 of 2,300 choices of seeds.
@pytest.mark.parametrize(("name", "bits"), [*((n, 3) for n in VALUES), ("relu", 1), ("relu", 12)])
def test_unbiased_and_within_a_step(name, bits):
    x = VALUES[name]
    sketch, generator = of_bits(bits, x), seeded(0)
    kept = [sketch.compress(x, generator) for _ in range(600)]
    # In units of the largest value, whose square float32 may not hold.
    unit = x.abs().max().double()
    draws = torch.stack([sketch.expand(c) for c in kept]).double() / unit
    step = step_of(sketch, kept[0], x.numel()).double()
    assert ((draws - x.double() / unit).abs() <= step / unit * (1 + 1e-3) + 1e-6).all()
    assert_unbiased(draws.float(), x.double() / unit, jump=step / unit)


def test_zeros_are_exact():
    sketch = rad.Rounding(0.2)
    assert not sketch.expand(sketch.compress(torch.zeros(5, ODD))).any()


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-23], ids=["lowest dither", "highest dither"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("start", [0.0, -3.0, 100.0])
def test_levels_never_leave_their_range(monkeypatch, bits, u, dtype, start):
    # A range of 2^b - 1 leaves the stored step no room by chance: it is 1, or the next number above.
    x = (start + torch.linspace(0, 2**bits - 1, 256, dtype=dtype)).view(1, -1)
    sketch = of_bits(bits, x, group=256)
    half = torch.tensor([u, 0.0], dtype=dtype)
    monkeypatch.setattr(Stream, "uniform", lambda self, shape, dtype: half.repeat_interleave(torch.tensor([1, 256])))
    compressed = sketch.compress(x)
    step = compressed.kept[1][1].item()
    assert (sketch.expand(compressed) - x).abs().max() <= step * (1 + 1e-2)


def test_variance_is_within_its_bound():
    x, grad_out = normal(6, 20, dtype=torch.float64), normal(6, 4, seed=1, dtype=torch.float64)
    sketch, exact, generator = of_bits(3, x), grad_out.t() @ x, seeded(0)
    kept = [sketch.compress(x, generator) for _ in range(1000)]
    errors = torch.stack([(sketch.grad_weight(c, grad_out) - exact).square().sum() for c in kept])
    # A range r of 2^b - 1 steps: r²/(4 (2^b - 1)²) is a quarter of a step squared, a sixth of one on average.
    per_element = step_of(sketch, kept[0], x.numel()).double().square().view(x.shape)
    bound = (per_element.sum(1) * grad_out.square().sum(1)).sum() / 4
    assert bound / 3 < errors.mean() < bound
