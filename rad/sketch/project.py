"""Random projection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.sketch.base import Compressed, Sketch, kept_count
from rad.sketch.random import Stream

__all__ = ["Project"]


@dataclass(frozen=True)
class Project(Sketch):
    r"""Keeps ``x R`` with ``R`` of independent Rademacher signs over √k, one ``R`` for all rows.

    The estimate is ``(x R) Rᵀ``; both factors 1/√k are applied at once, as 1/k, for in half precision √k is not a
    number and its rounding error would be a bias. ``E[R Rᵀ] = I`` makes it unbiased (§3.2, eqs. 3 to 5 of the paper).
    The total variance of ``Gᵀ x̂`` for an exact product ``G`` is ``(d − 1)/k · ‖G‖²``.

    References:
        Oktay, McGreivy, Aduol, Beatson, Adams. Randomized Automatic Differentiation. ICLR 2021. arXiv:2007.10412.
    """

    def matrix(self, d: int, stream: Stream, dtype: torch.dtype) -> Tensor:
        """The random signs ``√k R`` ``[d, k]``, on the stream's device."""
        k = kept_count(self.budget * d, f"of {d} features")
        return stream.signs((d, k), dtype)

    def _compress(self, x: Tensor, stream: Stream) -> tuple[Tensor, ...]:
        signs = self.matrix(x.shape[1], stream, x.dtype)
        return ((x @ signs).div_(signs.shape[1]),)

    def _expand(self, compressed: Compressed) -> Tensor:
        return compressed.kept[0] @ self._replay(compressed).t()

    def _grad_weight(self, compressed: Compressed, grad_out: Tensor) -> Tensor:
        (xr,), (n, d) = compressed.kept, compressed.shape
        k, o = xr.shape[1], grad_out.shape[1]
        # Whichever order of the triple product costs fewer multiplications.
        if o * k * (n + d) <= n * d * (k + o):
            return (grad_out.t() @ xr) @ self._replay(compressed).t()
        return grad_out.t() @ self._expand(compressed)

    def _replay(self, compressed: Compressed) -> Tensor:
        return self.matrix(compressed.shape[1], compressed.stream(), compressed.dtype)
