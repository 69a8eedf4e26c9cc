"""Losses that are sums or means of elementwise terms: what is kept is the rounded derivative of each term."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.functional.operation import Call, Keep, Kept, operation
from rad.functional.registry import rule
from rad.functional.slopes import derivatives

__all__ = ["elementwise_loss"]


def elementwise_loss(
    call: Call,
    function: Callable[..., Tensor],
    input: Tensor,
    target: Tensor,
    *args: Any,
    reduction: str = "mean",
    **options: Any,
) -> Tensor:
    """``function(input, target, reduction=reduction, **options)`` for a loss whose terms depend on one place each.

    Args:
        call: The call that is answered.
        function: The loss; with ``reduction="none"`` it returns its terms.
        input: Predictions.
        target: What they should be, of a shape that broadcasts.
        args: Options that PyTorch has given up; with them the loss stays exact.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``.
        options: Other options.
    """
    tensors = [v for v in options.values() if isinstance(v, Tensor)]
    old = options.get("size_average") is not None or options.get("reduce") is not None
    if args or old or reduction not in ("none", "sum", "mean") or any(t.requires_grad for t in tensors):
        return NotImplemented
    return _loss(call, input, target, function, reduction, options) if call.serves_factors else NotImplemented


_BY_WEIGHT = (F.mse_loss, F.l1_loss)  # whose mean is a sum divided by that of the weights, and not by their number


@operation
def _loss(keep: Keep, x: Tensor, y: Tensor, function: Any, reduction: str, options: dict[str, Any]) -> Any:
    out = function(x, y, reduction=reduction, **options)
    shape, sizes = torch.broadcast_shapes(x.shape, y.shape), (x.shape, y.shape)
    wanted = [keep.wants(t) for t in (x, y)]
    weight = options.get("weight")
    terms = {**options, "reduction": "none"} | ({} if weight is None else {"weight": weight.expand(shape)})
    _, slopes = derivatives(lambda *ts: function(*ts, **terms), (x.expand(shape), y), wanted, shape)
    handles = [None if slope is None else keep.factor(slope) for slope in slopes]
    share = 1 / max(shape.numel(), 1) if reduction == "mean" else 1.0
    by_weight = weight is not None and function in _BY_WEIGHT and reduction == "mean"
    share_ = keep.exact(weight.sum().reciprocal()) if by_weight else None  # pyright: ignore
    del slopes

    def backward(kept: Kept, grad: Tensor) -> tuple[Tensor | None, ...]:
        each = (grad * (share if share_ is None else kept[share_])).expand(shape)
        return tuple(
            None if handle is None else kept.times(handle, each).sum_to_size(size)
            for handle, size in zip(handles, sizes, strict=True)
        )

    return out, backward


def _register() -> None:
    for function in (
        F.mse_loss,
        F.l1_loss,
        F.smooth_l1_loss,
        F.huber_loss,
        F.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
    ):

        @rule(function)
        def answer(
            call: Call, input: Tensor, target: Tensor, *args: Any, _function: Any = function, **options: Any
        ) -> Tensor:
            return elementwise_loss(call, _function, input, target, *args, **options)


_register()
