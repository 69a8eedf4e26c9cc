"""Attention that keeps rounded probabilities, or exact queries and keys, and goes by blocks of rows.

Shapes: ``b`` examples, ``h`` heads, ``l`` queries, ``s`` keys, ``e`` features of queries and keys, ``f`` of values.

With ``P = softmax(q kᵀ · scale + mask)``, ``o = P v`` and ``g`` the gradient of ``o``: ``dP = g vᵀ``, ``dS = P ∘ (dP −
Σ_s P dP)``, ``dq = dS k · scale``, ``dk = dSᵀ q · scale``, ``dv = Pᵀ g``. From estimates of ``P``, ``q``, ``k`` and
``v`` with draws of their own all are unbiased, but for the square of ``P`` in ``dS``: its diagonal is too small by
``noise(P) ∘ dP``, which is known without the values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.functional.autocast import autocast
from rad.functional.fused import fused, fused_attention
from rad.functional.operation import Call, Handle, Keep, Kept, Summary, operation
from rad.functional.registry import rule
from rad.functional.softmax import gradient
from rad.sketch import tracing

__all__ = ["attention"]

# Elements of a block of probabilities, the most of them that are dense at a time: few on a CPU, for its cache, more in
# graphs, of which each block is a part to be compiled, and on a GPU as many as keep it busy.
_BLOCK, _BLOCK_TRACED, _BLOCK_GPU = 2**19, 2**21, 2**24
# Causal rows are kept in so many spans, each without the keys that none of its rows sees; fewer in graphs, where each
# call of ours costs time beside operations that are compiled.
_SPANS, _SPANS_TRACED = 8, 2


@rule(F.scaled_dot_product_attention)
def attention(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot product attention of ``query`` ``[b, h, l, e]``, ``key`` ``[b, h, s, e]``, ``value`` ``[b, h, s, f]``.

    Kept are rounded probabilities, queries, keys and values; or, where that takes less, exact queries and keys from
    which the probabilities are computed again. With dropout, one bit for each probability tells what was dropped.
    What is given for all examples or heads, such as learned queries, is kept once.
    """
    if not call.serves_factors or query.dim() not in (3, 4) or not query.dim() == key.dim() == value.dim():
        return NotImplemented
    if not 0 <= dropout_p < 1 or 0 in (query.numel(), key.numel(), value.numel()):
        return NotImplemented
    single = query.dim() == 3  # [b, l, e], without heads
    operands = [autocast(t).unsqueeze(1) if single else autocast(t) for t in (query, key, value)]
    mask = attn_mask
    if mask is not None:
        mask = autocast(mask) if mask.is_floating_point() else mask
        mask = mask.unsqueeze(1) if single and mask.dim() == 3 else mask
        mask = mask.view(*(1,) * (4 - mask.dim()), *mask.shape)
    q, k, v = operands
    if fused(q, k, v, mask, dropout_p, is_causal, scale, call.sketch):
        out = fused_attention(call, *operands, mask, dropout_p, is_causal, scale)
        return out.squeeze(1) if single else out
    out = _attention(call, *operands, mask, dropout_p, is_causal, scale, enable_gqa, single)
    return out.squeeze(1) if single else out


@operation
def _attention(
    keep: Keep,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    drop: float,
    causal: bool,
    given: float | None,
    gqa: bool,
    single: bool,
) -> tuple[Tensor, object]:
    with torch.autocast(q.device.type, enabled=False):  # the operands are what it makes of them, and so is what follows
        out, dropped, whole = _stock(q, k, v, mask, drop, causal, given, gqa, single, keep.wants(mask))
    scale = q.shape[-1] ** -0.5 if given is None else given
    wants_q, wants_k, wants_v, wants_mask = (keep.wants(t) for t in (q, k, v, mask))
    factors = wants_q or wants_k or wants_mask
    most = _BLOCK_GPU if q.is_cuda else _BLOCK if tracing.eager() else _BLOCK_TRACED
    spans = 1 if not causal else _SPANS if tracing.eager() else _SPANS_TRACED
    blocks = _blocks(out.shape, k.shape[-2], spans, most)
    shapes, each = (q.shape, k.shape, v.shape), (*out.shape[:2], -1, -1)
    again = _cheaper_again(keep.sketch.fraction(q.element_size()), q, k, blocks, each[1])
    if again:
        q_, k_ = keep.exact(q), keep.exact(k)
    else:  # heads are mostly views of something wider: copied once, for what is kept and for all blocks
        q, k = (t if keep.is_leaf(t) else t.contiguous() for t in (q, k))
        q_, k_ = keep.factor(q, wants_k), keep.factor(k, wants_q)
    v_ = keep.factor(v, factors)
    mask_ = keep.exact(mask, again)
    added = None if mask is None or not wants_mask else (mask.shape, mask.dtype)
    if not again and whole is None:
        scaled, hidden = (q * scale).expand(each), _hidden(blocks, causal, q.device)
    p_: list[Handle | None] = []
    dropped_: list[Handle | None] = []
    for block in blocks:
        if again:
            p_.append(None)
        elif whole is None:
            rows = _probabilities(scaled, k, mask, hidden, block)  # pyright: ignore
            p_.append(keep.factor(rows, role="probabilities"))
        else:
            p_.append(keep.factor(block.of(whole.expand(each)), role="probabilities"))
        passed = None if dropped is None else block.of(dropped.expand(each))
        dropped_.append(None if passed is None else keep.packed(tracing.pack_positive(passed), passed.shape))

    def backward(kept: Kept, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask = kept.dense(q_), kept.dense(k_), kept.dense(v_), kept[mask_]
        grad = grad.contiguous()
        if again:
            scaled, hidden = (q * scale).expand(each), _hidden(blocks, causal, q.device)
        grad_q, grad_k, grad_v = (
            grad.new_zeros(shape) if want else None
            for shape, want in zip(shapes, (wants_q, wants_k, wants_v), strict=True)
        )
        grad_mask = None if added is None else grad.new_zeros(added[0], dtype=added[1])
        for block, handle, bits in zip(blocks, p_, dropped_, strict=True):
            item = _probabilities(scaled, k, mask, hidden, block) if handle is None else kept[handle]
            p = item.dense() if isinstance(item, Summary) else item
            g = grad[block.examples, :, block.rows]
            if bits is not None:
                g = g / (1 - drop)
            if grad_v is not None:
                used = p if bits is None else tracing.masked(p, kept.packed(bits))
                block.add(grad_v, used.mT @ g, block.keys)
            if not factors:
                continue
            slope = g @ block.part(v, block.keys, each[1]).mT
            if bits is not None:
                slope = tracing.masked(slope, kept.packed(bits))
            inner = gradient(item, p, slope)
            if grad_mask is not None:
                part = _masked_part(grad_mask, block)
                part += inner.sum_to_size(part.shape)
            if grad_q is not None:
                block.add(grad_q, (inner @ block.part(k, block.keys, each[1])).mul_(scale), block.rows)
            if grad_k is not None:
                block.add(grad_k, (inner.mT @ block.part(q, block.rows, each[1])).mul_(scale), block.keys)
        return grad_q, grad_k, grad_v, grad_mask

    return out, backward


class _Block:
    """Some examples, the rows of a span, and the keys that these see."""

    def __init__(self, examples: slice, rows: slice, keys: slice) -> None:
        self.examples, self.rows, self.keys = examples, rows, keys

    def of(self, matrix: Tensor) -> Tensor:
        """The block of ``[b, h, l, s]``."""
        return matrix[self.examples, :, self.rows, self.keys]

    def part(self, x: Tensor, rows: slice, heads: int) -> Tensor:
        """Rows of ``x`` ``[b or 1, heads or a part of them, ·, ·]``, once for each head."""
        return _repeated(x[self._examples(x), :, rows], heads)

    def add(self, grad: Tensor, part: Tensor, rows: slice) -> None:
        """Adds what came of ``part``, to a gradient of that shape."""
        into = grad[self._examples(grad), :, rows]
        if part.shape[1] != into.shape[1]:
            part = part.unflatten(1, (into.shape[1], -1)).sum(2)
        into += part.sum_to_size(into.shape)

    def _examples(self, x: Tensor) -> slice:
        return slice(None) if x.shape[0] == 1 else self.examples


def _blocks(out: torch.Size, keys: int, spans: int, most: int) -> list[_Block]:
    """Blocks of at most so many probabilities; of several spans each has the keys up to its last row."""
    b, h, queries, _ = out
    rows = max(1, min(-(-queries // spans), most // max(1, h * keys)))
    examples = max(1, most // max(1, h * rows * keys))
    return [
        _Block(
            slice(first, min(b, first + examples)),
            slice(row, min(queries, row + rows)),
            slice(0, min(keys, row + rows) if spans > 1 else keys),
        )
        for first in range(0, b, examples)
        for row in range(0, queries, rows)
    ]


def _stock(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    drop: float,
    causal: bool,
    scale: float | None,
    gqa: bool,
    single: bool,
    learned: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The output; with dropout what is zero where a probability was dropped; and probabilities if they are known."""
    plainly = learned and not q.is_cuda  # by PyTorch's own choice, of a mask whose gradient is to come
    if drop == 0 and single and not plainly:
        # Here PyTorch may choose another kernel than with a dimension of heads.
        q, k, v, mask = (None if t is None else t.squeeze(1) for t in (q, k, v, mask))  # pyright: ignore
        return F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=scale).unsqueeze(1), None, None
    if drop == 0 and not plainly:
        out = F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=scale, enable_gqa=gqa)
        return out, None, None
    # Where there is dropout PyTorch takes this way itself on a CPU; it alone tells what was dropped.
    math, options = torch.ops.aten._scaled_dot_product_attention_math, {"scale": scale, "enable_gqa": gqa}
    if drop and q.dtype in (torch.float32, torch.float64):  # in others it does not round as these steps do
        _, p = math(q, k, v[..., :0], mask, 0.0, causal, None, **options)
        dropped = torch.dropout(p, drop, True)
        return dropped @ _repeated(v, max(p.shape[1], v.shape[1])), dropped, p
    out, dropped = math(q, k, v, mask, drop, causal, None, **options)
    return out, dropped if drop else None, None


def _hidden(blocks: Sequence[_Block], causal: bool, device: torch.device) -> Tensor | None:
    """Which of the keys from the first row of a block on its rows do not see, if they do not see all; for any block."""
    rows = blocks[0].rows.stop
    return torch.ones(rows, rows, dtype=torch.bool, device=device).triu_(1) if causal else None


def _probabilities(scaled: Tensor, k: Tensor, mask: Tensor | None, hidden: Tensor | None, block: _Block) -> Tensor:
    """``P`` of a block from ``q · scale``, zeros in rows that see no key."""
    scores = scaled[block.examples, :, block.rows] @ block.part(k, block.keys, scaled.shape[1]).mT
    if hidden is not None:
        own = scores[..., block.rows.start :]
        own.masked_fill_(hidden[: own.shape[-2], : own.shape[-1]], -torch.inf)
    if mask is not None:
        part = _masked_part(mask, block)
        scores = scores.masked_fill_(~part, -torch.inf) if part.dtype == torch.bool else scores + part
    # A row that sees no key is one of a mask's; to look for such takes longer than the rest. In float32 under autocast.
    form = torch.softmax if mask is None else torch.ops.aten._safe_softmax
    return form(scores, -1).to(scaled.dtype)


def _masked_part(mask: Tensor, block: _Block) -> Tensor:
    """The part of a mask ``[b or 1, h or 1, l or 1, s or 1]`` that a block meets."""
    examples, rows, keys = (
        slice(None) if mask.shape[axis] == 1 else part
        for axis, part in ((0, block.examples), (2, block.rows), (3, block.keys))
    )
    return mask[examples, :, rows, keys]


def _repeated(x: Tensor, heads: int) -> Tensor:
    """Queries, keys or values of fewer heads, once for each."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def _cheaper_again(fraction: float, q: Tensor, k: Tensor, blocks: list[_Block], heads: int) -> bool:
    """Whether exact queries and keys take less than rounded ones with rounded probabilities."""
    exact = q.numel() + k.numel()
    probabilities = sum(
        heads * (block.examples.stop - block.examples.start) * (block.rows.stop - block.rows.start) * block.keys.stop
        for block in blocks
    )
    return exact < fraction * (probabilities + exact)
