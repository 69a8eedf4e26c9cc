"""The methods: which bytes they hold and which gradients they give."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F

import rad
from experiments.errors import UserError
from experiments.methods import Auto, Exact, Rad, measured
from experiments.models import CNN, LSTM, MLP, ResNet
from experiments.nets import UNet
from experiments.rivals import Accumulate, Checkpoint, CompileBudget, SmallBatch
from rad.nn import Seeds

PAPER = (784, 300, 300, 300, 10)


def batch(size: int):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, 1, 28, 28, generator=generator)
    return x, torch.randint(10, (size,), generator=generator)


@pytest.mark.parametrize("budget", [0.05, 0.1, 0.5])
def test_small_batch_is_the_largest_that_holds_no_more(budget):
    model, full = MLP(PAPER), batch(150)
    small = SmallBatch("small_batch", rad.Project(budget))
    size = small.batch_size(model, full, F.cross_entropy)
    allowed = measured(Rad("rad", rad.Project(budget)), model, full, F.cross_entropy)
    assert measured(small, model, batch(size), F.cross_entropy) <= allowed
    assert measured(small, model, batch(size + 1), F.cross_entropy) > allowed


def test_small_batch_lands_near_the_papers():
    size = SmallBatch("small_batch", rad.Project(0.1)).batch_size(MLP(PAPER), batch(150), F.cross_entropy)
    assert 17 <= size <= 22


def test_a_reference_that_keeps_everything_allows_the_full_batch():
    # As many bytes, no fewer: the largest batch that fits is the one that fits exactly.
    assert SmallBatch("small_batch", rad.Exact()).batch_size(MLP(PAPER), batch(40), F.cross_entropy) == 40


def test_a_smaller_batch_has_layers_as_lean_as_those_of_rad_and_exact_gradients():
    images = torch.randn(20, 3, 8, 8), batch(20)[1]
    for model, (x, y) in ((MLP(PAPER), batch(20)), (CNN(3, [[4, 4]], 3, 8, 10), images)):
        small, stock = SmallBatch("small_batch", rad.Project(0.1)), copy.deepcopy(model)
        lean, rads = (measured(m, model, (x, y), F.cross_entropy) for m in (small, Rad("rad", rad.Exact())))
        assert lean == rads != measured(Exact("exact"), model, (x, y), F.cross_entropy)
        small.prepare(model, torch.Generator())
        for p, q in zip(*(gradient(m, x, y) for m in (model, stock)), strict=True):
            torch.testing.assert_close(p, q)


def gradient(model, x, y):
    return torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))


@pytest.mark.parametrize("sketch", [rad.Project(0.1), rad.Sample(0.1, per="element"), rad.Rounding(0.1)], ids=str)
def test_sketches_draw_from_the_generator_given_and_from_no_other(sketch):
    x, y = batch(10)

    def first_layer(seed):
        torch.manual_seed(0)
        model = Rad("rad", sketch).prepare(MLP(PAPER), torch.Generator().manual_seed(seed))
        torch.manual_seed(seed + 1)  # has no part in it
        ambient = torch.get_rng_state()
        found = gradient(model, x, y)[0]
        assert torch.equal(torch.get_rng_state(), ambient)
        return found

    assert torch.equal(first_layer(5), first_layer(5))
    assert not torch.equal(first_layer(5), first_layer(6))


def test_draws_are_those_of_the_seed_whatever_was_drawn_before():
    x, y = batch(10)
    found = []
    for ambient in (1, 2):
        torch.manual_seed(0)
        model = MLP(PAPER)
        torch.manual_seed(ambient)
        Rad("rad", rad.Project(0.1)).prepare(model, torch.Generator().manual_seed(7))
        found.append(gradient(model, x, y)[0])
    assert torch.equal(*found)


def test_a_budget_too_small_for_one_example_is_refused():
    with pytest.warns(rad.BudgetFloorWarning), pytest.raises(UserError, match="a single example holds more"):
        SmallBatch("small_batch", rad.Project(1e-4)).batch_size(MLP(PAPER), batch(2), F.cross_entropy)


def test_measuring_leaves_the_model_alone():
    model = MLP(PAPER)
    before, types = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    state = torch.get_rng_state()
    measured(Rad("rad", rad.Rounding(0.1)), model, batch(5), F.cross_entropy)
    assert [type(m) for m in model.modules()] == types
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("segments", [1, 2, 3])
def test_checkpointing_is_exact_and_holds_less(segments):
    torch.manual_seed(0)
    model, (x, y) = MLP(PAPER), batch(20)
    F.cross_entropy(model(x), y).backward()
    exact = [p.grad.clone() for p in model.parameters()]
    keys = list(model.state_dict())
    method = Checkpoint("checkpoint", segments)
    if segments == 2:  # more of them keep more inputs, fewer keep more of the last segment
        assert measured(method, model, (x, y), F.cross_entropy) < measured(Exact("e"), model, (x, y), F.cross_entropy)
    model.zero_grad()
    method.prepare(model, Seeds(0))
    F.cross_entropy(model(x), y).backward()
    assert list(model.state_dict()) == keys
    for p, grad in zip(model.parameters(), exact, strict=True):
        torch.testing.assert_close(p.grad, grad)


def test_checkpointing_says_what_it_cannot_do():
    for segments in (0, 9):
        with pytest.raises(UserError, match=rf"segments must lie in \[1, 8\].*got {segments}"):
            Checkpoint("checkpoint", segments).prepare(MLP(PAPER), Seeds(0))
    with pytest.raises(UserError, match=r"Linear has none; make it an nn\.Sequential"):
        Checkpoint("checkpoint", 2).prepare(torch.nn.Linear(2, 2), Seeds(0))


SIZED = {
    "rounding": Rad("rad_round", rad.Rounding(0.1)),
    "projection": Rad("rad_proj", rad.Project(0.1)),
    "different": Rad("rad_diff", rad.Sample(0.1, per="element")),
    "same": Rad("rad_same", rad.Sample(0.1, per="batch")),
    "mixed": Rad("rad_mixed", rad.RoundedSample(0.1)),
    "auto": Auto("rad_auto", 0.1, every=10),
    "smaller batch": SmallBatch("small_batch", rad.Project(0.1)),
}


@pytest.mark.parametrize("name", SIZED)
def test_a_size_is_kept_to_and_used(name):
    torch.manual_seed(0)
    model, (x, y), allowed = MLP(PAPER), batch(60), 150_000
    method = SIZED[name].settled(allowed, model, (x, y), F.cross_entropy)
    size = method.batch_size(model, (x, y), F.cross_entropy)
    held = measured(method, model, batch(size), F.cross_entropy)
    # A whole bit of every element is a ninth of the bytes here, and an example a fortieth.
    assert (0.87 if name == "rounding" else 0.95) * allowed < held <= allowed
    again = SIZED[name].settled(allowed, model, (x, y), F.cross_entropy)
    assert again == method


@pytest.mark.parametrize("name", SIZED)
def test_a_size_that_is_too_little(name):
    model, full = MLP(PAPER), batch(10)
    with pytest.raises(UserError, match="budget") as caught:
        SIZED[name].settled(300, model, full, F.cross_entropy).batch_size(model, full, F.cross_entropy)
    assert "300" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_methods_without_a_budget_take_no_notice_of_a_size():
    model, full = MLP(PAPER), batch(10)
    for method in (Exact("exact"), Checkpoint("checkpoint", 2)):
        assert method.settled(300, model, full, F.cross_entropy) is method


def test_a_fraction_is_one_of_the_bytes_of_stock():
    torch.manual_seed(0)
    model, full = MLP(PAPER), batch(60)
    method = Auto("rad_auto", 0.15, every=10).settled(None, model, full, F.cross_entropy)
    stock = measured(Exact("exact"), model, full, F.cross_entropy)
    assert 0.97 * 0.15 * stock < measured(method, model, full, F.cross_entropy) <= 0.15 * stock
    allocator = method.allocator(method.prepare(model, seeds := Seeds(3)), seeds)
    assert allocator.every == 10
    assert allocator.nbytes == int(0.15 * stock)
    assert rad.nn.seeds(model) is seeds


def test_only_a_plan_needs_an_allocator():
    assert all(m.allocator(MLP(PAPER), Seeds(0)) is None for m in (Exact("e"), SIZED["projection"]))


class Blocks(torch.nn.Module):
    """A model that is no sequence: blocks in a list, one of them skipped around, dropout and running statistics."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(6, 8)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Dropout(0.5))
            for _ in range(3)
        )
        self.last = torch.nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


@pytest.mark.parametrize(
    "made", [Blocks, lambda: ResNet(3, 4, [1, 1], 5), lambda: UNet(8)], ids=["list", "in turn", "u"]
)
def test_checkpointing_of_any_net_is_exact_and_leaves_its_statistics_alone(made):
    torch.manual_seed(0)
    stock = made()
    x = torch.randn(6, 6) if isinstance(stock, Blocks) else torch.randn(6, 3, 8, 8)
    checked = Checkpoint("checkpoint", 3).prepare(copy.deepcopy(stock), Seeds(0))
    assert list(checked.state_dict()) == list(stock.state_dict())
    results = []
    for model in (stock, checked):
        torch.manual_seed(1)
        for _ in range(2):
            model(x).square().sum().backward()
        results.append([*(p.grad for p in model.parameters()), *model.buffers(), model.eval()(x)])
        model.train()
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    held = [rad.measure.saved_bytes(lambda m=m: m(x).square().sum()).total for m in (checked, stock)]
    assert held[0] < 0.7 * held[1]


def test_micro_batches_are_the_largest_that_hold_no_more():
    model, full = MLP(PAPER), batch(150)
    method, small = Accumulate("accumulate", rad.Rounding(0.1)), SmallBatch("small_batch", rad.Rounding(0.1))
    assert method.batch_size(model, full, F.cross_entropy) == 150
    assert method.at_once(model, full, F.cross_entropy) == small.batch_size(model, full, F.cross_entropy) < 25
    assert (
        small.at_once(model, batch(18), F.cross_entropy) == Exact("e").at_once(model, batch(18), F.cross_entropy) == 18
    )


def test_accumulation_over_batch_norm_is_said_to_be_another_function():
    model, full = ResNet(3, 4, [1], 10), (torch.randn(20, 3, 8, 8), batch(20)[1])
    with pytest.warns(UserWarning, match="BatchNorm normalizes each micro-batch of .* the full batch of 20 does"):
        Accumulate("accumulate", rad.Rounding(0.1)).at_once(model, full, F.cross_entropy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Accumulate("accumulate", rad.Exact()).at_once(model, full, F.cross_entropy)  # in one part


def test_the_compiler_keeps_what_the_budget_says_and_is_exact():
    torch.manual_seed(0)
    net = [layer for _ in range(2) for layer in (torch.nn.Linear(40, 40), torch.nn.GELU(), torch.nn.Tanh())]
    model, (x, y) = torch.nn.Sequential(*net), (torch.randn(30, 40), torch.randint(40, (30,)))
    expected, held = gradient(model, x, y), []
    for budget in (1.0, 0.3):
        method = CompileBudget("compile_budget", budget, "aot_eager_decomp_partition")
        held.append(measured(method, model, (x, y), F.cross_entropy))
        for p, q in zip(gradient(method.prepare(copy.deepcopy(model), Seeds(0)), x, y), expected, strict=True):
            torch.testing.assert_close(p, q)
    assert held[1] < 0.7 * held[0] < measured(Exact("exact"), model, (x, y), F.cross_entropy)


def test_the_compiler_evaluates_the_plain_model_and_says_what_it_cannot_do():
    model = LSTM(8, 4, 1)
    compiled = CompileBudget("compile_budget", 0.5, "aot_eager").prepare(copy.deepcopy(model), Seeds(0))
    x = torch.randint(8, (2, 5))
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))
    with pytest.raises(UserError, match="cannot compile LSTM into one graph"):
        compiled(x)
    with pytest.raises(UserError, match="backend must be one of .*, got 'gcc'"):
        CompileBudget("compile_budget", 0.5, "gcc").prepare(model, Seeds(0))
    with pytest.raises(ValueError, match="budget"):
        CompileBudget("compile_budget", 1.5, "inductor").prepare(model, Seeds(0))
