"""A call of a torch function as data, and how to make it with and without the rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from sketches import normal, seeded
from torch import Tensor

import rad
from rad.functional import Sharing
from rad.functional.registry import name_of
from rad.nn import Recipe, Rules, Seeds

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
        before = [t._version if isinstance(t, Tensor) else 0 for t in tensors]
        out = self.call(tensors, sketch, seeds)
        random = torch.get_rng_state()
        outs = tuple(t for t in (out if isinstance(out, tuple) else (out,)) if t.requires_grad)
        upstream = [normal(*t.shape, seed=90 + i, dtype=t.dtype) for i, t in enumerate(outs)]
        leaves = [t for t in tensors if isinstance(t, Tensor) and t.requires_grad]
        grads = torch.autograd.grad(outs, leaves, upstream, allow_unused=True) if leaves else ()
        # What belongs to the caller is not overwritten.
        assert all(torch.equal(t, normal(*t.shape, seed=90 + i, dtype=t.dtype)) for i, t in enumerate(upstream))
        kept = [t for t, g in zip(tensors, self.inputs, strict=True) if isinstance(g, Input) and g.role == "buffer"]
        assert all(
            t._version == n for t, n in zip(tensors, before, strict=True) if isinstance(t, Tensor) and not _in(t, kept)
        )
        return Outcome(tuple(t.detach() for t in outs), grads, kept, random)


def _in(tensor: Tensor, some: Sequence[Tensor]) -> bool:
    return any(tensor is t for t in some)


def lines(function: Callable[..., Any], *lines: tuple[Any, ...]) -> list[Case]:
    """Cases of one function: what is special about each, its inputs and its options."""
    name = name_of(function).removeprefix("torch.").replace("nn.functional.", "F.")
    return [
        Case(f"{name}: {what}" if what else name, function, inputs, dict(*options)) for what, inputs, *options in lines
    ]


# Shapes that many cases share.
SHAPE, IMAGES, HEADS = (6, 16), (3, 4, 6, 5), (2, 2, 6, 8)
METHODS = torch.Tensor


def last(images: Tensor) -> Tensor:
    """With channels last in memory."""
    return images.contiguous(memory_format=torch.channels_last)
