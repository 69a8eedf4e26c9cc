"""``rad.allocate``: bytes kept to, variance below that of uniform bits, nothing else changed."""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blocks import Attention, Residual
from torch import Tensor, nn

import rad
from rad.budget import Item, Plan
from rad.budget.options import Choices
from rad.budget.probe import Contributions, Held, contributions
from rad.measure import gradient_noise, gradients, saved_bytes
from rad.nn import Seeds

module = sys.modules["rad.budget.allocate"]  # whose name in the package is that of the function
Net = tuple[nn.Module, Callable[[], Tensor]]


def perceptron() -> Net:
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 5))
    x, y = torch.randn(40, 64), torch.randint(5, (40,))
    return model, lambda: F.cross_entropy(model(x), y)


def convolutions() -> Net:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    x, y = torch.randn(6, 3, 12, 12), torch.randint(5, (6,))
    return model, lambda: F.cross_entropy(model(x), y)


def attention() -> Net:
    model = nn.Sequential(nn.Linear(32, 32), Attention(), Attention())
    x = torch.randn(4, 12, 32)
    return model, lambda: model(x).square().mean()


def recurrent() -> Net:
    model = nn.ModuleList([nn.Linear(8, 16), nn.LSTM(16, 16, num_layers=2, batch_first=True)])
    x = torch.randn(5, 9, 8)
    return model, lambda: model[1](model[0](x))[0].square().mean()


def irnn() -> Net:
    model = nn.Sequential(rad.nn.FinalState(3, 24, nonlinearity="relu", batch_first=True), nn.Linear(24, 5))
    x, y = torch.randn(8, 20, 3), torch.randint(5, (8,))
    return model, lambda: F.cross_entropy(model(x), y)


NETS = {
    "perceptron": perceptron,
    "convolutions": convolutions,
    "attention": attention,
    "lstm": recurrent,
    "irnn": irnn,
}


def held(model: nn.Module, loss: Callable[[], Tensor], sketch: rad.Sketch | Plan) -> int:
    rad.convert(model, sketch, generator=Seeds(0))
    total = saved_bytes(loss).total
    rad.revert(model)
    return total


def noise(model: nn.Module, loss: Callable[[], Tensor], sketch: rad.Sketch | Plan, draws: int = 30) -> float:
    rad.convert(model, sketch, generator=Seeds(0))
    found = gradient_noise(lambda: gradients(model, loss), draws).total
    rad.revert(model)
    return found.variance


def smallest(model: nn.Module, loss: Callable[[], Tensor]) -> int:
    with pytest.raises(ValueError, match="the least that is possible") as caught:
        rad.allocate(model, loss, 1)
    return int(str(caught.value).split("take ")[1].split()[0].replace(",", ""))


def at_their_best(plan: Plan) -> bool:
    """Whether all that a larger budget could do is keep further tensors exactly."""
    return all(item.bits in (None, 16) for item in plan.items)


@pytest.mark.parametrize("net", NETS)
def test_bytes_are_kept_to(net):
    model, loss = NETS[net]()
    least, most = smallest(model, loss), held(model, loss, rad.Exact())
    for step in (0, 1, 3, 8, 16):
        budget = least + (most - least) * step // 20
        plan = rad.allocate(model, loss, budget)
        total = held(model, loss, plan)
        assert total == plan.nbytes
        assert total <= budget
        if step and not at_their_best(plan):
            assert total >= 0.97 * budget, step


class Shared(nn.Module):
    """What the second layer reads is held by a function without a rule as well: to keep it exactly costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(128, 32), nn.Linear(32, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return 1e-9 * torch.cumprod(x, 0).sum() + self.second(x.detach()).square().mean()


def test_what_others_hold_exactly_is_counted_once():
    model, x = Shared(), torch.randn(16, 128)

    def loss() -> Tensor:
        return model(x)

    least, most = smallest(model, loss), held(model, loss, rad.Exact())
    shared = 0
    for step in range(1, 9, 2):
        budget = least + (most - least) * step // 9
        plan = rad.allocate(model, loss, budget)
        assert held(model, loss, plan) == plan.nbytes <= budget
        assert plan.nbytes >= 0.97 * budget or at_their_best(plan)
        shared += plan.items[1].bits is None
    assert shared


def test_what_two_hold_exactly_leaves_room_for_others():
    places = ["m / f 0 / x", "m / f 0 / y", *(f"m / g {i} / x" for i in range(8))]
    whole = {place: {max(i, 1): 4000} for i, place in enumerate(places)}  # the first two are one
    held = Held(0, {place: [1000] for place in places}, whole)
    variance = {place: 1e12 if place in places[:2] else 1.0 for place in places}
    choices = Choices(Contributions(1.0, variance, {place: {} for place in places}, held))
    chosen = choices.best(11_000)
    assert sum(choices.held(chosen)) > 0.95 * 11_000  # the 4,000 that are not held twice are spent on the others
    assert choices.held(chosen)[:2] == [4000, 0]


def test_each_measurement_is_asked_for_what_was_asked_of_it(monkeypatch):
    model, loss = perceptron()
    seen, stock, nbytes = [], module.contributions, smallest(model, loss) + 500

    def watched(model_, loss_, batches, draws, seed, sketches=None):
        seen.append((batches, draws, seed, sketches))
        return stock(model_, loss_, batches, draws, seed, sketches)

    monkeypatch.setattr(module, "contributions", watched)
    plan = rad.allocate(model, loss, nbytes, batches=2, draws=3, passes=3, seed=5)
    assert [call[:3] for call in seen] == [(2, 3, 5), (2, 3, 6), (2, 3, 7)]
    assert seen[0][3] is None
    assert all(isinstance(call[3](item.place), rad.Sketch) for call in seen[1:] for item in plan.items)
    # Those of the plan before, which are not all alike.
    assert len({seen[1][3](item.place) for item in plan.items}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
def test_bytes_are_kept_to_at_twenty_budgets(net):
    model, loss = NETS[net]()
    least, most = smallest(model, loss), held(model, loss, rad.Exact())
    for step in range(20):
        budget = least + (most - least) * step // 20
        plan = rad.allocate(model, loss, budget)
        assert held(model, loss, plan) == plan.nbytes <= budget
        assert plan.nbytes >= 0.97 * budget or step == 0 or at_their_best(plan)


@pytest.mark.parametrize("net", ["attention", "convolutions"])
def test_less_variance_than_uniform_bits_at_their_bytes(net):
    model, loss = NETS[net]()
    uniform = rad.Rounding(bits=3)
    plan = rad.allocate(model, loss, held(model, loss, uniform), draws=4)
    exact = gradients(model, loss)
    norm2 = sum(g.square().sum().item() for g in exact.values())
    allocated = noise(model, loss, plan) / norm2
    assert plan.norm2 == pytest.approx(norm2, rel=1e-4)
    assert plan.variance == pytest.approx(allocated, rel=0.25)
    assert allocated < 0.75 * noise(model, loss, uniform) / norm2


def test_gradients_are_unbiased():
    model, loss = attention()
    exact = gradients(model, loss)
    rad.convert(model, rad.allocate(model, loss, held(model, loss, rad.Rounding(bits=2))), generator=Seeds(0))
    found = gradient_noise(lambda: gradients(model, loss), 100, exact).total
    assert found.bias == pytest.approx(found.bias_error, rel=0.2)


def test_no_choice_is_better():
    model, loss = perceptron()
    coarse = rad.allocate(model, loss, smallest(model, loss), passes=1)
    places = [item.place for item in coarse.items]
    assert len(places) == 4
    found = contributions(model, loss, 1, 1, 0)
    options = [(b, 1) for b in range(1, 7)] + [(b, every) for every in (2, 4, 8, 16) for b in (1, 2, 3, 4)]
    costs = np.array([[_bytes_at(coarse, place, *option, model, loss) for option in options] for place in places])
    losses = np.full((len(places), len(options)), np.inf)
    for i, place in enumerate(places):
        for j, (bits, every) in enumerate(options):
            if every == 1 or found.sampling[place]:
                sampled = 0.0 if every == 1 else found.sampling[place][every]
                losses[i, j] = sampled + every * found.variance[place] / (2**bits - 1) ** 2
    combinations = np.array(list(itertools.product(range(len(options)), repeat=len(places))))
    rows = np.arange(len(places))
    cost, loss_ = costs[rows, combinations].sum(1), losses[rows, combinations].sum(1)
    for budget in (coarse.nbytes + 100, coarse.nbytes + 500, coarse.nbytes + 1500):
        fits = coarse.nbytes + cost <= budget
        best = loss_[fits].min()
        # At just the bytes of the best choice nothing is left to be filled.
        plan = rad.allocate(model, loss, int(coarse.nbytes + cost[fits][loss_[fits].argmin()]), passes=1)
        assert plan.variance * plan.norm2 == pytest.approx(best, rel=1e-6)
        assert rad.allocate(model, loss, budget, passes=1).variance * plan.norm2 <= best * (1 + 1e-6)


def _bytes_at(coarse: Plan, place: str, bits: int, every: int, model: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Bytes that another choice for a place takes more, found by trying."""
    items = tuple(Item(i.place, bits, 0, 0.0, every) if i.place == place else i for i in coarse.items)
    other = Plan(items, coarse.other, coarse.norm2, coarse.model, coarse.structure)
    return held(model, loss, other) - coarse.nbytes


def test_fewest_bytes_for_a_variance():
    model, loss = attention()
    plan = rad.allocate(model, loss, variance=0.01, draws=4)
    assert 0.009 < plan.variance <= 0.01
    assert held(model, loss, plan) == plan.nbytes
    norm2 = sum(g.square().sum().item() for g in gradients(model, loss).values())
    assert noise(model, loss, plan) / norm2 == pytest.approx(0.01, rel=0.25)
    # At these bytes there is nothing better, and for more noise fewer bytes do.
    assert rad.allocate(model, loss, plan.nbytes, draws=4).variance == pytest.approx(plan.variance, rel=0.01)
    assert rad.allocate(model, loss, variance=0.5, draws=4).nbytes < plan.nbytes


@pytest.mark.parametrize("passes", [1, 2])
def test_variance_is_in_units_of_the_exact_gradient(passes):
    model, loss = perceptron()
    plan = rad.allocate(model, loss, smallest(model, loss), passes=passes)
    norm2 = sum(float(g.double().square().sum()) for g in gradients(model, loss).values())
    assert plan.norm2 == pytest.approx(norm2, rel=1e-5)


def test_from_a_plan_the_first_pass_sees_what_a_second_one_does():
    model, loss = attention()
    few = smallest(model, loss) * 3 // 2
    first = rad.allocate(model, loss, few, draws=8, passes=1)
    again, twice = (rad.allocate(model, loss, few, draws=8, **how) for how in ({"start": first}, {"passes": 2}))
    assert again.nbytes <= few
    assert again.norm2 == pytest.approx(first.norm2, rel=1e-5)
    assert first.variance < 0.5  # all of it is more than twice as much
    assert again.variance == pytest.approx(twice.variance, rel=0.1)
    assert noise(model, loss, again) / again.norm2 == pytest.approx(again.variance, rel=0.4)


def test_two_passes_are_made_and_one_from_a_start(monkeypatch):
    model, loss = attention()
    passes, stock = [], module.contributions
    monkeypatch.setattr(module, "contributions", lambda *args: passes.append(args[5]) or stock(*args))
    first = rad.allocate(model, loss, variance=0.1)
    assert [sketches is None for sketches in passes] == [True, False]
    rad.allocate(model, loss, variance=0.1, start=first)
    assert len(passes) == 3


def test_a_start_for_another_model_is_refused():
    model, loss = perceptron()
    other = rad.allocate(*attention(), variance=0.1)
    with pytest.raises(ValueError, match="the plan is for another model"):
        rad.allocate(model, loss, "1GB", start=other)


def test_a_variance_that_none_reaches_but_exact_gradients():
    model, loss = perceptron()
    plan = rad.allocate(model, loss, variance=1e-30)
    assert plan.variance <= 1e-30
    assert all(item.bits is None or item.variance == 0 for item in plan.items)


def test_more_than_exact_gradients_hold():
    model, loss = perceptron()
    exact = held(model, loss, rad.Exact())
    with pytest.warns(rad.AllExactWarning, match="exact gradients hold no more than") as caught:
        plan = rad.allocate(model, loss, "1GB")
    assert len(caught) == 1
    assert plan.exact
    assert plan.nbytes == exact
    assert "exact" in str(plan)
    assert held(model, loss, plan) == exact
    before = gradients(model, loss)
    rad.convert(model, plan)
    after = gradients(model, loss)
    assert all(torch.allclose(before[name], after[name], rtol=1e-5, atol=1e-7) for name in before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_just_exact(dtype):
    model, _ = perceptron()
    model, x = model.to(dtype), torch.randn(40, 64, dtype=dtype)

    def loss() -> Tensor:
        return model(x).square().mean()

    exact = held(model, loss, rad.Exact())
    with pytest.warns(rad.AllExactWarning):
        assert rad.allocate(model, loss, exact).exact
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not rad.allocate(model, loss, exact - 1).exact


def test_less_than_the_least():
    model, loss = perceptron()
    least = smallest(model, loss)
    with pytest.raises(ValueError, match=f"nbytes is {least - 1:,}.*{least:,} bytes"):
        rad.allocate(model, loss, least - 1)
    plan = rad.allocate(model, loss, least)
    assert plan.nbytes == least
    assert {(item.bits, item.every) for item in plan.items} == {(1, 16)}


def test_nothing_is_sampled_whose_elements_meet_in_a_product():
    model, loss = attention()
    plan = rad.allocate(model, loss, smallest(model, loss))
    meet = ("normalized", "softmax", "probabilities")
    found = {any(name in item.place for name in meet): set() for item in plan.items}
    for item in plan.items:
        found[any(name in item.place for name in meet)].add(item.every)
    assert found == {True: {1}, False: {16}}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "either nbytes must be given or variance"),
        ({"nbytes": 5, "variance": 0.1}, ValueError, "either nbytes must be given or variance"),
        ({"nbytes": "50XB"}, ValueError, "got '50XB'"),
        ({"nbytes": [3]}, TypeError, "a number of bytes or a size"),
        ({"variance": 0}, ValueError, "variance must be a positive number"),
        ({"variance": -1.0}, ValueError, "variance must be a positive number"),
        ({"variance": float("nan")}, ValueError, "variance must be a positive number"),
        ({"variance": "much"}, ValueError, "variance must be a positive number"),
        ({"variance": True}, ValueError, "variance must be a positive number"),
        ({"nbytes": 10**4, "batches": 0}, ValueError, "batches must be a whole number from 1 to .*, got 0"),
        ({"nbytes": 10**4, "draws": 1.5}, ValueError, "draws must be a whole number from 1 to .*, got 1.5"),
        ({"nbytes": 10**4, "seed": -1}, ValueError, "seed must be a whole number from 0 to .*, got -1"),
        ({"nbytes": 10**4, "seed": 2**62}, ValueError, "seed must be a whole number from 0"),
        ({"nbytes": 10**4, "seed": "a"}, ValueError, "seed must be a whole number from 0"),
        ({"variance": 10**400}, ValueError, "variance must be a positive number"),
    ],
)
def test_bad_input(options, error, message):
    model, loss = perceptron()
    with pytest.raises(error, match=message) as caught:
        rad.allocate(model, loss, **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(error, match=message):  # when it is made, not when it is first needed
        rad.Allocator(model, **options)


@pytest.mark.parametrize("loss", [lambda out: out, lambda out: out.sum() * 1j, lambda out: out.sum().detach()])
def test_a_loss_that_is_no_real_number_with_a_gradient(loss):
    model, _ = perceptron()
    x = torch.randn(64, next(model.parameters()).shape[1])
    with pytest.raises(ValueError, match="requires( a)? grad"):
        rad.allocate(model, lambda: loss(model(x)), variance=0.5)


def test_a_function_is_no_model():
    with pytest.raises(TypeError, match="must be a torch.nn.Module"):
        rad.allocate(torch.tanh, lambda: torch.zeros(()), 100)


def test_a_loss_that_does_not_depend_on_the_model():
    model, _ = perceptron()
    with pytest.raises(ValueError, match="requires grad"):
        rad.allocate(model, lambda: torch.zeros(()), 100)


def test_nothing_else_is_changed():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(8, 4, 3))
    rad.convert(model, rad.Rounding(bits=2), generator=Seeds(5))
    x = torch.randn(4, 3, 9, 9)
    model(x).square().mean().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    buffers = [b.clone() for b in model.buffers()]
    recipes = [module.recipe for module in model.modules()]
    random, seeds = torch.get_rng_state(), rad.nn.seeds(model).get_state()
    rad.allocate(model, lambda: model(x).square().mean(), "6kB")
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(seeds, rad.nn.seeds(model).get_state())
    assert [module.recipe for module in model.modules()] == recipes
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, model.parameters(), strict=True))


def test_a_model_that_fails_is_left_as_it_was():
    model, loss = perceptron()

    def failing() -> Tensor:
        loss()
        raise RuntimeError("no more data")

    with pytest.raises(RuntimeError, match="no more data"):
        rad.allocate(model, failing, 10**4)
    assert not any(isinstance(module, rad.nn.Converted) for module in model.modules())


def test_the_same_plan_again():
    model, loss = attention()
    plans = [rad.allocate(model, loss, 10**5, seed=seed) for seed in (0, 0, 1)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]


def test_smaller_batches_fit_a_plan():
    model, loss = perceptron()
    rad.convert(model, rad.allocate(model, loss, 10**4))
    model(torch.randn(7, 64)).sum().backward()


def test_checkpointed_parts():
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.blocks = nn.Linear(32, 32), nn.ModuleList(Attention() for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for block in self.blocks:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
            return x

    model, x = Checkpointed(), torch.randn(4, 12, 32)

    def loss() -> Tensor:
        return model(x).square().mean()

    least = smallest(model, loss)
    plan = rad.allocate(model, loss, least + 500)
    assert held(model, loss, plan) == plan.nbytes
    rad.convert(model, plan)
    loss().backward()


def test_bits_between_two_numbers_take_up_what_is_left():
    model, x = nn.Linear(64, 8), torch.randn(40, 64)

    def loss() -> Tensor:
        return model(x).sum()

    budget = sum(held(model, loss, rad.Rounding(bits=bits)) for bits in (3, 4)) // 2
    plan = rad.allocate(model, loss, budget)
    assert 0.99 * budget <= held(model, loss, plan) == plan.nbytes <= budget
    assert [item.bits is not None and 3.4 < item.bits < 3.6 for item in plan.items] == [True]
    assert noise(model, loss, plan, 200) == pytest.approx(plan.variance * plan.norm2, rel=0.1)


def test_what_two_places_keep_whole_counts_once():
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.left, self.right = nn.Linear(16, 64), nn.Linear(32, 8), nn.Linear(32, 8)

        def forward(self, x: Tensor) -> Tensor:
            h = self.before(x)
            return (torch.tanh(self.left(h[:, :32])) * torch.tanh(self.right(h[:, 32:]))).sum()

    model, x = Halves(), torch.randn(32, 16)

    def loss() -> Tensor:
        return model(x)

    plan = rad.allocate(model, loss, variance=1e-30)
    whole = {item.place: item.nbytes for item in plan.items if item.bits is None}
    assert sorted(n for place, n in whole.items() if place.startswith(("left", "right"))) == [0, 32 * 64 * 4]
    assert held(model, loss, plan) == plan.nbytes


def test_a_loss_outside_of_the_model_and_half_precision():
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8))
    x, y = torch.randn(32, 64), torch.randint(8, (32,))

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(x), y)

    plan = rad.allocate(model, loss, "6kB")
    assert held(model, loss, plan) == plan.nbytes <= 6000
    exact = gradients(model, loss)
    norm2 = sum(g.square().sum().item() for g in exact.values())
    assert noise(model, loss, plan) / norm2 == pytest.approx(plan.variance, rel=0.4)
