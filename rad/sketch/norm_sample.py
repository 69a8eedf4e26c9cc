"""Sampling in proportion to the norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rad.sketch.base import Compressed, Sketch, coherent, kept_count
from rad.sketch.random import Stream

__all__ = ["NormSample"]


@dataclass(frozen=True)
class NormSample(Sketch):
    """Keeps ``k`` features (or rows), each with a probability in proportion to its norm, divided by the probability.

    Candidate ``i`` is kept with probability ``π_i = min(1, c ‖x_i‖)``, where ``c`` makes them add up to ``k``: of the
    candidates laid end to end on a line, those at ``k`` points of distance 1 and random start (systematic sampling),
    so none twice. Zeros are never kept. Which ones were kept depends on ``x`` and cannot be replayed from the seed
    alone, so the indices are kept as well: two bytes each, four beyond 32,768 candidates.

    The total variance of ``grad_outᵀ x̂`` is ``Σ_i (1/π_i − 1) ‖g_i‖²`` over the columns ``g_i`` of the exact product;
    for rows that of ``Σ_i s_i grad_out_i x_iᵀ``, with ``s_i`` = ``1/π_i`` or 0, over all starts.

    Attributes:
        axis: ``"feature"``: all rows keep the same features. ``"row"``: some rows are kept whole.

    Raises:
        ValueError: If ``axis`` is neither ``"feature"`` nor ``"row"``.

    References:
        Drineas, Kannan, Mahoney. Fast Monte Carlo algorithms for matrices I: approximating matrix multiplication.
        SIAM J. Comput. 36(1), 2006. doi:10.1137/S0097539704442684.
    """

    axis: Literal["feature", "row"] = "feature"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.axis not in ("feature", "row"):
            raise ValueError(f'axis must be "feature" or "row", got {self.axis!r}')

    def rank(self, stack: torch.Size, itemsize: int) -> int:
        """How many candidates of each matrix are kept, for a stack ``[m, n, d]`` of ``itemsize`` bytes an element."""
        each, candidates = stack[1:] if self.axis == "feature" else (stack[2], stack[1])
        unit = each * itemsize + _index_dtype(candidates).itemsize
        return min(kept_count(self.budget * candidates * each * itemsize / unit, f"{self.axis}s"), candidates)

    def probabilities(self, x: Tensor) -> Tensor:
        """Probability of each candidate to be kept, float64 ``[m, candidates]``, of a stack ``[m, n, d]``."""
        k = self.rank(x.shape, x.element_size())
        # Above zero, so that there are k candidates even where fewer are not zero.
        norms = torch.linalg.vector_norm(self._oriented(x), dim=1, dtype=torch.float64).clamp_min_(1e-300)
        # The largest ones are certain as long as their share of what is left to draw exceeds 1.
        ordered = norms.sort(dim=1, descending=True).values
        rest = ordered.flip(1).cumsum(1).flip(1)
        left = k - torch.arange(norms.shape[1], device=x.device)
        certain = (left * ordered <= rest).int().argmax(1, keepdim=True)
        return (norms * (left[certain] / rest.gather(1, certain))).clamp_max_(1)

    def _compress(self, x: Tensor, stream: Stream) -> tuple[Tensor, ...]:
        k = self.rank(x.shape, x.element_size())
        probability, x = self.probabilities(x), self._oriented(x)
        index = _systematic(probability, stream.uniform((len(x), 1), torch.float64), k)
        chosen = x.gather(2, index[:, None].expand(-1, x.shape[1], -1))
        values = chosen.div(probability.gather(1, index)[:, None]).to(x.dtype)
        return self._oriented(values).contiguous(), index.to(_index_dtype(x.shape[2]))

    def _expand(self, compressed: Compressed) -> Tensor:
        values, index = compressed.kept
        dense = self._oriented(values.new_zeros(compressed.stack))
        dense.scatter_add_(2, index.long()[:, None].expand(-1, dense.shape[1], -1), self._oriented(values))
        return self._oriented(dense).contiguous()

    def _grad_weight(self, compressed: Compressed, grad_out: Tensor) -> Tensor:
        (values, index), d = compressed.kept, compressed.shape[-1]
        if self.axis == "row":
            chosen = grad_out.gather(1, index.long()[..., None].expand(-1, -1, grad_out.shape[2]))
            return chosen.flatten(0, 1).t() @ values.flatten(0, 1)
        product = grad_out.mT @ values  # [m, o, k]
        dense = product.new_zeros(product.shape[1], d)
        return dense.index_add_(1, index.flatten().long(), product.transpose(0, 1).flatten(1))

    def _columns(self, compressed: Compressed) -> tuple[Tensor | None, Tensor]:
        if self.axis == "row":
            return super()._columns(compressed)
        (values, index), lead = compressed.kept, compressed.shape[:-1]
        return index.long().view(*lead[:-1], -1), values.view(*lead, -1)

    def _variance(self, x: Tensor, grad_out: Tensor) -> Tensor:
        probability = self.probabilities(x)
        if self.axis == "feature":
            return ((1 / probability - 1) * coherent(x, grad_out)).nan_to_num_().sum()
        k, x = self.rank(x.shape, x.element_size()), x.double()
        inner = (grad_out @ grad_out.mT) * (x @ x.mT)  # of all pairs of rows' products
        # The kept rows change only at the starts that meet a candidate's end.
        zero, one = torch.zeros_like(probability[:, :1]), torch.ones_like(probability[:, :1])
        ends = torch.cat([zero, probability.cumsum(1).frac().sort(dim=1).values, one], 1)
        second = torch.zeros((), dtype=torch.float64, device=x.device)
        for low, high in zip(ends[:, :-1].unbind(1), ends[:, 1:].unbind(1), strict=True):
            index = _systematic(probability, (low + high)[:, None] / 2, k)
            scale = torch.zeros_like(probability).scatter_(1, index, 1 / probability.gather(1, index))
            second += ((high - low) * torch.einsum("mi,mij,mj->m", scale, inner, scale)).sum()
        return second - inner.sum()

    def _oriented(self, x: Tensor) -> Tensor:
        """Candidates last; undoes itself."""
        return x if self.axis == "feature" else x.mT


def _systematic(probability: Tensor, start: Tensor, k: int) -> Tensor:
    """Candidates ``[m, k]`` on whose stretch of the line a point ``start + j`` falls, ``start`` in [0, 1)."""
    points = torch.arange(k, device=start.device) + start
    return torch.searchsorted(probability.cumsum(1), points, right=True).clamp_max_(probability.shape[1] - 1)


def _index_dtype(candidates: int) -> torch.dtype:
    return torch.int16 if candidates <= 2**15 else torch.int32
