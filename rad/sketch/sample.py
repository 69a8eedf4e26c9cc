"""Sampling of features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rad.sketch import kernels
from rad.sketch.base import Compressed, Sketch, coherent, incoherent
from rad.sketch.levels import compute_dtype
from rad.sketch.random import Stream
from rad.sketch.threads import shared
from rad.sketch.units import kept_count

__all__ = ["Sample"]

_BLOCK = 2**22  # elements of an estimate that may exist at a time, if the result is smaller


@dataclass(frozen=True)
class Sample(Sketch):
    """Keeps ``k`` of the ``d`` features of each row, uniformly drawn, and scales them by ``d/k``.

    Total variance of ``grad_outᵀ x̂``, with ``G = grad_outᵀ x`` and ``E = Σ_b ‖x_b‖² ‖grad_out_b‖²``:

    ============  =====================  ====================
    one draw per  with replacement       without replacement
    ============  =====================  ====================
    ``batch``     ``(d − 1)/k · ‖G‖²``   ``(d − k)/k · ‖G‖²``
    ``element``   ``(d − 1)/k · E``      ``(d − k)/k · E``
    ============  =====================  ====================

    Attributes:
        per: ``"batch"``: all rows keep the same features ("same sample" in the paper). ``"element"``: every row
            has a draw of its own ("different sample").
        replacement: Whether a feature may be drawn twice, as in the paper. Without, one feature of each of ``k``
            strata is kept, at the same place in all of them (systematic sampling). That is never worse for a weight's
            gradient, and far better where features are summed whose products vary smoothly, as on a grid.

    Raises:
        ValueError: If ``per`` is neither ``"batch"`` nor ``"element"``, or ``replacement`` no truth value.

    References:
        Oktay, McGreivy, Aduol, Beatson, Adams. Randomized Automatic Differentiation. ICLR 2021. arXiv:2007.10412.
    """

    per: Literal["batch", "element"] = "batch"
    replacement: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per not in ("batch", "element"):
            raise ValueError(f'per must be "batch" or "element", got {self.per!r}')
        if not isinstance(self.replacement, bool):
            raise ValueError(f"replacement must be True or False, got {self.replacement!r}")

    def rank(self, d: int) -> int:
        """How many of ``d`` features are kept."""
        return kept_count(self.budget * d, f"of {d} features")

    def indices(self, stack: torch.Size, stream: Stream) -> Tensor:
        """The features kept of a stack ``[m, n, d]``: ``[m, 1, k]`` for one draw a batch, ``[m, n, k]`` else."""
        m, n, d = stack
        k = self.rank(d)
        draws = (m, 1) if self.per == "batch" else (m, n)
        return stream.integers(d, (*draws, k)) if self.replacement else systematic(d, k, draws, stream)

    def _compress(self, x: Tensor, stream: Stream) -> tuple[Tensor, ...]:
        index = self.indices(x.shape, stream)
        return (x.gather(2, index.expand(*x.shape[:2], -1)),)

    def _expand(self, compressed: Compressed) -> Tensor:
        return self._scatter(compressed, compressed.kept[0], compressed.kept[0].shape[:2].numel())

    def _grad_weight(self, compressed: Compressed, grad_out: Tensor) -> Tensor:
        if self.per == "element":
            return self._by_blocks(compressed, grad_out)
        # All rows share their features, so the product is formed for the kept ones alone. It is scaled and added up
        # over a stack in float32 at least.
        product = grad_out.mT @ compressed.kept[0]
        return self._scatter(compressed, product.to(compute_dtype(product.dtype)), len(product[0])).to(product.dtype)

    def _by_blocks(self, compressed: Compressed, grad_out: Tensor) -> Tensor:
        """The product with the estimate, of which only a block of rows exists at a time."""
        (values,), d = compressed.kept, compressed.shape[-1]
        k, outputs, stream = values.shape[2], grad_out.shape[2], compressed.stream()
        rows = max(outputs, _BLOCK // d)  # a block may be as large as the result
        scale = 1 / 16 if values.dtype == torch.float16 else 1.0  # a feature may be drawn, and added up, several times
        total = values.new_zeros(outputs, d, dtype=compute_dtype(grad_out.dtype))
        for part, grad in zip(values.flatten(0, 1).split(rows), grad_out.flatten(0, 1).split(rows), strict=True):
            index = self.indices(torch.Size((1, len(part), d)), stream)[0]  # the next ones of the same stream
            block = _added(part, index, scale, part.new_zeros(len(part), d))
            if total.dtype == grad.dtype:
                total.addmm_(grad.t(), block)
            else:
                total.add_(grad.t() @ block)
        return total.mul_(d / k / scale).to(grad_out.dtype)

    def _columns(self, compressed: Compressed) -> tuple[Tensor | None, Tensor]:
        if self.per == "element":
            return super()._columns(compressed)
        index, (values,) = self.indices(compressed.stack, compressed.stream()), compressed.kept
        d, k = compressed.shape[-1], index.shape[-1]
        return index.view(*compressed.shape[:-2], k), (values * (d / k)).view(*compressed.shape[:-1], k)

    def _variance(self, x: Tensor, grad_out: Tensor) -> Tensor:
        d, k = x.shape[2], self.rank(x.shape[2])
        moment = coherent(x, grad_out) if self.per == "batch" else incoherent(x, grad_out)
        return (d - (1 if self.replacement else k)) / k * moment

    def _scatter(self, compressed: Compressed, values: Tensor, rows: int) -> Tensor:
        """Kept features ``[m, r, k]``, scaled, at their places among all features; ``[rows, d]``.

        Row ``i`` of all ``m · r`` is added to row ``i`` modulo ``rows``.
        """
        index = self.indices(compressed.stack, compressed.stream())
        d, k = compressed.shape[-1], index.shape[-1]
        return _added(values.reshape(-1, k), index.view(-1, k), d / k, values.new_zeros(rows, d))


def _added(values: Tensor, index: Tensor, scale: float, dense: Tensor) -> Tensor:
    """Adds ``values · scale`` ``[r, k]`` to places in the rows of ``dense``, which are used in turns.

    ``index`` ``[i, k]`` holds the places, each row of it for ``r / i`` successive rows of ``values``.
    """
    if kernels.usable(values):
        args = (values.contiguous(), index.contiguous(), float(scale), dense)
        shared(kernels.scatter, len(dense), -(-values.numel() // len(dense)), *args)
        return dense
    index = index.repeat_interleave(len(values) // len(index), 0)
    # One after the other, so that sums are formed in the same order everywhere.
    for part, places in zip((values * scale).split(len(dense)), index.split(len(dense)), strict=True):
        dense.scatter_add_(1, places, part)
    return dense


def systematic(d: int, k: int, draws: tuple[int, ...], stream: Stream) -> Tensor:
    """One of ``d`` features in each of ``k`` strata of ``d/k``, at the same place in all; ``[*draws, k]``.

    References:
        Cochran. Sampling techniques. 3rd edition, Wiley 1977, chapter 8.
    """
    # In steps of 1/k of a feature, d of them to a stratum: each feature has the probability k/d, none comes twice.
    start = stream.integers(d, (*draws, 1))
    return (torch.arange(k, device=start.device) * d + start) // k
