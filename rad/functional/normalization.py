"""Normalizations that keep rounded normalized values.

With ``h = (x − mean)/σ`` over ``n`` elements, ``γ`` the gradient of ``h`` and ``⟨·⟩`` the mean over those elements,
``∂x = (γ − ⟨γ⟩ − h ⟨γ h⟩)/σ``. From an unbiased estimate ``ĥ`` whose elements have pairwise independent errors of
variance ``v``, the last term has the expectation ``h ⟨γ h⟩ + v γ / n``: it is corrected by what is known without the
values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.functional.autocast import full_precision
from rad.functional.operation import Call, Keep, Kept, Summary, operation
from rad.functional.registry import rule
from rad.sketch import normalized
from rad.sketch.levels import compute_dtype

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"]


@rule(torch.layer_norm)
def _torch_layer_norm(call: Call, input: Tensor, *args: Any, cudnn_enable: bool = True, **options: Any) -> Tensor:
    return layer_norm(call, input, *args[:4], **options)


@rule(F.layer_norm)
def layer_norm(
    call: Call,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Over the last dimensions; keeps ``ĥ`` and the exact ``1/σ`` of each row."""
    if not call.serves_factors:
        return NotImplemented
    shape = tuple(normalized_shape)

    def function(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_layer_norm(x, shape, weight, bias, eps)

    return _normalize(call, full_precision(input, "cuda"), weight, bias, function, *_by_rows(input, shape))


@rule(F.rms_norm, torch.rms_norm)
def rms_norm(
    call: Call, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Over the last dimensions, without a mean."""
    if not call.serves_factors:
        return NotImplemented
    shape = tuple(normalized_shape)
    dims = tuple(range(-len(shape), 0))
    small = torch.finfo(compute_dtype(input.dtype)).eps if eps is None else eps

    def function(x: Tensor, weight: Tensor | None, bias: None) -> tuple[Tensor, None, Tensor]:
        return F.rms_norm(x, shape, weight, eps), None, _wide(x).square().mean(dims, keepdim=True).add_(small).rsqrt_()

    return _normalize(call, full_precision(input, "cuda"), weight, None, function, *_by_rows(input, shape))


@rule(torch.group_norm)
def _torch_group_norm(call: Call, input: Tensor, *args: Any, cudnn_enabled: bool = True, **options: Any) -> Tensor:
    return group_norm(call, input, *args[:4], **options)


@rule(F.group_norm)
def group_norm(
    call: Call,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Over groups of channels of each example."""
    if not call.serves_factors or input.dim() < 2:
        return NotImplemented
    n, c = input.shape[:2]
    space = math.prod(input.shape[2:])
    if c % num_groups or n * c // num_groups * space == 1:
        return NotImplemented  # the stock function says what is wrong

    def function(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_group_norm(x.contiguous() if x.is_cuda else x, weight, bias, n, c, space, num_groups, eps)

    view = (n, num_groups, c // num_groups, space)
    return _normalize(
        call,
        full_precision(input, "cuda"),
        weight,
        bias,
        function,
        view,
        (2, 3),
        (1, num_groups, c // num_groups, 1),
    )


@rule(torch.instance_norm)
def _torch_instance_norm(
    call: Call,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    return instance_norm(call, input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


@rule(F.instance_norm)
def instance_norm(
    call: Call,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Over the positions of each channel of each example."""
    few = math.prod(input.shape[2:]) <= 1 or input.numel() == 0  # of which stock says what it will
    if not call.serves_factors or not use_input_stats or few:
        return NotImplemented
    n, c = input.shape[:2]

    def function(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        out = F.instance_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)
        var, mean = torch.var_mean(_wide(x).reshape(n, c, -1), 2, correction=0)
        return out, mean, (var + eps).rsqrt_()

    return _normalize(call, input, weight, bias, function, (n, c, -1), (2,), (1, c, 1))


@rule(torch.batch_norm)
def _torch_batch_norm(
    call: Call,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    return batch_norm(call, input, running_mean, running_var, weight, bias, training, momentum, eps)


@rule(F.batch_norm)
def batch_norm(
    call: Call,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Over examples and positions of each channel; running statistics are updated by PyTorch, once, as ever."""
    if not call.serves_factors or input.dim() < 2:
        return NotImplemented
    n, c = input.shape[:2]
    fixed = not training
    if training and input.numel() == c:
        return NotImplemented  # a value a channel, of which stock says what it will

    def function(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if fixed:
            out = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
            assert running_mean is not None
            assert running_var is not None
            return out, running_mean, (running_var + eps).rsqrt_()
        # What F.batch_norm calls, which hands out the statistics as well.
        cudnn = torch.backends.cudnn.enabled
        args = x, weight, bias, running_mean, running_var, True, momentum, eps, cudnn
        return torch.ops.aten._batch_norm_impl_index(*args)[:3]

    return _normalize(call, input, weight, bias, function, (n, c, -1), (0, 2), (1, c, 1), fixed=fixed)


@operation
def _normalize(
    keep: Keep,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    function: Any,
    view: tuple[int, ...],
    over: tuple[int, ...],
    channels: tuple[int, ...],
    fixed: bool = False,
) -> Any:
    """A normalization of ``x`` seen as ``view`` over the dimensions ``over``, with weights of shape ``channels``.

    ``function`` returns the output, the means (``None`` for zero) and ``1/σ``; ``fixed`` says that they do not depend
    on x.
    """
    out, mean, scale = function(x, weight, bias)
    shape, count = x.shape, x.numel()
    wants_x, wants_weight, wants_bias = keep.wants(x), keep.wants(weight), keep.wants(bias)
    sizes = None if weight is None else weight.shape
    view = _sized(view, count)
    stat = [s if i not in over else 1 for i, s in enumerate(view)]
    scale = scale.reshape(stat)
    n = count // max(scale.numel(), 1)
    centered = mean is not None

    def dense() -> Tensor:
        seen = x.reshape(view).to(scale.dtype)
        return (seen * scale if mean is None else (seen - mean.reshape(stat)).mul_(scale)).reshape(view)

    h_ = None
    if wants_weight or (wants_x and not fixed):
        inner = view[-1] if 0 in over else n  # elements in turn of the same statistics
        h_ = keep.normalized(x.reshape(view), (mean, scale, inner), view[-1], dense)
    scale_ = keep.exact(scale, wants_x)
    weight_ = keep.exact(weight, wants_x)
    loops = wants_x and not fixed and (over == (0, 2) or channels == (1, view[-1]))

    def backward(kept: Kept, grad: Tensor) -> tuple[Tensor | None, ...]:
        item, stats = kept[h_], kept[scale_]
        if loops and isinstance(item, Summary):
            found = normalized.backward(item.sketch, item.compressed, grad, stats, kept[weight_], view, centered)
            if found is not None:
                grad_x, grad_weight, grad_bias = found
                return (
                    grad_x.reshape(shape) if wants_x else None,
                    grad_weight.reshape(sizes) if wants_weight and sizes is not None else None,
                    grad_bias.reshape(sizes) if wants_bias and sizes is not None else None,
                )
        h = kept.dense(h_)
        wide = _wide(grad.reshape(view))
        rest = [i for i, size in enumerate(channels) if size == 1]
        grad_weight = (wide * h).sum(rest).reshape(sizes) if wants_weight and sizes is not None else None
        grad_bias = wide.sum(rest).reshape(sizes) if wants_bias and sizes is not None else None
        if not wants_x:
            return None, grad_weight, grad_bias
        gain = kept[weight_]
        inner = wide if gain is None else wide * gain.reshape(channels)
        if fixed:
            return (inner * stats).reshape(shape), grad_weight, grad_bias
        slope = (inner * h).sum(over, keepdim=True).div_(-n)
        result = torch.addcmul(inner, h, slope)
        noise = item.noise() if isinstance(item, Summary) else None  # only where it is used
        if noise is not None:
            result = result.addcmul_(inner, noise, value=1 / n)
        if centered:
            result = result.sub_(inner.mean(over, keepdim=True))
        return result.mul_(stats).reshape(shape), grad_weight, grad_bias

    return out, backward


def _by_rows(x: Tensor, shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int], tuple[int, int]]:
    """View, dimensions to normalize over and shape of weights where ``x`` is normalized over its last dimensions."""
    size = math.prod(shape)
    return (math.prod(x.shape[: x.dim() - len(shape)]), size), (1,), (1, size)


def _sized(view: tuple[int, ...], count: int) -> tuple[int, ...]:
    """``view`` with its one unknown size, which may belong to an empty tensor."""
    if -1 not in view:
        return view
    place, known = view.index(-1), -math.prod(view)
    return *view[:place], count // max(known, 1), *view[place + 1 :]


def _wide(x: Tensor) -> Tensor:
    """In single precision at least, as statistics are formed by stock."""
    return x.to(compute_dtype(x.dtype))
