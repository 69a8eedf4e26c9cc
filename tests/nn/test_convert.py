"""Conversion in place: everything about a model stays what it was but the memory and the noise of its gradients."""

from __future__ import annotations

import copy
import importlib
import io

import pytest
import torch
from sketches import SKETCHES, normal, seeded
from torch import Tensor, nn

import rad
from rad.nn import Converted, register

SKETCH = rad.Project(0.3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 16), nn.ReLU(inplace=True), nn.Linear(16, 8, bias=False), nn.ReLU())
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x)))


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Scale(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def types(model: nn.Module) -> dict[str, str]:
    return {name: type(module).__name__ for name, module in model.named_modules()}


def gradients(model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(model(normal(5, 12)).square().sum(), model.parameters()))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("make", SKETCHES.values(), ids=SKETCHES)
def test_all_but_the_gradients_stay(make):
    model, ambient = Net(), torch.get_rng_state()
    before, text, parameters = types(model), repr(model), list(model.parameters())
    out, exact, state = model(normal(5, 12)), gradients(model), copy.deepcopy(model.state_dict())

    assert rad.convert(model, make(0.3)) is model
    assert types(model) == before | {
        "body.0": "RadLinear",
        "body.1": "RadReLU",
        "body.2": "RadLinear",
        "body.3": "RadReLU",
        "head": "RadLinear",
    }
    assert "budget=0.3" in repr(model)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(state)
    assert torch.equal(model(normal(5, 12)), out)
    assert not same(gradients(model), exact)
    model.load_state_dict(state)

    assert rad.revert(model) is model
    assert (types(model), repr(model)) == (before, text)
    assert same(gradients(model), exact)
    assert torch.equal(torch.get_rng_state(), ambient)


def test_exact_sketch_gives_exact_gradients():
    model = Net()
    torch.testing.assert_close(gradients(rad.convert(copy.deepcopy(model), rad.Exact())), gradients(model))


def test_a_layer_alone():
    layer = nn.Linear(3, 2)
    assert rad.convert(layer, SKETCH).recipe.sketch == SKETCH
    assert type(rad.revert(layer)) is nn.Linear


@pytest.mark.parametrize(
    ("skip", "left"), [(("head",), {"head"}), ("head", {"head"}), (["body"], {"body.0", "body.1", "body.2", "body.3"})]
)
def test_skip(skip, left):
    model = Net()
    before, after = types(model), types(rad.convert(model, SKETCH, skip))
    layers = {"head", "body.0", "body.1", "body.2", "body.3"}
    assert {name for name in layers if after[name] == before[name]} == left


def test_skip_goes_by_whole_names():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(11)))
    rad.convert(model, SKETCH, skip=("1",))
    assert [i for i, layer in enumerate(model) if type(layer) is nn.Linear] == [1]


def test_skip_by_either_name_of_a_shared_layer():
    layer = nn.Linear(2, 2)
    model = nn.ModuleDict({"first": layer, "second": layer, "other": nn.Linear(2, 2)})
    for name in ("first", "second"):
        rad.convert(model, SKETCH, skip=(name,))
        assert type(layer) is nn.Linear
        assert type(model["other"]) is not nn.Linear


def test_unknown_name_lists_those_there_are():
    model = Net()
    with pytest.raises(ValueError, match="'tail'.*body, body.0, .*norm, head") as caught:
        rad.convert(model, SKETCH, skip=("tail",))
    assert "head" in str(caught.value)
    assert types(model) == types(Net())


@pytest.mark.parametrize(("model", "skip"), [(nn.Tanh(), ()), (Doubled(2, 2), ()), (nn.Sequential(nn.ReLU()), ("0",))])
def test_nothing_to_convert(model, skip):
    with pytest.raises(ValueError, match=r"nothing to convert.*Conv2d.* Linear.* ReLU"):
        rad.convert(model, SKETCH, skip)


@pytest.mark.parametrize("sketch", [0.1, "project", None, rad.Project])
def test_not_a_sketch(sketch):
    with pytest.raises(TypeError, match="sketch must be a Sketch"):
        rad.convert(Net(), sketch)


def test_a_forward_pass_of_its_own_is_left_alone():
    model = rad.convert(nn.Sequential(Doubled(2, 2), nn.ReLU()), SKETCH)
    assert [type(layer) for layer in model][0] is Doubled


def test_converting_again_replaces():
    model = rad.convert(Net(), SKETCH)
    rad.convert(model, rad.Sample(0.5), skip=("head",))
    assert model.body[0].recipe.sketch == rad.Sample(0.5)
    assert type(model.head) is nn.Linear
    assert types(rad.revert(model)) == types(Net())


def test_equal_seeds_give_equal_gradients():
    model = Net()
    default = [gradients(rad.convert(model, SKETCH)) for _ in range(2)]
    seeds = [gradients(rad.convert(model, SKETCH, generator=seeded(seed))) for seed in (7, 7, 8)]
    assert same(*default)
    assert same(seeds[0], seeds[1])
    assert not same(seeds[0], seeds[2])
    assert not same(gradients(model), seeds[2])  # a new draw at every step


def test_generator_state_resumes_a_run():
    generator = seeded(3)
    model = rad.convert(Net(), SKETCH, generator=generator)
    gradients(model)
    state = generator.get_state()
    following = gradients(model)
    assert same(gradients(rad.convert(model, SKETCH, generator=torch.Generator().set_state(state))), following)


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
    generators = {id(layer.recipe.generator) for layer in (other.body[0], other.body[2], other.head)}
    assert len(generators) == 1
    assert generators != {id(model.head.recipe.generator)}
    assert same(gradients(other), gradients(model))
    assert types(rad.revert(other)) == types(Net())


def test_optimizer_made_before_keeps_its_parameters():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    rad.convert(model, SKETCH)(normal(5, 12)).square().sum().backward()
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_shared_layer_draws_at_each_use():
    layer, generator = nn.Linear(12, 12), seeded(0)
    model = rad.convert(nn.Sequential(layer, nn.ReLU(), layer), rad.Exact())
    stock = nn.Sequential(copy.deepcopy(rad.revert(layer)), nn.ReLU())
    stock.append(stock[0])
    rad.convert(model, rad.Exact())
    torch.testing.assert_close(gradients(model), gradients(stock))
    gradients(rad.convert(model, SKETCH, generator=generator))
    reference = seeded(0)
    for _ in range(2):
        torch.randint(2**63 - 1, (), generator=reference)
    assert torch.equal(generator.get_state(), reference.get_state())


def test_register(monkeypatch):
    module = importlib.import_module("rad.nn.convert")
    monkeypatch.setattr(module, "_CONVERTED", dict(module._CONVERTED))

    @register(Scale)
    class RadScale(Converted, Scale):
        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight + 0 * self.recipe.sketch.budget

    model = nn.Sequential(Scale(12), nn.Linear(12, 2))
    assert type(rad.convert(model, SKETCH)[0]) is RadScale
    gradients(model)
    assert type(rad.revert(model)[0]) is Scale
    with pytest.raises(TypeError, match="Net must derive from Converted and Scale"):
        register(Scale)(Net)
