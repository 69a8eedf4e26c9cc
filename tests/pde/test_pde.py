"""The reactor's loss and gradients against plain autograd, and the sketches in its adjoint."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sketches import SKETCHES, assert_unbiased, seeded
from waves import Ramp, oracle, wave
from waves import parameters as theta

import rad
from rad.pde import march, reactor, simulate, simulate_checkpointed
from rad.sketch.random import Stream

THETA = (4.932, 0.05, -0.03, 0.02, 0.01, -0.02, 0.04)
BUDGETED = {name: make(0.3) for name, make in SKETCHES.items()}
every_sketch = pytest.mark.parametrize("sketch", BUDGETED.values(), ids=BUDGETED)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def gradient(loss, parameters):
    return torch.autograd.grad(loss, parameters)[0]


@pytest.fixture(params=[1, 10**6], ids=["a chunk a step", "one chunk"])
def chunk_values(request, monkeypatch):
    monkeypatch.setattr(march, "_CHUNK_VALUES", request.param)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("values", [1, 60, 10**6])
@given(
    nx=st.integers(3, 7),
    ny=st.integers(3, 7),
    steps=st.integers(1, 12),
    constant=st.booleans(),
    snapshots=st.integers(0, 5),
)
def test_every_exact_way_is_autograd(monkeypatch, values, nx, ny, steps, constant, snapshots):
    monkeypatch.setattr(march, "_CHUNK_VALUES", values)
    problem, parameters = wave(nx, ny, steps, 0.01 if constant else None), theta()
    expected = oracle(parameters, problem)
    grad = gradient(expected, parameters)
    for ours in (
        *(simulate(parameters, problem, sketch) for sketch in (rad.Exact(), rad.Sample(1), rad.Rounding(1))),
        simulate_checkpointed(parameters, problem, snapshots),
    ):
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(gradient(ours, parameters), grad, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("chunk_values")
def test_gradcheck():
    problem = wave()
    assert torch.autograd.gradcheck(lambda p: simulate(p, problem, rad.Exact()), [theta()])
    assert torch.autograd.gradcheck(lambda p: simulate_checkpointed(p, problem, 2), [theta()])


@pytest.mark.usefixtures("kernels")
def test_single_precision():
    problem, parameters = wave(), theta(dtype=torch.float32)
    ours = simulate(parameters, problem, rad.Exact())
    precise = theta()
    expected = oracle(precise, problem)
    torch.testing.assert_close(ours, expected.float())
    torch.testing.assert_close(gradient(ours, parameters), gradient(expected, precise).float())


@both_dtypes
def test_the_published_numbers(dtype):
    # Of the released code in float32, at full size.
    parameters = theta(*THETA, dtype=dtype)
    reference = torch.tensor([0.692784, 0.054702, -0.013411, -0.046081, -0.018976, -0.027543, 0.007104])
    for loss in (
        simulate(parameters, reactor(), rad.Exact()),
        simulate_checkpointed(parameters, reactor(), 20),
    ):
        assert abs(loss.item() - 0.0746798) < 1e-5
        assert (gradient(loss, parameters) - reference).norm() < 1e-3 * reference.norm()


@every_sketch
def test_loss_is_exact_whatever_the_sketch(sketch):
    problem, parameters = wave(), theta()
    assert torch.equal(simulate(parameters, problem, sketch), simulate(parameters, problem, rad.Exact()))


@pytest.mark.montecarlo
# Three gradient entries for each of seven sketches and two chunkings, at five standard errors.
@every_sketch
@pytest.mark.usefixtures("chunk_values")
@pytest.mark.filterwarnings("ignore::rad.BudgetFloorWarning")
def test_gradient_is_unbiased(sketch):
    problem, parameters, generator = wave(steps=3), theta(), seeded(0)
    draws = [gradient(simulate(parameters, problem, sketch, generator), parameters) for _ in range(300)]
    assert_unbiased(torch.stack(draws), gradient(oracle(parameters, problem), parameters))


def test_gradient_is_unbiased_over_every_draw(monkeypatch):
    # One of the four interior points of a 4 × 4 grid for each of four fields: 256 outcomes, all equally likely.
    problem, parameters = wave(4, 4, 4), theta()
    draws = []
    for kept in product(range(4), repeat=4):
        monkeypatch.setattr(Stream, "integers", lambda self, bound, shape, kept=kept: torch.tensor(kept).view(shape))
        draws.append(gradient(simulate(parameters, problem, rad.Sample(0.25)), parameters))
    exact = gradient(oracle(parameters, problem), parameters)
    assert (torch.stack(draws).std(0) > 0.1 * exact.abs()).all()
    torch.testing.assert_close(torch.stack(draws).mean(0), exact, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize(("steps", "count"), [(4097, 100), (40961, 12)])  # many draws of a tenth, a few of the whole
@pytest.mark.parametrize("sketch", [rad.Sample(0.01), rad.Rounding(0.05)], ids=["sample", "rounding"])
def test_gradient_is_unbiased_at_full_size(sketch, steps, count):
    # 14 entries at five standard errors; rounding is off by float32 arithmetic alone.
    parameters, generator, problem = theta(*THETA, dtype=torch.float32), seeded(0), reactor(steps=steps)
    exact = gradient(simulate(parameters, problem, rad.Exact()), parameters)
    draws = [gradient(simulate(parameters, problem, sketch, generator), parameters) for _ in range(count)]
    assert_unbiased(torch.stack(draws), exact)


def held(fn):
    return rad.measure.saved_bytes(fn).total


def test_bytes_at_full_size():
    parameters, problem = theta(*THETA, dtype=torch.float32), reactor()
    whole = held(lambda: simulate(parameters, problem, rad.Exact()))
    besides = 4 * (33 * 32 + 7)  # the last field and theta
    assert whole == 4 * problem.steps * problem.interior + besides
    for sketch in (rad.Sample(0.01), rad.Sample(0.01, replacement=False), rad.Project(0.01)):
        assert held(lambda sketch=sketch: simulate(parameters, problem, sketch)) <= 0.011 * whole
    assert held(lambda: simulate(parameters, problem, rad.Rounding(0.1))) <= 0.1 * whole + 4096
    assert held(lambda: simulate_checkpointed(parameters, problem, 10)) == 10 * 4 * 33 * 32 + besides


def test_bytes_of_a_small_problem(monkeypatch):
    monkeypatch.setattr(march, "_CHUNK_VALUES", 90)
    parameters, problem = theta(), wave(6, 5, 8)  # chunks of three, three and two steps; twelve points inside
    besides = 8 * (6 * 4 + 3)  # the last field and theta
    assert held(lambda: simulate(parameters, problem, rad.Exact())) == 8 * 8 * 12 + besides
    assert held(lambda: simulate(parameters, problem, rad.Sample(0.5))) == 8 * 8 * 6 + 3 * 8 + besides
    for snapshots in (0, 1, 2):
        grid = 8 * 6 * 4
        assert held(lambda n=snapshots: simulate_checkpointed(parameters, problem, n)) == snapshots * grid + besides


def test_dense_fields_exist_by_chunks(monkeypatch):
    monkeypatch.setattr(march, "_CHUNK_VALUES", 90)
    seen, compress = [], rad.Sample.compress
    monkeypatch.setattr(
        rad.Sample, "compress", lambda self, x, generator: seen.append(x) or compress(self, x, generator)
    )
    simulate(theta(), wave(6, 5, 8), rad.Sample(0.5))
    assert [x.shape for x in seen] == [(3, 1, 12), (3, 1, 12), (2, 1, 12)]


def test_each_call_draws_anew_and_only_for_a_gradient():
    problem, parameters, generator, ambient = wave(), theta(), seeded(3), torch.get_rng_state()
    first, second = (gradient(simulate(parameters, problem, rad.Sample(0.3), generator), parameters) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(gradient(simulate(parameters, problem, rad.Sample(0.3), seeded(3)), parameters), first)
    state = generator.get_state()
    with torch.no_grad():
        simulate(parameters, problem, rad.Sample(0.3), generator)
    simulate(parameters.detach(), problem, rad.Sample(0.3), generator)
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(torch.get_rng_state(), ambient)


def test_backward_twice_replays_one_draw():
    parameters = theta()
    for loss in (simulate(parameters, wave(), rad.Sample(0.3)), simulate_checkpointed(parameters, wave(), 2)):
        first, second = (torch.autograd.grad(loss, parameters, retain_graph=True)[0] for _ in range(2))
        assert torch.equal(first, second)
        tripled = torch.autograd.grad(3 * loss, parameters)[0]
        torch.testing.assert_close(tripled, 3 * first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nx": 2}, "nx must be a whole number of at least 3, got 2"),
        ({"ny": 2.5}, r"ny .* got 2\.5"),
        ({"steps": 0}, "steps .* at least 1, got 0"),
        ({"dt": -1.0}, "dt must be a positive number"),
        ({"dt": 1 / 1024}, r"below 1, got 1 .* choose dt below 0\.0009766"),
        ({"nx": 129}, r"unstable: .* got 2\.1"),
        ({"diffusion": 0.0}, "positive and finite"),
        ({"diffusion": math.nan}, "positive and finite"),
        ({"diffusion": torch.linspace(0.1, 1.1, 33 * 33).view(33, 33)}, "unstable"),  # by its largest value
        ({"diffusion": torch.ones(3, 3)}, r"\[33, 33\] like the grid, got \[3, 3\]"),
    ],
)
def test_bad_problem_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        reactor(**change)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        (torch.zeros(6), ValueError, r"the 7 parameters of Fourier\(\), got shape \[6\]"),
        (torch.tensor([math.nan] * 7), ValueError, "must be finite"),
        (torch.zeros(7, dtype=torch.int64), TypeError, "got torch.int64"),
        (torch.zeros(7).bfloat16(), TypeError, "got torch.bfloat16"),
        (torch.full((7,), 1e5), FloatingPointError, r"diverges between t = 0 and 0\.0\d+.* smaller theta"),
    ],
)
@pytest.mark.usefixtures("kernels")
def test_bad_theta_is_named(parameters, error, message):
    for run in (
        lambda: simulate(parameters, reactor(), rad.Exact()),
        lambda: simulate_checkpointed(parameters, reactor(), 3),
    ):
        with pytest.raises(error, match=message):
            run()


def test_modes_without_amplitudes_are_named(monkeypatch):
    monkeypatch.setattr(Ramp, "amplitudes", lambda self, t: [t])
    with pytest.raises(ValueError, match=r"Ramp\(\) must have an amplitude for each mode, got 1 for 2"):
        simulate(theta(), wave(), rad.Exact())
