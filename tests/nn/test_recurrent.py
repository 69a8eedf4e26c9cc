"""Recurrent layers, converted, against the stock ones they replace."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sketches import SKETCHES, normal, seeded
from torch import Tensor, nn

import rad
from rad.nn import FinalState

STOCK = {"RNN": nn.RNN, "FinalState": FinalState}
every_layer = pytest.mark.parametrize("stock", STOCK.values(), ids=STOCK)


def outputs(layer: nn.Module, *args: Tensor) -> tuple[Tensor, ...]:
    torch.manual_seed(3)  # of dropout
    out = layer(*args)
    return out if isinstance(out, tuple) else (out,)


def gradients(outs: tuple[Tensor, ...], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outs, inputs, [normal(*out.shape, seed=9 + i) for i, out in enumerate(outs)])


options = st.fixed_dictionaries(
    {
        "input_size": st.sampled_from([1, 2, 5]),
        "hidden_size": st.sampled_from([2, 4, 9]),
        "num_layers": st.integers(1, 3),
        "nonlinearity": st.sampled_from(["relu", "tanh"]),
        "bias": st.booleans(),
        "batch_first": st.booleans(),
        "dropout": st.sampled_from([0.0, 0.4]),
        "bidirectional": st.booleans(),
    }
)


@pytest.mark.filterwarnings("ignore:dropout option")
@every_layer
@given(options=options, T=st.integers(1, 6), n=st.sampled_from([None, 1, 3]), given_state=st.booleans())
@settings(max_examples=50)
def test_all_options_of_the_stock_layer(stock, options, T, n, given_state):
    layer = stock(**options)
    d, count = options["input_size"], options["num_layers"] * (1 + options["bidirectional"])
    lead = (T,) if n is None else (n, T) if options["batch_first"] else (T, n)
    args = [normal(*lead, d).requires_grad_()]
    if given_state:
        state = (count, options["hidden_size"]) if n is None else (count, n, options["hidden_size"])
        args.append(normal(*state, seed=1).requires_grad_())
    expected = outputs(layer, *args)
    inputs = [*args, *layer.parameters()]
    for sketch in (rad.Exact(), rad.Sample(0.5)):
        converted = rad.convert(copy.deepcopy(layer), sketch)
        actual = outputs(converted, *args)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
        grads = gradients(actual, [*args, *converted.parameters()])
        stock_grads = gradients(expected, inputs)
        # Weights aside, every gradient is exact.
        chosen = [
            i
            for i, name in enumerate(["x", "h0"][: len(args)] + [name for name, _ in layer.named_parameters()])
            if sketch == rad.Exact() or "weight" not in name
        ]
        torch.testing.assert_close([grads[i] for i in chosen], [stock_grads[i] for i in chosen])
        expected = outputs(layer, *args)


@every_layer
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@pytest.mark.parametrize(
    ("d", "h", "n", "T"), [(1, 100, 150, 70), (28, 128, 64, 150), (300, 100, 20, 500), (128, 7, 1, 9)]
)
def test_forward_pass_is_the_same_bit_for_bit_in_many_chunks(stock, nonlinearity, d, h, n, T):
    layer = stock(d, h, 2, nonlinearity=nonlinearity, batch_first=True)
    x, expected = normal(n, T, d), outputs(layer, normal(n, T, d))
    rad.convert(layer, rad.Rounding(0.5))
    assert all(torch.equal(a, b) for a, b in zip(outputs(layer, x), expected, strict=True))


@every_layer
def test_conversion_and_back(stock):
    layer = stock(3, 4, num_layers=2, nonlinearity="relu")
    model = nn.ModuleDict({"rnn": layer})
    before, names = repr(model), list(model.state_dict())
    rad.convert(model, rad.Project(0.5))
    assert type(layer).__name__ == f"Rad{stock.__name__}"
    assert "keeps Project(budget=0.5), 1 bit per state" in repr(model)
    assert list(model.state_dict()) == names
    rad.revert(model)
    assert type(layer) is stock
    assert repr(model) == before


def test_layers_say_what_they_keep():
    layer = rad.convert(nn.RNN(3, 4), rad.Project(0.5))
    assert layer.keeps() == "states exactly, for tanh; Project(budget=0.5) of the input"
    assert rad.convert(nn.RNN(3, 4, nonlinearity="relu"), rad.Exact()).keeps() == "Exact(budget=1.0)"


def test_gradients_of_both_biases_can_be_changed_alone():
    layer = rad.convert(nn.RNN(3, 4), rad.Project(0.5))
    grads = torch.autograd.grad(layer(normal(5, 2, 3))[0].sum(), [layer.bias_ih_l0, layer.bias_hh_l0])
    torch.testing.assert_close(*grads)
    assert not grads[0].zero_().equal(grads[1])


def test_final_state():
    layer = nn.RNN(3, 4, 2, bidirectional=True, batch_first=True)
    final = FinalState(3, 4, 2, bidirectional=True, batch_first=True)
    final.load_state_dict(layer.state_dict())
    x = normal(5, 6, 3)
    out, last = layer(x)
    assert torch.equal(final(x), torch.cat([last[-2], last[-1]], -1))
    assert torch.equal(final(x), torch.cat([out[:, -1, :4], out[:, 0, 4:]], -1))


@every_layer
def test_without_a_gradient_the_stock_layer_runs(stock):
    layer, generator = stock(3, 4), seeded(0)
    packed = nn.utils.rnn.pack_sequence([normal(4, 3), normal(2, 3)])
    with torch.no_grad():
        expected = layer(packed)
        state = generator.get_state()
        rad.convert(layer, rad.Project(0.5), generator=generator)
        torch.testing.assert_close(layer(packed), expected)
        layer(normal(4, 2, 3))
    layer.requires_grad_(False)(normal(4, 2, 3))
    assert torch.equal(generator.get_state(), state)
    layer(normal(4, 2, 3).requires_grad_())
    assert torch.equal(generator.get_state(), state)  # there is a gradient to come, but none of a weight


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_autocast_is_that_of_stock(stock, dtype):
    layer = stock(3, 4, 2, nonlinearity="relu").to(dtype)
    x = normal(5, 2, 3, dtype=dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        expected = outputs(layer, x)
        actual = outputs(rad.convert(copy.deepcopy(layer), rad.Project(0.5)), x)
    assert [t.dtype for t in actual] == [t.dtype for t in expected]
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert torch.autograd.grad(actual[0].sum(), x)[0].dtype == dtype


@pytest.mark.parametrize("make", SKETCHES.values(), ids=SKETCHES)
def test_memory_of_the_published_network(make):
    # Per example of 784 steps of one pixel with 100 units: states 313,600 bytes, bits 9,800, pixels 3,136.
    T, n, h = 784, 150, 100

    class Last(nn.RNN):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input)[0][:, -1]

    def net(recurrent: type[nn.RNN]) -> nn.Sequential:
        return nn.Sequential(recurrent(1, h, nonlinearity="relu", batch_first=True), nn.Linear(h, 10))

    def saved(model: nn.Module) -> float:
        x, y = normal(n, T, 1), torch.zeros(n, dtype=torch.int64)
        with torch.no_grad():
            model[0].weight_hh_l0.copy_(torch.eye(h))
        return rad.measure.saved_bytes(lambda: F.cross_entropy(model(x), y)).total / n

    ours, lean = (saved(rad.convert(net(FinalState), sketch)) for sketch in (make(0.1), rad.Exact()))
    assert lean < 1.015 * 313_600
    assert ours <= 0.145 * lean
    # Stock autograd holds the states, and all outputs once more for the last of them.
    assert ours <= 0.075 * saved(net(Last))


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        ((nn.utils.rnn.pack_sequence([torch.ones(2, 3)]),), TypeError, "no packed sequence, here of 1.*pad_packed"),
        ((torch.ones(2, 2, 2, 3),), ValueError, r"of 3 dimensions.*got \[2, 2, 2, 3\]"),
        ((torch.ones(3),), ValueError, r"got \[3\]"),
        ((torch.ones(0, 2, 3),), ValueError, "no time step"),
        ((torch.ones(4, 2, 5),), ValueError, r"\[T, n, 3\].*got \[4, 2, 5\]"),
        ((torch.ones(4, 2, 3, dtype=torch.int64),), TypeError, "int64"),
        ((torch.ones(4, 2, 3), torch.ones(1, 2, 4)), ValueError, r"must be \[2, 2, 4\].*got \[1, 2, 4\]; leave hx out"),
        ((torch.ones(4, 3), torch.ones(2, 1, 4)), ValueError, r"must be \[2, 4\].*got \[2, 1, 4\]"),
        ((torch.ones(4, 2, 3), torch.ones(2, 2, 4).double()), TypeError, "float64"),
    ],
)
@every_layer
def test_bad_input(stock, args, error, words):
    layer = rad.convert(stock(3, 4, num_layers=2), rad.Project(0.5))
    with pytest.raises(error, match=words):
        layer(*args)
