"""Measured bias and variance against known moments, and against the closed forms of the sketches."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from sketches import SKETCHES, normal, seeded
from torch import nn

import rad
from rad.measure import GradientNoise, Moments, gradient_noise, gradients, hessian_product


def known(scale=1.0, shift=0.0, seed=0):
    """Draws of a gradient with variance ``4 scale²`` in one layer and ``3`` in another."""
    generator = seeded(seed)
    exact = {"a.weight": normal(2, 2), "b.weight": normal(3), "b.bias": normal(2)}
    noise = {"a.weight": scale, "b.weight": 1.0, "b.bias": 0.0}

    def draw():
        return {n: g + shift + noise[n] * torch.randn(g.shape, generator=generator) for n, g in exact.items()}

    return draw, exact


def test_variance_by_layer_and_in_all():
    draw, exact = known(scale=2.0)
    noise = gradient_noise(draw, 2000, exact)
    expected = {"a": 16.0, "b": 3.0}
    assert noise.layers.keys() == expected.keys()
    for found, variance in [*((noise.layers[n], v) for n, v in expected.items()), (noise.total, 19.0)]:
        assert abs(found.variance - variance) < 3 * found.variance_error
        assert found.bias < 2 * found.bias_error
        assert found.bias_error == pytest.approx(math.sqrt(found.variance / 2000))
    assert noise.total.norm2 == pytest.approx(sum(g.square().sum().item() for g in exact.values()), rel=1e-5)


@pytest.mark.parametrize("draws", [3, 4, 50])
@pytest.mark.parametrize("with_exact", [True, False])
def test_moments_are_those_of_all_draws_at_once(draws, with_exact):
    (draw, exact), (again, _) = known(), known()
    noise = gradient_noise(draw, draws, exact if with_exact else None)
    kept = torch.stack([torch.cat([g.flatten() for g in again().values()]) for _ in range(draws)]).double()
    flat = torch.cat([g.flatten() for g in exact.values()]).double()
    means = torch.stack([kept[:t].mean(0) for t in range(1, draws)])
    t = torch.arange(1, draws, dtype=torch.float64)
    increments = t / (t + 1) * (kept[1:] - means).square().sum(1)
    assert noise.draws == draws
    variance = kept.var(0).sum().item()
    assert noise.total.variance == pytest.approx(variance, rel=1e-9)
    assert noise.total.variance_error == pytest.approx(increments.std().item() / (draws - 1) ** 0.5, rel=1e-6)
    assert noise.total.bias_error == pytest.approx(math.sqrt(variance / draws), rel=1e-9)
    assert noise.total.norm2 == pytest.approx((flat if with_exact else kept.mean(0)).square().sum().item(), rel=1e-9)
    bias = (kept.mean(0) - flat).norm().item() if with_exact else math.nan
    assert noise.total.bias == pytest.approx(bias, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_moments_of_draws_of_low_precision_are_not(dtype):
    # Around a large number, one unit in the last place up or down.
    unit, generator, draws = 1024 * torch.finfo(dtype).eps, seeded(0), []

    def draw():
        up = torch.randint(2, (50,), generator=generator, dtype=torch.float64)
        draws.append((1024 + unit * up).to(dtype))
        return {"a.weight": draws[-1]}

    found = gradient_noise(draw, 40).total
    kept = torch.stack(draws).double()
    assert found.variance == pytest.approx(kept.var(0).sum().item(), rel=1e-6)
    assert found.norm2 == pytest.approx(kept.mean(0).square().sum().item(), rel=1e-12)


def test_draws_stay_as_they_are():
    draws = [{"w": normal(3, seed=seed, dtype=torch.float64)} for seed in range(5)]
    before, queue = copy.deepcopy(draws), iter(draws)
    gradient_noise(lambda: next(queue), 5)
    assert all(torch.equal(a["w"], b["w"]) for a, b in zip(before, draws, strict=True))


def test_parameters_of_no_layer_go_by_their_own_name():
    noise = gradient_noise(lambda: {"scale": torch.rand(2), "a.b.weight": torch.rand(2), "a.b.bias": torch.rand(2)}, 3)
    assert list(noise.layers) == ["scale", "a.b"]


def test_standard_error_is_that_of_repetition():
    found = [gradient_noise(known(seed=s)[0], 40).total for s in range(200)]
    spread = torch.tensor([m.variance for m in found]).std().item()
    claimed = torch.tensor([m.variance_error for m in found]).mean().item()
    assert 0.8 < claimed / spread < 1.25


def test_bias_is_found():
    draw, exact = known(shift=0.5)
    total = gradient_noise(draw, 400, exact).total
    assert total.bias == pytest.approx(0.5 * 3, rel=0.2)
    assert total.bias > 5 * total.bias_error


def test_without_exact_gradient():
    total = gradient_noise(known()[0], 5).total
    assert math.isnan(total.bias)
    assert total.norm2 > 0


def test_ratio_of_two_variances():
    big, small = (gradient_noise(known(scale=s, seed=int(s))[0], 500).layers["a"] for s in (3.0, 1.0))
    ratio, error = big.relative_to(small)
    assert abs(ratio - 9) < 3 * error
    assert ratio == big.variance / small.variance
    relative = math.hypot(big.variance_error / big.variance, small.variance_error / small.variance)
    assert error == pytest.approx(ratio * relative, rel=1e-9)
    assert all(map(math.isnan, big.relative_to(gradient_noise(lambda: {"a": torch.ones(2)}, 3).total)))


@pytest.mark.montecarlo
# Three standard errors for one layer of each sketch: as the closed form's own test, but through the layer.
@pytest.mark.parametrize("name", SKETCHES)
def test_added_noise_of_a_converted_model(name):
    model = nn.Sequential(nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    x, y = normal(8, 20, dtype=torch.float64) + 0.3, torch.arange(8) % 3
    exact = gradients(model, lambda: F.cross_entropy(model(x), y))
    hidden = model[0](x).requires_grad_()
    (grad_out,) = torch.autograd.grad(F.cross_entropy(model[2](hidden.relu()), y), hidden)
    sketch = SKETCHES[name](0.4)
    rad.convert(model, sketch, skip=("2",), generator=seeded(0))
    noise = gradient_noise(lambda: gradients(model, lambda: F.cross_entropy(model(x), y)), 600, exact)
    found = noise.layers["0"]
    assert abs(found.variance - sketch.variance(x, grad_out)) < 3 * found.variance_error + 1e-12
    assert found.bias < 3 * found.bias_error
    assert noise.layers["2"].variance < 1e-25


def test_gradients_leave_grad_fields_alone():
    model = nn.Linear(3, 2)
    unused = nn.ModuleList([model, nn.Linear(1, 1)])
    unused[1].bias.requires_grad_(False)
    found = gradients(unused, lambda: model(torch.ones(1, 3)).sum())
    assert list(found) == ["0.weight", "0.bias", "1.weight"]
    assert not found["1.weight"].any()
    assert model.weight.grad is None
    reference = copy.deepcopy(model)
    reference(torch.ones(1, 3)).sum().backward()
    assert torch.equal(found["0.weight"], reference.weight.grad)


TABLE = """\
layer  ‖g‖²           variance    ÷ ‖g‖²   bias  expected of none
-----------------------------------------------------------------
a         4            8 ± 0.5         2    0.3              0.25
long      0            2 ± 0.1         –    nan              0.75
total     4  1.234e+04 ± 6e+02  3.09e+03  0.123             0.125
7 draws; ± is a standard error"""


@pytest.mark.parametrize("curved", [False, True])
def test_a_table(curved):
    layers = {"a": Moments(4.0, 8.0, 0.5, 0.3, 0.25), "long": Moments(0.0, 2.0, 0.1, math.nan, 0.75)}
    total = Moments(4.0, 12345.0, 600.0, 0.1234, 0.125)
    noise = GradientNoise(7, total, layers, *((2.5, 0.25) if curved else ()))
    assert str(noise) == TABLE + "\nweighted by curvature (tr HΣ): 2.5 ± 0.2" * curved


@pytest.mark.parametrize("draws", [2, 0, True, 3.5])
def test_too_few_draws(draws):
    with pytest.raises(ValueError, match="at least 3, got"):
        gradient_noise(known()[0], draws)


def test_entries_go_by_name_in_whatever_order():
    (draw, exact), (again, _), turn = known(), known(), iter(range(99))

    def shuffled():
        found = again()
        return dict(sorted(found.items(), reverse=next(turn) % 2 == 1))

    backwards = dict(reversed(exact.items()))
    first, second = gradient_noise(draw, 5, exact), gradient_noise(shuffled, 5, backwards)
    assert second.total == dataclasses.replace(
        first.total, **{k: pytest.approx(v) for k, v in vars(first.total).items()}
    )
    assert second.layers["a"] == first.layers["a"]


@pytest.mark.parametrize("change", ["more", "fewer", "others"])
def test_an_exact_gradient_of_other_entries(change):
    draw, exact = known()
    other = {"more": {**exact, "c": torch.ones(1)}, "fewer": {"b.bias": exact["b.bias"]}}.get(change)
    other = other or {f"{name}_": g for name, g in exact.items()}
    with pytest.raises(ValueError, match=f"exact has the entries {', '.join(other)}, but the draws have a.weight"):
        gradient_noise(draw, 3, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_curvature_is_given_differences_as_the_draws_are(dtype):
    generator, seen = seeded(0), []

    def curvature(vector):
        seen.append(vector)
        return {name: 2 * v for name, v in vector.items()}

    found = gradient_noise(
        lambda: {n: torch.randn(3, 2, generator=generator).to(dtype) for n in ("a.weight", "a.bias")},
        6,
        None,
        curvature,
    )
    assert [{name: (v.dtype, v.shape) for name, v in vector.items()} for vector in seen] == [
        dict.fromkeys(("a.weight", "a.bias"), (dtype, (3, 2)))
    ] * 5
    # Of a multiple of the identity it is that multiple of the variance.
    assert found.curved == pytest.approx(2 * found.total.variance, rel=2e-2 if dtype == torch.bfloat16 else 1e-6)
    assert found.curved_error == pytest.approx(2 * found.total.variance_error, rel=0.1)


def test_a_vector_of_another_precision():
    model, x = nn.Linear(3, 2), normal(4, 3)
    vector = {name: normal(*p.shape, dtype=torch.float64) for name, p in model.named_parameters()}
    loss = lambda: model(x).square().sum()  # noqa: E731
    found = hessian_product(model, loss, vector)
    expected = hessian_product(model, loss, {name: v.float() for name, v in vector.items()})
    assert {h.dtype for h in found.values()} == {torch.float32}
    assert all(torch.equal(found[name], expected[name]) for name in vector)


def test_names_that_do_not_match():
    with pytest.raises(ValueError, match=r"exact has the entries c, but the draws have a\.weight"):
        gradient_noise(known()[0], 3, {"c": torch.ones(1)})
    with pytest.raises(ValueError, match="exact has the entries"):
        gradient_noise(lambda: {"a": torch.ones(1)}, 3, {"c": torch.ones(1)})
    with pytest.raises(ValueError, match="without entries"):
        gradient_noise(dict, 3)


@pytest.mark.parametrize("gradient", [None, 3, [1], {"a": 3}, torch.ones(2)])
def test_what_is_no_gradient(gradient):
    with pytest.raises(TypeError, match="draw must return tensors by name"):
        gradient_noise(lambda: gradient, 3)


@pytest.mark.parametrize(
    "vector", [None, {}, {"weight": 3, "bias": 3}, {"weight": torch.ones(1), "bias": torch.ones(1)}]
)
def test_what_is_no_vector(vector):
    model = nn.Linear(2, 3)
    with pytest.raises(ValueError, match="vector must hold a tensor of the shape of each parameter"):
        hessian_product(model, lambda: model(torch.ones(1, 2)).square().sum(), vector)


@pytest.mark.parametrize(
    "change",
    [
        lambda out: None,
        lambda out: 3.0,
        lambda out: out,
        lambda out: out.sum().detach(),
        lambda out: out.sum() * 1j,
        lambda out: out.sum().detach().to(torch.int64),
    ],
)
def test_what_is_no_loss(change):
    model = nn.Linear(2, 3)
    loss = lambda: change(model(torch.ones(1, 2)))  # noqa: E731
    for call in (gradients, lambda *args: hessian_product(*args, dict(model.named_parameters()))):
        with pytest.raises(ValueError, match="loss must return one real number that requires a gradient, got"):
            call(model, loss)


class Attending(nn.Module):
    """Attention, a recurrent net and parameters on which the loss depends linearly or not at all."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.recurrent = nn.RNN(4, 3, batch_first=True)
        self.shift, self.unused = nn.Parameter(torch.zeros(())), nn.Parameter(torch.ones(2))

    def forward(self, x):
        mixed = F.scaled_dot_product_attention(self.inner(x), x, x)
        return self.recurrent(mixed)[0].square().mean() + self.shift


def test_the_product_with_the_hessian_is_that_of_the_whole_matrix():
    model, x = Attending().double(), normal(2, 5, 4, dtype=torch.float64)
    names, values = zip(*model.named_parameters(), strict=True)
    sizes = [p.numel() for p in values]

    def flat(vector):
        parts = {n: v.view_as(p) for n, v, p in zip(names, vector.split(sizes), values, strict=True)}
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            return torch.func.functional_call(model, parts, (x,))

    at = torch.cat([p.detach().flatten() for p in values])
    matrix = torch.autograd.functional.hessian(flat, at)
    direction = normal(len(at), dtype=torch.float64, seed=1)
    vector = {n: v.view_as(p) for n, v, p in zip(names, direction.split(sizes), values, strict=True)}
    found = hessian_product(model, lambda: model(x), vector)
    assert list(found) == list(names)
    torch.testing.assert_close(torch.cat([h.flatten() for h in found.values()]), matrix @ direction)
    assert not found["shift"].any()
    assert not found["unused"].any()
    assert all(p.grad is None for p in values)


@pytest.mark.parametrize("with_exact", [True, False])
def test_noise_weighted_by_curvature_is_the_trace_of_both(with_exact):
    weights = {"a.weight": torch.tensor([[3.0, -1.0], [0.0, 2.0]]), "b.weight": torch.tensor([0.5, 0.0, 1.0])}
    weights["b.bias"] = torch.ones(2)

    def curvature(vector):
        return {name: weights[name] * v for name, v in vector.items()}

    draw, exact = known(scale=2.0)
    noise = gradient_noise(draw, 4000, exact if with_exact else None, curvature)
    expected = 4 * 4.0 + 1.5  # of a diagonal matrix
    assert abs(noise.curved - expected) < 3 * noise.curved_error
    assert 0 < noise.curved_error < 0.05 * expected
    few = [gradient_noise(known(scale=2.0, seed=s)[0], 30, None, curvature) for s in range(150)]
    found, claimed = (torch.tensor([getattr(n, k) for n in few]) for k in ("curved", "curved_error"))
    assert abs(found.mean() - expected) < 4 * found.std() / 150**0.5
    assert 0.8 < claimed.mean() / found.std() < 1.25
    assert "weighted by curvature" in str(noise)
    assert math.isnan(gradient_noise(draw, 3).curved)


def test_what_a_step_loses_by_noise_is_half_the_squared_rate_times_the_weighted_noise():
    torch.manual_seed(3)
    model, x, y = (
        nn.Linear(6, 1).double(),
        normal(20, 6, dtype=torch.float64),
        normal(20, 1, dtype=torch.float64, seed=1),
    )

    def loss():
        return F.mse_loss(model(x), y)  # quadratic: the second order is all there is

    generator, rate, exact, after = seeded(0), 0.1, gradients(model, loss), []

    def at(gradient):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for name, p in moved.named_parameters():
                p -= rate * gradient[name]
        return F.mse_loss(moved(x), y).item()

    def draw():
        noisy = {n: g + torch.randn(g.shape, generator=generator, dtype=torch.float64) for n, g in exact.items()}
        after.append(at(noisy) - at(exact))
        return noisy

    noise = gradient_noise(draw, 2000, exact, lambda v: hessian_product(model, loss, v))
    lost = torch.tensor(after)
    error = math.hypot(lost.std().item() / 2000**0.5, rate**2 / 2 * noise.curved_error)
    assert abs(lost.mean().item() - rate**2 / 2 * noise.curved) < 3 * error
    assert error < 0.1 * lost.mean()


@pytest.mark.parametrize("model", [nn.GELU(), nn.Linear(2, 2).requires_grad_(False)], ids=["none", "frozen"])
def test_no_parameter_that_requires_a_gradient(model):
    x = torch.ones(1, 2, requires_grad=True)
    for call in (gradients, lambda *args: hessian_product(*args, {})):
        with pytest.raises(ValueError, match=r"no parameter of the model requires a gradient.*requires_grad_\(\)"):
            call(model, lambda: model(x).sum())
