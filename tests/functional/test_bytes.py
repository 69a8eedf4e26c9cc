"""How many bytes each rule keeps, counted by hand: for all gradients and for that of each argument alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from calls import Case, answered, constant, flags, integers, leaf, path, quiet, within
from cases import NAMES, kin
from cases_elementwise import SMOOTH, UNARY
from sketches import held, normal
from torch import Tensor, nn

import rad

pytestmark = quiet
BITS, SEED, COUNT = 3, 8, 64 * 64
FEW = rad.Rounding(bits=BITS)


def rounded(count: int) -> int:
    """Bytes of a summary: packed bits, two bfloat16 for each group of at most 256 elements, and a seed."""
    if 4 * count <= 256:
        return 4 * count  # as it is
    group = next((size for size in range(256, 128, -1) if count % size == 0), 256)
    return -(-count // 8) * BITS + -(-count // group) * 4 + SEED


SUMMARY, BIT, WHOLE, ROW = rounded(COUNT), COUNT // 8, COUNT * 4, 64 * 4


class Kept(NamedTuple):
    """What a call keeps.

    Attributes:
        inputs: Of the function, as in a ``Case``.
        nbytes: For the gradients of all of them.
        alone: For that of each by itself, of those that may have one.
        options: Of the function.
    """

    inputs: list[Any]
    nbytes: int
    alone: tuple[int, ...]
    options: dict[str, Any] = {}


def one(nbytes: int, *inputs: Any, **options: Any) -> Kept:
    """Of a function of one tensor to differentiate by."""
    return Kept(list(inputs), nbytes, (nbytes,), options)


def two(nbytes: int, *inputs: Any, each: int | None = None, **options: Any) -> Kept:
    """Of two, half for either."""
    each = nbytes // 2 if each is None else each
    return Kept(list(inputs), nbytes, (each, each), options)


def layer(*inputs: Any, **options: Any) -> Kept:
    """Of input, weight and bias: a summary of the input, and the weight, a leaf."""
    weight = inputs[1].make(0, torch.float32).nbytes
    return Kept(list(inputs), SUMMARY + weight, (weight, SUMMARY, 0), options)


def norm(stats: int, weight: int, *inputs: Any, **options: Any) -> Kept:
    """Of input, weight and bias: rounded values, a number for each of the statistics, and the weight."""
    nbytes = SUMMARY + 4 * stats + 4 * weight
    return Kept(list(inputs), nbytes, (nbytes, SUMMARY, 0), options)


X, W, V, MASK = path(64, 64), leaf(64, 64), leaf(64), flags(64, 64)
IMAGES, SEQUENCES, VOLUMES = path(4, 16, 8, 8), path(4, 16, 64), path(4, 16, 4, 4, 4)
HEADS = path(2, 2, 16, 64)
PROBABILITIES = rounded(2 * 2 * 16 * 16)
POSITIVE, INNER, PLACES = within(0.2, 2, 64, 64), within(0.1, 0.9, 64, 64), integers(64, 64)

# By what functions of a kind have in common, see ``kin``.
KEPT: dict[str, Kept] = {
    **{name: one(SUMMARY, within(*domain, 64, 64)) for name, domain in UNARY.items()},
    **dict.fromkeys(SMOOTH, one(SUMMARY, X)),
    **dict.fromkeys(("__rpow__", "__rdiv__"), one(SUMMARY, POSITIVE, 2.0)),
    **dict.fromkeys("atan2 hypot logaddexp logaddexp2 xlogy pow".split(), two(2 * SUMMARY, POSITIVE, POSITIVE)),
    "float_power": one(rounded(COUNT), POSITIVE, 1.5),
    "glu": one(SUMMARY, X),
    "mul": two(2 * SUMMARY, X, X),
    "div": Kept([X, POSITIVE], 2 * SUMMARY, (SUMMARY, 2 * SUMMARY)),
    **dict.fromkeys("relu relu_ leaky_relu relu6 hardtanh hardshrink softshrink".split(), one(BIT, X)),
    "clamp": one(BIT, X, -0.5, 0.5),
    "threshold": one(BIT, X, 0.1, 2.0),
    "abs": one(2 * BIT, X),
    # The slopes are few; each channel has one.
    "prelu": Kept([path(8, 4, 8, 16), leaf(4)], BIT + SUMMARY + 16, (BIT + 16, BIT + SUMMARY)),
    "dropout": one(BIT, X, 0.5, True),
    "dropout1d": one(16 * 16 // 8, path(16, 16, 16)),
    "dropout2d": one(8 * 8 // 8, path(8, 8, 8, 8)),
    "dropout3d": one(8 * 8 // 8, path(8, 8, 4, 4, 4)),
    "where": two(BIT, MASK, X, X, each=BIT),
    "masked_fill": one(BIT, X, MASK, 0.0),
    **dict.fromkeys(("maximum", "minimum"), two(2 * BIT, X, X, each=2 * BIT)),
    "linear": layer(X, W, V),
    **dict.fromkeys(("mm", "__rmatmul__"), two(2 * SUMMARY, X, X)),
    **dict.fromkeys(("matmul", "bmm"), two(2 * SUMMARY, path(2, 32, 64), path(2, 64, 32))),
    "addmm": Kept([V, X, W], SUMMARY + WHOLE, (0, WHOLE, SUMMARY)),
    "baddbmm": Kept([V, path(1, 64, 64), path(1, 64, 64)], 2 * SUMMARY, (0, SUMMARY, SUMMARY)),
    "einsum": two(2 * SUMMARY, "bij,bjk->bik", path(2, 32, 64), path(2, 64, 32)),
    "bilinear": Kept(
        [X, X, leaf(4, 64, 64), leaf(4)],
        2 * SUMMARY + 4 * WHOLE,
        (SUMMARY + 4 * WHOLE, SUMMARY + 4 * WHOLE, 2 * SUMMARY, 0),
    ),
    "conv1d": layer(SEQUENCES, leaf(8, 16, 3), leaf(8)),
    "conv2d": layer(IMAGES, leaf(8, 16, 3, 3), leaf(8)),
    "conv3d": layer(VOLUMES, leaf(8, 16, 2, 2, 2), leaf(8)),
    "conv_transpose1d": layer(SEQUENCES, leaf(16, 8, 3), leaf(8)),
    "conv_transpose2d": layer(IMAGES, leaf(16, 8, 3, 3), leaf(8)),
    "conv_transpose3d": layer(VOLUMES, leaf(16, 8, 2, 2, 2), leaf(8)),
    "layer_norm": norm(64, 64, X, [64], V, V),
    "rms_norm": norm(64, 64, X, [64], V)._replace(alone=(SUMMARY + 2 * ROW, SUMMARY)),
    "group_norm": norm(8 * 4, 8, path(8, 8, 64), 4, leaf(8), leaf(8)),
    "instance_norm": norm(8 * 8, 8, path(8, 8, 64), None, None, leaf(8), leaf(8)),
    "batch_norm": norm(64, 64, X, None, None, V, V, training=True),
    **dict.fromkeys(("softmax", "log_softmax"), one(SUMMARY, X, -1)),
    "cross_entropy": one(SUMMARY + 64 * 8, X, PLACES),
    "nll_loss": one(64 * 8, X, PLACES),
    **dict.fromkeys("mse_loss l1_loss smooth_l1_loss huber_loss".split(), two(2 * SUMMARY, X, X)),
    "binary_cross_entropy": one(SUMMARY, INNER, within(0, 1, 64, 64, role="constant")),
    "binary_cross_entropy_with_logits": one(SUMMARY, X, within(0, 1, 64, 64, role="constant")),
    "scaled_dot_product_attention": Kept(
        [HEADS, HEADS, HEADS],
        3 * SUMMARY + PROBABILITIES,
        (2 * SUMMARY + PROBABILITIES, 2 * SUMMARY + PROBABILITIES, PROBABILITIES),
    ),
    "max_pool1d": one(4 * 16 * 32 // 8, SEQUENCES, 2),
    "max_pool2d": one(4 * 16 * 4 * 4 * 2 // 8, IMAGES, 2),
    "max_pool3d": one(4 * 16 * 2 * 2 * 2 * 3 // 8, VOLUMES, 2),
    "avg_pool1d": one(0, SEQUENCES, 2),
    "avg_pool2d": one(0, IMAGES, 2),
    "avg_pool3d": one(0, VOLUMES, 2),
    "adaptive_avg_pool1d": one(0, SEQUENCES, 2),
    "adaptive_avg_pool2d": one(0, IMAGES, 2),
    "adaptive_avg_pool3d": one(0, VOLUMES, 2),
    "pad": one(0, IMAGES, (1, 1, 1, 1), "reflect"),
}

LONG = path(1, 1, 128, 2), path(1, 1, 128, 2), path(1, 1, 128, 32)  # whose queries and keys take less than rounded
QK = 128 * 2 * 4
MORE: dict[str, tuple[Callable[..., Any], Kept]] = {
    "linear, computed weight": (F.linear, two(2 * SUMMARY, X, X)),
    "matmul, weight": (torch.matmul, Kept([X, W], SUMMARY + WHOLE, (WHOLE, SUMMARY))),
    "square": (lambda x: x * x, one(SUMMARY, X)),
    "product with a mask": (torch.mul, one(BIT, X, MASK)),
    "product with a number": (torch.mul, one(0, X, 3.0)),
    "product with a constant": (torch.mul, one(SUMMARY, X, constant(64, 64))),
    "constant that is broadcast to": (torch.mul, one(rounded(32 * COUNT), X, constant(32, 64, 64))),
    "product with whole numbers": (torch.mul, one(COUNT * 8, X, integers(4, 64, 64))),
    "scale": (torch.mul, Kept([path(32, 128), leaf(128)], SUMMARY + 2 * ROW, (2 * ROW, SUMMARY))),
    "computed scale": (torch.mul, Kept([path(128, 32), path(128, 1)], SUMMARY + 2 * ROW, (2 * ROW, SUMMARY))),
    "computed scale, larger": (
        torch.mul,
        Kept([path(4, 16, 64), path(1, 16, 64)], SUMMARY + rounded(COUNT // 4), (COUNT, SUMMARY)),
    ),
    "divided by a leaf": (
        torch.div,
        Kept([path(32, 128), within(0.5, 2, 128, role="leaf")], SUMMARY + 2 * ROW, (2 * ROW, SUMMARY + 2 * ROW)),
    ),
    "power of rows": (torch.pow, one(4096 * 4, within(0.5, 2, 4096, 1), 3)),
    "power": (torch.pow, one(SUMMARY, X, 3)),
    "prelu, one slope": (F.prelu, Kept([X, leaf(1)], BIT + SUMMARY + 4, (BIT + 4, BIT + SUMMARY))),
    "no dropout": (F.dropout, one(0, X, 0.0)),
    "dropout2d, sequences": (F.dropout2d, one(16 * 16 // 8, path(16, 16, 16))),
    "masked_fill by a tensor": (torch.masked_fill, one(BIT, X, MASK, constant())),
    "small": (torch.exp, one(64 * 4, path(64))),
    "just not small": (torch.exp, one(rounded(65), path(65))),
    "small input of a layer": (F.linear, Kept([path(2, 32), leaf(5, 32)], 256 + 5 * 32 * 4, (5 * 32 * 4, 256))),
    "einsum, weight": (torch.einsum, Kept(["ij,jk->ik", X, W], SUMMARY + WHOLE, (WHOLE, SUMMARY))),
    "batch_norm, not training": (
        F.batch_norm,
        Kept([X, constant(64), within(0.5, 2, 64, role="constant"), V, V], SUMMARY + 2 * ROW, (2 * ROW, SUMMARY, 0)),
    ),
    "layer_norm, no weights": (F.layer_norm, one(SUMMARY + ROW, X, [64])),
    "layer_norm, small": (F.layer_norm, one(4 * 16 * 4 + 4 * 4, path(4, 16), [16])),
    "cross_entropy, weights": (F.cross_entropy, one(SUMMARY + 64 * 8 + ROW, X, PLACES, constant(64))),
    "cross_entropy, probabilities": (F.cross_entropy, one(SUMMARY + WHOLE, X, within(0, 1, 64, 64, role="constant"))),
    "loss, none": (F.mse_loss, one(SUMMARY, X, constant(64, 64), reduction="none")),
    "loss of predictions that broadcast": (F.mse_loss, one(SUMMARY, path(64, 1), constant(64, 64))),
    "attention, hidden": (
        F.scaled_dot_product_attention,
        KEPT["scaled_dot_product_attention"]._replace(inputs=[HEADS, HEADS, HEADS, flags(16, 16)]),
    ),
    "attention, added": (
        F.scaled_dot_product_attention,
        KEPT["scaled_dot_product_attention"]._replace(inputs=[HEADS, HEADS, HEADS, constant(2, 2, 16, 16)]),
    ),
    "attention, learned": (
        F.scaled_dot_product_attention,
        Kept(
            [HEADS, HEADS, HEADS, path(2, 2, 16, 16)],
            3 * SUMMARY + PROBABILITIES,
            (*KEPT["scaled_dot_product_attention"].alone, SUMMARY + PROBABILITIES),
        ),
    ),
    "attention, dropout": (
        F.scaled_dot_product_attention,
        Kept(
            [HEADS, HEADS, HEADS],
            3 * SUMMARY + PROBABILITIES + 128,
            tuple(n + 128 for n in KEPT["scaled_dot_product_attention"].alone),
            {"dropout_p": 0.3},
        ),
    ),
    "long attention": (
        F.scaled_dot_product_attention,
        Kept([*LONG], 2 * QK + SUMMARY, (2 * QK + SUMMARY, 2 * QK + SUMMARY, 2 * QK)),
    ),
    "long attention, hidden": (
        F.scaled_dot_product_attention,
        Kept(
            [*LONG, flags(128, 128)],
            2 * QK + SUMMARY + 128 * 128,
            tuple(2 * QK + n + 128 * 128 for n in (SUMMARY, SUMMARY, 0)),
        ),
    ),
    "long attention to what came before": (  # which are half of all probabilities, and that is not so many
        F.scaled_dot_product_attention,
        one(
            sum(rounded(8 * 8 * seen) for seen in range(1, 9)),
            *(constant(1, 1, 64, 2),) * 2,
            path(1, 1, 64, 2),
            is_causal=True,
        ),
    ),
    "hardly long attention": (
        F.scaled_dot_product_attention,
        one(2 * 64 * 2 * 4, *(constant(1, 1, 64, 2),) * 2, path(1, 1, 64, 2)),
    ),
}  # fmt: skip


def torchs(function: Any, kept: Kept) -> Kept:
    """For functions of ``torch`` that take what ``F`` has in another order."""
    x, *rest = kept.inputs
    if function in (torch.batch_norm, torch.instance_norm):
        return kept._replace(inputs=[x, *rest[2:], None, None, True, 0.1, 1e-5, False], options={})
    if function is torch.Tensor.where:
        return kept._replace(inputs=[kept.inputs[1], kept.inputs[0], kept.inputs[2]])
    return kept


ROWS = {name: (function, torchs(function, KEPT[kin(function)])) for name, function in NAMES.items()} | MORE


def nbytes(case: Case, sketch: rad.Sketch, wanted: list[int] | None = None) -> int:
    tensors = [
        nn.Parameter(t, requires_grad=False) if getattr(given, "role", "") == "leaf" and not t.requires_grad else t
        for t, given in zip(case.tensors(torch.float32, wanted), case.inputs, strict=True)
    ]  # frozen parameters are held as others are

    def first() -> Tensor:
        out = case.call(tensors, sketch)
        return out[0] if isinstance(out, tuple) else out

    return held(first)


@pytest.mark.parametrize("name", ROWS)
def test_bytes(name):
    function, kept = ROWS[name]
    case = Case(name, function, kept.inputs, kept.options)
    found = [nbytes(case, FEW), *(nbytes(case, FEW, [place]) for place in case.places)]
    assert found == [kept.nbytes, *kept.alone]


def test_what_is_exact_takes_no_more_than_by_stock():
    """An operation without a summary is PyTorch's own, which shares what it keeps with its neighbours."""
    x = normal(128, 64)
    found = {}
    for sketch in (rad.Exact(), rad.Rounding(1.0)):
        layers = [nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Sigmoid(), nn.LayerNorm(64), nn.Linear(64, 64)]
        model = rad.convert(nn.Sequential(*layers), sketch)
        found[sketch] = held(lambda model=model: model(x))
    assert len({*found.values()}) == 1, found


# How many summaries of all elements there are among what is kept.
SUMMARIES = {
    **dict.fromkeys("gelu glu linear conv2d layer_norm batch_norm softmax log_softmax cross_entropy".split(), 1),
    **dict.fromkeys("mul div matmul mse_loss".split(), 2),
}
CAST = {
    **dict.fromkeys("linear addmm".split(), 1),
    **dict.fromkeys((f"conv{kind}{dims}d" for kind in ("", "_transpose") for dims in (1, 2, 3)), 1),
    **dict.fromkeys("matmul mm bmm baddbmm einsum bilinear".split(), 2),
}


def assert_within(name: str, summaries: int, budget: float, itemsize: int) -> None:
    """Holds the summaries of a call to a budget; what is kept exactly is what it is at any."""
    function, kept = next((f, k) for f, k in ROWS.values() if kin(f) == name)
    exact = kept.nbytes - summaries * SUMMARY
    found = nbytes(Case(name, function, kept.inputs, kept.options), rad.Rounding(budget))
    assert exact < found <= exact + summaries * (budget * COUNT * itemsize + SEED)


@pytest.mark.parametrize("budget", [0.1, 0.3])
@pytest.mark.parametrize("name", SUMMARIES)
def test_a_budget_is_kept_to(name, budget):
    assert_within(name, SUMMARIES[name], budget, 4)


@pytest.mark.parametrize("name", CAST)
def test_a_budget_is_of_what_autocast_makes_of_an_operand(name):
    with torch.autocast("cpu", torch.bfloat16):
        assert_within(name, CAST[name], 0.2, 2)


def test_keys_that_no_row_sees_are_not_kept():
    heads = path(4, 2, 64, 32)
    attention = Case("", F.scaled_dot_product_attention, [heads] * 3, {"is_causal": True})
    # Rows are kept in eight spans of eight: all keys of the last, an eighth of them of the first.
    spans = sum(rounded(4 * 2 * 8 * 8 * seen) for seen in range(1, 9))
    assert nbytes(attention, FEW) == 3 * rounded(4 * 2 * 64 * 32) + spans


GATED = {"lstm": (nn.LSTM, 6, 4), "gru": (nn.GRU, 5, 3)}
T, N, D, H = 8, 8, 64, 64


@pytest.mark.parametrize("kind", GATED)
@pytest.mark.parametrize("directions", [1, 2])
def test_gated_layers(kind, directions):
    layer, factors, gates = GATED[kind]
    model = layer(D, H, bidirectional=directions == 2)
    each = rounded(T * factors * N * H)
    ih, hh = 4 * gates * H * D, 4 * gates * H * H
    alone = {
        "input": each + ih + hh,
        "weight_ih": SUMMARY / directions + each + hh,  # both directions read the same input
        "weight_hh": SUMMARY + each + hh,
        "bias": each + hh,
        "all of it": SUMMARY / directions + SUMMARY + each + ih + hh,
    }
    for wanted, expected in alone.items():
        x = normal(T, N, D).requires_grad_(wanted in ("input", "all of it"))
        for name, p in model.named_parameters():
            p.requires_grad_(name.startswith(wanted) or wanted == "all of it")

        def run(x: Tensor = x) -> Tensor:
            with answered(FEW):
                return model(x * 1)[0]

        assert held(run) == directions * expected, wanted


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_plain_layers(nonlinearity):
    model, x = nn.RNN(D, H, nonlinearity=nonlinearity), normal(T, N, D).requires_grad_()
    slopes = rounded(T * N * H) if nonlinearity == "tanh" else T * N * H // 8

    def run() -> Tensor:
        with answered(FEW):
            return model(x * 1)[0]

    assert held(run) == 2 * SUMMARY + slopes + 4 * H * (D + H)
    x.requires_grad_(False)
    model.weight_ih_l0.requires_grad_(False)
    assert held(run) == SUMMARY + slopes + 4 * H * H
    model.weight_ih_l0.requires_grad_(True)
    model.weight_hh_l0.requires_grad_(False)
    assert held(run) == SUMMARY + slopes + 4 * H * H


CELLS = {
    "lstm": (nn.LSTMCell(D, H), 2 * SUMMARY + rounded(6 * COUNT)),
    "gru": (nn.GRUCell(D, H), 2 * SUMMARY + rounded(5 * COUNT)),
    "tanh": (nn.RNNCell(D, H), 3 * SUMMARY),
    "relu": (nn.RNNCell(D, H, nonlinearity="relu"), 2 * SUMMARY + BIT),
}


@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind):
    cell, kept = CELLS[kind]
    x = normal(64, D).requires_grad_()

    def run() -> Tensor:
        with answered(FEW):
            out = cell(x * 1, x * 1 if kind != "lstm" else (x * 1, x * 1))
        return out[0] if isinstance(out, tuple) else out

    assert held(run) == kept + sum(p.nbytes for p in cell.parameters() if p.dim() == 2)


def test_a_plain_layer_keeps_no_states_for_frozen_weights():
    x = normal(T, N, 1)
    model = nn.RNN(1, H, nonlinearity="relu")

    def run() -> Tensor:
        with answered(rad.Exact()):
            return model(x)[0]

    states, bits, weight = 4 * (T + 1) * N * H, T * N * H // 8, 4 * H * H
    assert held(run) in range(x.nbytes + states + weight, x.nbytes + states + weight + 64)  # one more state; aligned
    model.weight_hh_l0.requires_grad_(False)
    assert held(run) == x.nbytes + bits + weight
    model.weight_ih_l0.requires_grad_(False)
    assert held(run) == bits + weight
