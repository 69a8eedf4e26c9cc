"""Recurrent nets and cells, which keep factors of all steps, each with an error of its own.

Shapes: ``T`` time steps, ``n`` sequences, ``d`` input features, ``h`` hidden features, ``L`` layers, ``D`` directions;
``r`` rows of all steps, which are all there is of packed sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from rad.functional.autocast import autocast
from rad.functional.bilinear import linear
from rad.functional.cells import GRU, LSTM, Gated
from rad.functional.choice import dropout, relu
from rad.functional.elementwise import elementwise
from rad.functional.gated import gated
from rad.functional.loop import loop
from rad.functional.operation import Call
from rad.functional.registry import rule

__all__ = ["final_state"]


def final_state(
    input: Tensor,
    hx: Tensor,
    params: Sequence[Any],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    nonlinearity: str = "tanh",
) -> Tensor:
    """The last states ``[L D, n, h]`` of ``torch.rnn_tanh`` or ``torch.rnn_relu``; takes what these take.

    In a converted module the outputs of the last layer never exist at one time.
    """
    args = (input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)
    if has_torch_function((input, hx, *params)):
        return handle_torch_function(final_state, (input, hx, *params), *args, nonlinearity=nonlinearity)
    return getattr(torch._VF, f"rnn_{nonlinearity}")(*args)[1]


@rule(final_state)
def _final_state(call: Call, *args: Any, nonlinearity: str) -> Tensor:
    net = _Net.of(*args)
    return NotImplemented if net is None else _rnn(call, net, nonlinearity, False)[1]


@rule(torch._VF.rnn_tanh)
def _rnn_tanh(call: Call, *args: Any) -> Any:
    net = _Net.of(*args)
    return NotImplemented if net is None else _rnn(call, net, "tanh")


@rule(torch._VF.rnn_relu)
def _rnn_relu(call: Call, *args: Any) -> Any:
    net = _Net.of(*args)
    return NotImplemented if net is None else _rnn(call, net, "relu")


@rule(torch._VF.lstm)
def _lstm(call: Call, *args: Any) -> Any:
    return _gated_net(call, torch._VF.lstm, LSTM(), _Net.of(*args))


@rule(torch._VF.gru)
def _gru(call: Call, *args: Any) -> Any:
    return _gated_net(call, torch._VF.gru, GRU(), _Net.of(*args))


@rule(torch._VF.lstm_cell)
def _lstm_cell(call: Call, input: Tensor, hx: tuple[Tensor, Tensor], *weights: Any, **biases: Any) -> Any:
    return _gated_cell(call, torch._VF.lstm_cell, LSTM(), input, tuple(hx), *weights, **biases)


@rule(torch._VF.gru_cell)
def _gru_cell(call: Call, input: Tensor, hx: Tensor, *weights: Any, **biases: Any) -> Any:
    return _gated_cell(call, torch._VF.gru_cell, GRU(), input, (hx,), *weights, **biases)


@rule(torch._VF.rnn_relu_cell)
def _rnn_relu_cell(call: Call, input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, *biases: Any) -> Tensor:
    return relu(call, _sums(call, input, hx, w_ih, w_hh, *biases))


@rule(torch._VF.rnn_tanh_cell)
def _rnn_tanh_cell(call: Call, input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, *biases: Any) -> Tensor:
    sums = _sums(call, input, hx, w_ih, w_hh, *biases)
    out = elementwise(call, torch.tanh, sums)
    return torch.tanh(sums) if out is NotImplemented else out


def _sums(
    call: Call, x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    return linear(call, h, w_hh, b_hh) + linear(call, x, w_ih, b_ih)


@dataclass(frozen=True)
class _Net:
    """What a recurrent net is given.

    Attributes:
        x: Input ``[T, n, d]``, ``[n, T, d]`` if ``batch_first``, or ``[r, d]`` packed.
        sizes: Sequences in each step.
        packed: The same as PyTorch has it of packed sequences, else ``None``.
        first: The states before the first step ``[L D, n, h]``.
        weights: Of each layer and direction, ``each`` for one.
        each: 4 with biases or 2.
        layers: ``L``.
        drop: Probability of dropout between layers.
        train: Whether it is on.
        directions: ``D``.
        batch_first: Whether the first dimension is that of sequences.
    """

    x: Tensor
    sizes: list[int]
    packed: Tensor | None
    first: tuple[Tensor, ...]
    weights: Sequence[Tensor]
    each: int
    layers: int
    drop: float
    train: bool
    directions: int
    batch_first: bool

    @classmethod
    def of(cls, input: Tensor, *args: Any) -> _Net | None:
        """Both ways to call a net; ``None`` where PyTorch should do it, or say what is wrong."""
        packed, args = (args[0], args[1:]) if isinstance(args[2], (list, tuple)) else (None, args)
        hx, weights, biases, layers, drop, train, both, *rest = args
        batch_first = bool(rest and rest[0])
        first = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        directions, each = 1 + both, 4 if biases else 2
        if len(weights) != each * layers * directions or input.dim() != (3 if packed is None else 2):
            return None  # projections, among others
        if input.numel() == 0 or first[0].numel() == 0 or not 0 <= drop < 1:
            return None
        if len({t.dtype for t in (input, *first, *weights)}) > 1 or any(t.dim() != 3 for t in first):
            return None
        steps, n = input.shape[:2] if not batch_first else (input.shape[1], input.shape[0])
        sizes = [n] * steps if packed is None else packed.tolist()
        if first[0].shape[:2] != (layers * directions, sizes[0]):
            return None
        return cls(input, sizes, packed, first, weights, each, layers, drop, train, directions, batch_first)

    def run(self, call: Call, layer: Callable[..., tuple[Tensor | None, ...]]) -> tuple[Tensor | None, ...]:
        """Outputs of the last layer and last states.

        Args:
            call: The call that is answered.
            layer: Takes input ``[T, n, d]`` or ``[r, d]``, first states ``[D, n, h]``, weights, and whether it is the
                last; returns outputs and last states.
        """
        x: Any = self.x.transpose(0, 1) if self.batch_first else self.x
        last: list[tuple[Any, ...]] = []
        for depth in range(self.layers):
            if depth and self.train and self.drop:
                x = dropout(call, x, self.drop)
            part = slice(depth * self.directions, (depth + 1) * self.directions)
            own = slice(part.start * self.each, part.stop * self.each)
            first = [state[part] for state in self.first]
            x, *states = layer(x, first, self.weights[own], depth == self.layers - 1)
            last.append(tuple(states))
        if x is not None and self.batch_first:
            x = x.transpose(0, 1)
        return x, *(states[0] if self.layers == 1 else torch.cat(states) for states in zip(*last, strict=True))


def _rnn(call: Call, net: _Net, nonlinearity: str, sequence: bool = True) -> Any:
    if net.packed is not None:
        return NotImplemented

    def layer(x: Tensor, first: list[Tensor], weights: Sequence[Tensor], last: bool) -> tuple[Tensor | None, ...]:
        # Stock autocast would convert the operands anew at each step.
        x, states, *operands = (autocast(t) for t in (x, *first, *weights))
        outs: list[Tensor] = []
        final: list[Tensor] = []
        for reverse in range(net.directions):
            own = operands[reverse * net.each : (reverse + 1) * net.each]
            wanted = sequence or not last
            found = loop(call, nonlinearity == "tanh", wanted, reverse == 1, x, states[reverse], *own)
            out, state = found if wanted else (None, found)
            outs += [] if out is None else [out]
            final.append(state)
        return _side_by_side(outs) if outs else None, torch.stack(final)

    return net.run(call, layer)


def _side_by_side(outs: list[Tensor]) -> Tensor:
    return outs[0] if len(outs) == 1 else torch.cat(outs, -1)


def _gated_cell(
    call: Call,
    function: Callable[..., Any],
    cell: Gated,
    x: Tensor,
    first: tuple[Tensor, ...],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Any:
    """A net of one step."""
    if not call.serves_factors or x.numel() == 0:
        return NotImplemented

    def stock(x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
        out = function(x, states[0] if len(states) == 1 else tuple(states), *weights)
        return (out,) if isinstance(out, Tensor) else out

    return gated(call, cell, stock, [len(x)], 1, x, *first, w_ih, w_hh, b_ih, b_hh)


def _gated_net(call: Call, function: Callable[..., Any], cell: Gated, net: _Net | None) -> Any:
    if net is None or not call.serves_factors:
        return NotImplemented
    both, biased = net.directions == 2, net.each == 4

    def stock(x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
        hx = states[0] if len(states) == 1 else tuple(states)
        if net.packed is not None:
            return function(x, net.packed, hx, weights, biased, 1, 0.0, net.train, both)
        return function(x, hx, weights, biased, 1, 0.0, net.train, both, False)

    def layer(x: Tensor, first: list[Tensor], weights: Sequence[Tensor], last: bool) -> tuple[Tensor, ...]:
        return gated(call, cell, stock, net.sizes, net.directions, x, *first, *weights)

    return net.run(call, layer)
