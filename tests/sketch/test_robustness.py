"""What sketches promise at the edges: half precision, empty tensors, large ones, numbers that are not finite."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from sketches import SKETCHES, normal, seeded
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import rad
from rad.sketch import kernels
from rad.sketch import sample as sampling

every_sketch = pytest.mark.parametrize("make", SKETCHES.values(), ids=SKETCHES.keys())


@every_sketch
def test_noise_is_told_or_refused_by_name(make):
    sketch, x = make(0.3), normal(4, 8)
    compressed = sketch.compress(x, seed=torch.tensor(1))
    assert make(1).noise(make(1).compress(x)) == 0
    if sketch.serves_factors:
        assert sketch.noise(compressed).expand(x.shape).min() > 0
    else:
        with pytest.raises(TypeError, match=rf"{type(sketch).__name__} cannot tell the noise.*rad\.Rounding"):
            sketch.noise(compressed)


@pytest.mark.parametrize("group", [1, 4, 8, 16, 24, 256])
@pytest.mark.parametrize("stack", [(), (3,)])
def test_noise_belongs_to_the_elements_of_its_group(group, stack):
    """Errors of every element stay within ± half of its own step, and come close to it."""
    scale = 10.0 ** torch.arange(-3, 4, dtype=torch.float64)[:, None]  # rows of very different ranges
    x, sketch = normal(*stack, 7, 8, dtype=torch.float64) * scale, rad.Rounding(bits=2, group=group)
    compressed = [sketch.compress(x, seed=torch.tensor(i)) for i in range(200)]
    reach = torch.stack([sketch.expand(c) - x for c in compressed]).abs().amax(0)
    half_step = sketch.noise(compressed[0]).mul(3).sqrt().expand(x.shape)
    assert (reach <= half_step * (1 + 1e-9) + 1e-12).all()
    assert (reach >= 0.9 * half_step).all()


@pytest.mark.usefixtures("kernels")
def test_products_of_two_elements_are_unbiased_less_the_noise():
    sketch, x = rad.Rounding(bits=2, group=8), normal(1, 16, dtype=torch.float64)
    kept = [sketch.compress(x, seed=torch.tensor(i)) for i in range(4000)]
    draws = torch.stack([sketch.expand(c)[0] for c in kept])
    products = draws[:, :, None] * draws[:, None, :] - x.mT @ x
    noise = sketch.noise(kept[0]).expand(x.shape)[0].diag()
    error = 5 * products.std(0) / len(draws) ** 0.5
    assert ((products.mean(0) - noise).abs() < error).all()
    # Without the correction the diagonal is too large.
    assert products.mean(0).trace() > error.trace()


def test_a_seed_in_place_of_a_generator():
    x, state = normal(4, 64), torch.get_rng_state()
    first, again, other = (rad.Rounding(0.2).compress(x, seed=torch.tensor(s)) for s in (-7, -7, -6))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.seed == -7
    assert torch.equal(first.kept[0], again.kept[0])
    assert not torch.equal(first.kept[0], other.kept[0])


@pytest.mark.parametrize("make", [*SKETCHES.values(), rad.Exact], ids=[*SKETCHES, "exact"])
def test_exact_or_not(make):
    assert make(1).exact
    if make is not rad.Exact:
        assert not make(0.99).exact


def test_bits_are_not_exact():
    assert not rad.Rounding(bits=16).exact


@pytest.mark.parametrize("make", [*SKETCHES.values(), rad.Exact], ids=[*SKETCHES, "exact"])
@pytest.mark.parametrize("shape", [(5, 0), (0, 4), (3, 0, 4), (3, 5, 0), (0, 0)])
def test_no_rows_and_no_features(make, shape):
    sketch, x = make(1 if make is rad.Exact else 0.3), torch.ones(shape)
    compressed, grad_out = sketch.compress(x), torch.ones(*shape[:-1], 2)
    assert sketch.expand(compressed).shape == shape
    assert torch.equal(sketch.grad_weight(compressed, grad_out), torch.zeros(2, shape[-1]))
    assert sketch.columns(compressed)[1].shape == shape
    assert sketch.variance(x, grad_out) == 0
    assert sketch.noise(compressed) == 0


@pytest.mark.filterwarnings("ignore::rad.LowBitsWarning")
@every_sketch
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "outputs"), [(64, 3), (16, 300)], ids=["few outputs", "many outputs"])
def test_half_precision_overflows_only_where_the_result_does(make, dtype, rows, outputs):
    """Values near the largest of float16, with gradients that bring the result back to the order of 1."""
    x = (60_000 * (1 - normal(rows, 128).abs() / 50)).to(dtype)
    grad_out = (normal(rows, outputs, seed=1) * 1e-5).to(dtype)
    sketch = make(0.3)
    result = sketch.grad_weight(sketch.compress(x, seed=torch.tensor(0)), grad_out)
    assert result.dtype == dtype
    assert result.isfinite().all()
    # An error of the size that the same sketch makes in double precision at a budget for the same bits.
    x, grad_out, same = x.double(), grad_out.double(), make(0.3 / 8 * dtype.itemsize)
    exact, expected = grad_out.t() @ x, same.variance(x, grad_out).item()
    assert expected / 9 < (result.double() - exact).square().sum() < 9 * expected


@pytest.mark.filterwarnings("ignore::rad.LowBitsWarning")
@every_sketch
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_agrees_with_the_product_in_full(make, dtype):
    x, grad_out, sketch = normal(3, 20, 64).to(dtype), normal(3, 20, 5, seed=1).to(dtype), make(0.3)
    compressed = sketch.compress(x, seed=torch.tensor(0))
    dense = sketch.expand(compressed).double()
    product = torch.einsum("mno,mnd->od", grad_out.double(), dense)
    found = sketch.grad_weight(compressed, grad_out).double()
    assert (found - product).abs().max() < 6 * torch.finfo(dtype).eps * (grad_out.double().abs().mT @ dense.abs()).sum(
        0
    ).max()


class _Largest(TorchDispatchMode):
    """The most elements of a floating-point tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_floating_point():
            self.elements = max(self.elements, out.untyped_storage().nbytes() // out.element_size())
        return out


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("stack", [(), (3,)])
def test_samples_of_each_row_are_never_dense_all_at_once(monkeypatch, replacement, stack):
    sketch = rad.Sample(0.05, "element", replacement)
    x, grad_out = normal(*stack, 130, 40, dtype=torch.float64), normal(*stack, 130, 3, seed=1, dtype=torch.float64)
    compressed = sketch.compress(x, seed=torch.tensor(3))
    expected = sketch.grad_weight(compressed, grad_out)
    monkeypatch.setattr(sampling, "_BLOCK", 400)
    with _Largest() as seen:
        found = sketch.grad_weight(compressed, grad_out)
    torch.testing.assert_close(found, expected)
    assert seen.elements <= 130 * 3 * 3 < x.numel()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("place", [0, 7, 255])
def test_a_group_with_something_not_finite_is_nan(value, dtype, place):
    x = normal(3, 256, dtype=dtype)
    x[1, place] = value
    for sketch in (rad.Rounding(bits=3), rad.RoundedSample(0.9), rad.Rounding(bits=12)):
        estimate = sketch.expand(sketch.compress(x))
        assert estimate[1].isnan().all()
        assert estimate[::2].isfinite().all()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 0.5, -3.0, 77.5, -(2.0**-20), 2.0**40])
def test_equal_values_that_bfloat16_holds_are_exact(value, dtype):
    x = torch.full((2, 300), value, dtype=dtype)
    for bits in (1, 4):
        sketch = rad.Rounding(bits=bits)
        compressed = sketch.compress(x)
        assert torch.equal(sketch.expand(compressed), x)
        assert not sketch.noise(compressed).any()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("value", [0.1, -0.1, 1.003, -77.7, 1e30])
def test_other_equal_values_are_off_by_the_last_bit_of_their_lowest_value(value):
    x = torch.full((1, 300), value)
    for bits in (1, 4):
        sketch = rad.Rounding(bits=bits)
        error = (sketch.expand(sketch.compress(x)) - x).abs().max()
        assert error <= abs(value) * 2.0**-6 / (2**bits - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_lowest_value_is_stored_outward_and_next_to_it(dtype):
    low = torch.cat([normal(1000), normal(1000, seed=1) * 1e30, torch.tensor([2.0**k for k in range(-9, 9)])]).to(dtype)
    low = torch.cat([low, -low, torch.zeros(1, dtype=dtype), low.bfloat16().to(dtype)])
    stored = rad.sketch.levels.lowest(low).to(dtype)
    assert (stored <= low).all()
    assert (low - stored <= 2.0**-6 * low.abs()).all()
    held = low.bfloat16().to(dtype) == low
    assert torch.equal(stored[held], low[held])


def test_as_many_features_as_the_budget_names():
    """0.29 · 100 is 28.999999999999996."""
    for sketch in (rad.Sample(0.29), rad.Project(0.29)):
        assert sketch.rank(100) == 29
        assert sketch.compress(normal(2, 100)).kept[0].shape[-1] == 29


@pytest.mark.parametrize(
    ("budget", "dtype", "bits"), [(0.1, torch.bfloat16, 1), (0.1, torch.float16, 1), (0.05, torch.float32, 1)]
)
def test_one_bit_is_warned_of_once(budget, dtype, bits):
    rad.Rounding(bits=1).compress(normal(8, 256, dtype=dtype))  # for numba forgets what was warned of as it compiles
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.simplefilter("default")
        for n in (8, 9, 10):
            assert len(rad.Rounding(budget).compress(normal(n, 256, dtype=dtype)).kept[0]) == bits
    assert [w.category for w in caught] == [rad.LowBitsWarning]
    assert f"{budget} " in str(caught[0].message)
    assert "bits=" in str(caught[0].message)


def test_more_bits_or_bits_by_name_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rad.Rounding(0.1).compress(normal(8, 256))
        rad.Rounding(bits=1).compress(normal(8, 256))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::rad.LowBitsWarning")
@every_sketch
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(12, 40), (3, 12, 40)])
def test_shapes_are_known_without_values(make, dtype, shape):
    """The plain path runs on tensors without memory, so that it can be traced."""
    sketch, x, grad_out = make(0.3), normal(*shape, dtype=dtype), normal(*shape[:-1], 5, dtype=dtype)

    def run(x, grad_out, seed):
        compressed = sketch.compress(x, seed=seed)
        found = [*compressed.split()[0], sketch.expand(compressed), sketch.grad_weight(compressed, grad_out)]
        return [*found, sketch.noise(compressed)] if sketch.serves_factors else found

    real = run(x, grad_out, torch.tensor(5))
    with FakeTensorMode() as mode:
        fake = run(*(mode.from_tensor(t) for t in (x, grad_out, torch.tensor(5))))
    assert [(t.shape, t.dtype) for t in fake] == [(t.shape, t.dtype) for t in real]
    with FakeTensorMode():  # a seed drawn there
        assert sketch.compress(torch.empty(shape, dtype=dtype)).kept[0].shape == real[0].shape


@every_sketch
def test_shapes_depend_on_no_value(make):
    sketch = make(0.07 * 2)
    shapes = [
        [t.shape for t in sketch.compress(x).kept]
        for x in (normal(40, 64), normal(40, 64).relu() ** 4, torch.zeros(40, 64), torch.full((40, 64), math.nan))
    ]
    assert all(s == shapes[0] for s in shapes)


@every_sketch
def test_seeds_as_tensors_draw_as_numbers_do(make, monkeypatch):
    """The arithmetic of traced seeds, run on real ones."""
    sketch, x = make(0.3), normal(6, 64)
    expected = sketch.compress(x, seed=torch.tensor(2**62 + 12345)).kept
    monkeypatch.setattr(kernels, "enabled", False)

    class Traced(torch.Tensor):
        pass

    seed = torch.tensor(2**62 + 12345).as_subclass(Traced)
    found = [t.as_subclass(torch.Tensor) for t in sketch.compress(x, seed=seed).kept]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_generators_are_seeded_alike():
    x = normal(4, 64)
    first = rad.Rounding(0.2).compress(x, seeded(3))
    assert torch.equal(first.kept[0], rad.Rounding(0.2).compress(x, seed=first.seed).kept[0])
