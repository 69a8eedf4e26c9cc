"""Calls of elementwise functions and of those that choose."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from calls import IMAGES, METHODS, SHAPE, Case, Input, constant, flags, integers, leaf, like, lines, path, within
from sketches import normal

# The functions of one variable, on what they are smooth.
UNARY = {
    **dict.fromkeys("acos asin atanh erfinv".split(), (-0.9, 0.9)),
    **dict.fromkeys("log log10 log2 rsqrt sqrt reciprocal digamma lgamma".split(), (0.2, 3.0)),
    **dict.fromkeys(
        "asinh atan cos cosh erf erfc exp exp2 expm1 sigmoid sin sinc sinh square tanh".split(), (-2.0, 2.0)
    ),
    "acosh": (1.1, 3.0),
    "log1p": (-0.5, 2.0),
    "logit": (0.1, 0.9),
    "tan": (-1.2, 1.2),
}
SMOOTH = "celu elu gelu hardsigmoid hardswish logsigmoid mish selu silu softplus softsign tanhshrink".split()
# A single number, of a precision that it does not give to others.
DOUBLE = Input(lambda i, _: normal(1, seed=i, dtype=torch.float64)[0].exp())

CASES = [
    *(Case(name, getattr(torch, name), [within(*domain, *SHAPE)]) for name, domain in UNARY.items()),
    *(Case(name, getattr(F, name), [path(*SHAPE)]) for name in SMOOTH),
    *lines(F.gelu, ("tanh", [path(*SHAPE)], {"approximate": "tanh"}), ("empty", [path(0, 4)]), ("0-d", [path()])),
    *lines(F.silu, ("in place", [path(*SHAPE)], {"inplace": True}), ("leaf", [leaf(*SHAPE)])),
    *lines(F.elu, ("alpha, in place", [path(*SHAPE)], {"alpha": 0.7, "inplace": True})),
    *lines(F.celu, ("alpha", [path(*SHAPE), 1.7])),
    *lines(F.softplus, ("beta, threshold", [path(*SHAPE), 2.0, 1.0])),
    *lines(F.glu, ("", [path(*SHAPE)]), ("along another dimension", [path(*SHAPE), 0]), ("empty", [path(0, 8)])),
    *lines(torch.logit, ("eps", [within(0.0, 1.0, *SHAPE), 0.1])),
    *lines(
        torch.pow,
        ("cube", [path(*SHAPE), 3]),
        ("root", [within(0.2, 3, *SHAPE), 0.5]),
        ("of a number", [2.0, path(*SHAPE)]),
        ("both", [within(0.2, 3, *SHAPE), path(*SHAPE)]),
        ("broadcast", [within(0.2, 3, *SHAPE), within(0.5, 2, 16, role="leaf")]),
        ("whole numbers", [within(0.2, 3, *SHAPE), integers(4, *SHAPE)]),
        ("one number of double precision", [within(0.2, 3, *SHAPE), DOUBLE]),
    ),
    *lines(METHODS.__rpow__, ("", [path(*SHAPE), 2.0])),
    *lines(
        torch.float_power,
        ("", [within(0.2, 3, *SHAPE), 1.5]),
        ("one number of double precision", [within(0.2, 3, *SHAPE), DOUBLE]),
    ),
    *lines(
        torch.atan2,
        ("", [path(*SHAPE), within(0.5, 2, *SHAPE)]),
        ("one number of double precision", [DOUBLE, path(*SHAPE)]),
    ),
    *lines(torch.hypot, ("", [path(*SHAPE), within(0.5, 2, *SHAPE)])),
    *lines(torch.logaddexp, ("", [path(*SHAPE), path(*SHAPE)]), ("broadcast", [path(6, 1), path(16)])),
    *lines(torch.logaddexp2, ("", [path(*SHAPE), path(*SHAPE)])),
    *lines(torch.xlogy, ("", [path(*SHAPE), within(0.2, 3, *SHAPE)])),
    *lines(
        torch.mul,
        ("", [path(*SHAPE), path(*SHAPE)]),
        ("a number", [path(*SHAPE), 3.0]),
        ("leaf", [path(*SHAPE), leaf(*SHAPE)]),
        ("scale of a layer", [path(4, *SHAPE), leaf(16)]),
        ("a column", [path(*SHAPE), path(6, 1)]),
        ("grown", [path(1, 16), path(6, 1)]),
        ("constant", [path(*SHAPE), constant(*SHAPE)]),
        ("mask", [path(*SHAPE), flags(*SHAPE)]),
        ("whole numbers", [path(*SHAPE), integers(4, *SHAPE)]),
        ("0-d", [path(*SHAPE), path()]),
        ("empty", [path(0, 16), leaf(16)]),
        ("transposed", [like(lambda t: t.mT, 16, 6), path(*SHAPE)]),
    ),
    *lines(
        torch.div,
        ("", [path(*SHAPE), within(0.5, 2, *SHAPE)]),
        ("a number", [path(*SHAPE), 3.0]),
        ("leaf", [path(*SHAPE), within(0.5, 2, *SHAPE, role="leaf")]),
        ("a column", [path(*SHAPE), within(0.5, 2, 6, 1)]),
        ("whole numbers", [path(*SHAPE), integers(5, *SHAPE, low=1)]),
        ("a few whole numbers", [path(*SHAPE), integers(5, 6, 1, low=1)]),
        ("constant over", [constant(*SHAPE), within(0.5, 2, *SHAPE)]),
        ("rounded down", [path(*SHAPE), within(0.5, 2, *SHAPE)], {"rounding_mode": "floor"}),
    ),
    *lines(METHODS.__rtruediv__, ("", [within(0.5, 2, *SHAPE), 2.0])),
    *lines(
        F.conv_transpose3d,
        ("", [path(2, 2, 3, 4, 3), leaf(2, 3, 2, 3, 2), leaf(3)], {"stride": 2, "output_padding": 1}),
    ),
    *lines(
        F.relu, ("", [path(*SHAPE)]), ("in place", [path(*SHAPE), True]), ("empty", [path(0, 3)]), ("0-d", [path()])
    ),
    *lines(F.relu_, ("", [path(*SHAPE)])),
    *lines(F.leaky_relu, ("", [path(*SHAPE)]), ("slope, in place", [path(*SHAPE), 0.3], {"inplace": True})),
    *lines(
        F.relu6,
        ("", [like(lambda t: 5 * t, *SHAPE)]),
        ("in place", [like(lambda t: 5 * t, *SHAPE)], {"inplace": True}),
    ),
    *lines(
        F.prelu,
        ("", [path(*IMAGES), leaf(4)]),
        ("one slope", [path(*IMAGES), leaf(1)]),
        ("vector", [path(40), leaf(1)]),
    ),
    *lines(F.hardtanh, ("", [path(*SHAPE)]), ("limits, in place", [path(*SHAPE), -0.3, 0.8], {"inplace": True})),
    *lines(
        torch.clamp,
        ("", [path(*SHAPE), -0.5, 0.7]),
        ("from below", [path(*SHAPE)], {"min": 0.1}),
        ("from above", [path(*SHAPE)], {"max": 0.1}),
        ("by tensors", [path(*SHAPE), constant(16)]),
        ("by one that learns, from below", [path(*SHAPE), leaf(16)]),
        ("by one that learns, from above", [path(*SHAPE), None, leaf(16)]),
        ("by two, of which one learns", [path(*SHAPE), constant(16), leaf(16)]),
    ),
    *lines(F.threshold, ("", [path(*SHAPE), 0.3, 2.0]), ("in place", [path(*SHAPE), 0.3, 2.0], {"inplace": True})),
    *lines(F.hardshrink, ("", [path(*SHAPE)]), ("lambd", [path(*SHAPE), 0.2])),
    *lines(F.softshrink, ("", [path(*SHAPE)]), ("lambd", [path(*SHAPE), 0.2])),
    *lines(torch.abs, ("", [path(*SHAPE)]), ("with zeros", [like(torch.round, *SHAPE)])),
    *lines(
        F.dropout,
        ("", [path(*SHAPE)]),
        ("p", [path(*SHAPE), 0.2]),
        ("in place", [path(*SHAPE), 0.2, True, True]),
        ("not training", [path(*SHAPE)], {"training": False}),
        ("of all", [path(*SHAPE), 1.0]),
        ("of none", [path(*SHAPE), 0.0]),
        ("transposed", [like(lambda t: t.mT, *SHAPE)]),
    ),
    *lines(torch.dropout, ("", [path(*SHAPE), 0.3, True])),
    *lines(
        F.dropout1d, ("", [path(4, 6, 5)]), ("single", [path(6, 5)]), ("in place", [path(4, 6, 5), 0.3, True, True])
    ),
    *lines(F.dropout2d, ("", [path(*IMAGES)]), ("not images", [path(4, 6, 5)])),
    *lines(F.dropout3d, ("", [path(3, 6, 2, 3, 2)]), ("single", [path(6, 2, 3, 2)])),
    *lines(
        torch.where,
        ("", [flags(*SHAPE), path(*SHAPE), path(*SHAPE)]),
        ("a number", [flags(*SHAPE), path(*SHAPE), 0.0]),
        ("another number", [flags(*SHAPE), 1, path(*SHAPE)]),
        ("broadcast", [flags(6, 1), path(16), path(*SHAPE)]),
    ),
    *lines(METHODS.where, ("", [path(*SHAPE), flags(*SHAPE), path(*SHAPE)])),
    *lines(
        torch.masked_fill,
        ("", [path(*SHAPE), flags(*SHAPE), -torch.inf]),
        ("broadcast", [path(*SHAPE), flags(16), 2.0]),
        ("by a tensor", [path(*SHAPE), flags(*SHAPE), constant()]),
        ("by a tensor with a gradient", [path(*SHAPE), flags(*SHAPE), path()]),
    ),
    *lines(
        torch.maximum,
        ("", [path(*SHAPE), path(*SHAPE)]),
        ("ties", [like(torch.round, *SHAPE), like(torch.round, *SHAPE)]),
        ("broadcast", [path(*SHAPE), leaf(16)]),
    ),
    *lines(
        torch.minimum,
        ("", [path(*SHAPE), path(*SHAPE)]),
        ("ties", [like(torch.round, *SHAPE), like(torch.round, *SHAPE)]),
    ),
]
