"""Rounding of a part of the elements, and to bits between two whole numbers."""

from __future__ import annotations

import pytest
import torch
from sketches import assert_unbiased, normal, seeded

import rad

SKETCHES = {
    "half": rad.SparseRounding(bits=2, every=2, group=16),
    "of three": rad.SparseRounding(bits=1, every=3),
    "mixed": rad.MixedRounding(bits=1, finer=0.4, group=8),
    "all finer": rad.MixedRounding(bits=1, finer=1),
    "none finer": rad.MixedRounding(bits=1, finer=0),
}
each = pytest.mark.parametrize("sketch", SKETCHES.values(), ids=SKETCHES.keys())


def draws(sketch, x, count):
    generator = seeded(0)
    return torch.stack([sketch.expand(sketch.compress(x, generator)) for _ in range(count)])


FLOATS = [torch.float32, torch.float64, torch.float16]


@each
@pytest.mark.parametrize(
    ("shape", "dtype"), [((5, 7), d) for d in FLOATS] + [((2, 5, 7), torch.float32), ((1, 1), torch.float32)]
)
@pytest.mark.usefixtures("kernels")
def test_unbiased(sketch, shape, dtype):
    x, grad_out, generator = normal(*shape).to(dtype), normal(*shape[:-1], 3, seed=1).to(dtype), seeded(0)
    kept = [sketch.compress(x, generator) for _ in range(300)]
    assert_unbiased(torch.stack([sketch.expand(c) for c in kept]), x)
    if dtype != torch.float16:
        exact = rad.Exact()
        found = torch.stack([sketch.grad_weight(c, grad_out) for c in kept])
        assert_unbiased(found, exact.grad_weight(exact.compress(x), grad_out))


@each
@pytest.mark.parametrize("count", [1, 7, 200, 1024, 3001])
def test_bytes_are_those_that_are_said(sketch, count):
    compressed = sketch.compress(normal(1, count), seeded(0))
    assert compressed.nbytes == sketch.held(count)
    if count > 1000:
        assert compressed.nbytes == pytest.approx(4 * count * sketch.fraction(4), rel=0.3 if sketch.group < 64 else 0.1)


@pytest.mark.parametrize("every", [2, 4])
def test_variance_of_a_linear_function_is_the_formula(every):
    # Relative standard error of a variance from 4,000 draws: about 2.5 %; four of them.
    x, a = normal(1, 4096, dtype=torch.float64).abs(), normal(1, 4096, seed=1, dtype=torch.float64)
    sketch, products = rad.SparseRounding(bits=2, every=every), (a * x).view(-1, every)
    sampling = every * products.square().sum() - products.sum(1).square().sum()
    _, step = sketch.compress(x, seeded(3)).kept[1].double()
    rounding = every * a.square().sum() * step.square().mean() / 12
    found = (draws(sketch, x, 4000) * a).sum((1, 2)).var()
    assert found == pytest.approx(float(sampling + rounding), rel=0.1)


def test_noise_of_both_parts():
    x, sketch = normal(30, 40, dtype=torch.float64), rad.MixedRounding(bits=2, finer=0.5, group=40)
    found, noise = draws(sketch, x, 3000).var(0), sketch.noise(sketch.compress(x, seeded(0)))
    assert noise.shape == x.shape
    for rows in (slice(0, 15), slice(15, 30)):
        assert found[rows].mean() == pytest.approx(noise[rows].mean().item(), rel=0.02)
    assert noise[0, 0] < 0.5 * noise[-1, 0]


def test_no_noise_is_told_of_a_sample():
    sketch = rad.SparseRounding()
    with pytest.raises(TypeError, match="cannot tell the noise"):
        sketch.noise(sketch.compress(normal(4, 8)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rad.SparseRounding(every=1), "every must be a whole number from 2 to 65,536, got 1"),
        (lambda: rad.SparseRounding(every=2.0), "every must be"),
        (lambda: rad.SparseRounding(every=True), "every must be"),
        (lambda: rad.SparseRounding(bits=17), "bits must be"),
        (lambda: rad.SparseRounding(group=0), "group must be"),
        (lambda: rad.MixedRounding(bits=16), "bits must be"),
        (lambda: rad.MixedRounding(bits=0), "bits must be"),
        (lambda: rad.MixedRounding(finer=1.5), r"finer must be a share of the elements in \[0, 1\], got 1.5"),
        (lambda: rad.MixedRounding(finer="a"), "finer must be"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@each
def test_linear_layers_and_factors_of_a_converted_model(sketch):
    model = torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.GELU(), torch.nn.Linear(20, 3))
    x = torch.randn(30, 12)
    exact = rad.measure.gradients(model, lambda: model(x).square().mean())
    rad.convert(model, sketch, generator=rad.nn.Seeds(0))
    found = rad.measure.gradient_noise(
        lambda: rad.measure.gradients(model, lambda: model(x).square().mean()), 200, exact
    ).total
    assert found.bias == pytest.approx(found.bias_error, rel=0.3)
