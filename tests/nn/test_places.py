"""The places by which an assignment knows what is kept: each its own, and the same in every run of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from calls import quiet
from cases import CASES
from sketches import normal
from torch import Tensor, nn

import rad
from rad.budget.stand_in import BASE
from rad.functional import Assignment, attention, scan, softmax
from rad.nn.convert import for_a_while
from rad.sketch import Sketch

pytestmark = quiet
SEVERAL = {"probabilities", "factors", "slopes", "inputs", "states"}  # roles of what is kept in varying number


class Recording(Assignment):
    """Remembers the places that it is asked for."""

    sketch, key = BASE, "recording"

    def __init__(self) -> None:
        self.places: list[str] = []

    def at(self, place: str, last: bool = False) -> Sketch:
        # Of normalized values it is asked once more where no loops form them.
        if not (place.endswith("normalized") and self.places[-1:] == [place]):
            self.places.append(place)
        return self.sketch


class Calling(nn.Module):
    """A forward pass of its own, inside a module by a name."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *args: Any) -> Any:
        return self.run(*args)


def places(run: Callable[..., Any], *args: Any) -> list[str]:
    model, recording = nn.ModuleDict({"inner": Calling(run)}), Recording()
    with for_a_while(model, recording):
        model["inner"](*args)
    return recording.places


def role(place: str) -> str:
    return place.rpartition(" / ")[2]


def assert_apart(twice: list[str], once: list[str]) -> None:
    """Holds the places of two equal calls to be those of one, and as many others."""
    assert twice[: len(once)] == once
    assert len(twice) == 2 * len(once)
    assert len(set(twice)) == 2 * len(set(once))
    single = [place for place in twice if role(place) not in SEVERAL]
    assert len(set(single)) == len(single)
    assert all(place.startswith("inner / ") and place.count(" / ") >= 2 for place in twice)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_each_call_has_its_own(case, monkeypatch):
    def run(times: int, first: list[Any], second: list[Any]) -> None:
        for tensors in (first, second)[:times]:
            case.function(*(t * 1 if isinstance(t, Tensor) and t.requires_grad else t for t in tensors), **case.options)

    monkeypatch.setattr(attention, "_BLOCK", 40)
    monkeypatch.setattr(softmax, "_BLOCK", 40)
    once, twice = (places(run, times, case.tensors(), case.tensors()) for times in (1, 2))
    assert_apart(twice, once)


# Functions of PyTorch's that are made of others; x and y are ``[8, 40]``.
OPENED = {
    "normalize": lambda x, y: F.normalize(x),
    "local_response_norm": lambda x, y: F.local_response_norm(x[:, :, None], 3),
    "gumbel_softmax": lambda x, y: F.gumbel_softmax(x),
    "softmin": lambda x, y: F.softmin(x, -1),
    "gaussian_nll_loss": lambda x, y: F.gaussian_nll_loss(x, y, x.square() + 1),
    "kl_div": lambda x, y: F.kl_div(x, y.softmax(-1)),
    "multi_head_attention": lambda x, y: F.multi_head_attention_forward(
        x[:, None], x[:, None], x[:, None], 40, 2, *WEIGHTS[:2], None, None, False, 0.0, *WEIGHTS[2:]
    ),
    "einsum": lambda x, y: torch.einsum("ij,kj->ik", x, y),
    "an operator": lambda x, y: x * y,
    "itself by two names": lambda x, y: torch.relu(torch.tanh(x)) + F.tanh(y),
}
WEIGHTS = [normal(120, 40).requires_grad_(), None, normal(40, 40).requires_grad_(), None]


@pytest.mark.parametrize("function", OPENED.values(), ids=OPENED)
def test_functions_inside_others_have_their_own(function):
    x, y = (normal(8, 40, seed=i).requires_grad_() for i in range(2))

    def run(times: int) -> None:
        for _ in range(times):
            function(x * 1, y * 1)

    once, twice = places(run, 1), places(run, 2)
    assert once
    assert_apart(twice, once)


def test_a_new_pass_begins_again():
    model, recording, x = Calling(lambda x: F.normalize(torch.tanh(x))), Recording(), normal(8, 40).requires_grad_()
    with for_a_while(model, recording):
        model(x)
        first = list(recording.places)
        model(x)
    assert recording.places == 2 * first
    assert all(place.startswith(". / ") for place in first)


def test_they_are_the_same_without_compiled_loops(monkeypatch):
    from rad.sketch import kernels

    normed = [
        (F.layer_norm, (8, 40), lambda x: F.layer_norm(x, [40])),
        (F.batch_norm, (16, 4, 5), lambda x: F.batch_norm(x, None, None, training=True)),
        (F.rms_norm, (8, 40), lambda x: F.rms_norm(x, [40])),
        (F.group_norm, (8, 4, 10), lambda x: F.group_norm(x, 2)),
    ]
    for function, shape, run in normed:
        x = normal(*shape).requires_grad_()
        found = []
        for enabled in (True, False):
            monkeypatch.setattr(kernels, "enabled", enabled and kernels.numba is not None)
            found.append(places(run, x * 1))
        assert found[0] == found[1] == [f"inner / {function.__name__} 0 / normalized"]


RECURRENT = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN}


@pytest.mark.parametrize("kind", RECURRENT)
def test_they_do_not_depend_on_how_long_a_sequence_is(kind, monkeypatch):
    monkeypatch.setattr(scan, "_CHUNK_UNIT", 2)
    monkeypatch.setattr(scan, "_CHUNK_BYTES", 1)
    layer = RECURRENT[kind](16, 16, num_layers=2)
    found = [places(layer, normal(steps, 6, 16)) for steps in (1, 2, 7)]
    assert len({*map(frozenset, found)}) == 1
    assert {role(place) for place in found[0]} == {"inputs", "states", "slopes" if kind == "rnn_tanh" else "factors"}


def test_they_do_not_depend_on_how_many_blocks_attention_goes_by(monkeypatch):
    found = []
    for most in (2**18, 200, 1):
        monkeypatch.setattr(attention, "_BLOCK", most)
        heads = [normal(2, 2, 12, 16, seed=i).requires_grad_() for i in range(3)]
        found.append(places(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), *(t * 1 for t in heads)))
    assert len({*map(frozenset, found[:2])}) == 1
    assert [role(place) for place in found[0]] == ["0", "1", "2", "probabilities"]


LOSSES = {
    "cross_entropy": lambda x: F.cross_entropy(x, torch.arange(12)),
    "cross_entropy, smoothed": lambda x: F.cross_entropy(x, torch.arange(12), label_smoothing=0.1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_nor_on_how_many_blocks_of_logits_there_are(loss, monkeypatch):
    found = []
    for most in (2**18, 500):
        monkeypatch.setattr(softmax, "_BLOCK", most)
        found.append(places(loss, normal(12, 100).requires_grad_() * 1))
    assert {*found[0]} == {*found[1]}
    assert [role(place) for place in found[0]] == ["probabilities"]
    assert len(found[1]) == (1 if loss is LOSSES["cross_entropy, smoothed"] else 3)


def test_a_converted_module_is_named_in_them():
    model = nn.Sequential(nn.Linear(40, 40), nn.Sequential(nn.GELU(), nn.Linear(40, 40)))
    recording = Recording()
    rad.convert(model, recording)
    model(normal(16, 40))
    assert recording.places == ["0 / linear 0 / 0", "1.0 / gelu 0 / 0", "1.1 / linear 0 / 0"]


def test_of_a_shared_summary_the_first_who_made_it_is_named():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(40, 8), nn.Linear(40, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) + self.second(x)

    model, x = Twice(), normal(16, 40)
    recording = Recording()
    rad.convert(model, recording)
    entries = rad.measure.saved_bytes(lambda: model(x).sum()).entries
    assert recording.places == ["first / linear 0 / 0"]
    assert {entry.place for entry in entries} == {"first / linear 0 / 0"}


@pytest.mark.parametrize("run", [torch.matmul, lambda x, y: torch.einsum("ij,jk->ik", x, y)])
def test_names_are_those_of_any_size(run):
    """A batch so small that one operand is kept as it is leaves the other its name."""
    y = normal(16, 64).requires_grad_() * 1
    small, large = (places(run, normal(n, 16).requires_grad_() * 1, y) for n in (1, 16))
    assert small == large[1:]
