"""The table of what a model keeps, before any training."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from sketches import normal
from torch import Tensor, nn

import rad
from rad.measure import Entry, Ledger

module = sys.modules["rad.measure.explain"]  # whose name in the package is that of the function


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.lin, self.drop = nn.BatchNorm1d(40), nn.Linear(40, 80), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": torch.cumprod(self.drop(F.relu(self.lin(self.norm(x)))), 0), "x": x}


def test_table_names_operation_and_module():
    model = rad.convert(Net(), rad.Rounding(bits=3))
    ledger = rad.explain(model, normal(16, 40))
    found = {(e.layer, e.operation.rpartition(".")[2], e.keeps) for e in ledger.entries}
    sketch = "Rounding(bits=3, group=256)"
    assert {("norm", "batch_norm", sketch), ("lin", "linear", sketch), ("Net", "relu", "1 bit")} <= found
    assert ("Net", "cumprod", "exact") in found
    lines = str(ledger).splitlines()
    assert max(map(len, lines)) <= 100
    assert len({len(line) for line in lines}) == 1
    assert any(line.split()[:3] == ["Net", "cumprod", "exact"] for line in lines)
    assert lines[-2].split() == ["exact", f"{ledger.exact / ledger.total:.1%}", f"{ledger.exact:,}"]
    # The input and the output of the cumulative product, and 1/σ.
    assert 2 * 16 * 80 * 4 <= ledger.exact < ledger.total
    assert "cumprod" in ledger.summary()
    assert f"{ledger.total:,} bytes" in ledger.summary()


def test_nothing_is_changed():
    model, x = rad.convert(Net(), rad.Rounding(bits=3)), normal(16, 40)
    before = {name: b.clone() for name, b in model.named_buffers()}
    state, ambient = rad.nn.seeds(model).get_state(), torch.get_rng_state()
    rad.explain(model, x)
    assert all(torch.equal(before[name], b) for name, b in model.named_buffers())
    assert torch.equal(rad.nn.seeds(model).get_state(), state)
    assert torch.equal(torch.get_rng_state(), ambient)


def test_warns_where_most_stays_exact():
    x = normal(16, 40)
    with pytest.warns(rad.MostlyExactWarning, match="of them exact, most by cumprod"):
        rad.explain(rad.convert(Net(), rad.Rounding(bits=3)), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rad.explain(Net(), x)  # not converted, so nobody expects less
        rad.explain(rad.convert(nn.Linear(40, 40), rad.Rounding(bits=3)), x)


@pytest.mark.parametrize("share", [0.45, 0.5, 0.55])
def test_most_is_more_than_half(share):
    ledger = Ledger(
        (
            Entry("a", "f", "exact", round(1000 * share), False),
            Entry("a", "f", "1 bit", round(1000 * (1 - share)), False),
        )
    )
    model = rad.convert(nn.Linear(4, 4), rad.Rounding(bits=3))
    with warnings.catch_warnings(record=True) as caught, pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("always")
        patch.setattr(module, "saved_bytes", lambda fn: ledger)
        assert rad.explain(model, normal(4, 4)) is ledger
    assert [w.category for w in caught] == [rad.MostlyExactWarning] * (share > 0.5)


class Returning(nn.Module):
    """Returns what its caller makes of two results."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(40, 40), nn.Linear(40, 40)

    def forward(self, x: Tensor, *, pack) -> object:
        return pack(self.first(x), self.second(x).exp())


@pytest.mark.parametrize(
    "pack",
    [
        lambda a, b: (a, b),
        lambda a, b: [a, {"b": b, "n": 3}],
        lambda a, b: {"a": a, "more": (None, [b])},
        lambda a, b: (a, b, torch.arange(3), b.detach()),
    ],
)
@pytest.mark.parametrize("grad", [True, False])
def test_all_that_is_returned_counts(pack, grad):
    model, x = Returning(), normal(16, 40)
    with torch.set_grad_enabled(grad):
        ledger = rad.explain(model, x, pack=pack)
    assert ledger.by_layer() == {"first": x.nbytes, "Returning": 16 * 40 * 4}


def test_a_pass_that_fails_changes_nothing_either():
    model = rad.convert(
        nn.Sequential(nn.BatchNorm1d(40), nn.Linear(40, 40), nn.Dropout(), nn.Linear(41, 1)), rad.Rounding(bits=3)
    )
    before = {name: b.clone() for name, b in model.named_buffers()}
    state, ambient = rad.nn.seeds(model).get_state().clone(), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        rad.explain(model, normal(16, 40))
    assert all(torch.equal(before[name], b) for name, b in model.named_buffers())
    assert torch.equal(rad.nn.seeds(model).get_state(), state)
    assert torch.equal(torch.get_rng_state(), ambient)


def test_frozen():
    with pytest.raises(ValueError, match="requires a gradient"):
        rad.explain(Net().requires_grad_(False), normal(16, 40))
