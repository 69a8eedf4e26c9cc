"""Contributions to the variance, found in one pass, against gradients drawn again and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from blocks import Attention, Residual
from cases import CASES, Case
from torch import Tensor, nn

import rad
from rad.budget.probe import contributions
from rad.budget.stand_in import BASE, Probes
from rad.functional import Assignment
from rad.measure import gradient_noise, gradients
from rad.nn import Seeds
from rad.sketch import Sketch
from rad.sketch.random import Stream

BITS = 6  # few enough for noise above rounding errors, enough for its square not to count


@dataclass
class Only(Assignment):
    """Rounds one place, or all, and keeps the rest exactly."""

    place: str | None = None
    bits: int = BITS
    keeps: Sketch | None = None

    sketch = BASE

    @property
    def key(self) -> str:  # pyright: ignore
        return f"{self.place} {self.bits} {self.keeps}"

    def at(self, place: str, last: bool = False) -> Sketch:
        return (self.keeps or rad.Rounding(bits=self.bits)) if self.place in (None, place) else rad.Exact()


def measured(model: nn.Module, loss: Callable[[], Tensor], which: Only, draws: int) -> tuple[float, float]:
    """Variance of the gradient with its standard error."""
    rad.convert(model, which, generator=Seeds(0))
    total = gradient_noise(lambda: gradients(model, loss), draws).total
    rad.revert(model)
    return total.variance, total.variance_error


def assert_predicted(
    model: nn.Module, loss: Callable[[], Tensor], places: list[str | None], draws: int, signs: int
) -> dict[str, float]:
    """Holds predictions to measurements: within five standard errors of both, and three per cent."""
    each = [contributions(model, loss, 1, 1, seed) for seed in range(signs)]
    for place in places:
        names = list(each[0].variance) if place is None else [place]
        found = torch.tensor([sum(c.variance[name] for name in names) for c in each]) / (2**BITS - 1) ** 2
        actual, error = measured(model, loss, Only(place), draws)
        off = 5 * (found.std().item() / signs**0.5 + error) + 0.03 * actual
        assert found.mean().item() == pytest.approx(actual, abs=off), place
        assert off < actual or actual == 0, "nothing is tested"
    return each[0].variance


class Called(nn.Module):
    """A call, of what is computed from parameters."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case, self.given = case, case.tensors(torch.float64)
        self.leaves = nn.ParameterList(t for t in self.given if isinstance(t, Tensor) and t.requires_grad)

    def forward(self) -> Tensor:
        torch.default_generator.manual_seed(3)
        leaves = iter(self.leaves)
        tensors = [next(leaves) if isinstance(t, Tensor) and t.requires_grad else t for t in self.given]
        args = [
            t * 1 if getattr(g, "role", "") == "path" else t for t, g in zip(tensors, self.case.inputs, strict=True)
        ]
        out = self.case.function(*args, **self.case.options)
        outs = [t for t in (out if isinstance(out, tuple) else (out,)) if t.requires_grad]
        generator = torch.Generator().manual_seed(5)
        return sum(((t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in outs), torch.zeros(()))


KINDS = (
    "F.gelu: tanh",
    "F.linear",
    "F.linear: weight that was computed",
    "matmul: stacks",
    "F.conv2d: options",
    "F.conv2d: computed weight",
    "F.layer_norm",
    "F.softmax",
    "F.scaled_dot_product_attention",
    "F.cross_entropy",
    "div",
    "functional.einsum",
)


def test_kinds_of_rules_are_there():
    assert set(KINDS) <= {case.name for case in CASES}


@pytest.mark.parametrize("case", [c for c in CASES if c.name in KINDS], ids=lambda c: c.name)
def test_one_call(case):
    model = Called(case)
    assert_predicted(model, model, [None], draws=60, signs=30)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if c.name not in KINDS and c.places], ids=lambda c: c.name)
@pytest.mark.filterwarnings("ignore")
def test_every_other_call(case):
    model = Called(case)
    if not contributions(model, model, 1, 1, 0).variance:
        pytest.skip("keeps no summary")
    assert_predicted(model, model, [None], draws=60, signs=30)


def attention() -> tuple[nn.Module, Callable[[], Tensor]]:
    model = nn.Sequential(nn.Linear(32, 32), Attention())
    x = torch.randn(4, 12, 32)
    return model, lambda: model(x).square().mean()


def convolutions() -> tuple[nn.Module, Callable[[], Tensor]]:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    x, y = torch.randn(6, 3, 10, 10), torch.randint(5, (6,))
    return model, lambda: nn.functional.cross_entropy(model(x), y)


def recurrent(kind: type[nn.Module]) -> tuple[nn.Module, Callable[[], Tensor]]:
    model = nn.ModuleList([nn.Linear(4, 8), kind(8, 16, num_layers=2, batch_first=True)])
    x, y = torch.randn(5, 9, 4), torch.randn(5, 9, 16)
    return model, lambda: (model[1](model[0](x))[0] - y).square().mean()


NETS = {
    "attention": attention,
    "convolutions": convolutions,
    "lstm": lambda: recurrent(nn.LSTM),
    "gru": lambda: recurrent(nn.GRU),
    "rnn": lambda: recurrent(nn.RNN),
}


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
def test_each_place_of_a_net(net):
    model, loss = NETS[net]()
    places = list(contributions(model, loss, 1, 1, 0).variance)
    assert len(places) > 3
    assert_predicted(model, loss, [None, *places], draws=100, signs=60)


def test_places_of_a_net_add_up():
    model, loss = attention()
    found = contributions(model, loss, 1, 10, 0)
    actual, _ = measured(model, loss, Only(bits=3), 30)
    assert sum(found.variance.values()) / 49 == pytest.approx(actual, rel=0.15)
    assert_predicted(model, loss, [next(name for name in found.variance if "gelu" in name)], draws=30, signs=12)


def deep() -> tuple[nn.Module, Callable[[], Tensor]]:
    model = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(32, 32), nn.GELU())))
    x = torch.randn(16, 32)
    return model, lambda: model(x).square().sum()


def test_noise_that_meets_noise():
    model, loss = deep()
    actual, error = measured(model, loss, Only(bits=1), 150)
    single = sum(contributions(model, loss, 1, 30, 0).variance.values())
    both = sum(contributions(model, loss, 30, 1, 0, lambda _: rad.Rounding(bits=1)).variance.values())
    assert error < 0.02 * actual
    assert both == pytest.approx(actual, rel=0.1)
    assert single < 0.88 * actual


def test_noise_goes_on_through_choices():
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.GELU())
    x = torch.randn(16, 16)
    assert_predicted(model, lambda: model(x).square().sum(), ["3 / gelu 0 / 0"], draws=60, signs=40)


def test_draws_and_batches_are_means():
    model, loss = attention()
    single = [contributions(model, loss, 1, 1, seed).variance for seed in range(2)]
    both = contributions(model, loss, 1, 2, 0).variance
    assert both.keys() == single[0].keys()
    spread = contributions(model, loss, 2, 1, 0)
    assert spread.norm2 == pytest.approx(contributions(model, loss, 1, 1, 0).norm2)
    total = sum(sum(found.values()) for found in single) / 2
    assert sum(both.values()) == pytest.approx(total, rel=0.5)
    assert sum(spread.variance.values()) == pytest.approx(total, rel=0.5)
    assert contributions(model, loss, 1, 1, 0).variance == single[0]


def test_noise_of_each_place_has_a_seed_of_its_own():
    signs = Stream(0, torch.device("cpu"))
    seeds = [int(Probes(None, signs).at(f"a / b {i} / 0").seed) for i in range(20)]
    assert len(set(seeds)) == 20


def test_frozen_parameters_have_no_gradient_to_vary():
    model = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 8))
    model[2].requires_grad_(False)
    x = torch.randn(16, 32)
    found = contributions(model, lambda: model(x).square().sum(), 1, 1, 0).variance
    assert set(found) == {"0 / linear 0 / 0", "1 / gelu 0 / 0", "3 / gelu 0 / 0", "4 / linear 0 / 0"}
    assert_predicted(model, lambda: model(x).square().sum(), [None], draws=40, signs=20)


def test_bytes_are_those_that_a_kept_view_holds():
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Linear(16, 64), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.after(self.before(x)[:, :16]).square().sum()

    model, x = Part(), torch.randn(32, 16)
    found = contributions(model, lambda: model(x), 1, 1, 0).held
    assert list(found.whole["after / linear 0 / 0"].values()) == [32 * 64 * 4]
    assert list(found.whole["before / linear 0 / 0"].values()) == [x.nbytes]
    assert found.counts["before / linear 0 / 0"] == found.counts["after / linear 0 / 0"] == [32 * 16]


def test_a_shared_input_counts_once():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.before = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            x = self.before(x)
            return (self.first(x) * self.second(x)).sum()

    model, x = Twice(), torch.randn(12, 16)
    found = contributions(model, lambda: model(x), 1, 1, 0).variance
    assert sorted(found) == [". / mul 0 / 0", ". / mul 0 / 1", "before / linear 0 / 0", "first / linear 0 / 0"]
    assert_predicted(model, lambda: model(x), ["first / linear 0 / 0"], draws=60, signs=30)


def test_a_gradient_that_is_not_finite():
    model = nn.Linear(4, 4)
    x = torch.full((2, 4), torch.inf)
    with pytest.raises(ValueError, match="not finite"):
        contributions(model, lambda: model(x).sum(), 1, 1, 0)


@pytest.mark.parametrize("model", [nn.GELU(), nn.Linear(4, 4).requires_grad_(False)], ids=["none", "frozen"])
def test_no_parameter_that_requires_a_gradient(model):
    x = torch.ones(2, 4, requires_grad=True)
    with pytest.raises(ValueError, match=r"no parameter of the model requires a gradient.*requires_grad_\(\)"):
        rad.allocate(model, lambda: model(x).sum(), variance=0.1)


def test_what_cannot_be_differentiated_twice_is_told():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            return grad * 2

    model = nn.Sequential(nn.Linear(8, 8), nn.GELU())
    x = torch.randn(40, 8)
    with pytest.raises(ValueError, match="cannot be differentiated once more"):
        contributions(model, lambda: model[1](Once.apply(model[0](x))).square().sum(), 1, 1, 0)


@pytest.mark.parametrize("net", ["attention", "convolutions"])
def test_sampling_is_predicted(net):
    model, loss = NETS[net]()
    each = [contributions(model, loss, 1, 1, seed) for seed in range(20)]
    sampled = [place for place, by in each[0].sampling.items() if by]
    place = next(p for p in sampled if ("conv2d" if net == "convolutions" else "gelu") in p)
    last = next(p for p in reversed(sampled) if "linear" in p)
    for where in (place, last):
        sums = torch.tensor([c.sampling[where][4] + 4 * c.variance[where] / 15**2 for c in each])
        which = Only(where, keeps=rad.SparseRounding(bits=4, every=4))
        actual, error = measured(model, loss, which, 100)
        # Signs are drawn for elements, and of convolutions runs are taken for independent.
        near = 0.25 if "conv2d" in where else 0.1
        assert sums.mean().item() == pytest.approx(actual, rel=near, abs=4 * error), where


def test_elements_that_meet_are_not_sampled():
    model, loss = attention()
    found = contributions(model, loss, 1, 1, 0).sampling
    meet = [place for place, by in found.items() if not by]
    assert meet
    assert all("norm" in place or "softmax" in place or "attention" in place for place in meet), meet


def test_a_weight_that_was_computed_is_not_the_end():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 16))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight * torch.linspace(1, 5, 16)).square().sum()

    model, x = Scaled(), torch.randn(40, 16)
    place = ". / linear 0 / 0"
    assert_predicted(model, lambda: model(x), [place], draws=60, signs=20)
