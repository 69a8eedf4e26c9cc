"""Recurrent nets and cells, which keep factors of each step for themselves.

Shapes: ``T`` time steps, ``n`` sequences, ``d`` input features, ``h`` hidden features, ``L`` layers, ``D`` directions;
``r`` rows of all steps, which are all there is of packed sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from rad.functional.autocast import autocast
from rad.functional.bilinear import linear
from rad.functional.cells import GRU, LSTM, Gated
from rad.functional.choice import dropout, relu
from rad.functional.elementwise import elementwise
from rad.functional.loop import loop
from rad.functional.operation import Call, Keep, Kept, operation
from rad.functional.registry import rule
from rad.functional.scan import Scan, Steps

__all__ = ["final_state", "gated"]


def final_state(
    input: Tensor,
    hx: Tensor,
    params: Sequence[Tensor],
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
def _lstm_cell(
    call: Call,
    input: Tensor,
    hx: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Any:
    if not _serves(call) or input.numel() == 0:
        return NotImplemented

    def stock(x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
        return torch._VF.lstm_cell(x, states, *weights)

    return gated(call, LSTM(), stock, [len(input)], 1, input, *hx, w_ih, w_hh, b_ih, b_hh)


@rule(torch._VF.gru_cell)
def _gru_cell(
    call: Call,
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Any:
    if not _serves(call) or input.numel() == 0:
        return NotImplemented

    def stock(x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
        return (torch._VF.gru_cell(x, *states, *weights),)

    return gated(call, GRU(), stock, [len(input)], 1, input, hx, w_ih, w_hh, b_ih, b_hh)


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
        last: list[tuple[Tensor, ...]] = []
        for depth in range(self.layers):
            if depth and self.train and self.drop:
                x = dropout(call, x, self.drop)
            part, of = (
                slice(depth * size, (depth + 1) * size) for size in (self.directions, self.directions * self.each)
            )
            first = [state[part] for state in self.first]
            x, *states = layer(x, first, self.weights[of], depth == self.layers - 1)
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


def _serves(call: Call) -> bool:
    return call.sketch.serves_factors and not call.sketch.exact


def _gated_net(call: Call, function: Callable[..., Any], cell: Gated, net: _Net | None) -> Any:
    if net is None or not _serves(call):
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


@operation
def gated(
    keep: Keep,
    cell: Gated,
    stock: Callable[..., tuple[Tensor, ...]],
    sizes: list[int],
    directions: int,
    x: Tensor,
    *tensors: Tensor,
) -> Any:
    """A layer of LSTM or GRU cells in all its directions.

    Its values are those of the stock kernel, whose bits no other order of operations gives. The states being known, the
    sums inside the gates of many steps are one product, from which the factors follow.

    Args:
        keep: What it keeps: the factors of each step by a draw of their own, input and states by chunks.
        cell: The kind of cell.
        stock: Takes input, first states and weights; returns outputs and last states, without the first of these where
            it is the output.
        sizes: Sequences in each step.
        directions: ``D``.
        x: Input ``[T, n, d]`` or ``[r, d]``.
        tensors: First states ``[D, n, h]``, or ``[n, h]``, and weights of each direction.
    """
    first, weights = tensors[: cell.states], tensors[cell.states :]
    out, *last = _values(stock, x, first, weights)
    h, shape, single = first[0].shape[-1], x.shape, len(last) < cell.states
    each = len(weights) // directions
    scans: list[Scan] = []
    inputs: dict[tuple[int, int], Any] = {}
    for direction in range(directions):
        own = [*weights[direction * each : (direction + 1) * each], None, None][:4]
        steps = Steps(sizes, direction == 1, cell.factors * sizes[0] * h * out.element_size())
        scan = Scan.begin(keep, cell, steps, x, own)
        states = [(t if single else t[direction]).to(out.dtype, copy=True) for t in first]
        _scan_gated(keep, scan, x, out[..., direction * h : (direction + 1) * h], states, own, inputs)
        scans.append(scan)
    wants_x, wants_first = keep.wants(x), [keep.wants(t) for t in first]

    def backward(kept: Kept, grad_out: Tensor | None, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_last = [None, *grads] if single else [*grads]
        like = next(t for t in (grad_out, *grads) if t is not None)
        grad_x = like.new_zeros(sum(sizes), shape[-1]) if wants_x else None
        grad_first = [like.new_zeros(directions, sizes[0], h) if t is None else t.clone() for t in grad_last]
        if single:
            grad_first = [t.view(1, sizes[0], h) for t in grad_first]
        found: list[Tensor | None] = []
        for direction, scan in enumerate(scans):
            part = None if grad_out is None else grad_out[..., direction * h : (direction + 1) * h]
            found += scan.back(kept, part, [t[direction] for t in grad_first], grad_x)[:each]
        if single:
            grad_first = [t[0] for t in grad_first]
        return (
            *(None,) * 4,
            None if grad_x is None else grad_x.view(shape),
            *(t if want else None for t, want in zip(grad_first, wants_first, strict=True)),
            *found,
        )

    return (out, *last), backward


def _values(stock: Callable[..., tuple[Tensor, ...]], x: Tensor, *others: Sequence[Tensor | None]) -> list[Tensor]:
    """What ``stock`` returns where gradients are to come: its kernels depend on that. Nothing is kept for them."""

    def alike(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_(tensor.requires_grad)

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda _: None, lambda _: None):
        return [t.detach() for t in stock(alike(x), *([alike(t) for t in ts if t is not None] for ts in others))]


def _scan_gated(
    keep: Keep,
    scan: Scan,
    x: Tensor,
    out: Tensor,
    states: list[Tensor],
    weights: Sequence[Any],
    inputs: dict[tuple[int, int], Any],
) -> None:
    """Keeps what a direction needs, its outputs ``[T, n, h]`` or ``[r, h]`` being known; overwrites ``states``."""
    cell, steps = scan.cell, scan.steps
    assert isinstance(cell, Gated)
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    state, second = states[0], states[1] if len(states) == 2 else None
    for start, stop in steps.chunks:
        chunk = steps.rows(start, stop)
        part = (x[start:stop].flatten(0, 1) if x.dim() == 3 else x[chunk]).to(out.dtype)
        before = state.new_empty(len(part), state.shape[1])
        places = []
        for t in steps.order(start, stop):
            rows = steps.rows(t)
            places.append(slice(rows.start - chunk.start, rows.stop - chunk.start))
            now = state[: rows.stop - rows.start]
            before[places[-1]] = now
            now.copy_(out[t] if out.dim() == 3 else out[rows])
        from_x = F.linear(part, *_like(part, weight_ih, bias_ih))
        factors = cell.derive(from_x, F.linear(before, *_like(before, weight_hh, bias_hh)), before, second, places)
        if inputs.get((start, stop)) is None:
            inputs[start, stop] = keep.end(part, weight_ih)
        each = [keep.factor(factors[:, place].contiguous()) for place in sorted(places, key=lambda s: s.start)]
        scan.chunks.append((inputs[start, stop], keep.end(before, weight_hh), each))


def _like(x: Tensor, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.to(x.dtype) for t in tensors]
