"""Converted convolutional nets: what each layer keeps, and options that no converted layer supports."""

from __future__ import annotations

import copy

import pytest
import torch
from sketches import SKETCHES, normal
from torch import Tensor, nn

import rad
from rad.measure import saved_bytes

SKETCH = rad.Sample(0.25)


def cnn() -> nn.Sequential:
    """Every layer there is for images, on ``[n, 2, 12, 12]``."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same"),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 8, 3, stride=2, groups=2, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2, stride=1, padding=1),
        nn.Identity(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Unflatten(1, (8, 9)),
        nn.Linear(9, 5),
    )


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(5)
    return list(torch.autograd.grad(model(x).square().sum(), model.parameters()))


@pytest.mark.parametrize("make", SKETCHES.values(), ids=SKETCHES)
def test_all_but_the_gradients_stay(make):
    model, x = cnn(), normal(3, 2, 12, 12)
    types, text, parameters = [type(layer) for layer in model], repr(model), list(model.parameters())
    torch.manual_seed(5)
    out, following = model(x), torch.rand(3)
    exact, state = gradients(model, x), copy.deepcopy(model.state_dict())
    rad.convert(model, make(0.3))
    kept_as_they_are = {nn.Identity, nn.Flatten, nn.Unflatten}
    assert {t for t, layer in zip(types, model, strict=True) if type(layer) is t} == kept_as_they_are
    assert list(model.state_dict()) == list(state)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    torch.manual_seed(5)
    assert torch.equal(model(x), out)
    assert torch.equal(torch.rand(3), following)
    noisy = gradients(model, x)
    # Weights of the convolutions and of the linear layer are random, biases are not.
    for parameter, a, b in zip(parameters, noisy, exact, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5) == (parameter.dim() == 1)
    rad.revert(model)
    assert ([type(layer) for layer in model], repr(model)) == (types, text)


def test_exact_sketch_gives_exact_gradients():
    model, x = cnn(), normal(3, 2, 12, 12)
    expected = gradients(model, x)
    torch.testing.assert_close(gradients(rad.convert(model, rad.Exact()), x), expected)


def test_what_each_layer_keeps():
    model, x = rad.convert(cnn(), SKETCH), normal(8, 2, 12, 12)
    ledger = saved_bytes(lambda: model(x).sum())
    keeps = {e.layer: e.keeps for e in ledger.entries}
    # Kept of [8 · 2, 144], [8 · 4, 36] and [8 · 8, 9] with 8 bytes of seed. Layers that keep nothing do not appear.
    assert {layer: (n, keeps[layer]) for layer, n in ledger.by_layer().items()} == {
        "0": (16 * 36 * 4 + 8, str(SKETCH)),
        "1": (8 * 4 * 144 // 8, "1 bit per entry"),
        "3": (32 * 9 * 4 + 8, str(SKETCH)),
        "4": (8 * 8 * 4 // 8, "1 bit per entry"),
        "5": (8 * 8 * 9 * 2 // 8, "2 bits per output"),
        "8": (8 * 8 * 9 // 8, "1 bit per entry"),
        "10": (64 * 2 * 4 + 8, str(SKETCH)),
    }
    assert model[2].keeps() == "nothing"


def test_reshapes_keep_nothing_by_themselves():
    x = normal(3, 2, 12).requires_grad_()
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Unflatten(1, (4, 6)), nn.Flatten(0))
    assert not saved_bytes(lambda: model(x).sum()).entries


def test_a_tenth_of_the_cnn_of_the_paper():
    block = [nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2)]
    block += [nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(), nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2)]
    model, x = nn.Sequential(*block, nn.Flatten(), nn.Linear(2048, 10)), normal(16, 3, 32, 32)
    stock = saved_bytes(lambda: model(x).sum()).total
    lean = saved_bytes(lambda: rad.convert(model, rad.Exact())(x).sum()).total
    for make in SKETCHES.values():
        total = saved_bytes(lambda make=make: rad.convert(model, make(0.1))(x).sum()).total
        assert total <= 0.08 * stock
        assert total <= 0.16 * lean


UNSUPPORTED = {
    "reflect": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), "padding_mode=reflect"),
    "circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), "padding_mode=circular"),
    "indices": (nn.MaxPool2d(2, return_indices=True), "return_indices=True"),
    "huge window": (nn.MaxPool2d((2**16 + 1, 1), padding=(2**15, 0)), r"kernel_size=(65537, 1)"),
}


@pytest.mark.parametrize(("layer", "option"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported_options_run_as_stock_and_say_so(layer, option):
    x = normal(2, 2, 6, 6).requires_grad_()
    stock = layer(x)
    expected = saved_bytes(lambda: first(layer(x))).total
    rad.convert(layer, SKETCH)
    out = layer(x)
    pairs = zip(out, stock, strict=True) if isinstance(out, tuple) else [(out, stock)]
    assert all(torch.equal(a, b) for a, b in pairs)
    torch.testing.assert_close(*(torch.autograd.grad(first(y).square().sum(), x)[0] for y in (out, stock)))
    ledger = saved_bytes(lambda: first(layer(x)))
    assert ledger.total == expected
    assert {e.keeps for e in ledger.entries} == {f"exact ({option} is not supported)"}
    assert f"keeps exact ({option} is not supported)" in repr(layer)


def first(out: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return out[0] if isinstance(out, tuple) else out
