"""Recurrent layers.

Shapes: ``T`` time steps, ``n`` sequences, ``d`` input features, ``h`` hidden features, ``L`` layers, ``D`` directions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rad.functional.recurrent import final_state

__all__ = ["FinalState"]


class FinalState(nn.RNN):
    """``nn.RNN`` that returns only the last layer's state after the last step, ``[n, D h]``.

    A model that classifies whole sequences needs no more. ``nn.RNN`` cannot know, and has to return the outputs of
    all steps, which for a moment take as much memory as exact gradients do; converted, this layer never has them.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Final state ``[n, D h]``, both directions side by side, or ``[D h]`` for a single sequence ``[T, d]``."""
        if isinstance(input, PackedSequence) or input.dim() != 3:
            _, last = super().forward(input, hx)
        else:
            if hx is None:
                n = len(input) if self.batch_first else input.shape[1]
                hx = input.new_zeros(self.num_layers * (1 + self.bidirectional), n, self.hidden_size)
            self.check_forward_args(input, hx, None)
            params = [getattr(self, name) for name in self._flat_weights_names]
            options = self.bias, self.num_layers, self.dropout, self.training, self.bidirectional, self.batch_first
            last = final_state(input, hx, params, *options, nonlinearity=self.nonlinearity)
        return torch.cat(last.unbind()[-1 - self.bidirectional :], -1)
