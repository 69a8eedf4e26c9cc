"""One ``autograd.Function`` for every operation: exact values, and gradients from what the operation chose to keep.

An operation is a function that computes its output with stock PyTorch, says what it keeps, and returns its output
together with a function that turns the output's gradient into those of its arguments::

    @operation
    def linear(keep, x, weight, bias=None):
        x_, weight_ = keep.end(x, weight), keep.exact(weight, wanted=keep.wants(x))
        wants_bias = keep.wants(bias)

        def backward(kept, grad):
            ...  # kept[x_] is a Summary, kept[weight_] the tensor
            return grad_x, grad_weight, grad_bias

        return F.linear(x, weight, bias), backward

``backward`` must not close over tensors: whatever it needs goes through ``keep``, so that saved-tensor hooks, the
ledger, ``torch.func`` and ``torch.compile`` see all of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from rad.functional.sharing import Sharing
from rad.sketch import Compressed, Sketch, tracing

__all__ = ["Call", "Handle", "Keep", "Kept", "Summary", "differentiable", "graph_apart", "in_place", "operation"]

# What is not larger than this is kept as it is: a summary with its seed and ranges would hardly be smaller.
_SMALL = 256


# Called with what an operation keeps, and how: "exact", "1 bit", or a sketch; see ``rad.measure``.
listeners: list[Callable[[str, list[Tensor]], None]] = []


class Call:
    """One call of a torch function inside a converted module.

    Attributes:
        sketch: The summary to keep.
        seed: Returns a seed that no other summary uses, int64 scalar on the CPU.
        held: Ids of tensors that are held whatever is kept, besides those that are leaves.
        sharing: Summaries made by earlier calls of the same forward pass, if they may be used again.
    """

    def __init__(
        self,
        sketch: Sketch,
        seed: Callable[[], Tensor],
        sharing: Sharing | None = None,
        held: frozenset[int] = frozenset(),
    ) -> None:
        self.sketch, self.seed, self.sharing, self.held = sketch, seed, sharing, held
        self.cast: Callable[[Tensor], Tensor] = _same  # what autocast does to the operands before they are kept


def _same(tensor: Tensor) -> Tensor:
    return tensor


class Handle(NamedTuple):
    """A place among what an operation keeps."""

    index: int


class Summary:
    """An estimate of a tensor, as the backward pass finds it."""

    def __init__(self, sketch: Sketch, compressed: Compressed, shape: torch.Size) -> None:
        self.sketch, self.compressed, self.shape = sketch, compressed, shape

    def dense(self) -> Tensor:
        """The unbiased estimate, of the tensor's own shape."""
        return tracing.expand(self.sketch, self.compressed).view(self.shape)

    def noise(self) -> Tensor | None:
        """The variance of each element of ``dense()``, of its shape; ``None`` where the tensor itself is kept."""
        if self.compressed.exact:
            return None
        noise = tracing.noise(self.sketch, self.compressed)
        return noise.expand(self.compressed.shape).reshape(self.shape)

    def columns(self) -> tuple[Tensor | None, Tensor]:
        """The estimate without the features that are zero in all rows; see ``Sketch.columns``."""
        return tracing.columns(self.sketch, self.compressed)

    def grad_weight(self, grad: Tensor) -> Tensor:
        """``gradᵀ x`` ``[o, d]`` for gradients ``[..., o]`` of the rows of ``x`` ``[..., d]``."""
        if self.shape.numel() == 0:
            return grad.new_zeros(grad.shape[-1], self.shape[-1])
        return tracing.grad_weight(self.sketch, self.compressed, grad)


class Keep:
    """What an operation keeps for its backward pass; given to it as its first argument."""

    def __init__(self, call: Call, tensors: Sequence[Tensor], wanted: Sequence[bool], leaves: Sequence[bool]) -> None:
        self._call, self._tensors = call, tensors
        self._wanted = {id(t): w for t, w in zip(tensors, wanted, strict=True)}
        self._leaves = {id(t): leaf for t, leaf in zip(tensors, leaves, strict=True)}
        self.fresh: list[Tensor] = []  # kept tensors that are not inputs
        self.items: list[tuple[Any, list[int]]] = []  # how to read each handle; places: ≥ 0 inputs, < 0 fresh
        self.dirty: list[Tensor] = []

    @property
    def sketch(self) -> Sketch:
        """The sketch of this call."""
        return self._call.sketch

    @property
    def serves_factors(self) -> bool:
        """Whether the sketch serves factors inside a path, and not only its end."""
        return self.sketch.serves_factors and not self.sketch.exact

    def wants(self, tensor: Tensor | None) -> bool:
        """Whether a gradient of this argument is asked for."""
        return tensor is not None and self._wanted.get(id(tensor), False)

    def is_leaf(self, tensor: Tensor) -> bool:
        """Whether this argument is a parameter or a leaf like one, which is held whatever we keep."""
        return self._leaves.get(id(tensor), False)

    def overwrites(self, tensor: Tensor) -> None:
        """Says that this argument is changed in place."""
        self.dirty.append(tensor)

    def exact(self, tensor: Tensor | None, wanted: bool = True) -> Handle | None:
        """Keeps a tensor as it is, if it is wanted; an argument costs nothing that is held anyway."""
        return None if tensor is None or not wanted else self._add(None, [tensor])

    def bits(self, mask: Tensor, bits: int = 1) -> Handle:
        """Keeps small non-negative integers, or whether values are not zero, in so many bits each; exactly."""
        return self.packed(tracing.pack(mask, bits), mask.shape, bits)

    def packed(self, packed: Tensor, shape: torch.Size, bits: int = 1) -> Handle:
        """Keeps integers that were packed already."""
        return self._add((bits, shape), [packed])

    def end(self, tensor: Tensor, weight: Tensor, features: int | None = None) -> Handle | None:
        """Keeps a summary of what multiplies the gradient into that of ``weight``, if there is one to come.

        A parameter's gradient is the end of its paths, so all operations that are given this tensor share one draw.

        Args:
            tensor: What to summarize.
            weight: The operand whose gradient it forms.
            features: Columns of the matrix to summarize, by default the size of the last dimension.
        """
        if not self.wants(weight):
            return None
        return self._sketch(tensor, features, self._call.sharing if self.is_leaf(weight) else None)

    def factor(self, tensor: Tensor, wanted: bool = True, features: int | None = None) -> Handle | None:
        """Keeps a summary, with a draw of its own, of a factor that paths go through: of a derivative, say.

        The tensor itself is kept where it is a parameter or another leaf, which is held anyway, where the sketch does
        not serve factors, and where nothing would be saved.
        """
        if not wanted:
            return None
        if self.is_leaf(tensor) or not self.serves_factors or tensor.nbytes <= _SMALL:
            return self.exact(tensor)
        return self._sketch(tensor, features, None)

    def _sketch(self, tensor: Tensor, features: int | None, sharing: Sharing | None) -> Handle:
        if features is None:
            features = tensor.shape[-1] if tensor.dim() else 1
        matrix = (tensor.numel() // max(features, 1), features)
        cast = self._call.cast

        def make() -> Compressed:
            return tracing.compress(self.sketch, cast(tensor).reshape(matrix), self._call.seed)

        compressed = make() if sharing is None else sharing.summary(tensor, (self.sketch, matrix), make)
        tensors, layout = compressed.split()
        return self._add((self.sketch, layout, tensor.shape), list(tensors))

    def _add(self, how: Any, tensors: list[Tensor]) -> Handle:
        for listener in listeners:
            listener(_described(how), tensors)
        places = []
        for tensor in tensors:
            place = next((i for i, t in enumerate(self._tensors) if t is tensor), None)
            if place is None:
                self.fresh.append(tensor)
                place = -len(self.fresh)
            places.append(place)
        self.items.append((how, places))
        return Handle(len(self.items) - 1)


def _described(how: Any) -> str:
    if how is None or (len(how) == 3 and how[0].exact):
        return "exact"
    return str(how[0]) if len(how) == 3 else f"{how[0]} bit{'s' if how[0] > 1 else ''}"


class Kept:
    """What ``Keep`` kept, by handle."""

    def __init__(self, items: list[tuple[Any, list[int]]], tensors: dict[int, Tensor]) -> None:
        self._items, self._tensors = items, tensors

    def __getitem__(self, handle: Handle | None) -> Any:
        """The tensor of ``exact``, the integers of ``bits`` (uint8), or the ``Summary`` of a sketch; else ``None``."""
        if handle is None:
            return None
        how, places = self._items[handle.index]
        tensors = [self._tensors[place] for place in places]
        if how is None:
            return tensors[0]
        if len(how) == 2:
            bits, shape = how
            return tracing.unpack(tensors[0], bits, shape.numel()).view(shape)
        sketch, layout, shape = how
        return Summary(sketch, Compressed.join(tensors, layout), shape)

    def packed(self, handle: Handle) -> Tensor:
        """The bits of ``bits`` as they are kept."""
        return self._tensors[self._items[handle.index][1][0]]

    def dense(self, handle: Handle | None) -> Any:
        """The tensor, or the estimate of it."""
        item = self[handle]
        return item.dense() if isinstance(item, Summary) else item

    def times(self, handle: Handle, grad: Tensor) -> Tensor:
        """``grad`` times the tensor or its estimate, in the memory of the estimate where that is ours to overwrite."""
        item = self[handle]
        if isinstance(item, Tensor):
            return grad * item
        estimate = item.dense()
        if (
            item.compressed.exact
            or estimate.dtype != grad.dtype
            or estimate.shape != grad.shape
            or tracing.transformed()
        ):
            return grad * estimate
        return estimate.mul_(grad)


def differentiable(*args: Any) -> bool:
    """Whether a gradient is to come for any of these arguments, or those inside lists among them."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in _tensors(args))


def in_place(run: Callable[[bool], Tensor], input: Tensor, inplace: bool) -> Tensor:
    """``run(inplace)``; a view is overwritten by a copy, for autograd allows no other way.

    Args:
        run: An operation on ``input`` that overwrites it if given ``True``.
        input: What is overwritten.
        inplace: Whether to.
    """
    return input.copy_(run(False)) if inplace and input._is_view() else run(inplace)


def _tensors(args: Any) -> Iterator[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from (t for t in arg if isinstance(t, Tensor))


def operation(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: makes ``function(keep, *args, **options)`` an operation, to be called with a ``Call`` first.

    Tensors to differentiate are positional arguments. ``backward(kept, *grads)`` returns a gradient, or ``None``, for
    each of the first so many arguments; a gradient that comes in is ``None`` only where there are several outputs.
    """

    @functools.wraps(function)
    def run(call: Call, *args: Any, **options: Any) -> Any:
        places = [i for i, arg in enumerate(args) if isinstance(arg, Tensor)]
        tensors = [args[i] for i in places]
        job = _Job(function, call, args, options, places, tensors)
        out = _Apply.apply(job, *tensors)
        return out[0] if job.outputs == 1 else out[: job.outputs]

    return run


class _Job:
    """One run of an operation, from its call to its backward pass."""

    def __init__(self, function: Any, call: Call, args: Any, options: Any, places: list[int], tensors: Any) -> None:
        self.function, self.call, self.options, self.places = function, call, options, places
        self.args = [None if isinstance(arg, Tensor) else arg for arg in args]
        self.wanted = [t.requires_grad for t in tensors]
        self.leaves = [
            id(t) in call.held or (t.is_leaf and (t.requires_grad or isinstance(t, nn.Parameter))) for t in tensors
        ]
        self.outputs = 0
        self.backward: Any = None
        self.items: Any = None
        self.saved: list[int] = []
        self.dirty: list[int] = []


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(job: _Job, *tensors: Tensor) -> tuple[Tensor, ...]:
        args = list(job.args)
        for place, tensor in zip(job.places, tensors, strict=True):
            args[place] = tensor
        keep = Keep(job.call, tensors, job.wanted, job.leaves)
        out, job.backward = job.function(keep, *args, **job.options)
        outs = out if isinstance(out, tuple) else (out,)
        job.outputs, job.items = len(outs), keep.items
        job.saved = sorted({place for _, places in keep.items for place in places})
        job.dirty = [next(i for i, t in enumerate(tensors) if t is d) for d in keep.dirty]
        job.call, job.args, job.options = None, [], {}  # nothing that holds on to anything
        # An output that is kept comes back a second time by an alias, for what is kept is not differentiable.
        return (*outs, *(t.detach() if any(t is o for o in outs) else t for t in keep.fresh))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        job, *tensors = inputs
        ctx.job = job
        fresh = output[job.outputs :]
        ctx.mark_non_differentiable(*fresh)
        if job.dirty:
            ctx.mark_dirty(*(tensors[i] for i in job.dirty))
        if job.outputs > 1:
            ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(tensors[i] if i >= 0 else fresh[-1 - i] for i in job.saved))

    @staticmethod
    def vmap(*_: Any) -> Any:
        raise NotImplementedError(
            "a converted module cannot run under torch.func.vmap, whose examples would share their draws; "
            "give it the batch itself, or rad.revert(model) first"
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        job = ctx.job
        kept = Kept(job.items, dict(zip(job.saved, ctx.saved_tensors, strict=True)))
        with _no_autocast(grads):
            found = job.backward(kept, *grads[: job.outputs])
        found = found if isinstance(found, tuple) else (found,)
        wanted = zip(job.places, job.wanted, strict=True)
        return None, *(found[place] if want and place < len(found) else None for place, want in wanted)


@contextmanager
def _autocast_off(kind: str) -> Iterator[None]:
    with torch.autocast(kind, enabled=False):
        yield


@contextmanager
def graph_apart() -> Iterator[None]:
    """A graph made and used up at once, which hooks that follow what is saved for backward passes need not know of."""
    # Inside torch.func there are no such hooks.
    hooks = torch._C._autograd._saved_tensors_hooks_is_enabled()
    with torch.enable_grad(), saved_tensors_hooks(_same, _same) if hooks else nullcontext():
        yield


def _no_autocast(tensors: Sequence[Tensor | None]) -> Any:
    kind = next((t.device.type for t in tensors if t is not None), "cpu")
    return _autocast_off(kind) if torch.is_autocast_enabled(kind) else nullcontext()
