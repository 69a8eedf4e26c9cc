"""Randomized rounding: the right bits, ranges that hold, errors within a step. Its expectation is in the contract."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sketches import assert_unbiased, normal, seeded

import rad
from rad.sketch import kernels as loops
from rad.sketch.loops import _to_levels
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
def test_levels_never_leave_their_range(kernels, monkeypatch, bits, u, dtype, start):
    # A range of 2^b - 1 leaves the stored step no room by chance: it is 1, or the next number above.
    x = (start + torch.linspace(0, 2**bits - 1, 256, dtype=dtype)).view(1, -1)
    sketch = of_bits(bits, x, group=256)
    half = torch.tensor([u, 0.0], dtype=dtype)
    monkeypatch.setattr(Stream, "uniform", lambda self, shape, dtype: half.repeat_interleave(torch.tensor([1, 256])))
    compressed = sketch.compress(x)
    low, step = compressed.kept[1][:, 0].tolist()
    if kernels == "plain":
        assert (sketch.expand(compressed) - x).abs().max() <= step * (1 + 1e-2)
        return
    # The loop draws for itself, so what it does with the number is tried by itself.
    real, found = x.numpy().dtype.type, np.zeros(256, np.uint16)
    numbers = [np.full(1, number, real) for number in (0, 1, low, real(1) / real(step), u)]
    _to_levels(x.numpy()[0], 256, *numbers, np.zeros(256, real), real(0), real(1), found)
    levels = torch.from_numpy(found.astype(np.float64))
    assert levels.max() <= 2**bits - 1
    assert (low + (levels + 0.5 - u) * step - x).abs().max() <= step * (1 + 1e-2)


def test_variance_is_within_its_bound():
    x, grad_out = normal(6, 20, dtype=torch.float64), normal(6, 4, seed=1, dtype=torch.float64)
    sketch, exact, generator = of_bits(3, x), grad_out.t() @ x, seeded(0)
    kept = [sketch.compress(x, generator) for _ in range(1000)]
    errors = torch.stack([(sketch.grad_weight(c, grad_out) - exact).square().sum() for c in kept])
    # A range r of 2^b - 1 steps: r²/(4 (2^b - 1)²) is a quarter of a step squared, a sixth of one on average.
    per_element = step_of(sketch, kept[0], x.numel()).double().square().view(x.shape)
    bound = (per_element.sum(1) * grad_out.square().sum(1)).sum() / 4
    assert bound / 3 < errors.mean() < bound


@pytest.mark.montecarlo
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bits", [1, 3, 9])
def test_noise_is_the_variance_of_each_error_whatever_the_value(bits, dtype):
    x = torch.cat([normal(1, 300), normal(1, 300, seed=1).relu(), torch.zeros(1, 300)]).to(dtype)
    sketch = rad.Rounding(bits=bits, group=100)
    noise = sketch.noise(sketch.compress(x, seed=torch.tensor(0))).expand(x.shape)
    errors = torch.stack([sketch.expand(sketch.compress(x, seed=torch.tensor(i))) - x for i in range(2000)]).double()
    assert (noise[2] == 0).all()
    assert (errors[:, 2] == 0).all()
    # The square of a number uniform in ± half a step has the variance step⁴/180 = noise² 4/5.
    ratio = errors[:, :2].square().mean(0) / noise[:2].double()
    assert (ratio - 1).abs().max() < 5.5 * (0.8 / 2000) ** 0.5
    assert errors.abs().max() <= (3 * noise.max().double()).sqrt() * 1.0001


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_noise_is_told_in_single_precision_at_least(dtype):
    sketch = rad.Rounding(bits=3, group=10)
    compressed = sketch.compress(normal(40, 10, dtype=dtype), seed=torch.tensor(0))
    _, step = compressed.kept[1].double()
    noise = sketch.noise(compressed)
    assert noise.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(noise.double().view(-1), step.square() / 12, rtol=1e-6, atol=0)


@pytest.mark.skipif(loops.numba is None, reason="numba is not installed")
@pytest.mark.parametrize("scale", [1e-38, 1e-37, 1e-36])
def test_the_smallest_numbers_are_rounded_alike_with_loops_and_without(monkeypatch, scale):
    # Few groups at a time: PyTorch has another way for the last few of many numbers.
    for seed in range(30):
        x, found = normal(3, 256, seed=seed) * scale, []
        for enabled in (True, False):
            monkeypatch.setattr(loops, "enabled", enabled)
            compressed = rad.Rounding(bits=3).compress(x, seed=torch.tensor(0))
            found.append([*compressed.kept, rad.Rounding(bits=3).expand(compressed)])
        assert all(map(torch.equal, *found))
        assert (found[0][1][0].float() <= x.amin(1)).all()


def test_dither_that_is_replayed_halves_the_variance():
    """Against reading ``⌊v + u⌋`` without it, at the same bytes."""
    gaussian, bits = normal(1, 2**16), 3
    for x, bound in ((gaussian, 0.55), (gaussian.relu(), 1.1)):
        sketch = rad.Rounding(bits=bits)
        compressed = sketch.compress(x)
        low, step = (t.float()[:, None] for t in compressed.kept[1])
        fraction = ((x.view(-1, 256) - low) / step).frac()
        assert sketch.noise(compressed).mean() <= bound * (fraction * (1 - fraction) * step.square()).mean()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so(value):
    x = normal(3, 256)
    x[1, 7] = value
    for sketch in (rad.Rounding(bits=3), rad.Rounding(bits=12)):
        estimate = sketch.expand(sketch.compress(x))
        assert estimate[1].isnan().all()
        assert estimate[::2].isfinite().all()


@pytest.mark.parametrize(("bits", "error"), [(0, ValueError), (17, ValueError), (3.0, ValueError), (True, ValueError)])
def test_bad_bits_are_named(bits, error):
    with pytest.raises(error, match=repr(bits)):
        rad.Rounding(bits=bits)
    with pytest.raises(TypeError, match="either"):
        rad.Rounding(0.1, bits=3)


def test_bits_say_what_is_kept_whatever_the_precision():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert len(rad.Rounding(bits=3).compress(normal(4, 256, dtype=dtype)).kept[0]) == 3
    with pytest.warns(rad.sketch.LowBitsWarning, match="one bit"):
        rad.Rounding(0.1).compress(normal(4, 256, dtype=torch.bfloat16))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_groups(threads):
    """As many as PyTorch uses; every group is rounded once, wherever parts begin."""
    before = torch.get_num_threads()
    sketch, x, seed = rad.Rounding(bits=3), normal(1, 2**18 + 77), torch.tensor(5)
    expected = sketch.compress(x, seed=seed)
    estimate = sketch.expand(expected)
    try:
        torch.set_num_threads(threads)
        found = sketch.compress(x, seed=seed)
        assert all(torch.equal(a, b) for a, b in zip(found.kept, expected.kept, strict=True))
        assert torch.equal(sketch.expand(found), estimate)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options", [{"bits": 1}, {"bits": 3}, {"bits": 8, "group": 64}, {"bits": 16, "group": 16}], ids=str
)
def test_the_fraction_is_that_of_a_large_tensor(dtype, options):
    sketch, x = rad.Rounding(**options), normal(64, 256, dtype=dtype)
    assert sketch.compress(x).nbytes == sketch.fraction(x.element_size()) * x.nbytes
    assert rad.Rounding(0.3).fraction(x.element_size()) == 0.3


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounded_alike_inside_of_autocast(dtype):
    sketch, x, seed = rad.Rounding(bits=3), normal(7, 300), torch.tensor(5)
    expected = sketch.compress(x, seed=seed)
    with torch.autocast("cpu", dtype):
        found = sketch.compress(x, seed=seed)
        estimate = sketch.expand(found)
    assert all(map(torch.equal, found.kept, expected.kept))
    assert torch.equal(estimate, sketch.expand(expected))
