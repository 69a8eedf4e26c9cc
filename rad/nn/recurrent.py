"""Recurrent layers, stock and converted.

Shapes: ``T`` time steps, ``n`` sequences, ``d`` input features, ``h`` hidden features, ``L`` layers, ``D`` directions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["FinalState"]


class FinalState(nn.RNN):
    """``nn.RNN`` that returns only the last layer's state after the last step, ``[n, D h]``.

    A model that classifies whole sequences needs no more. ``nn.RNN`` cannot know, and has to return the outputs of
    all steps, which for a moment take as much memory as exact gradients do; converted, this layer never has them.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Final state ``[n, D h]``, both directions side by side, or ``[D h]`` for a single sequence ``[T, d]``."""
        _, last = super().forward(input, hx)
        return self._final(last)

    def _final(self, last: Tensor) -> Tensor:
        return torch.cat(last.unbind()[-1 - self.bidirectional :], -1)
