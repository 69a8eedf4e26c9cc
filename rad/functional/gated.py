"""LSTM and GRU layers, which keep the rounded factors of their cells.

Shapes: ``T`` time steps, ``n`` sequences, ``d`` input features, ``h`` hidden features, ``D`` directions; ``r`` rows of
all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.functional.cells import Gated
from rad.functional.operation import Keep, Kept, operation
from rad.functional.scan import Scan, Steps

__all__ = ["gated"]


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
        keep: What it keeps: factors, inputs and states by chunks of steps.
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

    # Transforms of torch.func refuse hooks.
    allowed = torch._C._autograd._saved_tensors_hooks_is_enabled()  # pyright: ignore[reportAttributeAccessIssue]
    nothing = torch.autograd.graph.saved_tensors_hooks(lambda _: None, _never) if allowed else nullcontext()
    with torch.enable_grad(), nothing:
        return [t.detach() for t in stock(alike(x), *([alike(t) for t in ts if t is not None] for ts in others))]


def _never(_: None) -> Tensor:
    raise AssertionError("no gradient is asked of the stock kernel")


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
        sizes, order = steps.sizes(start, stop), [t - start for t in steps.order(start, stop)]
        after = out[start:stop].unbind() if out.dim() == 3 else out[chunk].split(sizes)
        before = state.new_empty(len(part), state.shape[1])
        befores = before.split(sizes)
        for step in order:
            now = state[: sizes[step]]
            befores[step].copy_(now)
            now.copy_(after[step])
        from_x, from_h = _sums(part, weight_ih, bias_ih), _sums(before, weight_hh, bias_hh)
        factors = cell.derive(from_x, from_h, before, second, sizes, order)
        if inputs.get((start, stop)) is None:
            inputs[start, stop] = keep.end(part, weight_ih, role="inputs")
        states_ = keep.end(before, weight_hh, role="states")
        scan.chunks.append((inputs[start, stop], states_, keep.factor(factors, role="factors")))


def _sums(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` in the dtype of ``x``, which may be autocast's."""
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
