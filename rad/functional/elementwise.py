"""Elementwise operations: of each operand, what is kept is the rounded derivative, never the rounded operand.

``f′(x̂)`` would be biased; the gradient is linear in the derivative, so an unbiased estimate of that is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.functional.autocast import autocast
from rad.functional.choice import where
from rad.functional.operation import Call, Handle, Keep, Kept, in_place, operation
from rad.functional.registry import named, rule
from rad.functional.slopes import derivative, derivatives, in_one_pass

__all__ = ["divide", "elementwise", "gated", "multiply", "prelu"]


def elementwise(
    call: Call, function: Callable[..., Tensor], *operands: Any, inplace: bool = False, **options: Any
) -> Tensor:
    """``function(*operands, **options)``, whose elements depend on the elements at the same place alone.

    Args:
        call: The call that is answered.
        function: Any differentiable elementwise function; its derivatives come from autograd.
        operands: Tensors, broadcast against each other, and whatever else the function takes.
        inplace: Whether to overwrite the first operand.
        options: Keyword arguments of the function.

    Returns:
        What the function returns; ``NotImplemented`` where the sketch serves no factors.
    """
    if not call.serves_factors or any(isinstance(v, Tensor) for v in options.values()):
        return NotImplemented
    return in_place(lambda inplace: _elementwise(call, function, options, inplace, *operands), operands[0], inplace)


# Where these are taken of one number for each row, such as a variance, a row of zeros (a padded token) has a slope
# many thousand times those of others, whose range it would set; and the rows themselves are what is large.
_STEEP = set(named((torch, Tensor), "rsqrt", "sqrt", "reciprocal", "pow")) | {Tensor.__pow__}


@operation
def _elementwise(keep: Keep, function: Any, options: dict[str, Any], inplace: bool, *operands: Any) -> Any:
    shape = torch.broadcast_shapes(*(t.shape for t in operands if isinstance(t, Tensor)))
    wanted = [isinstance(t, Tensor) and keep.wants(t) for t in operands]
    shapes = [t.shape if isinstance(t, Tensor) else None for t in operands]
    out, slopes = _slopes(function, options, operands, wanted, shape)
    hold = keep.exact if function in _STEEP and shape[-1:] == (1,) else keep.factor
    handles = [None if slope is None else hold(slope) for slope in slopes]
    del slopes
    if inplace:
        keep.overwrites(operands[0])
        out = operands[0].copy_(out)

    def backward(kept: Kept, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads: list[Tensor | None] = [None] * 3  # of the function and its options
        for size, handle in zip(shapes, handles, strict=True):
            grads.append(None if handle is None else kept.times(handle, grad).sum_to_size(size))  # pyright: ignore
        return tuple(grads)

    return out, backward


def _slopes(
    function: Callable[..., Tensor], options: dict[str, Any], operands: tuple[Any, ...], wanted: list[bool], shape: Any
) -> tuple[Tensor, list[Tensor | None]]:
    """See ``derivatives``; of one tensor in one pass, or by pieces."""
    tensors = [i for i, t in enumerate(operands) if isinstance(t, Tensor)]
    if len(tensors) > 1 or not any(wanted):
        return derivatives(lambda *ts: function(*ts, **options), operands, wanted, shape)
    before, x, after = operands[: tensors[0]], operands[tensors[0]], operands[tensors[0] + 1 :]
    one = in_one_pass(function, **options) if len(operands) == 1 else None
    out, slope = derivative(lambda x: function(*before, x, *after, **options), x, one)
    return out, [slope if want else None for want in wanted]


@rule(torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)
def multiply(call: Call, input: Any, other: Any) -> Tensor:
    """The product of two tensors, element by element; keeps a summary of each for the other's gradient.

    Masks keep their bits; an operand that is broadcast and takes little memory is kept as it is.
    """
    if not (isinstance(input, Tensor) and isinstance(other, Tensor)):
        return NotImplemented  # nothing of the size of a tensor is kept
    if input is other:
        return elementwise(call, torch.square, input)
    return _multiply(call, input, other)


@operation
def _multiply(keep: Keep, a: Tensor, b: Tensor) -> Any:
    out = a * b
    shapes = a.shape, b.shape
    handles = _partner(keep, b, a, out), _partner(keep, a, b, out)

    def backward(kept: Kept, grad: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(
            None if handle is None else kept.times(handle, grad).sum_to_size(shape)
            for handle, shape in zip(handles, shapes, strict=True)
        )

    return out, backward


def _partner(keep: Keep, factor: Tensor, operand: Tensor, out: Tensor) -> Handle | None:
    """Keeps what multiplies the gradient into that of ``operand``."""
    if not keep.wants(operand):
        return None
    if factor.dtype == torch.bool:
        return keep.bits(factor)
    # Constants are often the same in many layers, and other small ones not worth a draw.
    share = 1 if not keep.wants(factor) else 8
    if not factor.is_floating_point() or factor.numel() * share < out.numel():
        return keep.exact(factor)
    return keep.end(factor, operand) if keep.is_leaf(operand) else keep.factor(factor)


@rule(torch.div, torch.divide, torch.true_divide, Tensor.div, Tensor.divide, Tensor.true_divide, Tensor.__truediv__)
def divide(call: Call, input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """``input / other``; keeps ``1 / other`` and, for its own gradient, the quotient."""
    if rounding_mode is not None or not isinstance(other, Tensor) or not call.serves_factors:
        return NotImplemented
    return _divide(call, input, other)


@rule(Tensor.__rtruediv__, Tensor.__rdiv__)
def _divide_reversed(call: Call, other: Tensor, input: Any) -> Tensor:
    return elementwise(call, lambda x: input / x, other) if not isinstance(input, Tensor) else NotImplemented


@operation
def _divide(keep: Keep, a: Any, b: Tensor) -> Any:
    out = a / b
    shapes = a.shape if isinstance(a, Tensor) else None, b.shape
    wants_a, wants_b = isinstance(a, Tensor) and keep.wants(a), keep.wants(b)
    small = b.numel() * 8 < out.numel()
    reciprocal = b.to(out.dtype).reciprocal()
    reciprocal_ = keep.exact(reciprocal) if small else keep.factor(reciprocal)
    out_ = keep.factor(out, wants_b)

    def backward(kept: Kept, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = kept.times(reciprocal_, grad)  # pyright: ignore
        grad_b = kept.times(out_, grad).neg_().sum_to_size(shapes[1]) if out_ is not None else None
        return grad.sum_to_size(shapes[0]) if wants_a else None, grad_b  # pyright: ignore

    return out, backward


@rule(F.prelu, torch.prelu, Tensor.prelu)
def prelu(call: Call, input: Tensor, weight: Tensor) -> Tensor:
    """``x`` where it is positive and ``w x`` elsewhere, with a slope for all or for each channel ``x[:, c]``."""
    input, weight = autocast(input), autocast(weight)
    channels = input.shape[1] if input.dim() > 1 else 1
    if weight.numel() != channels:
        if weight.numel() != 1:
            return NotImplemented  # the stock function says what is wrong
        channels = 1
    slope = weight.reshape((1, channels, *(1,) * (input.dim() - 2)) if input.dim() > 1 else (1,) * input.dim())
    return where(call, input > 0, input, multiply(call, input, slope))


@rule(F.glu)
def gated(call: Call, input: Tensor, dim: int = -1) -> Tensor:
    """``a · sigmoid(b)`` for the halves ``a`` and ``b`` of ``input``; keeps both derivatives."""
    return _gated(call, input, dim) if call.serves_factors else NotImplemented


@operation
def _gated(keep: Keep, x: Tensor, dim: int) -> Any:
    # Each element of the output depends on one of either half, so that one gradient holds both derivatives.
    out, (slope,) = derivatives(lambda x: F.glu(x, dim), [x], [True], x.shape)
    assert slope is not None
    derivative_ = keep.factor(slope)

    def backward(kept: Kept, grad: Tensor) -> Tensor:
        return kept.times(derivative_, torch.cat([grad, grad], dim))  # pyright: ignore

    return out, backward


def _register(functions: list[Callable[..., Any]]) -> None:
    for function in functions:

        @rule(function)
        def answer(call: Call, *operands: Any, _function: Any = function, **options: Any) -> Tensor:
            inplace = options.pop("inplace", False)
            return elementwise(call, _function, *operands, inplace=inplace, **options)


_UNARY = (
    "acos acosh asin asinh atan atanh cos cosh digamma erf erfc erfinv exp exp2 expm1 lgamma log log10 log1p log2 "
    "logit reciprocal rsqrt sigmoid sin sinc sinh sqrt square tan tanh"
)
_ACTIVATIONS = "celu elu gelu hardsigmoid hardswish logsigmoid mish selu sigmoid silu softplus softsign tanh tanhshrink"
_BINARY = "atan2 hypot logaddexp logaddexp2 pow xlogy float_power"

_register(named((torch, Tensor, torch.special), *_UNARY.split(), *_BINARY.split()))
_register(named((F,), *_ACTIVATIONS.split()))
_register([torch.celu, torch.selu, torch._C._nn.log_sigmoid, torch.special.expit, Tensor.__pow__])  # pyright: ignore


@rule(Tensor.__rpow__)
def _power_reversed(call: Call, exponent: Tensor, base: Any) -> Tensor:
    return elementwise(call, lambda x: base**x, exponent) if not isinstance(base, Tensor) else NotImplemented
