"""Sampling of features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rad.sketch import kernels
from rad.sketch.base import Compressed, Sketch, kept_count
from rad.sketch.random import Stream

__all__ = ["Sample"]


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
        replacement: Whether a feature may be drawn twice. The paper draws with replacement; without is never worse.

    Raises:
        ValueError: If ``per`` is neither ``"batch"`` nor ``"element"``.

    References:
        Oktay, McGreivy, Aduol, Beatson, Adams. Randomized Automatic Differentiation. ICLR 2021. arXiv:2007.10412.
    """

    per: Literal["batch", "element"] = "batch"
    replacement: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per not in ("batch", "element"):
            raise ValueError(f'per must be "batch" or "element", got {self.per!r}')

    def indices(self, shape: torch.Size, stream: Stream) -> Tensor:
        """The features kept: ``[1, k]`` for one draw per batch, ``[n, k]`` for one per element."""
        n, d = shape
        k = kept_count(self.budget * d, f"of {d} features")
        draws = 1 if self.per == "batch" else n
        if self.replacement:
            return stream.integers(d, (draws, k))
        # The k largest of d independent keys are a uniform subset.
        return stream.words(draws * d).view(draws, d).topk(k).indices

    def _compress(self, x: Tensor, stream: Stream) -> tuple[Tensor, ...]:
        return (x.gather(1, self.indices(x.shape, stream).expand(len(x), -1)),)

    def _expand(self, compressed: Compressed) -> Tensor:
        return self._scatter(compressed, compressed.kept[0])

    def _grad_weight(self, compressed: Compressed, grad_out: Tensor) -> Tensor:
        if self.per == "element":
            return super()._grad_weight(compressed, grad_out)
        # All rows share their features, so the product is formed for the kept ones alone.
        return self._scatter(compressed, grad_out.t() @ compressed.kept[0])

    def _scatter(self, compressed: Compressed, values: Tensor) -> Tensor:
        """Rows of kept features ``[m, k]``, scaled, at their places among all features ``[m, d]``."""
        index = self.indices(compressed.shape, compressed.stream())
        d, k = compressed.shape[1], index.shape[1]
        dense = values.new_zeros(len(values), d)
        if kernels.usable(values.device, values.dtype):
            kernels.scatter(values.numpy(), index.numpy(), values.numpy().dtype.type(d / k), dense.numpy())
            return dense
        return dense.scatter_add_(1, index.expand(len(values), -1), values * (d / k))
