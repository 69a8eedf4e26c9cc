"""What every sketch promises. Fixed seeds make the statistical tests deterministic: they pass always or never."""

from __future__ import annotations

import dataclasses
import math
import warnings
from decimal import Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sketches import SKETCHES, assert_unbiased, normal, seeded

import rad
from rad.sketch import Compressed
from rad.sketch import kernels as compiled_loops

every_sketch = pytest.mark.parametrize("make", SKETCHES.values(), ids=SKETCHES.keys())
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
sizes = st.integers(1, 40)


def draw(sketch, x, count, seed=0, grad_out=None):
    """Independent estimates of ``x``, or of ``grad_outᵀ x``."""
    generator = seeded(seed)
    kept = (sketch.compress(x, generator) for _ in range(count))
    estimate = sketch.expand if grad_out is None else lambda c: sketch.grad_weight(c, grad_out)
    return torch.stack([estimate(c) for c in kept])


# Five standard errors: an unbiased entry fails with probability 6e-7. With 56 entries for each of seven sketches,
# two dtypes and two implementations, a new choice of seeds raises a false alarm once in about 1,100 times.
@every_sketch
@both_dtypes
@pytest.mark.usefixtures("kernels")
def test_unbiased(make, dtype):
    x, grad_out = normal(4, 8, dtype=dtype), normal(4, 3, seed=1, dtype=dtype)
    assert_unbiased(draw(make(0.3), x, 600), x)
    assert_unbiased(draw(make(0.3), x, 600, seed=1, grad_out=grad_out), grad_out.t() @ x)


# 624 entries a sketch: once in about 400 choices of seeds.
@pytest.mark.montecarlo
@every_sketch
def test_unbiased_tightly(make):
    x, grad_out = normal(12, 37, seed=2, dtype=torch.float64), normal(12, 5, seed=3, dtype=torch.float64)
    assert_unbiased(draw(make(0.15), x, 10_000), x)
    assert_unbiased(draw(make(0.15), x, 10_000, seed=1, grad_out=grad_out), grad_out.t() @ x)


@pytest.mark.filterwarnings("ignore::rad.BudgetFloorWarning")  # of a sketch that summarizes rows
@pytest.mark.usefixtures("kernels")
@every_sketch
@pytest.mark.parametrize("m", [(), (1,), (5,)], ids=["matrix", "stack-1", "stack-5"])
@pytest.mark.parametrize(("n", "d", "o"), [(4, 8, 3), (1, 8, 50), (40, 8, 2)])
def test_grad_weight_is_the_product_with_the_estimate(make, m, n, d, o):
    sketch, grad_out = make(0.3), normal(*m, n, o, seed=1, dtype=torch.float64)
    compressed = sketch.compress(normal(*m, n, d, dtype=torch.float64), seeded(0))
    product = torch.einsum("...no,...nd->...od", grad_out, sketch.expand(compressed))
    torch.testing.assert_close(sketch.grad_weight(compressed, grad_out), product.sum(0) if m else product)


@pytest.mark.usefixtures("kernels")
@every_sketch
def test_stack_unbiased_with_a_draw_for_each_matrix(make):
    x = normal(1, 4, 8, dtype=torch.float64).expand(3, 4, 8)
    draws = draw(make(0.3), x, 600)
    assert_unbiased(draws, x)
    assert all(not torch.equal(draws[:, i], draws[:, j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    # The products of two matrices' errors, whose mean is zero if their draws are independent.
    errors = draws - x
    assert_unbiased(torch.einsum("snd,sne->sde", errors[:, 0], errors[:, 1]), torch.zeros(8, 8))


@every_sketch
@pytest.mark.parametrize("budget", [0.3, 1])
@pytest.mark.parametrize("m", [(), (5,)], ids=["matrix", "stack"])
def test_columns_are_the_estimate_without_zeros(make, budget, m):
    sketch = make(budget)
    compressed = sketch.compress(normal(*m, 4, 8), seeded(0))
    index, values = sketch.columns(compressed)
    dense = sketch.expand(compressed)
    if index is not None:
        assert values.shape[-1] < 8
        index = index.unsqueeze(-2).expand(values.shape)
        values = torch.zeros_like(dense).scatter_add_(-1, index, values)
    torch.testing.assert_close(values, dense)


@every_sketch
@given(
    n=sizes,
    d=st.integers(1, 600),
    budget=st.floats(1e-3, 1),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_budget_is_kept_or_its_floor_reported(make, n, d, budget, dtype):
    x = torch.ones(n, d, dtype=dtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kept = make(budget).compress(x).nbytes
    reported = any(issubclass(w.category, rad.BudgetFloorWarning) for w in caught)
    assert reported == (kept > budget * x.numel() * x.element_size() * (1 + 1e-9))


@every_sketch
def test_floor_still_estimates(make):
    with pytest.warns(rad.BudgetFloorWarning, match="more than the budget"):
        compressed = make(0.001).compress(normal(3, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rad.BudgetFloorWarning)  # of those that find the rank again
        assert make(0.001).expand(compressed).shape == (3, 5)


@pytest.mark.parametrize("make", [*SKETCHES.values(), rad.Exact], ids=[*SKETCHES, "exact"])
def test_whole_budget_keeps_the_tensor_itself(make):
    x, grad_out, sketch = normal(4, 8), normal(4, 3, seed=1), make(1)
    state = torch.get_rng_state()
    compressed = sketch.compress(x)
    assert compressed.exact
    assert [t.data_ptr() for t in compressed.split()[0]] == [x.data_ptr()]
    assert torch.equal(sketch.expand(compressed), x)
    assert torch.equal(sketch.grad_weight(compressed, grad_out), grad_out.t() @ x)
    assert torch.equal(torch.get_rng_state(), state)


@every_sketch
@pytest.mark.usefixtures("kernels")
def test_randomness_comes_from_the_generator_and_is_replayed(make):
    sketch, x, generator, state = make(0.3), normal(16, 64), seeded(3), torch.get_rng_state()
    first, second = sketch.compress(x, generator), sketch.compress(x, generator)
    estimate = sketch.expand(first)
    assert torch.equal(sketch.expand(first), estimate)
    assert torch.equal(sketch.expand(sketch.compress(x, seeded(3))), estimate)
    assert not torch.equal(sketch.expand(second), estimate)
    assert torch.equal(torch.get_rng_state(), state)
    sketch.compress(x)
    assert not torch.equal(torch.get_rng_state(), state)


@every_sketch
@pytest.mark.parametrize("budget", [0.3, 1])
def test_split_and_join(make, budget):
    sketch = make(budget)
    compressed = sketch.compress(normal(4, 8), seeded(0))
    tensors, layout = compressed.split()
    joined = Compressed.join(list(tensors), layout)
    assert (joined.exact, joined.nbytes) == (compressed.exact, compressed.nbytes)
    assert torch.equal(sketch.expand(joined), sketch.expand(compressed))


@pytest.mark.filterwarnings("ignore::rad.BudgetFloorWarning")  # of a sketch that summarizes rows
@every_sketch
@both_dtypes
def test_estimate_keeps_shape_and_dtype(make, dtype):
    sketch = make(0.5)
    for x in (normal(5, 7, dtype=dtype), normal(0, 7, dtype=dtype), normal(1, 300).bfloat16()):
        estimate = sketch.expand(sketch.compress(x))
        assert (estimate.shape, estimate.dtype) == (x.shape, x.dtype)
    no_rows = sketch.compress(normal(0, 7, dtype=dtype))
    assert torch.equal(sketch.grad_weight(no_rows, normal(0, 3, dtype=dtype)), torch.zeros(3, 7, dtype=dtype))


@every_sketch
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    "view",
    [lambda x: x.t(), lambda x: x[::2], lambda x: x[:, 1::3], lambda x: x[:1].expand(5, -1)],
    ids=["transposed", "rows", "columns", "expanded"],
)
def test_strides_do_not_matter(make, view):
    sketch, x = make(0.4), view(normal(20, 30, dtype=torch.float64))
    estimates = [sketch.expand(sketch.compress(t, seeded(0))) for t in (x, x.contiguous())]
    assert not x.is_contiguous()
    torch.testing.assert_close(*estimates)


@pytest.mark.parametrize("make", [*SKETCHES.values(), rad.Exact], ids=[*SKETCHES, "exact"])
@pytest.mark.parametrize(
    ("budget", "error"),
    [(0, ValueError), (-0.1, ValueError), (1.5, ValueError), (math.nan, ValueError), (math.inf, ValueError)]
    + [("abc", TypeError), (True, TypeError), (None, TypeError), (Decimal(1), TypeError)],
)
def test_bad_budget_is_named(make, budget, error):
    with pytest.raises(error, match="budget must") as caught:
        make(budget)
    assert repr(budget) in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rad.Sample(0.1, per="row"), "'row'"),
        (lambda: rad.Sample(0.1, replacement="maybe"), "'maybe'"),
        (lambda: rad.Rounding(0.1).compress(3), "got 3"),
        (lambda: rad.Rounding(0.1, group=0), "got 0"),
        (lambda: rad.Rounding(0.1, group=2.0), r"got 2\.0"),
        (lambda: rad.Exact(0.5), r"got 0\.5"),
    ],
)
def test_bad_option_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@every_sketch
@pytest.mark.parametrize("x", [torch.ones(3), torch.ones(2, 3, 4, 5), torch.ones(2, 3, dtype=torch.int64)])
@pytest.mark.parametrize("budget", [0.5, 1])
def test_only_floating_point_matrices(make, x, budget):
    with pytest.raises(ValueError, match="floating-point matrix") as caught:
        make(budget).compress(x)
    assert str(list(x.shape)) in str(caught.value)


@every_sketch
def test_is_a_value(make):
    assert make(0.3) == make(0.3) != make(0.4)
    assert len({make(0.3), make(0.3), make(0.4)}) == 2
    assert "budget=0.3" in repr(make(0.3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        make(0.3).budget = 0.4


@pytest.mark.skipif(compiled_loops.numba is None, reason="numba is not installed")
@every_sketch
@both_dtypes
@given(
    n=sizes, d=sizes, budget=st.floats(0.15, 0.9), scale=st.sampled_from([1e-30, 1.0, 1e30]), seed=st.integers(0, 99)
)
def test_compiled_loops_change_no_bit(make, dtype, n, d, budget, scale, seed):
    x, sketch = normal(n, d, seed=seed, dtype=dtype) * scale, make(budget)
    results = []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", rad.BudgetFloorWarning)
        for enabled in (False, True):
            patch.setattr(compiled_loops, "enabled", enabled)
            compressed = sketch.compress(x, seeded(seed))
            results.append((*compressed.kept, sketch.expand(compressed)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [*SKETCHES, "exact"])
@pytest.mark.filterwarnings("ignore::rad.LowBitsWarning")
def test_products_with_the_estimate(name, dtype):
    sketch = rad.Exact() if name == "exact" else SKETCHES[name](0.3)
    x = normal(12, 40, dtype=dtype)
    kept = sketch.compress(x, seed=torch.tensor(5))
    before = [t.clone() for t in kept.kept]
    for grad in (normal(12, 40, seed=1, dtype=dtype), normal(12, 1, seed=2, dtype=dtype), normal(12, 40, seed=3)):
        if grad.dtype != dtype and dtype not in (torch.bfloat16, torch.float16):
            continue
        expected = sketch.expand(kept).double() * grad.double()
        found = sketch.times(kept, grad)
        close = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 2 * torch.finfo(dtype).eps * float(expected.abs().max())}
        assert (found.dtype, found.shape) == (grad.dtype, x.shape)
        torch.testing.assert_close(found.double(), expected, **close)
        into = torch.full((12, 40), torch.nan, dtype=grad.dtype)
        given = sketch.times(kept, grad, into)
        assert given.data_ptr() == into.data_ptr()
        torch.testing.assert_close(into, found, rtol=torch.finfo(grad.dtype).eps, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(kept.kept, before, strict=True))
