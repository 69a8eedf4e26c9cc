"""Softmax, log-softmax and cross-entropy, which keep rounded probabilities, and the loss of logarithms.

``∂x = p (g − ⟨p, g⟩)`` is quadratic in ``p``: with an estimate ``p̂`` whose elements have pairwise independent errors
of variance ``v`` its expectation is too small by ``v g``, which is known without the values. The others are linear in
``p``. Logits may be the largest tensors there are: but for smoothed labels and the like only a block of rows of ``p``
is dense at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.functional.autocast import full_precision
from rad.functional.operation import Call, Handle, Keep, Kept, Summary, operation
from rad.functional.registry import rule
from rad.sketch import Rounding, normalized, tracing

__all__ = ["cross_entropy", "gradient", "log_softmax", "nll_loss", "softmax"]

# Elements of a block of probabilities: on a CPU as few as cost no time, and on a GPU as many as keep it busy.
_BLOCK, _BLOCK_GPU = 2**22, 2**25


@rule(F.softmax)
def _softmax(
    call: Call, input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    return NotImplemented if dim is None else softmax(call, input, dim, dtype)


@rule(torch.softmax, torch.special.softmax, Tensor.softmax)
def softmax(
    call: Call, input: Tensor, dim: int | None = None, dtype: torch.dtype | None = None, *, axis: int | None = None
) -> Tensor:
    """``exp(x)/Σ exp(x)`` along a dimension; keeps its rounded values."""
    dim = axis if dim is None else dim
    if not call.serves_factors or not isinstance(dim, int):
        return NotImplemented
    return _normalized(call, input, dim, dtype)


@operation
def _normalized(keep: Keep, x: Tensor, dim: int, dtype: torch.dtype | None) -> Any:
    out = torch.softmax(x, dim, dtype)
    p_ = keep.factor(out)

    def backward(kept: Kept, grad: Tensor) -> Tensor:
        item = kept[p_]
        return gradient(item, item.dense() if isinstance(item, Summary) else item, grad, dim)

    return out, backward


def gradient(item: Summary | Tensor, p: Tensor, grad: Tensor, dim: int = -1) -> Tensor:
    """The gradient of logits from that of probabilities.

    Args:
        item: The probabilities, or a summary of them.
        p: These, or their estimate, which is overwritten perhaps.
        grad: Of the probabilities.
        dim: Along which they add up to one.
    """
    noise = None
    if isinstance(item, Summary):
        if isinstance(item.sketch, Rounding) and not item.compressed.exact and dim in (-1, p.dim() - 1):
            steps, size = item.compressed.kept[1][1], item.sketch.size(p.numel())
            found = normalized.softmax_backward(p, grad, steps, size)
            if found is not None:
                return found
        noise = item.noise()  # asked of what is exact as well: a sketch may take note
    grad_x = (grad - (p * grad).sum(dim, keepdim=True)).mul_(p)
    return grad_x if noise is None else grad_x.addcmul_(grad, noise)


@rule(F.log_softmax)
def _log_softmax(
    call: Call, input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    return NotImplemented if dim is None else log_softmax(call, input, dim, dtype)


@rule(torch.log_softmax, torch.special.log_softmax, Tensor.log_softmax)
def log_softmax(
    call: Call, input: Tensor, dim: int | None = None, dtype: torch.dtype | None = None, *, axis: int | None = None
) -> Tensor:
    """``x − log Σ exp(x)`` along a dimension; keeps the rounded probabilities."""
    dim = axis if dim is None else dim
    if not call.serves_factors or not isinstance(dim, int):
        return NotImplemented
    return _logarithmic(call, input, dim, dtype)


@operation
def _logarithmic(keep: Keep, x: Tensor, dim: int, dtype: torch.dtype | None) -> Any:
    out = torch.log_softmax(x, dim, dtype)
    p_ = [keep.factor(rows.exp(), role="probabilities") for rows in _blocks(out)]

    def backward(kept: Kept, grad: Tensor) -> Tensor:
        return _times(kept, p_, grad.sum(dim, keepdim=True).neg_(), grad.shape).add_(grad)

    return out, backward


def _blocks(x: Tensor) -> Sequence[Tensor]:
    """Rows ``[n, ...]``, a block of them at a time; all at once where a graph is in the making."""
    most = _BLOCK_GPU if x.is_cuda else _BLOCK
    if not tracing.eager() or x.numel() <= most:
        return (x,)
    return x.split(max(1, most * len(x) // x.numel()))


def _times(kept: Kept, p_: Sequence[Any], factors: Tensor, shape: torch.Size) -> Tensor:
    """Probabilities that are kept by blocks of rows, times numbers for all of an axis; in memory of its own."""
    if factors.shape != (*shape[:-1], 1):
        factors = factors.expand(shape)
    if len(p_) == 1:
        return kept.times(p_[0], factors)
    parts = factors.split(kept[p_[0]].shape[0])
    if torch.is_grad_enabled():  # to be differentiated
        return torch.cat([kept.times(*pair) for pair in zip(p_, parts, strict=True)])
    out = factors.new_empty(shape)
    for handle, part, into in zip(p_, parts, out.split(len(parts[0])), strict=True):
        kept.times(handle, part, into)
    return out


@rule(F.cross_entropy)
def cross_entropy(
    call: Call,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of logits ``[n, C, ...]`` or ``[C]``; keeps rounded probabilities.

    With ``G`` the gradient of the logarithms of the probabilities, which depends on the target alone, that of the
    logits is ``G − p Σ_c G``.
    """
    old = size_average is not None or reduce is not None
    if not call.serves_factors or old or target.requires_grad or (weight is not None and weight.requires_grad):
        return NotImplemented
    return _cross_entropy(call, full_precision(input), target, weight, ignore_index, reduction, label_smoothing)


@operation
def _cross_entropy(
    keep: Keep, x: Tensor, target: Tensor, weight: Tensor | None, ignore: int, reduction: str, smoothing: float
) -> Any:
    options: dict[str, Any] = {"ignore_index": ignore, "reduction": reduction}
    axis, blocks = min(x.dim() - 1, 1), _blocks(x)
    if target.is_floating_point() or smoothing or x.numel() == 0 or target.shape == x.shape:
        out = F.cross_entropy(x, target, weight, label_smoothing=smoothing, **options)
        p_ = [keep.factor(torch.softmax(x, axis), role="probabilities")]
    elif len(blocks) > 1 and x.dim() == 2 and target.shape == x.shape[:1] and weight is None:
        out, p_ = _by_blocks(keep, blocks, target, ignore, reduction)
    else:  # as stock does it, once for both
        p = torch.log_softmax(x, axis)
        out = F.nll_loss(p, target, weight, **options)
        p_ = [keep.factor(p.exp_(), role="probabilities")]
    target_, weight_ = keep.exact(target), keep.exact(weight)
    shape = x.shape

    def backward(kept: Kept, grad: Tensor) -> Tensor:
        target, weight = kept[target_], kept[weight_]
        if target.is_floating_point() or smoothing:
            inner = _of_logarithms(grad, shape, axis, target, weight, ignore, reduction, smoothing)
            total = inner.sum(axis, keepdim=True)
            return inner - _times(kept, p_, total, shape)
        place, each, _ = _targets(grad, axis, target, weight, ignore, reduction)
        # In the memory of the estimate, without another tensor of that size.
        return _times(kept, p_, each.neg(), shape).scatter_add_(axis, place, each)

    return out, backward


def _by_blocks(
    keep: Keep, blocks: Sequence[Tensor], target: Tensor, ignore: int, reduction: str
) -> tuple[Tensor, list[Handle | None]]:
    """The loss of logits ``[n, C]``, to the bit as of all rows at once; and their probabilities, as they are kept."""
    losses, p_ = [], []
    for logits, targets in zip(blocks, target.split(len(blocks[0])), strict=True):
        p = torch.log_softmax(logits, 1)
        losses.append(F.nll_loss(p, targets, ignore_index=ignore, reduction="none"))
        p_.append(keep.factor(p.exp_(), role="probabilities"))
        del p  # before there is the next one
    # They are added up as stock does it: as logarithms of probabilities of a single class, which some rows ignore.
    logarithms = torch.cat(losses).neg_().unsqueeze(1)
    return F.nll_loss(logarithms, torch.where(target.long() == ignore, -100, 0), reduction=reduction), p_


def _of_logarithms(
    grad: Tensor,
    shape: torch.Size,
    axis: int,
    target: Tensor,
    weight: Tensor | None,
    ignore: int,
    reduction: str,
    smoothing: float = 0.0,
) -> Tensor:
    """The gradient of the logarithms of the probabilities, of ``shape`` with classes along ``axis``."""
    classes = shape[axis]
    gains = None if weight is None else weight.to(grad.dtype).view(-1, *(1,) * (len(shape) - axis - 1))
    if target.is_floating_point():
        count = max(target.numel() // classes, 1) if reduction == "mean" else 1
        soft = target.to(grad.dtype) * (1 - smoothing) + smoothing / classes
        inner = soft if gains is None else soft * gains
        return inner * _scale(grad, axis, reduction, count)
    place, each, scale = _targets(grad, axis, target, weight, ignore, reduction)
    inner = grad.new_zeros(shape)
    if smoothing:
        spread = scale * (smoothing / classes)
        inner += spread if gains is None else spread * gains
    return inner.scatter_add_(axis, place, each * (1 - smoothing))


def _targets(
    grad: Tensor, axis: int, target: Tensor, weight: Tensor | None, ignore: int, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Targets, the gradients of their logarithms, and these without weights of classes; with an axis of one class."""
    place = target.long().unsqueeze(axis)  # PyTorch takes bytes as well
    valid = place != ignore
    place = place.where(valid, 0)
    each = valid.to(grad.dtype)
    if weight is not None:
        each = each * weight.to(grad.dtype)[place]
    scale = _scale(grad, axis, reduction, each.sum() if reduction == "mean" else 1)
    scale = scale.where(valid, 0)  # of what is ignored it is zero even where nothing counts
    return place, each * scale, scale


def _scale(grad: Tensor, axis: int, reduction: str, count: Tensor | int) -> Tensor:
    return (grad.unsqueeze(axis) if reduction == "none" else grad) / -count


@rule(F.nll_loss)
def nll_loss(
    call: Call,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Minus the given logarithms at the targets; the input, of which PyTorch reads the shape alone, is not kept."""
    if size_average is not None or reduce is not None or (weight is not None and weight.requires_grad):
        return NotImplemented
    return _nll_loss(call, input, target, weight, ignore_index, reduction)


@operation
def _nll_loss(keep: Keep, x: Tensor, target: Tensor, weight: Tensor | None, ignore: int, reduction: str) -> Any:
    out = F.nll_loss(x, target, weight, ignore_index=ignore, reduction=reduction)
    target_, weight_ = keep.exact(target), keep.exact(weight)
    shape = x.shape

    def backward(kept: Kept, grad: Tensor) -> Tensor:
        axis = min(len(shape) - 1, 1)
        return _of_logarithms(grad, shape, axis, kept[target_], kept[weight_], ignore, reduction)

    return out, backward
