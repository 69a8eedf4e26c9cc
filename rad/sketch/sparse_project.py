"""Random projection by sparse signs."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from rad.sketch.base import Compressed, Sketch, coherent, kept_count
from rad.sketch.random import Stream

__all__ = ["SparseProject"]


@dataclass(frozen=True)
class SparseProject(Sketch):
    """Keeps ``k`` sums of features with random signs: the features ``c, c + k, c + 2k, …`` make up sum ``c``.

    In the terms of the paper's random projection, ``R`` has one sign in every row in place of ``k``: ``E[R Rᵀ] = I``
    needs no more. It takes ``n d`` additions where a dense ``R`` takes ``n d k``, and as signs meet only within a sum,
    the total variance of ``grad_outᵀ x̂`` falls from ``(d − 1)/k · ‖G‖²`` to ``Σ_c (d_c − 1) ‖G_c‖²``, where ``d_c``
    features with the columns ``G_c`` of the exact product ``G`` make up sum ``c``: ``(d − k)/k · ‖G‖²`` where ``k``
    divides ``d``. No random matrix of rank ``k`` that is independent of ``x`` has less for every ``G``, because
    ``tr P² ≥ (tr P)²/k``.

    References:
        Charikar, Chen, Farach-Colton. Finding frequent items in data streams. ICALP 2002. doi:10.1007/3-540-45465-9_59.
    """

    def rank(self, d: int) -> int:
        """Number of sums for ``d`` features."""
        return kept_count(self.budget * d, f"of {d} features")

    def _compress(self, x: Tensor, stream: Stream) -> tuple[Tensor, ...]:
        m, n, d = x.shape
        k = self.rank(d)
        signed = x * stream.signs((m, 1, d), x.dtype)
        return (F.pad(signed, (0, -d % k)).view(m, n, -1, k).sum(2),)

    def _expand(self, compressed: Compressed) -> Tensor:
        (sums,), d = compressed.kept, compressed.shape[-1]
        return self._spread(sums, d) * self._replay(compressed)

    def _grad_weight(self, compressed: Compressed, grad_out: Tensor) -> Tensor:
        (sums,), d = compressed.kept, compressed.shape[-1]
        return (self._spread(grad_out.mT @ sums, d) * self._replay(compressed)).sum(0)

    def _variance(self, x: Tensor, grad_out: Tensor) -> Tensor:
        d, k = x.shape[2], self.rank(x.shape[2])
        by_feature = coherent(x, grad_out).sum(0)
        others = [(d - c - 1) // k for c in range(k)]  # features that share sum c, but one
        return (by_feature * by_feature.new_tensor(others).repeat(-(-d // k))[:d]).sum()

    def _replay(self, compressed: Compressed) -> Tensor:
        m, _, d = compressed.stack
        return compressed.stream().signs((m, 1, d), compressed.dtype)

    @staticmethod
    def _spread(sums: Tensor, d: int) -> Tensor:
        """Each feature's sum, ``[m, n, d]``."""
        return sums.repeat(1, 1, -(-d // sums.shape[2]))[..., :d]
