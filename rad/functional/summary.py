"""An estimate of a tensor, as a backward pass finds it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rad.sketch import Compressed, Sketch, tracing
from rad.sketch.levels import compute_dtype

__all__ = ["Summary"]


class Summary:
    """What was kept of a tensor by a sketch."""

    def __init__(self, sketch: Sketch, compressed: Compressed, shape: torch.Size) -> None:
        self.sketch, self.compressed, self.shape = sketch, compressed, shape

    def dense(self) -> Tensor:
        """The unbiased estimate, of the tensor's own shape."""
        return tracing.expand(self.sketch, self.compressed).view(self.shape)

    def noise(self) -> Tensor | None:
        """The variance of each element of ``dense()``, of its shape; ``None`` where the tensor itself is kept."""
        noise = tracing.noise(self.sketch, self.compressed)  # a sketch may take note that it is asked
        return None if self.compressed.exact else noise.expand(self.compressed.shape).reshape(self.shape)

    def times(self, grad: Tensor, out: Tensor | None = None) -> Tensor:
        """``grad`` times the estimate, in the memory of the estimate where that is ours to overwrite.

        Args:
            grad: Of the tensor's shape, or one number for each of its rows, ``[..., 1]``.
            out: Contiguous memory to use in its place, of the tensor's shape and the dtype of ``grad``.
        """
        compressed = self.compressed
        rows = grad.shape == (*self.shape[:-1], 1) and compressed.shape[-1] == self.shape[-1]
        wide = grad.dtype in (compressed.dtype, compute_dtype(compressed.dtype))
        fits = wide and (rows or grad.shape == self.shape)
        ours = fits and not compressed.exact and not tracing.transformed()
        if ours and grad.is_contiguous() and not tracing.traced(grad):
            matrix = (*compressed.shape[:-1], 1) if rows else compressed.shape
            return self.sketch.times(compressed, grad.view(matrix), out).view(self.shape)
        found = self.dense()
        found = found.mul_(grad) if ours and found.dtype == grad.dtype else grad * found
        return found if out is None else out.copy_(found)

    def note(self, reach: Callable[[], Tensor]) -> None:
        """See ``Sketch``."""
        self.sketch.note(self.compressed, reach)

    def columns(self) -> tuple[Tensor | None, Tensor]:
        """The estimate without the features that are zero in all rows; see ``Sketch.columns``."""
        return tracing.columns(self.sketch, self.compressed)

    def grad_weight(self, grad: Tensor) -> Tensor:
        """``gradᵀ x`` ``[o, d]`` for gradients ``[..., o]`` of the rows of ``x`` ``[..., d]``."""
        if self.shape.numel() == 0:
            return grad.new_zeros(grad.shape[-1], self.shape[-1])
        return tracing.grad_weight(self.sketch, self.compressed, grad)
