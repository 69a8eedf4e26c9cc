"""The ledger of saved bytes against counts by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sketches import SKETCHES, normal
from torch import nn
from torch.nn.modules import module as hooks

import rad
from rad.functional.keep import listeners
from rad.measure import Entry, Ledger, saved_bytes
from rad.nn.intercept import watchers

# Batch 16, float32. Kept of the inputs [16, 40] and [16, 80] at a budget of a quarter, with the seed's 8 bytes.
SAMPLED = (16 * 10 * 4 + 8, 16 * 20 * 4 + 8)
KEPT = {
    "project": SAMPLED,
    "sample-batch": SAMPLED,
    "sample-batch-without": SAMPLED,
    "sample-element": SAMPLED,
    "sample-element-without": SAMPLED,
    # Three rows and a half share a range on average; 7 bits and no feature left out, for 8 bits leave no room for all.
    "rounded-sample": (3 * 4 + 7 * 80 + 8, 6 * 4 + 7 * 160 + 8),
    # 640 elements: 4 groups of 160 at 4 bytes and 7 bits each; 1,280: 5 groups of 256 and 7 bits.
    "rounding": (4 * 4 + 7 * 80 + 8, 5 * 4 + 7 * 160 + 8),
    # Groups of 16: 40 and 80 of them leave room for 6 bits.
    "rounding-narrow": (40 * 4 + 6 * 80 + 8, 80 * 4 + 6 * 160 + 8),
}


def mlp(*sizes: int) -> nn.Sequential:
    layers = [layer for d, o in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(d, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def test_stock():
    model, x = mlp(40, 80, 3), normal(16, 40)
    ledger = saved_bytes(lambda: model(x).sum())
    # What ReLU keeps is the next layer's input, and that storage counts once, for ReLU.
    assert ledger.by_layer() == {"0": 16 * 40 * 4, "1": 16 * 80 * 4, "2": 0}
    assert ledger.total == 16 * (40 + 80) * 4
    assert ledger.parameters == 80 * 3 * 4


@pytest.mark.parametrize("name", SKETCHES)
def test_converted(name):
    model, x = rad.convert(mlp(40, 80, 3), SKETCHES[name](0.25)), normal(16, 40)
    ledger = saved_bytes(lambda: model(x).sum())
    assert ledger.by_layer() == {"0": KEPT[name][0], "1": 16 * 80 // 8, "2": KEPT[name][1]}
    assert ledger.total == sum(KEPT[name]) + 160
    assert ledger.parameters == 80 * 3 * 4


@pytest.mark.parametrize("make", SKETCHES.values(), ids=SKETCHES)
def test_a_tenth_of_the_mlp_of_the_paper(make):
    model, x, y = mlp(784, 300, 300, 300, 10), normal(150, 784), torch.zeros(150, dtype=torch.int64)
    loss = nn.CrossEntropyLoss()
    exact = saved_bytes(lambda: loss(model(x), y)).total
    rad.convert(model, make(0.1))
    assert saved_bytes(lambda: loss(model(x), y)).total <= 0.125 * exact


def test_labels_count_as_what_they_are():
    logits, y = normal(4, 10).requires_grad_(), torch.zeros(4, dtype=torch.int64)
    # Log-probabilities, labels, and the scalar by which the mean is divided.
    assert saved_bytes(lambda: F.cross_entropy(logits, y)).total == 4 * 10 * 4 + 4 * 8 + 4


def test_views_hold_their_base_and_share_it():
    base = normal(100, 5)
    weight = normal(5).requires_grad_()
    ledger = saved_bytes(lambda: (base[:1] * weight).sum() + (base[3:4] * weight).sum())
    assert ledger.total == 100 * 5 * 4
    assert [e.nbytes for e in ledger.entries] == [100 * 5 * 4]


def test_freed_parts_do_not_count():
    x = normal(10).requires_grad_()
    assert saved_bytes(lambda: (x.exp().sum(), x.sum())[1]).total == 0
    assert saved_bytes(lambda: x.exp().sum()).total == 10 * 4


def test_values_pass_unchanged():
    x = normal(10).requires_grad_()
    losses = []
    saved_bytes(lambda: losses.append(x.exp().sum()) or losses[0])
    losses[0].backward()
    torch.testing.assert_close(x.grad, x.detach().exp())


def test_bare_parameters_are_apart():
    weight = nn.Parameter(normal(7))
    ledger = saved_bytes(lambda: (weight * weight).sum())
    assert (ledger.total, ledger.parameters) == (0, 7 * 4)


def test_names_are_those_of_the_innermost_module():
    model = nn.Sequential(nn.Sequential(nn.Tanh(), nn.Sequential(nn.Sigmoid())), nn.Softplus())
    x, loss = normal(10).requires_grad_(), nn.MSELoss()
    layers = saved_bytes(lambda: loss(model(x).exp(), x.detach())).by_layer()
    # The exponential belongs to no layer, and the loss shares its result.
    assert layers == {"0.0": 40, "0.1.0": 40, "(outside any layer)": 40, "MSELoss": 40}


def test_table():
    model = rad.convert(mlp(40, 80, 3), rad.Project(0.25))
    text = str(saved_bytes(lambda: model(normal(16, 40)).sum()))
    rows = [line.split() for line in text.splitlines()]
    assert len({len(line) for line in text.splitlines()}) == 1
    assert ["0", "linear", "Project(budget=0.25)", "648"] in rows
    assert ["1", "relu", "1", "bit", "160"] in rows
    assert ["total", "2,096"] in rows
    assert ["parameters,", "apart", "960"] in rows


def entry(layer: str, operation: str, keeps: str, nbytes: int, parameter: bool = False) -> Entry:
    return Entry(layer, operation, keeps, nbytes, parameter)


MANY = Ledger(
    (
        entry("a", "torch.nn.functional.linear", "Rounding(bits=3, group=256)", 1000),
        entry("a", "torch.nn.functional.linear", "exact", 9000, parameter=True),
        entry("b", "torch.cumsum", "exact", 20),
        entry("c", "torch.cumprod", "exact", 300),
        entry("c", "torch.cumprod", "exact", 100),
        entry("d", "torch.sort", "exact", 30),
        entry("e", "", "exact", 50),
        entry("f", "torch.relu", "1 bit", 0),
    )
)
NONE = Ledger(())


def test_sums_of_a_ledger():
    assert (MANY.total, MANY.exact, MANY.parameters) == (1500, 500, 9000)
    assert MANY.by_layer() == {"a": 1000, "b": 20, "c": 400, "d": 30, "e": 50, "f": 0}
    assert (NONE.total, NONE.exact, NONE.parameters, NONE.by_layer()) == (0, 0, 0, {})


def test_a_summary_names_the_three_largest_of_what_is_exact():
    # By operation, or by module where that is not converted.
    assert MANY.summary() == ("1,500 bytes held for the backward pass, 33% of them exact, most by cumprod, e, sort")
    assert NONE.summary() == "0 bytes held for the backward pass, 0% of them exact"
    few = Ledger((MANY.entries[0], MANY.entries[1]))
    assert few.summary() == "1,000 bytes held for the backward pass, 0% of them exact"


def test_every_row_of_a_table():
    lines = str(MANY).splitlines()
    assert [line.split() for line in lines if set(line) != {"-"}] == [
        ["module", "operation", "keeps", "saved", "bytes"],
        ["a", "linear", "…(bits=3,", "group=256)", "1,000"],
        ["b", "cumsum", "exact", "20"],
        ["c", "cumprod", "exact", "400"],
        ["d", "sort", "exact", "30"],
        ["e", "exact", "50"],
        ["total", "1,500"],
        ["exact", "33.3%", "500"],
        ["parameters,", "apart", "9,000"],
    ]
    assert [i for i, line in enumerate(lines) if set(line) == {"-"}] == [1, 7]
    assert [line.split()[-1] for line in str(NONE).splitlines()[-3:]] == ["0", "0", "0"]
    assert "0.0%" in str(NONE)


@pytest.mark.parametrize(("index", "width"), [(0, 38), (1, 24), (2, 20)])
def test_a_long_name_is_cut_in_front(index, width):
    for length in (width, width + 1):
        text = "".join(chr(ord("a") + i % 26) for i in range(length))
        cells = [text if i == index else "x" for i in range(3)]
        line = str(Ledger((entry(cells[0], cells[1], cells[2], 5),))).splitlines()[2]
        assert line.split()[index] == (text if length == width else "…" + text[2:])


class Hidden(nn.Module):
    """A plain module inside one that is converted, and one that is converted inside a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.few = nn.Linear(40, 40), nn.Linear(40, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.plain(self.few(x).exp())


def test_what_the_entries_say():
    model, x = Hidden(), normal(16, 40)
    rad.convert(model.few, rad.Rounding(bits=3))
    entries = saved_bytes(lambda: model(x).sum()).entries
    found = {(e.layer, e.operation, e.keeps, e.nbytes, e.parameter, e.dtype) for e in entries}
    sketch = "Rounding(bits=3, group=256)"
    linear = "torch.nn.functional.linear"
    assert found == {
        ("few", linear, sketch, 16 * 40 * 3 // 8, False, torch.uint8),
        ("few", linear, sketch, 4 * 4, False, torch.bfloat16),  # four groups of 160
        ("few", linear, sketch, 8, False, torch.int64),
        ("Hidden", "", "exact", 16 * 40 * 4, False, torch.float32),
        ("plain", "", "exact", 40 * 40 * 4, True, torch.float32),
    }
    assert {e.place for e in entries} == {""}


def test_what_is_too_small_for_a_summary_is_exact():
    model = rad.convert(nn.Linear(16, 3), rad.Rounding(bits=3))
    (entry,) = saved_bytes(lambda: model(normal(4, 16)).sum()).entries
    assert (entry.keeps, entry.nbytes) == ("exact", 4 * 16 * 4)


def test_entries_of_a_plan_say_where_they_are():
    model, x = nn.Sequential(nn.Linear(40, 40), nn.GELU()), normal(16, 40)
    plan = rad.allocate(model, lambda: model(x).sum(), 1500)
    rad.convert(model, plan)
    places: dict[str, int] = {}
    for e in saved_bytes(lambda: model(x).sum()).entries:
        places[e.place] = places.get(e.place, 0) + e.nbytes
    assert places == {item.place: item.nbytes for item in plan.items}


def test_a_view_of_a_parameter_is_its_own():
    model, x = nn.Linear(8, 8), normal(4, 8).requires_grad_()

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :3] @ self.inner.weight[:3]

    ledger = saved_bytes(lambda: Part()(x).sum())
    assert ledger.parameters == 8 * 8 * 4
    assert ledger.total == x.nbytes


def fail() -> torch.Tensor:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("fn", "error", "message"),
    [
        (lambda: 3.0, ValueError, "got float"),
        (lambda: None, ValueError, "got NoneType"),
        (lambda: normal(3), ValueError, "requires grad"),
        (fail, ZeroDivisionError, None),
        (lambda: nn.Linear(2, 2)(normal(3)), RuntimeError, None),
        (lambda: nn.Linear(2, 2)(normal(2)), None, None),
    ],
    ids=["number", "nothing", "no graph", "exception", "exception in a layer", "fine"],
)
def test_hooks_are_removed(fn, error, message):
    names = ("_global_forward_pre_hooks", "_global_forward_hooks", "_global_forward_hooks_always_called")
    before = [dict(getattr(hooks, name)) for name in names]
    if error is None:
        saved_bytes(fn)
    else:
        with pytest.raises(error, match=message):
            saved_bytes(fn)
    assert [dict(getattr(hooks, name)) for name in names] == before
    assert (watchers, listeners) == ([], [])


def test_layers_are_told_apart_after_one_failed():
    failing, model = nn.Linear(2, 2), mlp(4, 4, 4)

    def run():
        with pytest.raises(RuntimeError):
            failing(normal(3))
        return model(normal(2, 4)).exp().sum()

    assert saved_bytes(run).by_layer() == {"0": 32, "1": 32, "2": 0, "(outside any layer)": 32}
