"""Operations that choose: their derivatives take a few values, and what is kept is which, in real bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.functional.operation import Call, Keep, Kept, in_place, operation
from rad.functional.registry import named, rule
from rad.functional.slopes import derivatives
from rad.sketch import tracing

__all__ = ["choose", "dropout", "masked_fill", "relu", "where"]


@rule(F.relu, torch.relu, Tensor.relu)
def relu(call: Call, input: Tensor, inplace: bool = False) -> Tensor:
    """``max(x, 0)``; keeps one bit per entry (§4.2 of the paper)."""
    return in_place(lambda inplace: _relu(call, input, inplace), input, inplace)


@rule(F.relu_, torch.relu_, Tensor.relu_)
def _relu_inplace(call: Call, input: Tensor) -> Tensor:
    return relu(call, input, True)


@operation
def _relu(keep: Keep, x: Tensor, inplace: bool) -> Any:
    if inplace:
        keep.overwrites(x)
    out = torch.relu_(x) if inplace else torch.relu(x)
    bits_ = keep.packed(tracing.pack_positive(out), out.shape)

    def backward(kept: Kept, grad: Tensor) -> Tensor:
        return tracing.masked(grad, kept.packed(bits_))

    return out, backward


def choose(
    call: Call,
    x: Tensor,
    function: Callable[[Tensor], Tensor],
    low: float = 0.0,
    high: float = 1.0,
    inplace: bool = False,
) -> Tensor:
    """``function(x)``, whose derivative is ``high`` or ``low``; keeps one bit per entry.

    Which of them it is says PyTorch, whose choice at a kink and at NaN is that of its version and kernels.
    """
    return in_place(lambda inplace: _choose(call, x, function, low, high, inplace), x, inplace)


@operation
def _choose(keep: Keep, x: Tensor, function: Any, low: float, high: float, inplace: bool) -> Any:
    out, (slope,) = derivatives(function, [x], [True], x.shape)
    assert slope is not None
    bits_ = keep.packed(tracing.pack(slope == high, 1), x.shape)
    if inplace:
        keep.overwrites(x)
        out = x.copy_(out)

    def backward(kept: Kept, grad: Tensor) -> Tensor:
        if low == 0:
            grad = tracing.masked(grad, kept.packed(bits_))
            return grad if high == 1 else grad.mul_(high)
        return torch.where(kept[bits_].bool(), grad * high, grad * low)

    return out, backward


@rule(F.leaky_relu)
def _leaky_relu(call: Call, input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    return choose(call, input, lambda x: F.leaky_relu(x, negative_slope), negative_slope, inplace=inplace)


@rule(F.relu6)
def _relu6(call: Call, input: Tensor, inplace: bool = False) -> Tensor:
    return choose(call, input, F.relu6, inplace=inplace)


@rule(F.hardtanh)
def _hardtanh(call: Call, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    return choose(call, input, lambda x: F.hardtanh(x, min_val, max_val), inplace=inplace)


@rule(torch.clamp, torch.clip, Tensor.clamp, Tensor.clip)
def _clamp(call: Call, input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        return NotImplemented
    return choose(call, input, lambda x: torch.clamp(x, min, max))


@rule(F.threshold, torch.threshold)
def _threshold(call: Call, input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    return choose(call, input, lambda x: F.threshold(x, threshold, value), inplace=inplace)


@rule(F.hardshrink, torch.hardshrink, Tensor.hardshrink)
def _hardshrink(call: Call, input: Tensor, lambd: float = 0.5) -> Tensor:
    return choose(call, input, lambda x: F.hardshrink(x, lambd))


@rule(F.softshrink)
def _softshrink(call: Call, input: Tensor, lambd: float = 0.5) -> Tensor:
    return choose(call, input, lambda x: F.softshrink(x, lambd))


@rule(torch.abs, torch.absolute, Tensor.abs, Tensor.absolute, Tensor.__abs__)
def _abs(call: Call, input: Tensor) -> Tensor:
    return _signed(call, input) if input.is_floating_point() else NotImplemented


@operation
def _signed(keep: Keep, x: Tensor) -> Any:
    # 0, 1 or 2 for negative, zero and positive; NaN has the sign 0 as well.
    sign_ = keep.bits((x > 0).to(torch.uint8) - (x < 0).to(torch.uint8) + 1, 2)

    def backward(kept: Kept, grad: Tensor) -> Tensor:
        return grad * (kept[sign_].to(grad.dtype) - 1)

    return x.abs(), backward


@rule(F.dropout)
def dropout(call: Call, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout as PyTorch draws it from the global generator; keeps one bit per entry."""
    return _dropout(call, input, F.dropout, p, training, inplace, 0)


@rule(torch.dropout)
def _torch_dropout(call: Call, input: Tensor, p: float, train: bool) -> Tensor:
    return _dropout(call, input, F.dropout, p, train, False, 0)


def _register_channels() -> None:
    for dims, function in enumerate((F.dropout1d, F.dropout2d, F.dropout3d), 1):

        @rule(function)
        def answer(
            call: Call,
            input: Tensor,
            p: float = 0.5,
            training: bool = True,
            inplace: bool = False,
            _dims: int = dims,
            _function: Any = function,
        ) -> Tensor:
            return _dropout(call, input, _function, p, training, inplace, _dims)


_register_channels()


def _dropout(call: Call, x: Tensor, function: Any, p: float, training: bool, inplace: bool, dims: int) -> Tensor:
    if not training or not 0 < p < 1:
        return NotImplemented  # nothing is drawn, or the stock function says what is wrong
    return in_place(lambda inplace: _drop(call, x, function, p, inplace, dims), x, inplace)


@operation
def _drop(keep: Keep, x: Tensor, function: Any, p: float, inplace: bool, dims: int) -> Any:
    if x.is_cuda and x.numel() > 0 and not (dims or inplace):
        return _drop_on_gpu(keep, x, p)
    # The result does not tell an entry that was dropped from one that was zero before; the scales do. In place PyTorch
    # may draw others.
    scales = function(torch.ones_like(x), p, True, inplace)
    # Whole channels share one; three dimensions are a batch of sequences for dropout2d.
    shared = min(dims, x.dim() - 2) if dims == 2 else dims
    mask = scales[(..., *(slice(1),) * shared)] if dims else scales
    bits_ = keep.packed(tracing.pack_positive(mask), mask.shape)
    if inplace:
        keep.overwrites(x)
    out = x.mul_(scales) if inplace else x * scales

    def backward(kept: Kept, grad: Tensor) -> Tensor:
        # As stock also where what was dropped meets a gradient that is not finite.
        return grad * kept[bits_].to(grad.dtype).div_(1 - p)

    return out, backward


def _drop_on_gpu(keep: Keep, x: Tensor, p: float) -> Any:
    """As stock does it there, in one kernel with numbers of its own."""
    out, mask = torch.native_dropout(x, p, True)
    bits_ = keep.bits(mask)

    def backward(kept: Kept, grad: Tensor) -> Tensor:
        return torch.ops.aten.native_dropout_backward(grad, kept[bits_].view(torch.bool), 1 / (1 - p))

    return out, backward


@rule(torch.where)
def where(call: Call, condition: Tensor, input: Any = None, other: Any = None) -> Tensor:
    """``input`` where ``condition`` holds and ``other`` elsewhere; keeps one bit per entry of the condition."""
    if input is None or condition.dtype != torch.bool:
        return NotImplemented
    return _where(call, input, other, condition)


@rule(Tensor.where)
def _tensor_where(call: Call, input: Tensor, condition: Tensor, other: Any = 0.0) -> Tensor:
    return where(call, condition, input, other)


@operation
def _where(keep: Keep, a: Any, b: Any, condition: Tensor) -> Any:
    shapes = [t.shape if isinstance(t, Tensor) and keep.wants(t) else None for t in (a, b)]
    condition_ = keep.bits(condition)

    def backward(kept: Kept, grad: Tensor) -> tuple[Tensor | None, ...]:
        mask = kept[condition_].bool()
        return tuple(
            None if shape is None else grad.masked_fill(mask if i else ~mask, 0).sum_to_size(shape)
            for i, shape in enumerate(shapes)
        )

    return torch.where(condition, a, b), backward


@rule(torch.masked_fill, Tensor.masked_fill)
def masked_fill(call: Call, input: Tensor, mask: Tensor, value: Any) -> Tensor:
    """``input`` with ``value`` where the mask holds; keeps one bit per entry of the mask."""
    if isinstance(value, Tensor) and value.requires_grad:
        return NotImplemented
    return _masked_fill(call, input, mask, value)


@operation
def _masked_fill(keep: Keep, x: Tensor, mask: Tensor, value: Any) -> Any:
    shape, mask_ = x.shape, keep.bits(mask)

    def backward(kept: Kept, grad: Tensor) -> Tensor:
        return grad.masked_fill(kept[mask_].bool(), 0).sum_to_size(shape)

    return x.masked_fill(mask, value), backward


def _register_extremes() -> None:
    for name, beyond in (("maximum", torch.gt), ("minimum", torch.lt)):
        for function in named((torch, Tensor), name):

            @rule(function)
            def answer(
                call: Call, input: Tensor, other: Tensor, _function: Any = function, _beyond: Any = beyond
            ) -> Tensor:
                return _extreme(call, input, other, _function, _beyond)


_register_extremes()


@operation
def _extreme(keep: Keep, a: Tensor, b: Tensor, function: Any, beyond: Any) -> Any:
    # As stock: nothing to what is beaten, half to each of two equals, and all to either where one is NaN.
    shapes, wanted = (a.shape, b.shape), (keep.wants(a), keep.wants(b))
    outcome_ = keep.bits(beyond(a, b).to(torch.uint8) + 2 * beyond(b, a) + 3 * (a == b), 2)

    def backward(kept: Kept, grad: Tensor) -> tuple[Tensor | None, ...]:
        outcome = kept[outcome_]
        halved = torch.where(outcome == 3, grad / 2, grad)
        return tuple(
            halved.masked_fill(outcome == beaten, 0).sum_to_size(shape) if want else None
            for shape, want, beaten in zip(shapes, wanted, (2, 1), strict=True)
        )

    return function(a, b), backward
