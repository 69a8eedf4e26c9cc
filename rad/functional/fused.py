"""Attention by PyTorch's fused kernels, which form no probabilities, forward and backward.

Their backward pass takes exact queries, keys and logarithms of sums, and is linear in values and outputs. The call is
stock's own, whichever kernel it takes: the node of the graph that it leaves behind is run backward with estimates in
place of values and outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks
from torch.nn.attention import SDPBackend

from rad.functional.operation import Keep, Kept, operation
from rad.sketch import Sketch, tracing

__all__ = ["fused", "fused_attention"]

_FUSED_ON = {"cuda"}  # where blocks of rows take longer
_FUSED = {b.value for b in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)}
_WORTH = 2.0  # times what blocks of rows keep
_choice: Any = torch._fused_sdp_choice  # pyright: ignore[reportPrivateImportUsage]


def fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    drop: float,
    causal: bool,
    scale: float | None,
    sketch: Sketch,
) -> bool:
    """Whether stock would take such a kernel, and what it needs kept is not far more than blocks of rows take."""
    if q.device.type not in _FUSED_ON or len({t.shape[:2] for t in (q, k, v)}) > 1 or tracing.traced(q):
        return False
    if mask is not None and mask.requires_grad:
        return False
    same = q.dtype == k.dtype == v.dtype and q.shape[-1] == v.shape[-1] and q.shape[-1] % 8 == 0
    if not same or len({_place(t) for t in (q, k, v)}) < 3:  # to be told apart
        return False
    if _choice(q, k, v, mask, drop, causal, scale=scale) not in _FUSED:
        return False
    fraction, ends = sketch.fraction(q.element_size()), v.numel() + q.numel()
    seen = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] // (2 if causal else 1)
    fused, blocks = q.numel() + k.numel() + fraction * ends, fraction * (q.numel() + k.numel() + v.numel() + seen)
    return fused + (0 if mask is None else mask.numel()) <= _WORTH * blocks


class _Source(torch.autograd.Function):
    """A tensor that seems to come from elsewhere: graphs hold on to leaves, but not to this."""

    @staticmethod
    def forward(ctx: Any, root: Tensor, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)


def _stock(
    function: Callable[..., Tensor], operands: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, ...]]]:
    """Calls PyTorch outside of any graph.

    Args:
        function: Takes the operands and returns a tensor.
        operands: Tensors to differentiate by.

    Returns:
        The output, what is saved for its gradients, and a function from the gradient of the output, and tensors in
        place of those that were saved, to the gradients of the operands.
    """
    saved: list[Tensor] = []
    given: list[Tensor] = []

    def pack(tensor: Tensor) -> int:
        saved.append(tensor.detach())
        return len(saved) - 1

    root = torch.empty(0, requires_grad=True)
    with torch.enable_grad():
        sources = [_Source.apply(root, t.detach()) for t in operands]
        with saved_tensors_hooks(pack, lambda number: given[number]):
            out = function(*sources)
    end, ends = get_gradient_edge(out), [get_gradient_edge(t) for t in sources]

    def backward(grad: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        given[:] = tensors
        try:
            return torch.autograd.grad(end, ends, grad, retain_graph=True)
        finally:
            given.clear()

    found = list(saved)
    saved.clear()  # the node knows its tensors by number, and holds on to none
    return out.detach(), found, backward


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """By which a tensor is known again."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


@operation
def fused_attention(
    keep: Keep, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, drop: float, causal: bool, scale: float | None
) -> tuple[Tensor, object]:
    """With exact queries and keys, and rounded values and outputs.

    ``Σ_s P dP = Σ_f g o``, so ``dS = P ∘ (g vᵀ − Σ_f g o)`` is linear in ``v`` and ``o``.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, drop, causal, scale=scale)

    out, saved, gradients = _stock(attend, (q, k, v))
    wants = [keep.wants(t) for t in (q, k, v)]
    factors = wants[0] or wants[1]
    # As it lies in memory, and so given back: cuDNN takes its strides for those that it saw first.
    order = sorted(range(out.dim()), key=lambda axis: -out.stride(axis))
    back = [order.index(axis) for axis in range(out.dim())]
    v_, out_ = keep.factor(v, factors), keep.factor(out.permute(order), factors)
    # Besides these there are logarithms of sums, perhaps a mask, and where random numbers began.
    ours, estimated = {_place(t): t for t in (q, k)}, {_place(v): "v", _place(out): "out"}
    saved_ = [estimated.get(_place(t)) or keep.exact(ours.get(_place(t), t)) for t in saved]
    shapes = {"v": v.shape, "out": out.permute(order).shape}

    def backward(kept: Kept, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Neither of the two enters the gradient of the values.
        v, out = (
            grad.new_zeros(shapes[name]) if handle is None else kept.dense(handle)
            for name, handle in (("v", v_), ("out", out_))
        )
        estimates = {"v": v, "out": out.permute(back)}
        found = gradients(grad, [estimates[t] if isinstance(t, str) else kept[t] for t in saved_])
        return tuple(g if want else None for g, want in zip(found, wants, strict=True))

    return out, backward
