"""Plans as tables, as files, and on models that they are not for."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
import yaml
from torch import nn

import rad
from rad.budget import Item, Plan, bytes_of
from rad.budget.plan import fingerprint
from rad.budget.size import shown
from rad.measure import gradient_noise, gradients, saved_bytes


def net(width: int = 32) -> nn.Module:
    return nn.Sequential(nn.Linear(16, width), nn.GELU(), nn.Linear(width, 8), nn.GELU(), nn.Linear(8, 4))


X = torch.randn(20, 16)


def planned(model: nn.Module, nbytes: int = 1500) -> Plan:
    return rad.allocate(model, lambda: model(X).square().mean(), nbytes)


def test_a_table():
    plan = planned(net())
    text = str(plan)
    for item in plan.items:
        assert item.place in text
    lines = text.splitlines()
    assert lines[0].split() == ["place", "bits", "bytes", "share", "of", "variance"]
    assert f"{plan.nbytes:,}" in lines[-1]
    assert f"{plan.variance:.3g} of ‖g‖²" in lines[-1]
    shares = [float(line.split()[-1].rstrip("%")) for line in lines[2 : 2 + len(plan.items)]]
    assert sum(shares) == pytest.approx(100, abs=0.1)


PLAN = Plan(
    (Item("a / linear 0 / 0", 3, 1500, 0.3), Item("a / gelu 0 / 0", None, 20, 0.0), Item("b / mul 1 / 1", 12, 7, 0.1)),
    1234,
    2.0,
    "Net",
    "x",
)
NOISELESS = """\
place             bits  bytes  share of variance
------------------------------------------------
a / linear 0 / 0     3      5              0.00%
------------------------------------------------
besides                     0                   
total                       5         0 of ‖g‖²"""
TABLE = """\
place             bits  bytes  share of variance
------------------------------------------------
a / linear 0 / 0     3  1,500             75.00%
a / gelu 0 / 0   exact     20              0.00%
b / mul 1 / 1       12      7             25.00%
------------------------------------------------
besides                 1,234                   
total                   2,761       0.2 of ‖g‖²"""
EXACT = """\
place        bits   bytes  share of variance
--------------------------------------------
everything         12,345                   
total       exact  12,345         0 of ‖g‖²"""


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (PLAN, TABLE),
        (Plan((Item("a / linear 0 / 0", 3, 5, 0.0),), 0, 0.0, "Net", "x"), NOISELESS),
        (Plan((), 12345, 0.0, "Net", "x", exact=True), EXACT),
    ],
    ids=["some", "noiseless", "exact"],
)
def test_all_of_a_table(plan, text):
    rows = [[line.split() for line in t.splitlines() if set(line) != {"-"}] for t in (str(plan), text)]
    assert rows[0] == rows[1]
    assert len({len(line) for line in str(plan).splitlines()}) == 1


def test_what_a_plan_says():
    assert (PLAN.nbytes, PLAN.variance) == (2761, 0.2)
    assert PLAN.at("a / linear 0 / 0") == rad.Rounding(bits=3)
    assert PLAN.at("a / gelu 0 / 0") == rad.Exact()
    assert (PLAN.sketch, dataclasses.replace(PLAN, items=(), exact=True).sketch) == (rad.Rounding(bits=3), rad.Exact())
    with pytest.raises(ValueError, match="nothing of 'a / gelu 1 / 0'"):
        PLAN.at("a / gelu 1 / 0")


def test_a_file_is_in_the_order_of_the_model(tmp_path):
    PLAN.save(tmp_path / "plan.yaml")
    text = (tmp_path / "plan.yaml").read_text()
    places = [line.strip().rstrip(":") for line in text.splitlines() if " / " in line]
    assert places == [item.place for item in PLAN.items]
    assert [line.partition(":")[0] for line in text.splitlines() if line[0] != " "] == list(PLAN.as_dict())
    assert Plan.load(tmp_path / "plan.yaml") == PLAN


def test_a_long_name_is_cut_in_front():
    item = Item("a" * 80 + " / linear 0 / 0", 3, 5, 1.0)
    line = str(Plan((item,), 0, 1.0, "M", "x")).splitlines()[2]
    assert line.startswith("…aaa")
    assert " / linear 0 / 0  " in line


@pytest.mark.parametrize(
    ("item", "keeps", "word"),
    [
        (Item("a / b 0 / 0", None, 5, 0.0), rad.Exact(), "exact"),
        (Item("a / b 0 / 0", 3, 5, 0.0), rad.Rounding(bits=3), "3"),
        (Item("a / b 0 / 0", 2.25, 5, 0.0), rad.MixedRounding(bits=2, finer=0.25), "2.25"),
        (Item("a / b 0 / 0", 2, 5, 0.0, 8), rad.SparseRounding(bits=2, every=8), "2 of 1 in 8"),
    ],
)
def test_items_say_what_is_kept(item, keeps, word):
    plan = Plan((item,), 0, 1.0, "M", "x")
    assert plan.at(item.place) == keeps
    assert f"  {word}  " in str(plan)
    assert Plan.from_dict(plan.as_dict()) == plan


def test_a_call_within_another_gets_what_that_one_has():
    plan = Plan((Item("a / b 0 / 0", 3, 5, 0.0), Item("a / c 0 / d 0 / 0", 2, 5, 0.0)), 0, 1.0, "M", "x")
    assert plan.at("a / b 0 / d 0 / 1") == plan.at("a / b 0 / d 1 / e 0 / 0") == rad.Rounding(bits=3)
    assert plan.at("a / c 0 / d 0 / 0") == rad.Rounding(bits=2)
    for place in ("a / b 0 / 1", "a / c 0 / d 0 / 1", "a / b 1 / d 0 / 0"):
        with pytest.raises(ValueError, match=f"nothing of '{place}'"):
            plan.at(place)


def test_saved_and_loaded(tmp_path):
    plan = planned(net())
    plan.save(tmp_path / "plan.yaml")
    assert Plan.load(tmp_path / "plan.yaml") == plan
    assert Plan.load(tmp_path / "plan.yaml").key == plan.key
    exact = Plan((), 10, 0.0, "M", "x", exact=True)
    exact.save(tmp_path / "exact.yaml")
    assert Plan.load(str(tmp_path / "exact.yaml")) == exact


def damaged(change) -> str:
    item = {"bits": 3, "every": 1, "nbytes": 10, "variance": 0.5}
    whole = {"model": "M", "structure": "x", "exact": False, "other": 1, "norm2": 1.0, "places": {"a / b 0 / 0": item}}
    change(whole, item)
    return yaml.safe_dump(whole)


BAD = {
    "not a mapping": ("[1, 2]", "it must hold model, structure"),
    "empty": ("", "it must hold model"),
    "not yaml": ("{", "no plan"),
    "a call": ("!!python/object/apply:builtins.len [[]]", "no plan: could not determine a constructor"),
    "a field too many": (damaged(lambda w, i: w.update(more=1)), "it must hold model"),
    "a field too few": (damaged(lambda w, i: w.pop("other")), "it must hold model"),
    "too many bits": (damaged(lambda w, i: i.update(bits=17)), "from 1 to 16, got 17"),
    "no bits": (damaged(lambda w, i: i.update(bits=0)), "from 1 to 16, got 0"),
    "bits that are text": (damaged(lambda w, i: i.update(bits="3")), "from 1 to 16, got '3'"),
    "bits that are true": (damaged(lambda w, i: i.update(bits=True)), "from 1 to 16, got True"),
    "one in none": (damaged(lambda w, i: i.update(every=0)), "every of .* from 1 to 65536, got 0"),
    "one in a half": (damaged(lambda w, i: i.update(every=0.5)), "every of .* a whole number"),
    "a part of a bit of some": (damaged(lambda w, i: i.update(bits=2.5, every=4)), "must be whole, got 2.5"),
    "negative bytes": (damaged(lambda w, i: i.update(nbytes=-1)), "nbytes of"),
    "infinite variance": (damaged(lambda w, i: i.update(variance=float("inf"))), "variance of"),
    "variance that is no number": (damaged(lambda w, i: i.update(variance=float("nan"))), "variance of"),
    "a variance beyond all numbers": (damaged(lambda w, i: i.update(variance=10**400)), "variance of"),
    "lists in lists": ("[" * 3000, "no plan"),
    "a place that is none": (damaged(lambda w, i: w.update(places={"x": i})), "a place reads"),
    "a place that is a number": (damaged(lambda w, i: w.update(places={3: i})), "a place reads"),
    "places that are a list": (damaged(lambda w, i: w.update(places=[i])), "places must be a mapping"),
    "an entry that is a number": (
        damaged(lambda w, i: w.update(places={"a / b 0 / 0": 3})),
        "must hold bits, every, nbytes",
    ),
    "other that is a fraction": (damaged(lambda w, i: w.update(other=0.5)), "other must be"),
    "model that is a number": (damaged(lambda w, i: w.update(model=3)), "model must be a str"),
    "structure that is a number": (damaged(lambda w, i: w.update(structure=3)), "structure must be a str"),
    "exact that is a number": (damaged(lambda w, i: w.update(exact=1, places={})), "exact must be a bool"),
    "a negative norm": (damaged(lambda w, i: w.update(norm2=-1.0)), "norm2 must be"),
    "a norm that is text": (damaged(lambda w, i: w.update(norm2="1")), "norm2 must be"),
    "negative other": (damaged(lambda w, i: w.update(other=-1)), "other must be"),
    "negative variance": (damaged(lambda w, i: i.update(variance=-0.5)), "variance of"),
    "bytes that are a fraction": (damaged(lambda w, i: i.update(nbytes=0.5)), "nbytes of"),
    "a place of two parts": (damaged(lambda w, i: w.update(places={"a / b 0": i})), "a place reads"),
    "exact with places": (damaged(lambda w, i: w.update(exact=True)), "exact plans have no places"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_no_plans(name, tmp_path):
    text, message = BAD[name]
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Plan.load(tmp_path / "plan.yaml")
    assert "\n" not in str(caught.value)


def test_a_file_in_no_encoding(tmp_path):
    (tmp_path / "plan.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match="no plan"):
        Plan.load(tmp_path / "plan.yaml")


def test_a_plan_for_another_model():
    plan = planned(net())
    with pytest.raises(ValueError, match="another model: it names the module '0' of a Sequential, which this Linear"):
        rad.convert(nn.Linear(16, 4), plan)
    with pytest.raises(ValueError, match="other modules or shapes of parameters"):
        rad.convert(net(width=33), plan)
    other = net()
    other[1] = nn.SiLU()
    with pytest.raises(ValueError, match="other modules or shapes of parameters"):
        rad.convert(other, plan)


def test_a_refused_plan_leaves_the_model_alone():
    model = rad.convert(net(), rad.Rounding(bits=2))
    with pytest.raises(ValueError, match="other modules"):
        rad.convert(model, planned(net(33)))
    assert all(module.recipe.sketch == rad.Rounding(bits=2) for module in model.modules())


def test_a_model_that_keeps_something_else_now():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.other = nn.Linear(16, 16), False

        def forward(self, x):
            x = torch.tanh(self.linear(x))
            return torch.sigmoid(x) if self.other else x

    model = Branching()
    rad.convert(model, planned(model))
    model.other = True
    with pytest.raises(ValueError, match=r"nothing of '. / sigmoid 0 / 0', which the model now keeps"):
        model(X)


def test_what_is_there_under_two_names():
    shared = nn.Linear(4, 4)
    both = nn.ModuleDict({"a": shared, "b": shared})
    one = nn.ModuleDict({"a": shared, "c": shared})
    assert fingerprint(both) != fingerprint(one)
    gelu = nn.GELU()
    assert fingerprint(nn.ModuleDict({"a": gelu, "b": gelu})) != fingerprint(nn.ModuleDict({"a": gelu, "c": gelu}))
    tied = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    free = fingerprint(tied)
    tied["b"].weight = tied["a"].weight
    assert fingerprint(tied) == free  # names and shapes alone; which are tied says nothing of what is kept
    item = Item("b / linear 0 / 0", 3, 5, 0.1)
    Plan((item,), 0, 1.0, "ModuleDict", fingerprint(both)).check(both)
    with pytest.raises(ValueError, match="names the module 'b'"):
        Plan((item,), 0, 1.0, "ModuleDict", fingerprint(one)).check(one)


def test_structure_is_that_of_stock_and_converted_alike():
    model = net()
    before = fingerprint(model)
    assert fingerprint(rad.convert(model, rad.Rounding(bits=3))) == before
    assert fingerprint(net(33)) != before
    assert fingerprint(nn.Linear(4, 6, bias=False)) != fingerprint(nn.Linear(6, 4, bias=False))


def test_plans_go_by_all_that_they_say():
    model = net()
    plan = planned(model)
    item = plan.items[0]
    others = [
        dataclasses.replace(plan, items=(dataclasses.replace(item, bits=bits), *plan.items[1:]))
        for bits in (None, *range(1, 17), 2.25, 2.5)
        if bits != item.bits
    ]
    others.append(dataclasses.replace(plan, items=(dataclasses.replace(item, bits=2, every=4), *plan.items[1:])))
    others += [dataclasses.replace(plan, structure="another"), dataclasses.replace(plan, items=plan.items[1:])]
    others.append(dataclasses.replace(plan, items=(), exact=True))
    assert len({plan.key, *(other.key for other in others)}) == 1 + len(others)
    assert Plan.from_dict(plan.as_dict()).key == plan.key


def test_a_plan_is_for_a_whole_model():
    model = net()
    with pytest.raises(TypeError, match="mapping from names to sketches"):
        rad.convert(model, {"2": planned(model)})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_of_a_planned_model(copied):
    model = net()
    plan = planned(model)
    rad.convert(model, plan, generator=rad.nn.Seeds(0))
    other = copied(model)
    held = [saved_bytes(lambda m=m: m(X).square().mean()).total for m in (model, other)]
    assert held == [plan.nbytes] * 2
    grads = [torch.autograd.grad(m(X).square().mean(), list(m.parameters())) for m in (model, other)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_names_say_that_there_is_a_plan():
    model = net()
    assert "keeps as planned" in repr(rad.convert(model, planned(model)))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (5, 5),
        (1e6, 10**6),
        ("7", 7),
        ("50MB", 50 * 10**6),
        ("50 MB", 50 * 10**6),
        ("1.5GiB", 3 * 2**29),
        ("300kb", 300_000),
        ("2KiB", 2048),
        ("1e3 B", 1000),
        ("0.1TB", 10**11),
    ],
)
def test_sizes(size, expected):
    assert bytes_of(size) == expected


@pytest.mark.parametrize("size", ["50XB", "MB", "", "-5MB", "5 M", "1,5GB", "٣MB", "inf", "nan MB", 0, -3, 0.5, "0"])
def test_sizes_that_are_none(size):
    with pytest.raises(ValueError, match="nbytes must be") as caught:
        bytes_of(size)
    assert repr(size) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [True, None, [5], b"5MB"])
def test_what_is_no_size_at_all(size):
    with pytest.raises(TypeError, match="budget must be a number of bytes or a size"):
        bytes_of(size, "budget")


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (123_456, "123.5 kB"),
        (999_999, "1000 kB"),
        (10**6, "1 MB"),
        (2_500_000, "2.5 MB"),
        (10**9, "1 GB"),
        (1_234_567_890_123, "1235 GB"),
    ],
)
def test_sizes_as_they_are_shown(nbytes, text):
    assert shown(nbytes) == text


def test_a_part_of_a_byte_is_none():
    assert bytes_of(1999.9) == 1999
    assert bytes_of("1.9999kB") == 1999


@pytest.mark.parametrize("size", [float("inf"), float("nan")])
def test_sizes_that_are_not_finite(size):
    with pytest.raises(ValueError, match="nbytes must be"):
        bytes_of(size)


def test_a_compiled_model_follows_its_plan():
    torch._dynamo.reset()  # of how often other tests have compiled the same code
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4))

    def loss():
        return model(X).square().mean()

    plan = planned(model, 3000)
    assert len({item.bits for item in plan.items}) > 1
    exact = gradients(model, loss)
    rad.convert(model, plan, generator=rad.nn.Seeds(0))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)

    def by_graph():
        return compiled(X).square().mean()

    assert saved_bytes(by_graph).total == pytest.approx(plan.nbytes, rel=0.05)
    draws = [gradient_noise(lambda f=f: gradients(model, f), 60, exact).total for f in (loss, by_graph)]
    assert draws[1].variance == pytest.approx(draws[0].variance, abs=5 * sum(d.variance_error for d in draws))
    assert draws[1].bias == pytest.approx(draws[1].bias_error, rel=0.25)


def test_a_compiled_model_is_measured_as_it_was_written():
    model = net()
    compiled = torch.compile(model, backend="aot_eager")
    assert rad.allocate(model, lambda: compiled(X).square().mean(), 1500) == planned(model)
