"""Recurrent layers, stock and converted.

Shapes: ``T`` time steps, ``n`` sequences, ``d`` input features, ``h`` hidden features, ``L`` layers, ``D`` directions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rad import functional
from rad.nn.convert import Converted, register

__all__ = ["FinalState", "RadFinalState", "RadRNN"]


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


class _Recurrent(Converted, nn.RNN):
    """What the converted layers share."""

    def keeps(self) -> str:
        """What the layer keeps for its backward pass, in a few words."""
        sketch = self.recipe.sketch
        if self.nonlinearity == "tanh":
            return f"states exactly, for tanh; {sketch} of the input"
        return str(sketch) if sketch.budget == 1 else f"{sketch}, 1 bit per state"

    def _differentiable(self, input: Tensor, hx: Tensor | None) -> bool:
        """Whether there is a gradient to come; if not, the stock layer does it all."""
        tensors = (t for t in (input, hx, *self.parameters()) if isinstance(t, Tensor))
        return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)

    def _run(self, input: Tensor, hx: Tensor | None, sequence: bool) -> tuple[Tensor | None, Tensor]:
        """Outputs ``[T, n, D h]`` of the last layer, unless ``sequence`` is false, and last states ``[D L, n, h]``."""
        x = self._steps(input)
        first = self._first_states(x, input.dim() == 2, hx)
        outs: list[Tensor] = []
        last: list[Tensor] = []
        for depth in range(self.num_layers):
            if depth:
                x = F.dropout(_side_by_side(outs), self.dropout, self.training)
                outs = []
            for backwards in range(1 + self.bidirectional):
                weight_ih, weight_hh, *biases = self.all_weights[len(last)]
                bias_ih, bias_hh = biases or (None, None)
                out, state = functional.rnn(
                    x,
                    first[len(last)],
                    weight_ih,
                    weight_hh,
                    bias_ih,
                    bias_hh,
                    self.nonlinearity,
                    self.recipe.sketch,
                    self.recipe.generator,
                    sequence=sequence or depth < self.num_layers - 1,
                    reverse=backwards == 1,
                )
                if out is not None:
                    outs.append(out)
                last.append(state)
        return _side_by_side(outs) if sequence else None, torch.stack(last)

    def _steps(self, input: Tensor) -> Tensor:
        """The input as ``[T, n, d]``."""
        if isinstance(input, PackedSequence):
            raise TypeError(
                f"a converted {type(self).__name__} takes no packed sequence, here of {int(input.batch_sizes[0])} "
                "sequences; pad it with torch.nn.utils.rnn.pad_packed_sequence, or leave the layer out with "
                "convert(skip=...)"
            )
        if input.dim() not in (2, 3):
            raise ValueError(
                "the input must be a batch of sequences, of 3 dimensions, or a single one, of 2, "
                f"got {list(input.shape)}"
            )
        if input.dim() == 2:
            return input[:, None]
        return input.transpose(0, 1) if self.batch_first else input

    def _first_states(self, x: Tensor, single: bool, hx: Tensor | None) -> tuple[Tensor, ...]:
        """The state before the first step ``[n, h]`` of each layer and direction."""
        count = self.num_layers * (1 + self.bidirectional)
        if hx is None:
            return x.new_zeros(x.shape[1], self.hidden_size).expand(count, -1, -1).unbind()
        expected = [count, self.hidden_size] if single else [count, x.shape[1], self.hidden_size]
        if list(hx.shape) != expected:
            raise ValueError(
                f"the first states hx must be {expected} (layers and directions, {'' if single else 'sequences, '}"
                f"hidden_size), got {list(hx.shape)}; leave hx out to start from zero"
            )
        return (hx[:, None] if single else hx).unbind()


@register(nn.RNN)
class RadRNN(_Recurrent):
    """``nn.RNN`` that keeps a sketch of its input and its states; see ``rad.functional.rnn``."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs ``[T, n, D h]``, or ``[n, T, D h]`` if ``batch_first``, and last states ``[D L, n, h]``."""
        if not self._differentiable(input, hx):
            return super().forward(input, hx)
        out, last = self._run(input, hx, sequence=True)
        assert out is not None
        if input.dim() == 2:
            return out.squeeze(1), last.squeeze(1)
        return out.transpose(0, 1) if self.batch_first else out, last


@register(FinalState)
class RadFinalState(_Recurrent, FinalState):
    """``FinalState`` that keeps a sketch of its input and its states; see ``rad.functional.rnn``."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Final state ``[n, D h]``, or ``[D h]`` for a single sequence ``[T, d]``."""
        if not self._differentiable(input, hx):
            return super().forward(input, hx)
        _, last = self._run(input, hx, sequence=False)
        return self._final(last.squeeze(1) if input.dim() == 2 else last)


def _side_by_side(outs: list[Tensor]) -> Tensor:
    return outs[0] if len(outs) == 1 else torch.cat(outs, -1)
