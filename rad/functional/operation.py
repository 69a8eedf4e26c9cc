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
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rad.functional.keep import Call, Handle, Keep, Kept, Summary
from rad.sketch import once, tracing

__all__ = [
    "Call",
    "Handle",
    "Keep",
    "Kept",
    "Summary",
    "differentiable",
    "in_place",
    "operation",
]


def differentiable(*args: Any) -> bool:
    """Whether a real gradient is to come for any of these arguments, or those inside lists among them."""
    wanted = False
    if torch.is_grad_enabled():
        for arg in args:
            for tensor in (arg,) if isinstance(arg, Tensor) else arg if isinstance(arg, (list, tuple)) else ():
                if not isinstance(tensor, Tensor):
                    continue
                if tensor.dtype.is_complex or tensor.layout is not torch.strided:
                    return False
                wanted = wanted or tensor.requires_grad
    return wanted


def in_place(run: Callable[[bool], Tensor], input: Tensor, inplace: bool) -> Tensor:
    """``run(inplace)``; a view is overwritten by a copy, for autograd allows no other way.

    Args:
        run: An operation on ``input`` that overwrites it if given ``True``.
        input: What is overwritten.
        inplace: Whether to.
    """
    return input.copy_(run(False)) if inplace and input._is_view() else run(inplace)


def operation(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: makes ``function(keep, *args, **options)`` an operation, to be called with a ``Call`` first.

    Tensors to differentiate are positional arguments. ``backward(kept, *grads)`` returns a gradient, or ``None``, for
    each of the first so many arguments; a gradient that comes in is ``None`` only where there are several outputs.
    """

    @functools.wraps(function)
    def run(call: Call, *args: Any, **options: Any) -> Any:
        job = _Job(function, call, args, options)
        tensors = [args[i] for i in job.places]
        if tracing.eager():
            return _apply_at_once(job, *tensors)
        out = (_Differentiable if call.differentiable else _Apply).apply(job, *tensors)
        return out[0] if job.outputs == 1 else out[: job.outputs]

    return run


class _Job:
    """One run of an operation, from its call to its backward pass."""

    def __init__(self, function: Any, call: Call, args: Sequence[Any], options: Any) -> None:
        self.function, self.options = function, options
        self.call: Any = call
        self.differentiable = call.differentiable
        self.args: list[Any] = []  # but for tensors
        self.places: list[int] = []  # of tensors
        self.wanted: list[bool] = []
        self.leaves: list[bool] = []
        for i, arg in enumerate(args):
            if not isinstance(arg, Tensor):
                self.args.append(arg)
                continue
            self.args.append(None)
            self.places.append(i)
            self.wanted.append(wanted := arg.requires_grad)
            self.leaves.append(id(arg) in call.held or (arg.is_leaf and (wanted or isinstance(arg, nn.Parameter))))
        self.outputs = 0
        self.backward: Any = None
        self.items: Any = None
        self.saved: list[int] = []
        self.dirty: list[Tensor] = []

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """The outputs, and what is kept besides tensors given."""
        args, self.args = self.args, []  # nothing that holds on to anything
        for place, tensor in zip(self.places, tensors, strict=True):
            args[place] = tensor
        keep = Keep(self.call, tensors, self.wanted, self.leaves)
        out, self.backward = self.function(keep, *args, **self.options)
        self.call, self.options = None, {}
        outs = out if isinstance(out, tuple) else (out,)
        self.outputs, self.items, self.saved = len(outs), keep.items, keep.saved
        self.dirty = keep.dirty
        # An output that is kept is an alias of it, for what is kept is not differentiable.
        for i, tensor in enumerate(keep.fresh):
            for one in outs:
                if tensor is one:
                    keep.fresh[i] = tensor.detach()
        return outs, keep.fresh

    def save(self, ctx: Any, tensors: Sequence[Tensor], fresh: Sequence[Tensor]) -> None:
        """Gives all that is kept to autograd."""
        ctx.job = self
        if self.dirty:
            ctx.mark_dirty(*[next(t for t in tensors if t is d) for d in self.dirty])
            self.dirty = []
        ctx.set_materialize_grads(False)  # there would be zeros of the size of all that is kept
        ctx.save_for_backward(*[tensors[i] if i >= 0 else fresh[-1 - i] for i in self.saved])


class _Apply(torch.autograd.Function):
    """Inside of graphs in the making and of transforms, where all that is kept has to be an output."""

    @staticmethod
    def forward(job: _Job, *tensors: Tensor) -> tuple[Tensor, ...]:
        outs, fresh = job.forward(tensors)
        return (*outs, *fresh)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        job, *tensors = inputs
        fresh = output[job.outputs :]
        ctx.mark_non_differentiable(*fresh)
        job.save(ctx, tensors, fresh)

    @staticmethod
    def vmap(*_: Any) -> Any:
        raise NotImplementedError(
            "a converted module cannot run under torch.func.vmap, whose examples would share their draws; "
            "give it the batch itself, or rad.revert(model) first"
        )

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _Differentiable.backward(ctx, *grads)


class _Differentiable(_Apply):
    """An operation whose gradients can be differentiated by what they are formed from; see ``Assignment``."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        job = ctx.job
        grads = grads[: job.outputs]
        if grads[0] is None and all(grad is None for grad in grads):
            return None, *(None for _ in job.places)
        saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # what is differentiated by is an estimate, and not what is kept exactly
            saved = tuple(t.detach() for t in saved)
        kept = Kept(job.items, dict(zip(job.saved, saved, strict=True)))
        if torch._C._is_any_autocast_enabled():
            with _no_autocast(grads):
                found = job.backward(kept, *grads)
        else:
            found = job.backward(kept, *grads)
        found = found if isinstance(found, tuple) else (found,)
        wanted = zip(job.places, job.wanted, strict=True)
        return None, *[found[place] if want and place < len(found) else None for place, want in wanted]


class _AtOnce(torch.autograd.Function):
    """Elsewhere: the same in half the calls, of which each costs what a small kernel does."""

    @staticmethod
    def forward(ctx: Any, job: _Job, *tensors: Tensor) -> Any:
        outs, fresh = job.forward(tensors)
        job.save(ctx, tensors, fresh)
        return outs if job.outputs > 1 else outs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        again = ctx.job.differentiable or not torch.is_grad_enabled()
        return (_Differentiable if again else _Apply).backward(ctx, *grads)


# ``Function.apply`` without its questions about transforms, which were answered.
_apply_at_once = super(torch.autograd.Function, _AtOnce).apply  # pyright: ignore[reportAttributeAccessIssue]


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


def _no_autocast(tensors: Sequence[Tensor | None]) -> Any:
    kind = next((t.device.type for t in tensors if t is not None), "cpu")
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
