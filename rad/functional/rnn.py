"""The recurrent loop that keeps a sketch of each hidden state, and its signs.

Shapes: ``T`` time steps, ``n`` sequences, ``d`` input features, ``h`` hidden features.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rad.functional.autocast import autocast
from rad.sketch import Exact, Sketch, load, save
from rad.sketch.bits import pack_positive, unpack

__all__ = ["rnn"]

# Dense states are held for as many steps at a time as fit in here, and for no less than a unit: enough to make one
# large product of many small ones, little enough to stay in a processor's cache, and a small part of any sequence that
# is worth a sketch.
_CHUNK_BYTES = 2**21
# Chunks start at multiples of this many steps, where memory is aligned to 64 bytes as it is at the beginning: the
# order in which a product's terms are summed up may depend on it.
_CHUNK_UNIT = 16


def rnn(
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    nonlinearity: Literal["relu", "tanh"],
    sketch: Sketch,
    generator: torch.Generator | None = None,
    sequence: bool = True,
    reverse: bool = False,
) -> tuple[Tensor | None, Tensor]:
    """``h_t = act(x_t weight_ihᵀ + bias_ih + h_{t−1} weight_hhᵀ + bias_hh)``, exact forwards, for one layer.

    The weights' gradients are formed from a sketch of ``x_t`` and one of ``h_{t−1}``, with a fresh draw for every
    time step; all other gradients, those through time among them, are exact (§4.2 and §4.3 of the paper).

    * ReLU keeps one bit per state besides the sketches. Nothing of the size of all states is held after the forward
      pass or at any time in the backward pass, except what the caller asks for: the sequence of outputs and the
      gradient that comes back for it, and the gradient of ``x``.
    * The derivative of tanh needs the states themselves. They are kept exactly, and so the gradient of ``weight_hh``
      is exact as well: a sketch beside them would only add bytes.
    * A single input feature is kept as it is, which is the least that a summary of whole features can be.

    Args:
        x: Input ``[T, n, d]``; a transposed view will do as well.
        h0: The state before the first step ``[n, h]``.
        weight_ih: ``[h, d]``.
        weight_hh: ``[h, h]``.
        bias_ih: ``[h]`` or ``None``.
        bias_hh: ``[h]`` or ``None``.
        nonlinearity: ``"relu"`` or ``"tanh"``.
        sketch: The summary to keep.
        generator: CPU generator of the sketch's seeds; the global one if ``None``.
        sequence: Whether all outputs are wanted. If not, they never exist at one time.
        reverse: Whether to begin with the last ``x_t``; outputs stay at the places of their inputs.

    Returns:
        All outputs ``[T, n, h]``, or ``None``, and the last state ``[n, h]``; on the CPU bit for bit those of
        ``torch.nn.RNN``. Where states are kept exactly the outputs share their memory and must not be overwritten.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor, or ``h0`` and the weights are not of its dtype.
        ValueError: If a shape does not fit, there is no time step, or the nonlinearity is unknown.
    """
    if isinstance(x, Tensor) and torch.is_autocast_enabled(x.device.type):
        # Stock autocast would convert the operands anew at each step.
        x, h0, weight_ih, weight_hh = (autocast(t) for t in (x, h0, weight_ih, weight_hh))
        bias_ih, bias_hh = (None if bias is None else autocast(bias) for bias in (bias_ih, bias_hh))
    _check(x, h0, weight_ih, weight_hh, nonlinearity)
    out, last = _RNN.apply(
        x, h0, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity == "tanh", sketch, generator, sequence, reverse
    )
    return out, last


class _RNN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h0: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        tanh: bool,
        sketch: Sketch,
        generator: Any,
        sequence: bool,
        reverse: bool,
    ) -> tuple[Tensor | None, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.sketch, ctx.tanh, ctx.reverse, ctx.x_shape = sketch, tanh, reverse, x.shape
        ctx.spans = _spans(len(x), h0.nbytes, reverse)
        wants_x, _, wants_ih, wants_hh = ctx.needs_input_grad[:4]
        keep = tanh or (wants_hh and sketch.exact)
        x_sketch = Exact() if x.shape[2] == 1 else sketch
        h_sketch = Exact() if keep else sketch

        states = _all_states(len(x), h0) if keep else None
        out = h0.new_empty(len(x), *h0.shape) if sequence and not keep else None
        summaries: list[Any] = []
        last, done = h0, 0
        for start, stop in ctx.spans:
            # The state before the first step of the chunk, then the one after each.
            size = stop - start
            chunk = h0.new_empty(size + 1, *h0.shape) if states is None else states[done : done + size + 1]
            chunk[0] = last
            before, after = chunk[:-1], chunk[1:]
            drive = F.linear(x[start:stop], weight_ih, bias_ih)
            last = _advance(last, _turned(drive, reverse), weight_hh, bias_hh, tanh, after)
            done += size
            if out is not None:
                out[start:stop] = _turned(after, reverse)
            summaries += (
                x_sketch.compress(x[start:stop], generator) if wants_ih else None,
                h_sketch.compress(before, generator) if wants_hh else None,
                after if keep else pack_positive(after),
            )
        save(ctx, weight_ih if wants_x else None, weight_hh, *summaries)
        return _turned(states[1:], reverse) if states is not None and sequence else out, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
        weight_ih, weight_hh, *summaries = load(ctx)
        steps, n, d = ctx.x_shape
        h = len(weight_hh)
        wants_x, wants_h0, wants_ih, wants_hh, wants_bias_ih, wants_bias_hh = ctx.needs_input_grad[:6]
        grad_x = weight_hh.new_empty(steps, n, d) if wants_x else None
        grad_ih = weight_hh.new_zeros(h, d) if wants_ih else None
        grad_hh = weight_hh.new_zeros(h, h) if wants_hh else None
        grad_bias = weight_hh.new_zeros(h) if wants_bias_ih or wants_bias_hh else None
        buffer = weight_hh.new_empty(max(stop - start for start, stop in ctx.spans), n, h)
        # The gradient of the state after the step at hand.
        grad = weight_hh.new_zeros(n, h) if grad_last is None else grad_last.clone()
        for i in reversed(range(len(ctx.spans))):
            (start, stop), (x_summary, h_summary, kept) = ctx.spans[i], summaries[3 * i : 3 * i + 3]
            grads, after = buffer[: stop - start], kept
            if kept.dtype == torch.uint8:
                # Ones where the state was positive, and in their place what is to be found.
                after = grads.copy_(unpack(kept, 1, grads.numel()).view(grads.shape))
            part = None if grad_out is None else _turned(grad_out[start:stop], ctx.reverse)
            _retreat(grad, part, grads, after, weight_hh, ctx.tanh)
            if grad_x is not None:
                grad_x[start:stop] = _turned(grads @ weight_ih, ctx.reverse)
            if grad_ih is not None:
                grad_ih += ctx.sketch.grad_weight(x_summary, _turned(grads, ctx.reverse))
            if grad_hh is not None:
                grad_hh += ctx.sketch.grad_weight(h_summary, grads)
            if grad_bias is not None:
                grad_bias += grads.sum((0, 1))
        return (
            grad_x,
            grad if wants_h0 else None,
            grad_ih,
            grad_hh,
            grad_bias if wants_bias_ih else None,
            grad_bias.clone() if grad_bias is not None and wants_bias_hh else None,
            *(None,) * 5,
        )


def _all_states(steps: int, h0: Tensor) -> Tensor:
    """Memory for ``[T + 1, n, h]``, aligned to 64 bytes behind the first state: a next layer is given all but that."""
    gap = -h0.nbytes % 64 // h0.element_size()
    return h0.new_empty(gap + (steps + 1) * h0.numel())[gap:].view(steps + 1, *h0.shape)


def _advance(state: Tensor, drive: Tensor, weight: Tensor, bias: Tensor | None, tanh: bool, after: Tensor) -> Tensor:
    """Takes a state ``[n, h]`` through a chunk, whose input adds ``drive`` ``[c, n, h]``; fills ``after`` likewise.

    Returns:
        The last state, in memory of its own.
    """
    for add, copy in zip(drive.unbind(), after.unbind(), strict=True):
        # The operations of nn.RNN in their order, on memory that is aligned as its own, so that not a bit differs.
        state = F.linear(state, weight, bias).add_(add)
        state = state.tanh_() if tanh else state.relu_()
        copy.copy_(state)
    return state


def _retreat(grad: Tensor, grad_out: Tensor | None, grads: Tensor, after: Tensor, weight: Tensor, tanh: bool) -> None:
    """Takes the gradient of the state after a chunk, in place, to that of the state before it.

    Args:
        grad: ``[n, h]``.
        grad_out: What the outputs add to it after each step ``[c, n, h]``.
        grads: Receives the gradients of the sums inside the activation ``[c, n, h]``.
        after: The states, or for ReLU anything of the same sign ``[c, n, h]``; may be ``grads`` itself.
        weight: ``weight_hh``.
        tanh: Whether the activation is tanh.
    """
    back = torch.ops.aten.tanh_backward.grad_input if tanh else _relu_backward
    for i in reversed(range(len(grads))):
        if grad_out is not None:
            grad += grad_out[i]
        back(grad, after[i], grad_input=grads[i])
        torch.mm(grads[i], weight, out=grad)


def _relu_backward(grad: Tensor, after: Tensor, grad_input: Tensor) -> None:
    torch.ops.aten.threshold_backward.grad_input(grad, after, 0, grad_input=grad_input)


def _spans(steps: int, state_bytes: int, reverse: bool) -> list[tuple[int, int]]:
    """First place and the one after the last of each chunk, in the order in which they come."""
    units = -(-steps // _CHUNK_UNIT)
    allowed = max(1, _CHUNK_BYTES // max(1, _CHUNK_UNIT * state_bytes))
    count = -(-units // allowed)
    marks = [min(steps, _CHUNK_UNIT * (units * i // count)) for i in range(count + 1)]
    spans = list(zip(marks, marks[1:], strict=False))
    return spans[::-1] if reverse else spans


def _turned(steps: Tensor, reverse: bool) -> Tensor:
    """From the order of places to that of time, and back."""
    return steps.flip(0) if reverse else steps


def _check(x: Tensor, h0: Tensor, weight_ih: Tensor, weight_hh: Tensor, nonlinearity: str) -> None:
    if nonlinearity not in ("relu", "tanh"):
        raise ValueError(f'nonlinearity must be "relu" or "tanh", got {nonlinearity!r}')
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a floating-point tensor [T, n, d], got {got}; convert it, or pad a packed sequence")
    h, d = weight_ih.shape
    if x.dim() != 3 or x.shape[2] != d:
        raise ValueError(f"x must be [T, n, {d}], as weight_ih is {[h, d]}, got {list(x.shape)}")
    if len(x) == 0:
        raise ValueError(f"x {list(x.shape)} has no time step; the shortest sequence is one of length 1")
    if weight_hh.shape != (h, h):
        raise ValueError(f"weight_hh must be {[h, h]}, as weight_ih is {[h, d]}, got {list(weight_hh.shape)}")
    if h0.shape != (x.shape[1], h):
        raise ValueError(
            f"the first state must be {[x.shape[1], h]}, a row for each of the {x.shape[1]} sequences, "
            f"got {list(h0.shape)}"
        )
    if not x.dtype == h0.dtype == weight_ih.dtype == weight_hh.dtype:
        raise TypeError(
            f"x, first state and weights must be of one dtype, got {x.dtype}, {h0.dtype}, {weight_ih.dtype}, "
            f"{weight_hh.dtype}; convert x with x.to({weight_ih.dtype})"
        )
