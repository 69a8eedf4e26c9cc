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
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from rad.functional.keep import Call, Handle, Keep, Kept, Summary

__all__ = [
    "Call",
    "Handle",
    "Keep",
    "Kept",
    "Summary",
    "derivatives",
    "differentiable",
    "in_place",
    "operation",
]


def differentiable(*args: Any) -> bool:
    """Whether a real gradient is to come for any of these arguments, or those inside lists among them."""
    return (
        torch.is_grad_enabled()
        and any(t.requires_grad for t in _tensors(args))
        and not any(t.is_complex() or t.layout is not torch.strided for t in _tensors(args))
    )


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
        out = (_Differentiable if call.differentiable else _Apply).apply(job, *tensors)
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
        job.call, job.args, job.options = None, [], {}  # nothing that holds on to anything  # pyright: ignore
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
        ctx.set_materialize_grads(False)  # there would be zeros of the size of all that is kept
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
        return _Differentiable.backward(ctx, *grads)


class _Differentiable(_Apply):
    """An operation whose gradients can be differentiated by what they are formed from; see ``Assignment``."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        job = ctx.job
        if all(grad is None for grad in grads[: job.outputs]):
            return None, *(None for _ in job.places)
        saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # what is differentiated by is an estimate, and not what is kept exactly
            saved = tuple(t.detach() for t in saved)
        kept = Kept(job.items, dict(zip(job.saved, saved, strict=True)))
        with _no_autocast(grads):
            found = job.backward(kept, *grads[: job.outputs])
        found = found if isinstance(found, tuple) else (found,)
        wanted = zip(job.places, job.wanted, strict=True)
        return None, *(found[place] if want and place < len(found) else None for place, want in wanted)


class _Signature(inspect.Signature):
    """One without defaults, which every ``apply`` asks for: binding arguments to names costs what a kernel does."""

    args, kwargs = (), {}

    def bind(self, *args: Any) -> Any:
        bound = _Signature()
        bound.args = args
        return bound

    def apply_defaults(self) -> None:
        """There are none."""


_Apply.forward.__signature__ = _Signature()  # pyright: ignore[reportFunctionMemberAccess]


@contextmanager
def _graph_apart() -> Iterator[None]:
    """A graph made and used up at once, which hooks that follow what is saved for backward passes need not know of."""
    # Inside torch.func there are no such hooks.
    hooks = torch._C._autograd._saved_tensors_hooks_is_enabled()  # pyright: ignore
    with torch.enable_grad(), saved_tensors_hooks(lambda t: t, lambda t: t) if hooks else nullcontext():
        yield


def derivatives(
    function: Callable[..., Tensor], operands: Sequence[Any], wanted: Sequence[bool], shape: torch.Size
) -> tuple[Tensor, list[Tensor | None]]:
    """Values of a function whose elements depend on one place of each operand, and its derivatives by autograd.

    Args:
        function: Takes the operands.
        operands: Tensors that broadcast to ``shape``, and whatever else the function takes.
        wanted: By which of them to differentiate.
        shape: Shape of the operands that are differentiated by and of their derivatives.

    Returns:
        The values, without a graph, and a derivative for each operand that is wanted, else ``None``.
    """
    at = [t.detach().expand(shape).requires_grad_() if want else t for t, want in zip(operands, wanted, strict=True)]
    with _graph_apart():
        out = function(*at)
    leaves = [t for t, want in zip(at, wanted, strict=True) if want]
    found = iter(torch.autograd.grad(out, leaves, torch.ones_like(out)))
    return out.detach(), [next(found) if want else None for want in wanted]


def _no_autocast(tensors: Sequence[Tensor | None]) -> Any:
    kind = next((t.device.type for t in tensors if t is not None), "cpu")
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
