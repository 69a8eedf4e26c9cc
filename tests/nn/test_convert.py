"""Conversion in place: everything about a model stays what it was but the memory and the noise of its gradients."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from sketches import SKETCHES, normal, seeded
from torch import Tensor, nn

import rad
from rad.nn import Converted, Seeds

SKETCH = rad.Project(0.3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 16), nn.ReLU(inplace=True), nn.Linear(16, 8, bias=False), nn.ReLU())
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x)))


def sketches(model: nn.Module) -> dict[str, rad.Sketch | None]:
    """What each converted module keeps, by name."""
    return {name: m.recipe.sketch for name, m in model.named_modules() if isinstance(m, Converted)}


def gradients(model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(model(normal(5, 12)).square().sum(), model.parameters()))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("make", SKETCHES.values(), ids=SKETCHES)
def test_all_but_the_gradients_stay(make):
    model, ambient = Net(), torch.get_rng_state()
    types = [type(m) for m in model.modules()]
    text, parameters = repr(model), list(model.parameters())
    out, exact, state = model(normal(5, 12)), gradients(model), copy.deepcopy(model.state_dict())

    assert rad.convert(model, make(0.3)) is model
    assert all(isinstance(m, (Converted, kind)) for m, kind in zip(model.modules(), types, strict=True))
    assert "budget=0.3" in repr(model)
    assert "Linear(in_features=12, out_features=16, bias=True, keeps" in repr(model)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(state)
    assert torch.equal(model(normal(5, 12)), out)
    assert not same(gradients(model), exact)
    model.load_state_dict(state)

    assert rad.revert(model) is model
    assert ([type(m) for m in model.modules()], repr(model)) == (types, text)
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
    ("skip", "left"),
    [(("head",), {"head"}), ("head", {"head"}), (["body"], {"body", "body.0", "body.1", "body.2", "body.3"})],
)
def test_skip(skip, left):
    model = Net()
    exact = dict(zip([n for n, _ in model.named_parameters()], gradients(model), strict=True))
    kept = sketches(rad.convert(model, SKETCH, skip))
    assert {name for name, few in kept.items() if few is None} == left
    assert all(few == SKETCH for name, few in kept.items() if name not in left)
    for (name, _), ours in zip(model.named_parameters(), gradients(model), strict=True):
        if name.endswith("weight") and "norm" not in name:
            assert torch.equal(ours, exact[name]) == (name.rpartition(".")[0] in left)


def test_names_choose_sketches_the_longest_first():
    model = Net()
    few, other = rad.Rounding(bits=2), rad.Sample(0.5)
    kept = sketches(rad.convert(model, {"body": few, "body.2": other, "head": rad.Exact()}))
    assert kept["body"] == kept["body.0"] == few
    assert (kept["body.2"], kept["head"], kept["norm"], kept[""]) == (other, rad.Exact(), None, None)
    with pytest.raises(ValueError, match="'bodies'.*body, body.0"):
        rad.convert(model, {"bodies": few})
    with pytest.raises(TypeError, match="mapping.*got 3"):
        rad.convert(model, {"body": 3})


def test_skip_goes_by_whole_names():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(11)))
    rad.convert(model, SKETCH, skip=("1",))
    assert [i for i, layer in enumerate(model) if layer.recipe.sketch is None] == [1]


def test_skip_by_either_name_of_a_shared_layer():
    layer = nn.Linear(2, 2)
    model = nn.ModuleDict({"first": layer, "second": layer, "other": nn.Linear(2, 2)})
    for name in ("first", "second"):
        rad.convert(model, SKETCH, skip=(name,))
        assert layer.recipe.sketch is None
        assert model["other"].recipe.sketch == SKETCH


def test_unknown_name_lists_those_there_are():
    model = Net()
    with pytest.raises(ValueError, match="'tail'.*body, body.0, .*norm, head") as caught:
        rad.convert(model, SKETCH, skip=("tail",))
    assert "head" in str(caught.value)
    assert not sketches(model)


def test_nothing_to_convert():
    with pytest.raises(ValueError, match=r"nothing to convert: skip=\(''"):
        rad.convert(nn.ReLU(), SKETCH, skip="")
    with pytest.raises(TypeError, match="Module, got function"):
        rad.convert(lambda x: x, SKETCH)


@pytest.mark.parametrize("sketch", [0.1, "project", None, rad.Project])
def test_not_a_sketch(sketch):
    with pytest.raises(TypeError, match="sketch must be a Sketch"):
        rad.convert(Net(), sketch)


def test_converting_again_replaces():
    model = rad.convert(Net(), SKETCH)
    rad.convert(model, rad.Sample(0.5), skip=("head",))
    assert model.body[0].recipe.sketch == rad.Sample(0.5)
    assert model.head.recipe.sketch is None
    assert not sketches(rad.revert(model))
    assert type(model.head) is nn.Linear


def test_equal_seeds_give_equal_gradients():
    model = Net()
    default = [gradients(rad.convert(model, SKETCH)) for _ in range(2)]
    seeds = [gradients(rad.convert(model, SKETCH, generator=seeded(seed))) for seed in (7, 7, 8)]
    assert same(*default)
    assert same(seeds[0], seeds[1])
    assert not same(seeds[0], seeds[2])
    assert not same(gradients(model), seeds[2])  # a new draw at every step


def test_state_of_the_seeds_resumes_a_run():
    model = rad.convert(Net(), SKETCH, generator=Seeds(3))
    gradients(model)
    state = rad.nn.seeds(model).get_state()
    following = gradients(model)
    resumed = Seeds(5)
    resumed.set_state(state)
    assert same(gradients(rad.convert(model, SKETCH, generator=resumed)), following)
    with pytest.raises(ValueError, match=r"Linear is not converted; rad\.convert"):
        rad.nn.seeds(nn.Linear(2, 2))


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
    generators = {id(layer.recipe.seeds) for layer in (other.body[0], other.body[2], other.head)}
    assert len(generators) == 1
    assert generators != {id(model.head.recipe.seeds)}
    assert same(gradients(other), gradients(model))
    assert [type(m) for m in rad.revert(other).modules()] == [type(m) for m in Net().modules()]


def test_optimizer_made_before_keeps_its_parameters():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    rad.convert(model, SKETCH)(normal(5, 12)).square().sum().backward()
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_shared_layer_draws_at_each_use():
    layer = nn.Linear(12, 12)
    model = rad.convert(nn.Sequential(layer, nn.ReLU(), layer), rad.Exact())
    stock = nn.Sequential(copy.deepcopy(rad.revert(layer)), nn.ReLU())
    stock.append(stock[0])
    rad.convert(model, rad.Exact())
    torch.testing.assert_close(gradients(model), gradients(stock))
    numbers = Seeds(0)
    first = int(numbers.get_state())
    gradients(rad.convert(model, SKETCH, generator=numbers))
    assert int(numbers.get_state()) - first >= 2


def test_hooks_stay():
    model, seen = Net(), []
    model.head.register_forward_hook(lambda module, args, out: seen.append(out))
    rad.convert(model, SKETCH)
    gradients(model)
    assert len(seen) == 1


def test_what_a_forward_pass_writes_by_hand_is_seen():
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x) + nn.functional.gelu(x)

    x = normal(64, 64).requires_grad_() * 1  # nobody else holds it
    model = Gate()
    stock = rad.measure.saved_bytes(lambda: model(x).sum()).total
    rad.convert(model, rad.Rounding(bits=2))
    assert rad.measure.saved_bytes(lambda: model(x).sum()).total < 0.35 * stock
