"""Random projection."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rad.sketch.base import Compressed, Sketch, coherent
from rad.sketch.random import Stream
from rad.sketch.units import kept_count

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

    def matrix(self, stack: torch.Size, stream: Stream, dtype: torch.dtype) -> Tensor:
        """The random signs ``√k R`` ``[m, d, k]`` for a stack ``[m, n, d]``, on the stream's device."""
        m, _, d = stack
        return stream.signs((m, d, self.rank(d)), dtype)

    def rank(self, d: int) -> int:
        """Columns of ``R`` for ``d`` features."""
        return kept_count(self.budget * d, f"of {d} features")

    def _compress(self, x: Tensor, stream: Stream) -> tuple[Tensor, ...]:
        signs = self.matrix(x.shape, stream, x.dtype)
        k = signs.shape[2]
        if x.dtype != torch.float16:
            return (_matmul(x, signs).div_(k),)
        # Sums of many features would overflow; by a power of two they are scaled down without a rounding error.
        _, exponent = math.frexp(k)
        return (_matmul(x, signs.mul_(0.5**exponent)).mul_(2.0**exponent / k),)

    def _expand(self, compressed: Compressed) -> Tensor:
        return _matmul(compressed.kept[0], self._replay(compressed).mT)

    def _grad_weight(self, compressed: Compressed, grad_out: Tensor) -> Tensor:
        (xr,), (_, n, d) = compressed.kept, compressed.stack
        k, o = xr.shape[2], grad_out.shape[2]
        # Whichever order of the triple product costs fewer multiplications; the estimate itself may exceed float16.
        if o * k * (n + d) <= n * d * (k + o) or xr.dtype == torch.float16:
            small = _matmul(grad_out.mT, xr)  # [m, o, k]
            return small.transpose(0, 1).reshape(o, -1) @ self._replay(compressed).transpose(1, 2).reshape(-1, d)
        return super()._grad_weight(compressed, grad_out)

    def _variance(self, x: Tensor, grad_out: Tensor) -> Tensor:
        d = x.shape[2]
        return (d - 1) / self.rank(d) * coherent(x, grad_out)

    def _replay(self, compressed: Compressed) -> Tensor:
        return self.matrix(compressed.stack, compressed.stream(), compressed.dtype)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Products of two stacks; of single matrices without the slower batched routine."""
    return (a[0] @ b[0])[None] if len(a) == 1 else a @ b
