"""Recurrent layers, converted, against the stock ones they replace."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sketches import SKETCHES, normal
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import rad
from rad.nn import FinalState
from rad.nn.seeds import Seeds

PLAIN = {"RNN": nn.RNN, "FinalState": FinalState}
GATED = {"LSTM": nn.LSTM, "GRU": nn.GRU}
STOCK = PLAIN | GATED
CELLS = {"RNNCell": nn.RNNCell, "LSTMCell": nn.LSTMCell, "GRUCell": nn.GRUCell}
every_layer = pytest.mark.parametrize("stock", STOCK.values(), ids=STOCK)
plain_layer = pytest.mark.parametrize("stock", PLAIN.values(), ids=PLAIN)
MANY_BITS = rad.Rounding(bits=16)


def flat(out: object) -> tuple[Tensor, ...]:
    """All tensors of what a layer returns."""
    if isinstance(out, PackedSequence):
        return (out.data,)
    return (out,) if isinstance(out, Tensor) else tuple(t for part in out for t in flat(part))


def outputs(layer: nn.Module, *args: object) -> tuple[Tensor, ...]:
    torch.manual_seed(3)  # of dropout
    return flat(layer(*args))


def gradients(outs: tuple[Tensor, ...], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    upstream = [normal(*out.shape, seed=9 + i, dtype=out.dtype) for i, out in enumerate(outs)]
    return torch.autograd.grad(outs, inputs, upstream, retain_graph=True)


def held(model: nn.Module, x: Tensor) -> int:
    return rad.measure.saved_bytes(lambda: flat(model(x))[0].sum()).total


def assert_near(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 3e-4) -> None:
    largest = max(b.norm() for b in expected)  # a small gradient may be the difference of large ones
    for a, b in zip(actual, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert (a - b).norm() <= tolerance * (b.norm() + 0.1 * largest)


def assert_as_stock(layer: nn.Module, args: list[object], tensors: list[Tensor], tolerance: float = 3e-4) -> None:
    """Forward bits, what is drawn from the global generator, and gradients of many bits."""
    expected = outputs(layer, *args)
    following = torch.rand(3)
    converted = rad.convert(copy.deepcopy(layer), MANY_BITS)
    actual = outputs(converted, *args)
    assert torch.equal(torch.rand(3), following)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    found = gradients(actual, [*tensors, *converted.parameters()])
    wanted = gradients(expected, [*tensors, *layer.parameters()])
    assert_near(found, wanted, tolerance)


options = st.fixed_dictionaries(
    {
        "input_size": st.sampled_from([1, 2, 5]),
        "hidden_size": st.sampled_from([2, 4, 33]),
        "num_layers": st.integers(1, 3),
        "bias": st.booleans(),
        "batch_first": st.booleans(),
        "dropout": st.sampled_from([0.0, 0.4]),
        "bidirectional": st.booleans(),
    }
)


@pytest.mark.filterwarnings("ignore:dropout option")
@every_layer
@given(
    options=options,
    nonlinearity=st.sampled_from(["relu", "tanh"]),
    T=st.integers(1, 6),
    n=st.sampled_from([None, 1, 3]),
    given_state=st.booleans(),
    train=st.booleans(),
)
@settings(max_examples=30)
def test_all_options_of_the_stock_layer(stock, options, nonlinearity, T, n, given_state, train):
    gated = stock in GATED.values()
    layer = stock(**options) if gated else stock(**options, nonlinearity=nonlinearity)
    layer.double().train(train)
    d, count = options["input_size"], options["num_layers"] * (1 + options["bidirectional"])
    lead = (T,) if n is None else (n, T) if options["batch_first"] else (T, n)
    args: list = [normal(*lead, d, dtype=torch.float64).requires_grad_()]
    tensors = list(args)
    if given_state:
        shape = (count, options["hidden_size"]) if n is None else (count, n, options["hidden_size"])
        states = [normal(*shape, seed=1 + i, dtype=torch.float64).requires_grad_() for i in range(2)]
        args.append(tuple(states) if stock is nn.LSTM else states[0])
        tensors += states if stock is nn.LSTM else states[:1]
    assert_as_stock(layer, args, tensors)
    expected = outputs(layer, *args)
    exact = gradients(expected, [*tensors, *layer.parameters()])
    weights = [False] * len(tensors) + ["weight" in name for name, _ in layer.named_parameters()]
    for sketch in (rad.Exact(), rad.Sample(0.5)):
        converted = rad.convert(copy.deepcopy(layer), sketch)
        actual = outputs(converted, *args)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
        found = gradients(actual, [*tensors, *converted.parameters()])
        # A summary that serves no factors leaves gates exact, and all gradients but those of weights.
        chosen = [i for i, weight in enumerate(weights) if gated or sketch == rad.Exact() or not weight]
        assert_near([found[i] for i in chosen], [exact[i] for i in chosen], 1e-9)


@pytest.mark.parametrize("stock", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "dropout": 0.3}], ids=["one", "all"])
def test_packed_sequences(stock, dtype, options):
    torch.manual_seed(0)
    sequences = [normal(t, 5, seed=t, dtype=dtype).requires_grad_() for t in (3, 7, 6, 1, 5)]
    packed = nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False)
    layer = stock(5, 40, **options).to(dtype)
    assert_as_stock(layer, [packed], sequences)
    rad.convert(layer, rad.Rounding(0.1))
    if stock is not nn.RNN:  # which stays exact
        noisy = gradients(outputs(layer, packed), list(layer.parameters()))
        assert not torch.equal(noisy[0], gradients(outputs(layer, packed), list(layer.parameters()))[0])


class Unrolled(nn.Module):
    """A cell in a loop of one's own."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state, out = None, []
        for step in x:
            state = self.cell(step, state)
            out.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(out)


@pytest.mark.parametrize("stock", CELLS.values(), ids=CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_cells(stock, dtype, bias):
    torch.manual_seed(0)
    x = normal(6, 8, 5, dtype=dtype).requires_grad_()
    for options in ({"nonlinearity": "relu"}, {}) if stock is nn.RNNCell else ({},):
        model = Unrolled(stock(5, 40, bias=bias, **options)).to(dtype)
        assert_as_stock(model, [x], [x])
        assert_as_stock(model.cell, [x[0].detach(), None], [])
        total = held(model, x)
        assert held(rad.convert(model, rad.Rounding(0.2)), x) < 0.5 * total


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_projections_stay_exact():
    layer, x = nn.LSTM(3, 40, proj_size=4), normal(5, 8, 3).requires_grad_()
    exact = gradients(outputs(layer, x), [x])
    torch.testing.assert_close(gradients(outputs(rad.convert(layer, rad.Rounding(0.1)), x), [x]), exact)


@pytest.mark.slow
@every_layer
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@pytest.mark.parametrize(
    ("d", "h", "n", "T"), [(1, 100, 150, 70), (28, 128, 64, 150), (300, 100, 20, 500), (128, 7, 1, 9)]
)
def test_forward_pass_is_the_same_bit_for_bit_in_many_chunks(stock, nonlinearity, d, h, n, T):
    if stock in GATED.values():
        if nonlinearity == "relu":
            return
        layer = stock(d, h, 2, batch_first=True, bidirectional=True)
    else:
        layer = stock(d, h, 2, nonlinearity=nonlinearity, batch_first=True)
    x, expected = normal(n, T, d), outputs(layer, normal(n, T, d))
    rad.convert(layer, rad.Rounding(0.5))
    assert all(torch.equal(a, b) for a, b in zip(outputs(layer, x), expected, strict=True))


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
    layer, seeds = stock(3, 4), Seeds(0)
    packed = nn.utils.rnn.pack_sequence([normal(4, 3), normal(2, 3)])
    with torch.no_grad():
        expected = outputs(layer, packed)
        state = seeds.get_state()
        rad.convert(layer, rad.Rounding(bits=2), generator=seeds)
        assert all(torch.equal(a, b) for a, b in zip(outputs(layer, packed), expected, strict=True))
        layer(normal(4, 2, 3))
    layer.requires_grad_(False)(normal(4, 2, 3))
    assert torch.equal(seeds.get_state(), state)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_autocast_is_that_of_stock(stock, dtype):
    layer = stock(3, 33, 2).to(dtype)
    x = normal(5, 2, 3, dtype=dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        expected = outputs(layer, x)
        actual = outputs(rad.convert(copy.deepcopy(layer), rad.Rounding(bits=12)), x)
    assert [t.dtype for t in actual] == [t.dtype for t in expected]
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert_near(gradients(actual, [x]), gradients(expected, [x]), 0.02)


@pytest.mark.parametrize(("stock", "share"), [(nn.LSTM, 0.08), (nn.GRU, 0.11)], ids=["LSTM", "GRU"])
def test_memory_of_gated_nets(stock, share):
    net, x = stock(256, 256, 2), normal(100, 16, 256)
    exact = held(net, x)
    assert held(rad.convert(net, rad.Rounding(0.1)), x) <= share * exact


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


BAD = {
    "four dimensions": [torch.ones(2, 2, 2, 3)],
    "one dimension": [torch.ones(3)],
    "no step": [torch.ones(0, 2, 3)],
    "features": [torch.ones(4, 2, 5)],
    "integers": [torch.ones(4, 2, 3, dtype=torch.int64)],
    "states": [torch.ones(4, 2, 3), torch.ones(1, 2, 4)],
    "states of a single sequence": [torch.ones(4, 3), torch.ones(2, 1, 4)],
    "dtype of states": [torch.ones(4, 2, 3), torch.ones(2, 2, 4).double()],
}


@pytest.mark.parametrize("args", BAD.values(), ids=BAD)
@every_layer
def test_bad_input_is_refused_as_by_stock(stock, args):
    layer = stock(3, 4, num_layers=2)
    if stock is nn.LSTM:
        args = [args[0], *((hx, hx) for hx in args[1:])]
    with pytest.raises((ValueError, RuntimeError, TypeError)) as expected:
        layer(*args)
    with pytest.raises(expected.type) as actual:
        rad.convert(layer, rad.Rounding(bits=2))(*args)
    assert str(actual.value) == str(expected.value)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("sketch", [rad.Rounding(bits=4), rad.Exact()], ids=str)
def test_nothing_of_the_callers_is_overwritten(kind, bidirectional, sketch):
    cell = kind.endswith("Cell")
    layer = getattr(nn, kind)(3, 4) if cell else getattr(nn, kind)(3, 4, bidirectional=bidirectional)
    rad.convert(layer, sketch)
    x = normal(2, 3) if cell else normal(5, 2, 3)
    shape = (2, 4) if cell else (1 + bidirectional, 2, 4)
    given = [x, *(normal(*shape, seed=i) for i in range(2 if "LSTM" in kind else 1))]
    tensors = [t.clone().requires_grad_() for t in given]
    out = layer(tensors[0], tuple(tensors[1:]) if len(tensors) == 3 else tensors[1])
    outs = [
        t
        for part in (out if isinstance(out, tuple) else (out,))
        for t in (part if isinstance(part, tuple) else (part,))
    ]
    upstream = [normal(*t.shape, seed=7 + i) for i, t in enumerate(outs)]
    before = [t.clone() for t in upstream]
    torch.autograd.grad(outs, [*tensors, *layer.parameters()], upstream)
    assert all(map(torch.equal, upstream, before))
    assert all(map(torch.equal, tensors, given))
