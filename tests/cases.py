"""Calls of torch functions, one line for each that has a rule and for each option, and how to make them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from sketches import normal, seeded
from torch import Tensor

import rad
from rad.functional import RULES, Sharing
from rad.functional.registry import name_of
from rad.nn import Recipe, Rules, Seeds

METHODS = torch.Tensor

# What PyTorch says of some calls, rules or not.
quiet = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in ("Using padding='same'", "dropout2d. Received a 3", "size_average and reduce args")
]


def answered(sketch: rad.Sketch, seeds: Seeds | int = 0) -> Rules:
    """While it is entered torch functions are answered by the rules, as in the forward pass of a converted module."""
    return Rules(Recipe("", sketch, Seeds(seeds) if isinstance(seeds, int) else seeds, Sharing()))


def by_rules(function: Callable[..., Any], sketch: rad.Sketch | None = None) -> Callable[..., Any]:
    """The function as the rules answer it."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with answered(sketch or rad.Rounding(bits=3)):
            return function(*args, **kwargs)

    return run


@dataclass(frozen=True)
class Input:
    """A tensor that a call takes.

    Attributes:
        make: Makes it, given a number and a dtype.
        role: ``"path"`` for what was computed before, ``"leaf"`` for a parameter, ``"constant"``, or ``"buffer"`` for
            what a call changes.
    """

    make: Callable[[int, torch.dtype], Tensor]
    role: str = "path"


def path(*shape: int) -> Input:
    return Input(lambda i, dtype: normal(*shape, seed=i, dtype=dtype))


def leaf(*shape: int) -> Input:
    return Input(lambda i, dtype: normal(*shape, seed=i, dtype=dtype), "leaf")


def within(low: float, high: float, *shape: int, role: str = "path") -> Input:
    def make(i: int, dtype: torch.dtype) -> Tensor:
        return torch.rand(shape, generator=seeded(i), dtype=torch.float64).mul(high - low).add(low).to(dtype)

    return Input(make, role)


def like(change: Callable[[Tensor], Tensor], *shape: int) -> Input:
    """What ``change`` makes of a normal tensor: a view of it, say."""
    return Input(lambda i, dtype: change(normal(*shape, seed=i, dtype=dtype)))


def constant(*shape: int) -> Input:
    return Input(lambda i, dtype: normal(*shape, seed=i, dtype=dtype), "constant")


def integers(high: int, *shape: int, low: int = 0) -> Input:
    return Input(lambda i, _: torch.randint(low, high, shape, generator=seeded(i)), "constant")


def flags(*shape: int) -> Input:
    """Ones and zeros, with a one in each row."""
    return Input(lambda i, _: (normal(*shape, seed=i) > -0.5).index_fill(-1, torch.tensor([0]), True), "constant")


def buffer(value: float, *shape: int) -> Input:
    return Input(lambda i, dtype: torch.full(shape, value, dtype=dtype), "buffer")


class Outcome(NamedTuple):
    """What a call returned and did."""

    out: tuple[Tensor, ...]
    grads: tuple[Tensor | None, ...]
    buffers: list[Tensor]
    random: Tensor  # the state of the global generator afterwards


@dataclass(frozen=True)
class Case:
    """A call, by a name for the test report."""

    name: str
    function: Callable[..., Any]
    inputs: Sequence[Any] = ()  # ``Input``, or what is passed as it is
    options: dict[str, Any] = field(default_factory=dict)

    def tensors(self, dtype: torch.dtype = torch.float64, wanted: Sequence[int] | None = None) -> list[Any]:
        """The arguments as leaves; of those to differentiate by, only the ``wanted`` are to be."""
        made = []
        for i, given in enumerate(self.inputs):
            if not isinstance(given, Input):
                made.append(given)
                continue
            tensor = given.make(i, dtype)
            if given.role in ("path", "leaf") and (wanted is None or i in wanted):
                tensor = tensor.detach().requires_grad_()
            made.append(tensor)
        return made

    @property
    def places(self) -> list[int]:
        """Arguments by which there is something to differentiate."""
        return [i for i, given in enumerate(self.inputs) if isinstance(given, Input) and given.role in ("path", "leaf")]

    def call(self, tensors: Sequence[Any], sketch: rad.Sketch | None, seeds: Seeds | int = 0) -> Any:
        """Runs the function, by the rules if there is a sketch."""
        args = [
            # Computed before, so no leaf; strides stay.
            t.view_as(t)
            if isinstance(g, Input) and g.role == "path" and not self._overwrites
            else t * 1
            if isinstance(g, Input) and g.role == "path"
            else t
            for t, g in zip(tensors, self.inputs, strict=True)
        ]
        if sketch is None:
            return self.function(*args, **self.options)
        with answered(sketch, seeds):
            return self.function(*args, **self.options)

    @property
    def _overwrites(self) -> bool:
        return "in place" in self.name or self.name.endswith("_")

    def run(
        self,
        sketch: rad.Sketch | None = None,
        dtype: torch.dtype = torch.float64,
        seeds: Seeds | int = 0,
        wanted: Sequence[int] | None = None,
    ) -> Outcome:
        """Forward and backward, with a gradient of the output that has no pattern."""
        torch.default_generator.manual_seed(3)  # without a look at other devices, which takes longer than the call
        tensors = self.tensors(dtype, wanted)
        out = self.call(tensors, sketch, seeds)
        random = torch.get_rng_state()
        outs = tuple(t for t in (out if isinstance(out, tuple) else (out,)) if t.requires_grad)
        upstream = [normal(*t.shape, seed=90 + i, dtype=t.dtype) for i, t in enumerate(outs)]
        leaves = [t for t in tensors if isinstance(t, Tensor) and t.requires_grad]
        grads = torch.autograd.grad(outs, leaves, upstream, allow_unused=True) if leaves else ()
        kept = [t for t, g in zip(tensors, self.inputs, strict=True) if isinstance(g, Input) and g.role == "buffer"]
        return Outcome(tuple(t.detach() for t in outs), grads, kept, random)


def _lines(function: Callable[..., Any], *lines: tuple[Any, ...]) -> list[Case]:
    """Cases of one function: what is special about each, its inputs and its options."""
    name = name_of(function).removeprefix("torch.").replace("nn.functional.", "F.")
    return [
        Case(f"{name}: {what}" if what else name, function, inputs, dict(*options)) for what, inputs, *options in lines
    ]


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

_SHAPE = (6, 16)
_IMAGES = (3, 4, 6, 5)
_HEADS = (2, 2, 6, 8)

CASES = [
    *(Case(name, getattr(torch, name), [within(*domain, *_SHAPE)]) for name, domain in UNARY.items()),
    *(Case(name, getattr(F, name), [path(*_SHAPE)]) for name in SMOOTH),
    *_lines(F.gelu, ("tanh", [path(*_SHAPE)], {"approximate": "tanh"}), ("empty", [path(0, 4)]), ("0-d", [path()])),
    *_lines(F.silu, ("in place", [path(*_SHAPE)], {"inplace": True}), ("leaf", [leaf(*_SHAPE)])),
    *_lines(F.elu, ("alpha, in place", [path(*_SHAPE)], {"alpha": 0.7, "inplace": True})),
    *_lines(F.celu, ("alpha", [path(*_SHAPE), 1.7])),
    *_lines(F.softplus, ("beta, threshold", [path(*_SHAPE), 2.0, 1.0])),
    *_lines(F.glu, ("", [path(*_SHAPE)]), ("along another dimension", [path(*_SHAPE), 0]), ("empty", [path(0, 8)])),
    *_lines(torch.logit, ("eps", [within(0.0, 1.0, *_SHAPE), 0.1])),
    *_lines(
        torch.pow,
        ("cube", [path(*_SHAPE), 3]),
        ("root", [within(0.2, 3, *_SHAPE), 0.5]),
        ("of a number", [2.0, path(*_SHAPE)]),
        ("both", [within(0.2, 3, *_SHAPE), path(*_SHAPE)]),
        ("broadcast", [within(0.2, 3, *_SHAPE), within(0.5, 2, 16, role="leaf")]),
        ("whole numbers", [within(0.2, 3, *_SHAPE), integers(4, *_SHAPE)]),
    ),
    *_lines(METHODS.__rpow__, ("", [path(*_SHAPE), 2.0])),
    *_lines(torch.float_power, ("", [within(0.2, 3, *_SHAPE), 1.5])),
    *_lines(torch.atan2, ("", [path(*_SHAPE), within(0.5, 2, *_SHAPE)])),
    *_lines(torch.hypot, ("", [path(*_SHAPE), within(0.5, 2, *_SHAPE)])),
    *_lines(torch.logaddexp, ("", [path(*_SHAPE), path(*_SHAPE)]), ("broadcast", [path(6, 1), path(16)])),
    *_lines(torch.logaddexp2, ("", [path(*_SHAPE), path(*_SHAPE)])),
    *_lines(torch.xlogy, ("", [path(*_SHAPE), within(0.2, 3, *_SHAPE)])),
    *_lines(
        torch.mul,
        ("", [path(*_SHAPE), path(*_SHAPE)]),
        ("a number", [path(*_SHAPE), 3.0]),
        ("leaf", [path(*_SHAPE), leaf(*_SHAPE)]),
        ("scale of a layer", [path(4, *_SHAPE), leaf(16)]),
        ("a column", [path(*_SHAPE), path(6, 1)]),
        ("grown", [path(1, 16), path(6, 1)]),
        ("constant", [path(*_SHAPE), constant(*_SHAPE)]),
        ("mask", [path(*_SHAPE), flags(*_SHAPE)]),
        ("whole numbers", [path(*_SHAPE), integers(4, *_SHAPE)]),
        ("0-d", [path(*_SHAPE), path()]),
        ("empty", [path(0, 16), leaf(16)]),
        ("transposed", [like(lambda t: t.mT, 16, 6), path(*_SHAPE)]),
    ),
    *_lines(
        torch.div,
        ("", [path(*_SHAPE), within(0.5, 2, *_SHAPE)]),
        ("a number", [path(*_SHAPE), 3.0]),
        ("leaf", [path(*_SHAPE), within(0.5, 2, *_SHAPE, role="leaf")]),
        ("a column", [path(*_SHAPE), within(0.5, 2, 6, 1)]),
        ("whole numbers", [path(*_SHAPE), integers(5, *_SHAPE, low=1)]),
        ("a few whole numbers", [path(*_SHAPE), integers(5, 6, 1, low=1)]),
        ("constant over", [constant(*_SHAPE), within(0.5, 2, *_SHAPE)]),
        ("rounded down", [path(*_SHAPE), within(0.5, 2, *_SHAPE)], {"rounding_mode": "floor"}),
    ),
    *_lines(METHODS.__rtruediv__, ("", [within(0.5, 2, *_SHAPE), 2.0])),
    *_lines(
        F.linear,
        ("", [path(*_SHAPE), leaf(5, 16), leaf(5)]),
        ("no bias", [path(2, 3, 16), leaf(5, 16)]),
        ("one row", [path(16), leaf(5, 16), leaf(5)]),
        ("weight that was computed", [path(*_SHAPE), path(5, 16), path(5)]),
        ("transposed", [like(lambda t: t.mT, 16, 6), leaf(5, 16), leaf(5)]),
        ("frozen weight", [path(*_SHAPE), constant(5, 16), leaf(5)]),
        ("no rows", [path(0, 16), leaf(5, 16), leaf(5)]),
        ("no features", [path(6, 0), leaf(5, 0), leaf(5)]),
    ),
    *_lines(
        torch.matmul,
        ("", [path(6, 8), path(8, 7)]),
        ("weight", [path(2, 6, 8), leaf(8, 7)]),
        ("stacks", [path(2, 3, 6, 8), path(2, 3, 8, 7)]),
        ("broadcast", [path(3, 6, 8), path(2, 1, 8, 7)]),
        ("matrix and stack", [path(6, 8), path(3, 8, 7)]),
        ("vectors", [path(8), path(8)]),
        ("transposed", [like(lambda t: t.mT, 2, 8, 6), like(lambda t: t.mT, 2, 7, 8)]),
        ("no rows", [path(0, 8), leaf(8, 7)]),
    ),
    *_lines(torch.mm, ("", [path(6, 8), path(8, 7)])),
    *_lines(torch.bmm, ("", [path(3, 6, 8), path(3, 8, 7)])),
    *_lines(METHODS.__rmatmul__, ("", [path(8, 7), path(6, 8)])),
    *_lines(
        torch.addmm,
        ("", [leaf(7), path(6, 8), leaf(8, 7)]),
        ("scaled", [path(6, 7), path(6, 8), path(8, 7)], {"beta": 0.3, "alpha": -2.0}),
    ),
    *_lines(
        torch.baddbmm,
        ("", [path(3, 6, 7), path(3, 6, 8), path(3, 8, 7)]),
        ("scaled", [path(6, 7), path(3, 6, 8), path(3, 8, 7)], {"beta": 0.0, "alpha": 0.5}),
    ),
    *_lines(
        torch.einsum,
        ("", ["bhqd,bhkd->bhqk", path(*_HEADS), path(*_HEADS)]),
        ("weight", ["bld,od->blo", path(2, 6, 8), leaf(5, 8)]),
        ("outer", ["i,j->ij", path(40), path(40)]),
        ("one", ["bij->bji", path(2, 6, 8)]),
        ("three", ["ij,jk,kl->il", path(6, 8), path(8, 5), path(5, 6)]),
    ),
    *_lines(
        F.bilinear,
        ("", [path(6, 8), path(6, 7), leaf(5, 8, 7), leaf(5)]),
        ("no bias", [path(6, 8), path(6, 7), path(5, 8, 7)]),
    ),
    *_lines(
        F.conv1d,
        ("", [path(2, 4, 9), leaf(6, 4, 3), leaf(6)]),
        ("options", [path(2, 4, 9), leaf(6, 2, 3), None, 2, 1, 2, 2]),
        ("single", [path(4, 9), leaf(6, 4, 3), leaf(6)]),
        ("same", [path(2, 4, 9), leaf(6, 4, 4), leaf(6)], {"padding": "same"}),
        ("computed weight", [path(2, 4, 9), path(6, 4, 3), path(6)]),
    ),
    *_lines(
        F.conv2d,
        ("", [path(*_IMAGES), leaf(6, 4, 3, 2), leaf(6)]),
        (
            "options",
            [path(*_IMAGES), leaf(6, 2, 3, 2), leaf(6)],
            {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2},
        ),
        ("depthwise", [path(*_IMAGES), leaf(4, 1, 3, 3), None], {"padding": 1, "groups": 4}),
        ("pointwise", [path(*_IMAGES), leaf(6, 4, 1, 1), leaf(6)]),
        ("single", [path(4, 6, 5), leaf(6, 4, 3, 2), leaf(6)]),
        ("same", [path(*_IMAGES), leaf(6, 4, 2, 4), leaf(6)], {"padding": "same", "dilation": (1, 1)}),
        ("valid", [path(*_IMAGES), leaf(6, 4, 3, 2), leaf(6)], {"padding": "valid"}),
        ("computed weight", [path(*_IMAGES), path(6, 4, 3, 2), path(6)]),
        (
            "channels last",
            [
                like(_last := partial(torch.Tensor.contiguous, memory_format=torch.channels_last), *_IMAGES),
                leaf(6, 4, 3, 2),
                leaf(6),
            ],
        ),
        ("no images", [path(0, 4, 6, 5), leaf(6, 4, 3, 2), leaf(6)]),
        ("wide steps", [path(2, 4, 9, 9), leaf(6, 4, 2, 2), leaf(6)], {"stride": 4}),
    ),
    *_lines(
        F.conv3d,
        ("", [path(2, 2, 4, 5, 4), leaf(3, 2, 2, 3, 2), leaf(3)]),
        ("options", [path(2, 2, 4, 5, 4), leaf(4, 1, 2, 3, 2), leaf(4), (1, 2, 1), (0, 1, 1), (1, 1, 2), 2]),
        ("same", [path(2, 2, 4, 5, 4), leaf(3, 2, 2, 3, 2), leaf(3)], {"padding": "same"}),
    ),
    *_lines(
        F.conv_transpose1d,
        ("", [path(2, 4, 9), leaf(4, 6, 3), leaf(6)]),
        ("options", [path(2, 4, 9), leaf(4, 3, 3), leaf(6), 3, 1, 2, 2, 2]),
    ),
    *_lines(
        F.conv_transpose2d,
        ("", [path(*_IMAGES), leaf(4, 6, 3, 2), leaf(6)]),
        (
            "options",
            [path(*_IMAGES), leaf(4, 3, 3, 2), None],
            {"stride": (2, 3), "padding": 1, "output_padding": (1, 2), "groups": 2, "dilation": (2, 1)},
        ),
        ("single", [path(4, 6, 5), leaf(4, 6, 3, 2), leaf(6)]),
        ("computed weight", [path(*_IMAGES), path(4, 6, 3, 2), path(6)]),
    ),
    *_lines(
        F.conv_transpose3d,
        ("", [path(2, 2, 3, 4, 3), leaf(2, 3, 2, 3, 2), leaf(3)], {"stride": 2, "output_padding": 1}),
    ),
    *_lines(
        F.relu, ("", [path(*_SHAPE)]), ("in place", [path(*_SHAPE), True]), ("empty", [path(0, 3)]), ("0-d", [path()])
    ),
    *_lines(F.relu_, ("", [path(*_SHAPE)])),
    *_lines(F.leaky_relu, ("", [path(*_SHAPE)]), ("slope, in place", [path(*_SHAPE), 0.3], {"inplace": True})),
    *_lines(
        F.relu6,
        ("", [like(lambda t: 5 * t, *_SHAPE)]),
        ("in place", [like(lambda t: 5 * t, *_SHAPE)], {"inplace": True}),
    ),
    *_lines(
        F.prelu,
        ("", [path(*_IMAGES), leaf(4)]),
        ("one slope", [path(*_IMAGES), leaf(1)]),
        ("vector", [path(40), leaf(1)]),
    ),
    *_lines(F.hardtanh, ("", [path(*_SHAPE)]), ("limits, in place", [path(*_SHAPE), -0.3, 0.8], {"inplace": True})),
    *_lines(
        torch.clamp,
        ("", [path(*_SHAPE), -0.5, 0.7]),
        ("from below", [path(*_SHAPE)], {"min": 0.1}),
        ("from above", [path(*_SHAPE)], {"max": 0.1}),
        ("by tensors", [path(*_SHAPE), constant(16)]),
    ),
    *_lines(F.threshold, ("", [path(*_SHAPE), 0.3, 2.0]), ("in place", [path(*_SHAPE), 0.3, 2.0], {"inplace": True})),
    *_lines(F.hardshrink, ("", [path(*_SHAPE)]), ("lambd", [path(*_SHAPE), 0.2])),
    *_lines(F.softshrink, ("", [path(*_SHAPE)]), ("lambd", [path(*_SHAPE), 0.2])),
    *_lines(torch.abs, ("", [path(*_SHAPE)]), ("with zeros", [like(torch.round, *_SHAPE)])),
    *_lines(
        F.dropout,
        ("", [path(*_SHAPE)]),
        ("p", [path(*_SHAPE), 0.2]),
        ("in place", [path(*_SHAPE), 0.2, True, True]),
        ("not training", [path(*_SHAPE)], {"training": False}),
        ("of all", [path(*_SHAPE), 1.0]),
        ("of none", [path(*_SHAPE), 0.0]),
        ("transposed", [like(lambda t: t.mT, *_SHAPE)]),
    ),
    *_lines(torch.dropout, ("", [path(*_SHAPE), 0.3, True])),
    *_lines(
        F.dropout1d, ("", [path(4, 6, 5)]), ("single", [path(6, 5)]), ("in place", [path(4, 6, 5), 0.3, True, True])
    ),
    *_lines(F.dropout2d, ("", [path(*_IMAGES)]), ("not images", [path(4, 6, 5)])),
    *_lines(F.dropout3d, ("", [path(3, 6, 2, 3, 2)]), ("single", [path(6, 2, 3, 2)])),
    *_lines(
        torch.where,
        ("", [flags(*_SHAPE), path(*_SHAPE), path(*_SHAPE)]),
        ("a number", [flags(*_SHAPE), path(*_SHAPE), 0.0]),
        ("another number", [flags(*_SHAPE), 1, path(*_SHAPE)]),
        ("broadcast", [flags(6, 1), path(16), path(*_SHAPE)]),
    ),
    *_lines(METHODS.where, ("", [path(*_SHAPE), flags(*_SHAPE), path(*_SHAPE)])),
    *_lines(
        torch.masked_fill,
        ("", [path(*_SHAPE), flags(*_SHAPE), -torch.inf]),
        ("broadcast", [path(*_SHAPE), flags(16), 2.0]),
        ("by a tensor", [path(*_SHAPE), flags(*_SHAPE), constant()]),
        ("by a tensor with a gradient", [path(*_SHAPE), flags(*_SHAPE), path()]),
    ),
    *_lines(
        torch.maximum,
        ("", [path(*_SHAPE), path(*_SHAPE)]),
        ("ties", [like(torch.round, *_SHAPE), like(torch.round, *_SHAPE)]),
        ("broadcast", [path(*_SHAPE), leaf(16)]),
    ),
    *_lines(
        torch.minimum,
        ("", [path(*_SHAPE), path(*_SHAPE)]),
        ("ties", [like(torch.round, *_SHAPE), like(torch.round, *_SHAPE)]),
    ),
    *_lines(
        F.layer_norm,
        ("", [path(*_SHAPE), [16], leaf(16), leaf(16)]),
        ("no weights", [path(2, 3, 4, 5), (4, 5)], {"eps": 0.1}),
        ("no bias", [path(2, 3, 4, 5), (4, 5), leaf(4, 5)]),
        ("transposed", [like(lambda t: t.mT, 16, 6), [16], leaf(16), leaf(16)]),
        ("no rows", [path(0, 16), [16], leaf(16), leaf(16)]),
    ),
    *_lines(
        F.rms_norm,
        ("", [path(*_SHAPE), [16], leaf(16)]),
        ("no weights", [path(2, 3, 4, 5), (4, 5)], {"eps": 0.1}),
        ("no rows", [path(0, 16), [16], leaf(16)]),
    ),
    *_lines(
        F.group_norm,
        ("", [path(*_IMAGES), 2, leaf(4), leaf(4)]),
        ("no weights", [path(3, 8), 2], {"eps": 0.1}),
        ("one group", [path(*_IMAGES), 1, leaf(4), leaf(4)]),
        ("a group each", [path(*_IMAGES), 4, leaf(4), leaf(4)]),
        ("channels last", [like(_last, *_IMAGES), 2, leaf(4), leaf(4)]),
    ),
    *_lines(
        F.instance_norm,
        ("", [path(*_IMAGES)]),
        ("weights, statistics", [path(*_IMAGES), buffer(0.5, 4), buffer(2, 4), leaf(4), leaf(4), True, 0.3, 0.1]),
        ("by statistics", [path(*_IMAGES), constant(4), within(0.5, 2, 4, role="constant"), leaf(4), leaf(4), False]),
        ("sequences", [path(3, 4, 7), None, None, leaf(4), leaf(4)]),
    ),
    *_lines(torch.layer_norm, ("", [path(*_SHAPE), [16], leaf(16), leaf(16), 1e-3, False])),
    *_lines(torch.rms_norm, ("", [path(*_SHAPE), [16], leaf(16)])),
    *_lines(torch.group_norm, ("", [path(*_IMAGES), 2, leaf(4), leaf(4), 1e-3, False])),
    *_lines(
        torch.instance_norm,
        ("", [path(*_IMAGES), leaf(4), leaf(4), buffer(0.5, 4), buffer(2, 4), True, 0.3, 0.1, False]),
    ),
    *_lines(
        F.batch_norm,
        ("", [path(*_IMAGES), buffer(0.5, 4), buffer(2, 4), leaf(4), leaf(4), True]),
        ("momentum, eps", [path(6, 16), buffer(0.5, 16), buffer(2, 16), leaf(16), leaf(16), True, 0.3, 0.1]),
        ("no statistics", [path(3, 4, 7), None, None, None, None, True]),
        ("not training", [path(*_IMAGES), constant(4), within(0.5, 2, 4, role="constant"), leaf(4), leaf(4)]),
        ("volumes", [path(3, 4, 2, 3, 2), buffer(0.5, 4), buffer(2, 4), leaf(4), leaf(4), True]),
        ("channels last", [like(_last, *_IMAGES), buffer(0.5, 4), buffer(2, 4), leaf(4), leaf(4), True]),
    ),
    *_lines(
        torch.batch_norm, ("", [path(*_IMAGES), leaf(4), leaf(4), buffer(0.5, 4), buffer(2, 4), True, 0.1, 1e-5, False])
    ),
    *_lines(
        F.softmax,
        ("", [path(*_SHAPE), -1]),
        ("along another dimension", [path(*_SHAPE)], {"dim": 0}),
        ("dtype", [path(*_SHAPE)], {"dim": 1, "dtype": torch.float64}),
        ("empty", [path(0, 4), -1]),
        ("0-d", [path(), 0]),
    ),
    *_lines(torch.softmax, ("", [path(*_SHAPE), -1])),
    *_lines(
        F.log_softmax,
        ("", [path(*_SHAPE), -1]),
        ("along another dimension", [path(*_SHAPE)], {"dim": 0, "dtype": torch.float64}),
    ),
    *_lines(torch.log_softmax, ("", [path(*_SHAPE), -1])),
    *_lines(
        F.nll_loss,
        ("", [path(8, 10), integers(10, 8)]),
        ("images", [path(2, 5, 3, 4), integers(5, 2, 3, 4)], {"reduction": "sum"}),
        ("one", [path(40), integers(40)]),
        (
            "all of it, none",
            [path(2, 5, 8), integers(5, 2, 8), within(0.5, 2, 5, role="constant")],
            {"ignore_index": 0, "reduction": "none"},
        ),
        (
            "all of it",
            [path(2, 5, 8), integers(5, 2, 8), within(0.5, 2, 5, role="constant")],
            {"ignore_index": 0},
        ),
    ),
    *_lines(
        F.binary_cross_entropy,
        ("", [within(0.1, 0.9, 8, 16), within(0, 1, 8, 16, role="constant")]),
        (
            "weights",
            [within(0.1, 0.9, 8, 16), within(0, 1, 8, 16, role="constant")],
            {"weight": torch.linspace(0.5, 2, 16).double(), "reduction": "sum"},
        ),
    ),
    *_lines(
        F.mse_loss,
        ("", [path(8, 16), constant(8, 16)]),
        ("both, broadcast", [path(8, 16), path(16)], {"reduction": "sum"}),
        ("none", [path(8, 16), constant(8, 16)], {"reduction": "none"}),
    ),
    *_lines(F.l1_loss, ("", [path(8, 16), constant(8, 16)])),
    *_lines(F.smooth_l1_loss, ("beta", [path(8, 16), constant(8, 16)], {"beta": 0.5})),
    *_lines(F.huber_loss, ("delta", [path(8, 16), constant(8, 16)], {"delta": 0.7})),
    *_lines(
        F.binary_cross_entropy_with_logits,
        ("", [path(8, 16), within(0, 1, 8, 16, role="constant")]),
        ("weights", [path(8, 16), within(0, 1, 8, 16, role="constant")], {"reduction": "sum"}),
    ),
    *_lines(
        F.cross_entropy,
        ("", [path(8, 10), integers(10, 8)]),
        ("images", [path(2, 5, 3, 4), integers(5, 2, 3, 4)], {"reduction": "sum"}),
        ("one", [path(40), integers(40)]),
        ("none", [path(8, 10), integers(10, 8)], {"reduction": "none"}),
        ("ignored", [path(16, 4), integers(4, 16)], {"ignore_index": 1}),
        ("weights", [path(16, 4), integers(4, 16), within(0.5, 2, 4, role="constant")]),
        ("smoothed", [path(16, 4), integers(4, 16)], {"label_smoothing": 0.2}),
        (
            "all of it",
            [path(2, 5, 8), integers(5, 2, 8), within(0.5, 2, 5, role="constant")],
            {"ignore_index": 0, "label_smoothing": 0.2},
        ),
        (
            "all of it, none",
            [path(2, 5, 8), integers(5, 2, 8), within(0.5, 2, 5, role="constant")],
            {"ignore_index": 0, "label_smoothing": 0.2, "reduction": "none"},
        ),
        (
            "probabilities",
            [path(2, 5, 8), within(0, 1, 2, 5, 8, role="constant"), within(0.5, 2, 5, role="constant")],
            {"label_smoothing": 0.2},
        ),
        ("probabilities, one", [path(40), within(0, 1, 40, role="constant")]),
        ("probabilities with a gradient", [path(8, 10), within(0, 1, 8, 10)]),
        ("old arguments", [path(8, 10), integers(10, 8)], {"size_average": False}),
    ),
    *_lines(
        F.scaled_dot_product_attention,
        ("", [path(*_HEADS), path(*_HEADS), path(*_HEADS)]),
        ("causal", [path(*_HEADS), path(*_HEADS), path(*_HEADS)], {"is_causal": True}),
        ("causal, fewer keys", [path(2, 2, 6, 8), path(2, 2, 4, 8), path(2, 2, 4, 8)], {"is_causal": True}),
        ("scale", [path(*_HEADS), path(2, 2, 9, 8), path(2, 2, 9, 5)], {"scale": 0.7}),
        ("hidden", [path(*_HEADS), path(*_HEADS), path(*_HEADS), flags(2, 1, 6, 6)]),
        ("added", [path(*_HEADS), path(*_HEADS), path(*_HEADS), constant(6, 6)]),
        ("added, learned", [path(*_HEADS), path(*_HEADS), path(*_HEADS), leaf(1, 2, 6, 6)]),
        ("dropout", [path(*_HEADS), path(*_HEADS), path(*_HEADS)], {"dropout_p": 0.3}),
        ("dropout, causal", [path(*_HEADS), path(*_HEADS), path(*_HEADS)], {"dropout_p": 0.3, "is_causal": True}),
        ("groups", [path(2, 4, 6, 8), path(2, 2, 6, 8), path(2, 2, 6, 8)], {"enable_gqa": True}),
        (
            "groups, causal, dropout",
            [path(2, 4, 6, 8), path(2, 2, 6, 8), path(2, 2, 6, 8)],
            {"enable_gqa": True, "is_causal": True, "dropout_p": 0.3},
        ),
        ("no heads", [path(4, 6, 8), path(4, 6, 8), path(4, 6, 8)]),
        ("no heads, hidden", [path(4, 6, 8), path(4, 6, 8), path(4, 6, 8), flags(4, 6, 6)]),
        ("one", [path(6, 8), path(6, 8), path(6, 8)]),
        ("shared heads", [path(2, 4, 6, 8), path(2, 1, 6, 8), path(2, 1, 6, 8)]),
        ("transposed", [like(lambda t: t.transpose(1, 2), 2, 6, 2, 8) for _ in range(3)]),
        ("empty", [path(0, 2, 6, 8), path(0, 2, 6, 8), path(0, 2, 6, 8)]),
        ("long", [path(1, 1, 6, 4), path(1, 1, 40, 4), path(1, 1, 40, 4)]),
        ("narrow", [path(1, 1, 24, 2), path(1, 1, 24, 2), path(1, 1, 24, 2)]),  # queries and keys are kept exactly
    ),
    *_lines(F.avg_pool1d, ("", [path(2, 4, 9), 3]), ("options", [path(2, 4, 9), 3, 2, 1, True, False])),
    *_lines(
        F.avg_pool2d,
        ("", [path(*_IMAGES), 2]),
        (
            "options",
            [path(*_IMAGES), (3, 2)],
            {"stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False},
        ),
        ("divisor", [path(*_IMAGES), 2], {"divisor_override": 3}),
        ("single", [path(4, 6, 5), 2]),
    ),
    *_lines(F.avg_pool3d, ("", [path(2, 2, 4, 5, 4), 2]), ("options", [path(2, 2, 4, 5, 4), 2, 1, 1, True, False, 3])),
    *_lines(F.adaptive_avg_pool1d, ("", [path(2, 4, 9), 4])),
    *_lines(F.adaptive_avg_pool2d, ("", [path(*_IMAGES), (4, None)]), ("one", [path(*_IMAGES), 1])),
    *_lines(F.adaptive_avg_pool3d, ("", [path(2, 2, 4, 5, 4), (2, 3, 2)])),
    *_lines(
        F.pad,
        ("", [path(*_IMAGES), (1, 2)]),
        *((mode, [path(*_IMAGES), (1, 2, 2, 1)], {"mode": mode}) for mode in ("reflect", "replicate", "circular")),
    ),
    *_lines(
        F.max_pool1d,
        ("", [path(2, 4, 9), 3]),
        ("options", [path(2, 4, 9), 3, 2, 1, 2, True]),
        ("single", [path(4, 9), [2]]),
    ),
    *_lines(
        F.max_pool3d,
        ("", [path(2, 2, 4, 5, 4), 2]),
        (
            "options",
            [path(2, 2, 6, 9, 7), (3, 2, 1)],
            {"stride": (2, 1, 2), "padding": (1, 1, 0), "dilation": (1, 2, 1), "ceil_mode": True},
        ),
        ("single", [path(2, 4, 5, 4), 2]),
        ("indices", [path(2, 2, 4, 5, 4), 2], {"return_indices": True}),
    ),
    *_lines(
        F.max_pool2d,
        ("", [path(*_IMAGES), 2]),
        (
            "options",
            [path(2, 3, 9, 9), (3, 2)],
            {"stride": (2, 1), "padding": 1, "dilation": (1, 2), "ceil_mode": True},
        ),
        ("single", [path(4, 6, 5), 2]),
        ("ties", [like(torch.round, *_IMAGES), 3, 1]),
        ("indices", [path(*_IMAGES), 2], {"return_indices": True}),
        ("channels last", [like(_last, *_IMAGES), 2]),
    ),
]

# Other names under which a function is known.
_SAME = {
    "__mul__": "mul", "__rmul__": "mul", "multiply": "mul", "__truediv__": "div", "divide": "div", "true_divide": "div",
    "__matmul__": "matmul", "absolute": "abs", "__abs__": "abs", "clip": "clamp", "expit": "sigmoid", "__pow__": "pow",
    "log_sigmoid": "logsigmoid",
}  # fmt: skip


def kin(function: Callable[..., Any]) -> str:
    """What aliases have in common: their name, but for namespaces."""
    name = name_of(function).rpartition(".")[2]
    return _SAME.get(name, name)


def aliases() -> list[Case]:
    """The first case of each function again, for each other function with a rule that does the same."""
    covered, first = {case.function for case in CASES}, {}
    for case in CASES:
        first.setdefault(kin(case.function), case)
    return [
        Case(name_of(f), f, first[kin(f)].inputs, first[kin(f)].options)
        for f in RULES
        if f not in covered and kin(f) in first
    ]


def uncovered() -> list[str]:
    """Functions with a rule that no case calls; recurrent ones have tests of their own."""
    called = {case.function for case in CASES + aliases()}
    return [
        name_of(f)
        for f, answer in RULES.items()
        if f not in called and not answer.__module__.endswith(("rnn", "recurrent"))
    ]
