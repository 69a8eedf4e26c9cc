"""The loop of a plain recurrent layer, which never holds all states unless they are its output.

Shapes: ``T`` time steps, ``n`` sequences, ``d`` input features, ``h`` hidden features.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from rad.functional.cells import ReLU, Tanh, TanhStates
from rad.functional.operation import Keep, Kept, operation
from rad.functional.scan import Scan, Steps
from rad.sketch import tracing

__all__ = ["loop"]


@operation
def loop(
    keep: Keep,
    tanh: bool,
    sequence: bool,
    reverse: bool,
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> Any:
    """``h_t = act(x_t weight_ihᵀ + bias_ih + h_{t−1} weight_hhᵀ + bias_hh)`` for one layer in one direction.

    The weights' gradients are formed from a sketch of ``x_t`` and one of ``h_{t−1}``, with a fresh draw for every time
    step (§4.2 and §4.3 of the paper).

    * ReLU keeps one bit per state besides the sketches, and all other gradients, those through time among them, are
      exact. Nothing of the size of all states is held after the forward pass or at any time in the backward pass,
      except what the caller asks for: the outputs and the gradient that comes back for them, and the gradient of ``x``.
    * Of tanh the derivatives are kept by sketches that serve factors. Others keep
      the states exactly, and so the gradient of ``weight_hh`` is exact as well: a sketch beside them would only add
      bytes.
    * A single input feature is kept as it is, which is the least that a summary of whole features can be.

    Args:
        keep: What it keeps.
        tanh: Whether the activation is tanh; else ReLU.
        sequence: Whether all outputs are wanted. If not, they never exist at one time.
        reverse: Whether to begin with the last ``x_t``; outputs stay at the places of their inputs.
        x: Input ``[T, n, d]``; a transposed view will do as well.
        h0: The state before the first step ``[n, h]``.
        weight_ih: ``[h, d]``.
        weight_hh: ``[h, h]``.
        bias_ih: ``[h]`` or ``None``.
        bias_hh: ``[h]`` or ``None``.

    Returns:
        All outputs ``[T, n, h]``, if wanted, and the last state ``[n, h]``; on the CPU bit for bit those of
        ``torch.nn.RNN``. Where states are kept exactly the outputs share their memory and must not be overwritten.
    """
    exact = (tanh and not keep.serves_factors) or (keep.sketch.exact and keep.wants(weight_hh))
    cell = ReLU() if not tanh else TanhStates() if exact else Tanh()
    (count, n, d), h = x.shape, len(weight_hh)
    steps = Steps([n] * count, reverse, h0.nbytes)
    scan = Scan.begin(keep, cell, steps, x, (weight_ih, weight_hh, bias_ih, bias_hh))
    states = _all_states(count, h0, reverse) if exact else None
    out = h0.new_empty(count, n, h) if sequence and not exact else None
    last = h0
    for start, stop in steps.chunks:
        # The state before the first step of the chunk, then the one after each; the other way round in reverse.
        chunk = h0.new_empty(stop - start + 1, n, h) if states is None else states[start : stop + 1]
        before, after = (chunk[1:], chunk[:-1]) if reverse else (chunk[:-1], chunk[1:])
        before[-1 if reverse else 0] = last
        part = x[start:stop]
        drive = F.linear(part, weight_ih, bias_ih)
        for t in steps.order(start, stop):
            # The operations of nn.RNN in their order, on memory that is aligned as its own, so that not a bit differs.
            last = F.linear(last, weight_hh, bias_hh).add_(drive[t - start])
            last = last.tanh_() if tanh else last.relu_()
            after[t - start] = last
        if out is not None:
            out[start:stop] = after
        x_ = keep.exact(part, keep.wants(weight_ih)) if d == 1 else keep.end(part, weight_ih, stack=True, role="inputs")
        h_ = (
            keep.exact(before, keep.wants(weight_hh))
            if exact
            else keep.end(before, weight_hh, stack=True, role="states")
        )
        if exact:
            factors: Any = keep.exact(after)
        elif tanh:
            factors = keep.factor(1 - after * after, role="slopes")
        else:
            factors = keep.packed(tracing.pack_positive(after), after.shape)
        scan.chunks.append((x_, h_, factors))
    if states is not None and sequence:
        out = (states[:-1] if reverse else states[1:]).detach()
    wants_x = keep.wants(x)

    def backward(kept: Kept, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_out, grad_last = grads if sequence else (None, *grads)
        like = next(t for t in grads if t is not None)
        grad_x = like.new_zeros(count * n, d) if wants_x else None
        state = like.new_zeros(n, h) if grad_last is None else grad_last.clone()
        found = scan.back(kept, grad_out, [state], grad_x)
        return None, None, None, None if grad_x is None else grad_x.view(count, n, d), state, *found

    return last if out is None else (out, last), backward


def _all_states(count: int, h0: Tensor, reverse: bool) -> Tensor:
    """Memory for ``[T + 1, n, h]``, aligned to 64 bytes behind the first state: a next layer is given all but that."""
    gap = 0 if reverse else -h0.nbytes % 64 // h0.element_size()
    return h0.new_empty(gap + (count + 1) * h0.numel())[gap:].view(count + 1, *h0.shape)
