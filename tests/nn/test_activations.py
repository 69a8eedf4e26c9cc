"""Modules that are declared elementwise are one operation, with one summary, and otherwise what they were."""

from __future__ import annotations

import copy
import math
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from blocks import distance, gradients
from sketches import SKETCHES, assert_unbiased, normal
from torch import Tensor, nn
from torch.func import grad

import rad
from rad.functional import slopes
from rad.measure import saved_bytes
from rad.nn import activations

FEW = rad.Rounding(bits=3)
SUMMARY = 64 * 64 // 8 * 3 + 64 * 64 // 256 * 4 + 8  # packed bits, a range for each group, a seed


@rad.nn.elementwise
class Gelu(nn.Module):
    """A chain of eight operations, of which four would keep a summary."""

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return scale * 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class Chain(Gelu):
    """The same without a declaration."""

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(x, scale)


class Named(Gelu):
    pass


@rad.nn.elementwise
class Nested(nn.Module):
    """A declared module with another inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Gelu()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.inner(x)


@pytest.fixture
def _pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slopes, "_MANY", (64, 8))


@pytest.fixture(autouse=True)
def _undone() -> Iterator[None]:
    """What a test declares is forgotten."""
    before = set(activations._DECLARED)
    yield
    activations._DECLARED.clear()
    activations._DECLARED.update(before)


def kept(module: nn.Module, *args, **kwargs) -> list[tuple[str, str, int]]:
    """By which operation, in which place and how large."""
    ledger = saved_bytes(lambda: module(*args, **kwargs).sum())
    return [(e.operation.rpartition(".")[2], e.place, e.nbytes) for e in ledger.entries if e.nbytes > 8]


def held(module: nn.Module, *args, **kwargs) -> int:
    return saved_bytes(lambda: module(*args, **kwargs).sum()).total


def converted(module: nn.Module, sketch: rad.Sketch = FEW) -> nn.Module:
    return rad.convert(module, sketch, generator=rad.nn.Seeds(0))


def given(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What a layer before has computed."""
    return normal(*(shape or (64, 64)), dtype=dtype).requires_grad_() * 1


def test_one_summary_in_place_of_four():
    x = given()
    assert held(converted(Chain()), x) == 4 * SUMMARY
    assert held(converted(Gelu()), x) == SUMMARY
    assert {operation for operation, *_ in kept(converted(Gelu()), x)} == {"Gelu"}


@pytest.mark.parametrize("pieces", [2**19, 75])
@pytest.mark.parametrize("shape", [(), (4096,), (4, 16, 64), (1, 2, 2048), (3, 5), (0, 4), (1,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_values_bit_for_bit_and_gradients(pieces, shape, dtype, monkeypatch):
    monkeypatch.setattr(slopes, "_MANY", (pieces, 8))
    x, sketch = normal(*shape, dtype=dtype).requires_grad_(), rad.Rounding(bits=14)
    out, ours = Gelu()(x), converted(Gelu(), sketch)(x * 1)
    assert torch.equal(ours, out)
    assert ours.dtype == out.dtype
    exact, found = (torch.autograd.grad(t.square().sum(), x)[0] for t in (out, ours))
    torch.testing.assert_close(found, exact, rtol=0.05 if dtype == torch.bfloat16 else 1e-3, atol=0.02)


@pytest.mark.usefixtures("_pieces")
def test_where_memory_is_in_another_order():
    x = normal(64, 16, 64).transpose(0, 1).requires_grad_()
    out, ours = Gelu()(x), converted(Gelu(), rad.Rounding(bits=14))(x)
    assert torch.equal(ours, out)
    exact, found = (torch.autograd.grad(t.square().sum(), x)[0] for t in (out, ours))
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-3)


def test_autograd_holds_a_piece_at_a_time(monkeypatch):
    sizes = []

    @partial(monkeypatch.setattr, Gelu, "forward")
    def forward(self, x: Tensor) -> Tensor:
        sizes.append((x.numel(), torch.is_grad_enabled()))
        return x.sigmoid()

    converted(Gelu())(given(3000, 1000))
    assert sizes == [(3 * 1000**2, False), *[(525000, True)] * 5, (375000, True)]
    sizes.clear()
    converted(Gelu())(given(6000, 1000))
    assert sizes == [(6 * 1000**2, False)] + [(750000, True)] * 8


@pytest.mark.parametrize("pieces", [2**19, 64])
def test_unbiased(pieces, monkeypatch):
    monkeypatch.setattr(slopes, "_MANY", (pieces, 8))
    x, upstream = normal(16, 40, dtype=torch.float64).requires_grad_(), normal(16, 40, seed=1, dtype=torch.float64)
    model = converted(Gelu(), rad.Rounding(bits=2))
    draws = torch.stack([torch.autograd.grad(model(x), x, upstream)[0] for _ in range(300)])
    assert draws.std(0).max() > 1e-3
    assert_unbiased(draws, torch.autograd.grad(Gelu()(x), x, upstream)[0])


@pytest.mark.parametrize("sketch", [rad.Exact(), rad.Rounding(1.0)], ids=str)
def test_exact_gradients_are_stock(sketch):
    x = normal(64, 64).requires_grad_()
    exact, found = (torch.autograd.grad(f(x).sum(), x)[0] for f in (Gelu(), converted(Gelu(), sketch)))
    assert torch.equal(exact, found)


@pytest.mark.parametrize("make", SKETCHES.values(), ids=SKETCHES)
def test_as_without_a_declaration_where_a_sketch_serves_no_factors(make):
    sketch = make(0.3)
    expected = kept(converted(Chain(), sketch), given())
    found = kept(converted(Gelu(), sketch), given())
    assert (found == expected) != sketch.serves_factors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("_pieces")
def test_autocast(dtype):
    stock = nn.Sequential(nn.Linear(64, 64), Gelu(), nn.Linear(64, 64))
    model, x = converted(copy.deepcopy(stock), rad.Rounding(bits=10)), normal(32, 64).requires_grad_()
    with torch.autocast("cpu", dtype):
        outs = stock(x), model(x)
    assert torch.equal(*outs)
    exact, found = (torch.autograd.grad(out.float().square().sum(), x)[0] for out in outs)
    assert float((found - exact).norm() / exact.norm()) < 0.03


@pytest.mark.usefixtures("_pieces")
def test_torch_func_draws_what_autograd_does():
    x = normal(32, 64)
    expected = torch.autograd.grad(converted(Gelu())(y := x.clone().requires_grad_()).square().sum(), y)[0]
    model = converted(Gelu())
    torch.testing.assert_close(grad(lambda x: model(x).square().sum())(x), expected)


def test_twice_differentiated_it_is_refused():
    x = normal(64, 64).requires_grad_()
    (once,) = torch.autograd.grad(converted(Gelu())(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()


def test_hooks_run_and_copies_are_the_same():
    model, seen = nn.Sequential(Gelu()), []
    model[0].register_forward_hook(lambda module, args, out: seen.append(out))
    copies = [converted(copy.deepcopy(model)), copy.deepcopy(converted(model))]
    model[0]._forward_hooks.clear()
    copies.append(pickle.loads(pickle.dumps(model)))
    assert [held(c, given()) for c in copies] == [SUMMARY] * 3
    assert len(seen) == 2
    assert type(rad.revert(copies[-1])[0]) is Gelu
    assert held(rad.revert(copies[-1]), given()) == held(Gelu(), given())


CHAINS: dict[str, Callable[[], Tensor]] = {
    "an argument by name": lambda: converted(Gelu())(x=given()),
    "a second argument": lambda: converted(Gelu())(given(), 2.0),
    "an option": lambda: converted(Gelu())(given(), scale=2.0),
    "another forward pass": lambda: converted(Chain())(given()),
}


@pytest.mark.parametrize("call", CHAINS.values(), ids=CHAINS)
def test_otherwise_each_operation_is_answered_for_itself(call):
    operations = {e.operation.rpartition(".")[2] for e in saved_bytes(lambda: call().sum()).entries}
    assert {"pow", "tanh"} <= operations
    assert "Gelu" not in operations


def test_one_that_is_skipped_is_left_alone():
    model = rad.convert(nn.Sequential(Gelu(), nn.GELU()), FEW, skip="0")
    assert held(model[0], given()) == held(Gelu(), given())


def test_subclasses_that_leave_the_forward_pass():
    assert held(converted(Named()), given()) == SUMMARY
    assert kept(converted(Named()), given())[0][0] == "Named"


def test_of_a_common_parent_only_who_is_declared():
    class Parent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return self.run(x)

    class Declared(Parent):
        run = staticmethod(lambda x: x * torch.sigmoid(x))

    class Other(Parent):
        run = staticmethod(lambda x: x * torch.sigmoid(x))

    assert rad.nn.elementwise(Declared, Named) is Declared
    assert held(converted(Declared()), given()) == SUMMARY
    assert held(converted(Other()), given()) == 3 * SUMMARY


def test_one_inside_another_is_not_answered():
    x, models = given(), (converted(Nested()), converted(Gelu()))
    assert [held(model, x) for model in models] == [SUMMARY] * 2
    states = [rad.nn.seeds(model).get_state() for model in models]
    assert torch.equal(*states)  # one draw each


def test_where_graphs_are_compiled_around_it_it_is_a_chain(monkeypatch):
    monkeypatch.setattr(activations, "get_eval_frame_callback", lambda: print)
    assert held(converted(Gelu()), given()) == 4 * SUMMARY


class Slope(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.slope * x)


def test_parameters_keep_their_gradients():
    model, stock, x = converted(rad.nn.elementwise(Slope)(), rad.Rounding(bits=14)), Slope(), given()
    for module in (model, stock):
        module(x).sum().backward(retain_graph=True)
    torch.testing.assert_close(model.slope.grad, stock.slope.grad, rtol=1e-2, atol=0.1)


class Function(nn.Module):
    def __init__(self, run: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> object:
        return self.run(x)


BROKEN = {
    "a sum": lambda x: x.exp().sum(-1),
    "two": lambda x: (x.exp(), x.exp()),
    "complex": lambda x: torch.complex(x.exp(), x),
    "no gradient": lambda x: (x > 0).to(x.dtype),
    "whole numbers": lambda x: (x > 0).long(),
}


@pytest.mark.parametrize("pieces", [2**19, 64])
@pytest.mark.parametrize("run", BROKEN.values(), ids=BROKEN)
def test_a_promise_that_is_seen_to_be_broken(run, pieces, monkeypatch):
    monkeypatch.setattr(slopes, "_MANY", (pieces, 8))
    x, model = normal(64, 64).requires_grad_(), converted(rad.nn.elementwise(Function)(run), rad.Rounding(bits=12))
    ours, stock = (out[0] if isinstance(out, tuple) else out for out in (model(x), run(x)))
    assert torch.equal(ours, stock)
    assert ours.requires_grad == stock.requires_grad
    if stock.requires_grad:
        upstream = torch.arange(stock.numel()).view(stock.shape).cos().to(stock.dtype)
        found, exact = (torch.autograd.grad(out, x, upstream)[0] for out in (ours, stock))
        torch.testing.assert_close(found, exact, rtol=1e-2, atol=1e-2)


def test_what_needs_no_gradient_costs_nothing():
    model, x = converted(Gelu()), normal(64, 64)
    state = rad.nn.seeds(model).get_state()
    assert not model(x).requires_grad
    with torch.no_grad():
        assert torch.equal(model(x.requires_grad_()), Gelu()(x))
    assert torch.equal(rad.nn.seeds(model).get_state(), state)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
def test_what_is_not_real(dtype):
    x = torch.arange(-8, 8).to(dtype)
    run = lambda x: x * x + x  # noqa: E731
    model = converted(rad.nn.elementwise(Function)(run))
    x = x.requires_grad_() if dtype.is_complex else x
    assert torch.equal(model(x), run(x))


class Marked(torch.Tensor):
    pass


def test_classes_of_tensors_are_left_to_themselves():
    x = normal(64, 64).as_subclass(Marked).requires_grad_()
    assert type(converted(Gelu())(x)) is type(converted(Chain())(x))


@pytest.mark.parametrize("bad", [F.gelu, Gelu(), int, nn.Module, "Gelu"], ids=str)
def test_only_classes_of_modules_are_declared(bad):
    with pytest.raises(TypeError, match="must be subclasses of torch.nn.Module with a forward pass, got"):
        rad.nn.elementwise(Gelu, bad)


def test_a_decorator_in_parentheses():
    with pytest.raises(TypeError, match="write @rad.nn.elementwise alone"):
        rad.nn.elementwise()


def planned() -> tuple[nn.Module, Tensor, rad.Plan]:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 64), Gelu(), nn.Linear(64, 64), Gelu(), nn.Linear(64, 4)), normal(32, 16)
    return model, x, rad.allocate(model, lambda: model(x).square().mean(), 5000)


def test_a_plan_knows_it_by_one_place():
    model, x, plan = planned()
    places = [item.place for item in plan.items]
    assert [place for place in places if "Gelu" in place] == ["1 / Gelu 0 / 0", "3 / Gelu 0 / 0"]
    assert len(places) == 5
    rad.convert(model, plan)
    assert saved_bytes(lambda: model(x).square().mean()).total == plan.nbytes


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_compiled_it_is_a_chain_that_follows_its_plan():
    torch._dynamo.reset()
    model, x, plan = planned()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    again = rad.allocate(model, lambda: compiled(x).square().mean(), 5000)
    assert [item.place for item in again.items] == [item.place for item in plan.items]
    exact = gradients(model, x)
    rad.convert(model, replace(plan, items=tuple(replace(item, bits=12, every=1) for item in plan.items)))
    found = {name.removeprefix("_orig_mod."): g for name, g in gradients(compiled, x).items()}
    assert 0 < distance(found, exact) < 0.02


@pytest.mark.parametrize("name", sorted(activations._KNOWN))
def test_known_by_name(name):
    module, _, kind = name.rpartition(".")
    cls = getattr(pytest.importorskip(module), kind)
    stock = cls(-10, 10) if kind == "ClippedGELUActivation" else cls()
    model, x = converted(copy.deepcopy(stock), rad.Rounding(bits=3)), normal(64, 64).requires_grad_()
    assert torch.equal(model(x), stock(x))
    assert held(model, x * 1) == SUMMARY


def test_a_block_of_gpt2():
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers, gpt2 = (pytest.importorskip(f"transformers{n}") for n in ("", ".models.gpt2.modeling_gpt2"))
    block, x = gpt2.GPT2MLP(64, transformers.GPT2Config(n_embd=16)), normal(4, 16, 16).requires_grad_()
    few = held(converted(block), x * 1)
    block.act = Chain()
    assert few == held(converted(block), x * 1) - 3 * SUMMARY
