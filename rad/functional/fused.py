"""Attention by PyTorch's fused kernels, which form no probabilities, forward and backward.

Their backward pass takes exact queries, keys and logarithms of sums, and is linear in values and outputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rad.functional.operation import Keep, Kept, operation
from rad.sketch import Sketch, tracing

__all__ = ["fused", "fused_attention"]


class _Flash(NamedTuple):
    """PyTorch's fused kernels of a device, which never form the probabilities."""

    forward: Any
    backward: Any
    numbers: bool  # whether there are random numbers for dropout, and sizes of ragged batches


_FLASH = {
    "cuda": _Flash(
        torch.ops.aten._scaled_dot_product_flash_attention,
        torch.ops.aten._scaled_dot_product_flash_attention_backward,
        True,
    ),
    "cpu": _Flash(
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward,
        False,
    ),
}
_FUSED_ON = {"cuda"}  # where blocks of rows take longer


def fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    drop: float,
    causal: bool,
    scale: float | None,
    gqa: bool,
    sketch: Sketch,
) -> _Flash | None:
    """The kernels that stock would take, if what they need kept is not far more than rounded probabilities take."""
    if q.device.type not in _FUSED_ON or mask is not None or q.shape[1] != k.shape[1]:
        return None
    same = q.dtype == k.dtype == v.dtype and q.shape[-1] == v.shape[-1] and q.shape[-1] % 8 == 0
    if not same or tracing.traced(q) or _choice(q, k, v, None, drop, causal, scale=scale) != _FLASH_CHOSEN:
        return None
    fraction, ends = sketch.fraction(q.element_size()), v.numel() + q.numel()
    seen = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] // (2 if causal else 1)
    fused, blocks = q.numel() + k.numel() + fraction * ends, fraction * (q.numel() + k.numel() + v.numel() + seen)
    return _FLASH[q.device.type] if fused <= _WORTH * blocks else None


_WORTH = 2.0  # times what blocks of rows keep
_choice: Any = torch._fused_sdp_choice  # pyright: ignore[reportPrivateImportUsage]
_FLASH_CHOSEN = 1  # as PyTorch numbers its kernels


@operation
def fused_attention(
    keep: Keep, q: Tensor, k: Tensor, v: Tensor, kernel: _Flash, drop: float, causal: bool, scale: float | None
) -> tuple[Tensor, object]:
    """With exact queries and keys, and rounded values and outputs.

    ``Σ_s P dP = Σ_f g o``, so ``dS = P ∘ (g vᵀ − Σ_f g o)`` is linear in ``v`` and ``o``.
    """
    out, sums, *rest = kernel.forward(q, k, v, drop, causal, scale=scale)
    wants = [keep.wants(t) for t in (q, k, v)]
    factors = wants[0] or wants[1]
    q_, k_, sums_ = keep.exact(q), keep.exact(k), keep.exact(sums)
    v_, out_ = keep.factor(v, factors), keep.factor(out.transpose(1, 2), factors)  # as it lies in memory
    # Offsets and sizes for batches of ragged examples (none here), then the seed and the place in its random numbers.
    lengths, random = (rest[2:4], [keep.exact(t) for t in rest[4:6]]) if kernel.numbers else ([], [])

    def backward(kept: Kept, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = kept[q_], kept[k_], kept.dense(v_), kept.dense(out_)
        # Neither of the last two enters the gradient of the values.
        v, out = (torch.zeros_like(k), torch.zeros_like(q)) if v_ is None else (v, out.transpose(1, 2))
        args = [None, None, *lengths, drop, causal, *(kept[t] for t in random)] if kernel.numbers else [drop, causal]
        found = kernel.backward(grad, q, k, v, out, kept[sums_], *args, scale=scale)
        return tuple(g if want else None for g, want in zip(found, wants, strict=True))

    return out, backward
