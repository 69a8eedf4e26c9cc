"""Conversion in place: everything about a model stays what it was but the memory and the noise of its gradients."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections import OrderedDict
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from sketches import SKETCHES, normal, seeded
from torch import Tensor, nn
from torch import distributed as dist
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

import rad
from rad.functional import RULES
from rad.nn import Converted, Seeds
from rad.nn.seeds import Split

SKETCH = rad.Rounding(bits=3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 16), nn.ReLU(inplace=True), nn.Linear(16, 8, bias=False), nn.ReLU())
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return self.head(F.gelu(self.norm(self.body(x))))


class Nest(nn.Module):
    """Names that begin with one another."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12))
        self.blocks = nn.ModuleList([nn.Linear(12, 12) for _ in range(12)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.block, *self.blocks):
            x = layer(x)
        return x


def sketches(model: nn.Module) -> dict[str, rad.Sketch | None]:
    return {name: module.recipe.sketch for name, module in model.named_modules() if isinstance(module, Converted)}


def gradients(model: nn.Module, x: Tensor | None = None) -> list[Tensor]:
    torch.default_generator.manual_seed(5)
    out = model(normal(5, 12) if x is None else x)
    return list(torch.autograd.grad(out.square().sum(), list(model.parameters())))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("make", SKETCHES.values(), ids=SKETCHES)
def test_all_but_the_gradients_stay(make):
    model, ambient = Net(), torch.get_rng_state()
    kinds, text, parameters = [type(m) for m in model.modules()], repr(model), list(model.parameters())
    out, exact, state = model(normal(5, 12)), gradients(model), copy.deepcopy(model.state_dict())
    torch.set_rng_state(ambient)

    assert rad.convert(model, make(0.3)) is model
    assert [type(m).__name__ for m in model.modules()] == [kind.__name__ for kind in kinds]
    assert all(isinstance(m, kind) for m, kind in zip(model.modules(), kinds, strict=True))
    assert repr(model) != text
    assert "budget=0.3" in repr(model)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(state)
    assert torch.equal(model(normal(5, 12)), out)
    assert torch.equal(torch.get_rng_state(), ambient)
    assert not same(gradients(model), exact)
    model.load_state_dict(state)

    assert rad.revert(model) is model
    assert ([type(m) for m in model.modules()], repr(model)) == (kinds, text)
    assert not any("rad" in name for module in model.modules() for name in vars(module))
    assert same(gradients(model), exact)


def test_the_stock_class_describes_itself():
    model = rad.convert(Net(), SKETCH, skip="head")
    lines = [line.strip() for line in repr(model).splitlines()]
    keeps = "keeps Rounding(bits=3, group=256)"
    assert lines == [
        "Net(",
        "(body): Sequential(",
        f"(0): Linear(in_features=12, out_features=16, bias=True, {keeps})",
        f"(1): ReLU(inplace=True, {keeps})",
        f"(2): Linear(in_features=16, out_features=8, bias=False, {keeps})",
        f"(3): ReLU({keeps})",
        ")",
        f"(norm): {nn.LayerNorm(8)!r}"[:-1] + f", {keeps})",
        "(head): Linear(in_features=8, out_features=3, bias=True, exact)",
        ")",
    ]
    for module, stock in ((model.head, nn.Linear), (model.body, nn.Sequential), (model, Net)):
        kind = type(module)
        names = ("__name__", "__qualname__", "__module__", "__doc__")
        assert [getattr(kind, name) for name in names] == [getattr(stock, name) for name in names]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_part_is_left_alone():
    model = nn.Sequential(nn.Linear(12, 12), torch.jit.script(nn.Sequential(nn.Linear(12, 12), nn.ReLU())))
    kind, x = type(model[1]), normal(5, 12)
    out, exact = model(x), gradients(model, x)
    rad.convert(model, SKETCH)
    assert type(model[1]) is kind
    assert torch.equal(model(x), out)
    assert [torch.equal(a, b) for a, b in zip(gradients(model, x), exact, strict=True)][2:] == [True, True]


def test_exact_sketch_gives_exact_gradients():
    model = Net()
    torch.testing.assert_close(gradients(rad.convert(copy.deepcopy(model), rad.Exact())), gradients(model))


def test_hooks_stay_and_run():
    model, seen = Net(), []
    model.head.register_forward_hook(lambda module, args, out: seen.append("after"))
    model.head.register_forward_pre_hook(lambda module, args: seen.append("before"))
    model.head.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append("back"))
    model.head.weight.register_hook(lambda grad: seen.append("weight"))
    rad.convert(model, SKETCH)
    gradients(model)
    assert sorted(seen) == ["after", "back", "before", "weight"]
    rad.revert(model)
    gradients(model)
    assert len(seen) == 8


def test_optimizer_made_before_keeps_its_parameters():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    rad.convert(model, SKETCH)(normal(5, 12)).square().sum().backward()
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_layer_and_a_loss_alone():
    layer = rad.convert(nn.Linear(3, 2), SKETCH)
    assert layer.recipe.sketch == SKETCH
    assert type(rad.revert(layer)) is nn.Linear
    loss, logits = rad.convert(nn.CrossEntropyLoss(), SKETCH), normal(64, 40).requires_grad_()
    assert rad.measure.saved_bytes(lambda: loss(logits, torch.zeros(64, dtype=torch.int64))).total < 0.2 * logits.nbytes


def test_a_sketch_for_each_name_and_what_it_holds():
    narrow, wide = rad.Rounding(bits=2), rad.Rounding(bits=8)
    model = rad.convert(Nest(), {"block": narrow, "blocks": wide, "blocks.1": SKETCH})
    found = sketches(model)
    assert found[""] is None
    assert found["block"] == found["block.0"] == found["block.1"] == narrow
    assert found["blocks.1"] == SKETCH
    # Prefixes are names, not beginnings of names.
    assert found["blocks.0"] == found["blocks.10"] == found["blocks.11"] == wide
    found = sketches(rad.convert(model, {"": narrow, "blocks.3": wide}, skip="block.1"))
    assert (found["block.0"], found["block.1"], found["blocks.2"], found["blocks.3"]) == (narrow, None, narrow, wide)


@pytest.mark.parametrize(("skip", "left"), [(("head",), ["head"]), ("body", ["body.0", "body.1", "body.2", "body.3"])])
def test_what_is_skipped_is_stock(skip, left):
    model = rad.convert(Net(), SKETCH, skip)
    assert {name for name, few in sketches(model).items() if few is None} - {"body"} == set(left)
    exact = dict(zip(dict(model.named_parameters()), gradients(rad.revert(copy.deepcopy(model))), strict=True))
    noisy = dict(zip(dict(model.named_parameters()), gradients(model), strict=True))
    # What lies above the skipped head has its gradient unchanged.
    if skip == ("head",):
        assert torch.equal(noisy["head.weight"], exact["head.weight"])


def test_a_name_skipped_inside_one_with_a_sketch():
    model = rad.convert(Nest(), {"blocks": SKETCH}, skip=["blocks.0", "blocks.1"])
    found = sketches(model)
    assert [i for i in range(12) if found[f"blocks.{i}"] is None] == [0, 1]


@pytest.mark.parametrize("name", ["first", "second"])
def test_skip_by_either_name_of_a_shared_layer(name):
    layer = nn.Linear(2, 2)
    model = nn.ModuleDict({"first": layer, "second": layer, "other": nn.Linear(2, 2)})
    rad.convert(model, SKETCH, skip=(name,))
    assert layer.recipe.sketch is None
    assert model["other"].recipe.sketch == SKETCH


def test_a_shared_layer_draws_at_each_use():
    layer = nn.Linear(12, 12)
    model, numbers = nn.Sequential(layer, nn.ReLU(), layer), Seeds(0)
    before = int(numbers.get_state())
    rad.convert(model, rad.Project(0.3), generator=numbers)
    gradients(model)
    assert int(numbers.get_state()) - before == 2
    torch.testing.assert_close(gradients(rad.convert(model, rad.Exact())), gradients(rad.revert(model)))


@pytest.mark.parametrize("where", ["skip", "sketch"])
def test_an_unknown_name_lists_those_there_are(where):
    model = Net()
    given = {"sketch": {"tail": SKETCH}} if where == "sketch" else {"sketch": SKETCH, "skip": ("tail",)}
    with pytest.raises(ValueError, match=f"{where} names 'tail'.*body, body.0, .*norm, head"):
        rad.convert(model, **given)
    assert not any(isinstance(m, Converted) for m in model.modules())


@pytest.mark.parametrize(("sketch", "skip"), [(SKETCH, ("",)), ({}, ()), ({"head": SKETCH}, ("head",))])
def test_nothing_to_convert(sketch, skip):
    with pytest.raises(ValueError, match="nothing to convert"):
        rad.convert(Net(), sketch, skip)


@pytest.mark.parametrize("sketch", [0.1, "project", None, rad.Project, {"head": 0.1}])
def test_not_a_sketch(sketch):
    with pytest.raises(TypeError, match=r"sketch must be a Sketch such as rad.Rounding"):
        rad.convert(Net(), sketch)


def test_not_a_module():
    with pytest.raises(TypeError, match="must be a torch.nn.Module, got function; wrap"):
        rad.convert(lambda x: x, SKETCH)
    with pytest.raises(ValueError, match="Net is not converted"):
        rad.nn.seeds(Net())


@pytest.mark.parametrize("call", [rad.revert, rad.nn.seeds, rad.explain, lambda m: rad.measure.gradients(m, None)])
@pytest.mark.parametrize("model", [None, 3, [], nn.Linear])
def test_whatever_takes_a_model_says_so(call, model):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got"):
        call(model)


@pytest.mark.parametrize(
    ("first", "error"), [("a", TypeError), (1.5, TypeError), (True, TypeError), ([], TypeError), (2**63, ValueError)]
)
def test_what_seeds_start_from(first, error):
    with pytest.raises(error, match="seeds start from a whole number"):
        rad.convert(Net(), SKETCH, generator=first)


@pytest.mark.parametrize("state", [None, 3, {}, torch.zeros(3, dtype=torch.int64), torch.zeros(())])
def test_seeds_go_on_from_nothing_else(state):
    with pytest.raises(ValueError, match="state must be what get_state returned"):
        rad.nn.Seeds(0).set_state(state)


def test_converting_again_replaces():
    model = rad.convert(Net(), SKETCH)
    rad.convert(model, rad.Sample(0.5), skip=("head",))
    assert model.body[0].recipe.sketch == rad.Sample(0.5)
    assert model.head.recipe.sketch is None
    assert [type(m) for m in rad.revert(model).modules()] == [type(m) for m in Net().modules()]
    assert rad.revert(model) is model  # nothing to undo


class Last(nn.Linear):
    def __init_subclass__(cls):
        raise TypeError("no class can be derived")


def test_a_conversion_that_is_refused_changes_nothing():
    model = rad.convert(Net(), SKETCH)
    for given in ({"generator": "x"}, {"skip": "tail"}, {"sketch": 0.1}, {"skip": ""}):
        with pytest.raises((TypeError, ValueError)):
            rad.convert(model, **{"sketch": rad.Exact(), **given})
    model.last = Last(3, 3)
    with pytest.raises(TypeError, match="no class can be derived"):
        rad.convert(model, rad.Exact())
    assert set(sketches(model).values()) == {SKETCH}


@pytest.mark.parametrize("skip", [(), "tail"])
def test_a_lazy_module_has_to_see_a_batch_first(skip):
    model, x = nn.Sequential(OrderedDict(body=nn.Linear(12, 12), tail=nn.LazyLinear(3))), normal(40, 12)
    shapes = nn.Sequential(OrderedDict(body=nn.Linear(12, 12), tail=nn.Linear(12, 3))).state_dict()
    for _ in range(2):
        with pytest.raises(ValueError, match="tail is a LazyLinear.*run one batch"):
            rad.convert(model, SKETCH, skip)
        assert [type(m) for m in model.modules()] == [nn.Sequential, nn.Linear, nn.LazyLinear]
        model.load_state_dict(shapes)  # which gives it shapes, but another class only the next call
    model(x)
    assert not same(gradients(rad.convert(model, SKETCH, skip), x), gradients(rad.revert(copy.deepcopy(model)), x))


def sharded(model: nn.Module, name: str) -> None:
    """As FSDP does."""
    model.__class__ = type(f"Sharded{type(model).__name__}", (Marker, type(model)), {})


class Marker:
    pass


@pytest.mark.parametrize("derive", [nn.utils.parametrizations.weight_norm, sharded])
def test_a_class_derived_after_conversion_stays(derive):
    stock, x = nn.Sequential(nn.Linear(12, 12), nn.ReLU()), normal(40, 12)
    model = rad.convert(copy.deepcopy(stock), SKETCH)
    for some in (stock, model):
        derive(some[0], "weight")
    out, exact = stock(x), gradients(stock, x)
    for sketch in (SKETCH, rad.Sample(0.5)):
        rad.convert(model, sketch)
        assert torch.equal(model(x), out)
        assert model[0].recipe.sketch == sketch
        assert not same(gradients(model, x), exact)
    kinds = [[kind.__name__ for kind in type(some[0]).__mro__] for some in (stock, rad.revert(model))]
    assert kinds[0] == kinds[1]
    assert (repr(model), list(model.state_dict())) == (repr(stock), list(stock.state_dict()))
    assert torch.equal(model(x), out)
    assert same(gradients(model, x), exact)


def test_a_parametrization_from_after_conversion_can_be_removed():
    model = rad.convert(nn.Sequential(nn.Linear(12, 12)), SKETCH)
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrize.remove_parametrizations(rad.revert(model)[0], "weight")
    assert type(model[0]) is nn.Linear


class Called(nn.Linear):
    def forward(self, input: Tensor, *, labels: Tensor | None = None, scale: float = 1.0) -> Tensor:
        """Scaled."""
        return scale * super().forward(input)


def test_the_forward_pass_is_called_as_before():
    stock, model = Called(12, 3), rad.convert(Called(12, 3), SKETCH)
    assert inspect.signature(model.forward) == inspect.signature(stock.forward)
    assert inspect.signature(type(model).forward) == inspect.signature(Called.forward)
    assert model.forward.__doc__ == "Scaled."
    model.load_state_dict(stock.state_dict())
    assert torch.equal(model(normal(5, 12), scale=2.0), stock(normal(5, 12), scale=2.0))


def test_equal_seeds_give_equal_gradients():
    model = Net()
    drawn = [gradients(rad.convert(model, SKETCH, generator=seeded(seed))) for seed in (7, 7, 8)]
    assert same(drawn[0], drawn[1])
    assert not same(drawn[0], drawn[2])
    assert not same(gradients(model), drawn[2])  # a new draw at every step


def test_each_default_conversion_has_seeds_of_its_own():
    def taken() -> list[int]:
        parts = [rad.convert(part, SKETCH) for part in (Net(), nn.MSELoss(), Net())]
        parts += [rad.convert(parts[0], SKETCH)]  # and each step where one converts at each
        return [int(rad.nn.seeds(part).next()) for part in parts for _ in range(50)]

    runs = []
    for seed in (1, 2, 1):
        torch.default_generator.manual_seed(seed)
        runs.append(taken())
    # As a run finds them again in another process, or after one from another seed.
    assert runs[0] == runs[2]
    assert len({*runs[0], *runs[1]}) == 400


def test_the_state_of_the_seeds_resumes_a_run():
    model = rad.convert(Net(), SKETCH)
    gradients(model)
    state = rad.nn.seeds(model).get_state()
    following = gradients(model)
    rad.nn.seeds(model).set_state(state)
    assert same(gradients(model), following)


def test_neighbouring_starts_lead_far_apart():
    taken = [int(seeds.next()) for seeds in map(Seeds, range(-5, 5)) for _ in range(500)]
    assert len(set(taken)) == len(taken)
    assert [int(Seeds(3).next()) for _ in range(2)] == [int(Seeds(3).next())] * 2
    assert int(Seeds(seeded(3)).next()) != int(Seeds(seeded(4)).next())


def test_a_state_is_no_alias():
    seeds, state = Seeds(0), Seeds(1).get_state().clone()
    expected = int(Seeds(1).next())
    seeds.set_state(state)
    state += 5
    assert int(seeds.next()) == expected
    before = seeds.get_state()
    saved = int(before)
    seeds.next()
    assert int(before) == saved


def test_processes_that_start_alike_never_share_a_seed(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    taken = []
    for rank in range(3):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        seeds = Seeds(0)
        taken += [int(seeds.next()) for _ in range(50)]
    assert len(set(taken)) == len(taken)


def test_calls_of_a_graph_never_share_a_seed():
    seeds = Seeds(0)
    calls = [Split(seeds.next()) for _ in range(50)]
    taken = [int(call.next()) for call in calls for _ in range(50)]
    assert len(set(taken)) == len(taken)


def saved_and_loaded(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, saved_and_loaded])
def test_copies_go_their_own_way(duplicate):
    model = rad.convert(Net(), SKETCH, generator=seeded(3))
    gradients(model)
    other = duplicate(model)
    assert {id(m.recipe.seeds) for m in other.modules()} == {id(rad.nn.seeds(other))}
    assert {id(m.recipe.sharing) for m in other.modules()} == {id(other.recipe.sharing)}
    assert rad.nn.seeds(other) is not rad.nn.seeds(model)
    assert repr(other) == repr(model)
    assert same(gradients(other), gradients(model))
    assert [type(m) for m in rad.revert(other).modules()] == [type(m) for m in Net().modules()]
    assert isinstance(model.head, Converted)


class Numbered(nn.Linear):
    """A module that says itself how it is copied."""

    def __init__(self, number: int) -> None:
        super().__init__(12, 3)
        self.number = number

    def __reduce__(self):
        return type(self), (self.number,), self.__dict__


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("make", [lambda: torch.fx.symbolic_trace(Called(12, 3)), lambda: Numbered(4)])
def test_copies_of_what_copies_itself(make, duplicate):
    model, x = rad.convert(make(), SKETCH, generator=seeded(3)), normal(40, 12)
    other = duplicate(model)
    assert rad.nn.seeds(other) is not rad.nn.seeds(model)
    assert same(gradients(other, x), gradients(model, x))
    exact = gradients(rad.revert(copy.deepcopy(model)), x)
    for some in (other, model):
        assert not same(gradients(some, x), exact)
        assert same(gradients(rad.revert(some), x), exact)
    assert not isinstance(other, Converted)


@pytest.fixture
def rules() -> Iterator[None]:
    """Rules that a test adds are gone afterwards."""
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


def swish(x: Tensor) -> Tensor:
    if has_torch_function_unary(x):
        return handle_torch_function(swish, (x,), x)
    return x * torch.sigmoid(x)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return swish(x)


@pytest.mark.usefixtures("rules")
def test_a_rule_for_a_function_of_ones_own():
    x, calls = normal(40, 16).requires_grad_(), []

    @rad.operation
    def answer(keep: rad.functional.Keep, x: Tensor):
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            out = swish(at)
        slope = keep.factor(torch.autograd.grad(out, at, torch.ones_like(out))[0])
        return out.detach(), lambda kept, grad: kept.times(slope, grad)

    @rad.rule(swish)
    def rule(call: rad.functional.Call, x: Tensor) -> Tensor:
        calls.append(call.sketch)
        return answer(call, x)

    def keep(model: nn.Module) -> int:
        return rad.measure.saved_bytes(lambda: model(x)).total

    model = Swish()
    exact = torch.autograd.grad(model(x).sum(), x)[0]
    stock = keep(model)
    assert keep(rad.convert(model, SKETCH)) < 0.2 * stock
    assert calls == [SKETCH]
    assert torch.equal(model(x), swish(x))
    rad.convert(model, rad.Rounding(bits=16))
    torch.testing.assert_close(torch.autograd.grad(model(x).sum(), x)[0], exact, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("rules")
def test_a_rule_may_pass():
    rad.rule(torch.sin)(lambda call, x: NotImplemented)
    x = normal(40, 16).requires_grad_()
    model = rad.convert(Function(torch.sin), SKETCH)
    assert torch.equal(torch.autograd.grad(model(x).sum(), x)[0], x.cos())


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Function(lambda x: (torch.zeros(3), torch.sign(x), F.gelu(x)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.inner(x)


@pytest.mark.parametrize("skip", [(), "inner"])
def test_the_default_device_holds_inside(skip):
    model, x = rad.convert(Outer(), SKETCH, skip), normal(2).requires_grad_()
    with torch.device("meta"):
        assert [t.device.type for t in model(x)] == ["meta", "cpu", "cpu"]


class Listening(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.heard = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.heard.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def test_what_has_no_rule_is_seen_by_other_modes_and_once():
    model = rad.convert(Outer(), SKETCH)
    with Listening() as listening:
        model(normal(2).requires_grad_())
    assert [listening.heard.count(name) for name in ("zeros", "sign")] == [1, 1]


class Marked(torch.Tensor):
    """A tensor of a class of its own, which functions hand on."""


def test_classes_of_tensors_stay():
    model = rad.convert(Function(torch.sign), SKETCH)
    assert type(model(normal(4).as_subclass(Marked))) is Marked


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_is_the_stock_module(mode):
    """The encoder of transformers has a fast path then, of other values, and zeros where there is padding."""
    torch.manual_seed(0)
    stock = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    model, x = rad.convert(copy.deepcopy(stock), rad.Rounding(0.1)), normal(3, 5, 16)
    padding = torch.arange(5).expand(3, 5) > torch.tensor([[4], [2], [1]])
    with mode():
        assert torch.equal(model(x), stock(x))
        assert torch.equal(model(x, src_key_padding_mask=padding), stock(x, src_key_padding_mask=padding))
