"""One direction of a recurrent layer: what it keeps chunk by chunk, and its way back through time.

Shapes: ``T`` time steps, ``n`` sequences, ``d`` input features, ``h`` hidden features; ``r`` rows, which are the
sequences of all steps one after the other, fewer in later steps where sequences are shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from rad.functional.cells import Cell, apart, into
from rad.functional.operation import Handle, Keep, Kept, Summary

__all__ = ["Scan", "Steps"]

# Dense states are held for as many steps at a time as fit in here, and for no less than a unit: enough to make one
# large product of many small ones, little enough to stay in a processor's cache, and a small part of any sequence that
# is worth a sketch.
_CHUNK_BYTES = 2**21
# Chunks start at multiples of this many steps, where memory is aligned to 64 bytes as it is at the beginning: the
# order in which a product's terms are summed up may depend on it.
_CHUNK_UNIT = 16


class Steps:
    """The time steps of a layer in one direction.

    Args:
        sizes: Sequences in each step, never more than in the one before.
        reverse: Whether to begin with the last.
        nbytes: Dense bytes of a step, on which the size of chunks depends.
    """

    def __init__(self, sizes: Sequence[int], reverse: bool, nbytes: int) -> None:
        self._offsets = [0, *accumulate(sizes)]
        self.reverse = reverse
        count = len(sizes)
        units = -(-count // _CHUNK_UNIT)
        chunks = -(-units // max(1, _CHUNK_BYTES // max(1, _CHUNK_UNIT * nbytes)))
        marks = [min(count, _CHUNK_UNIT * (units * i // chunks)) for i in range(chunks + 1)]
        self.chunks = list(zip(marks, marks[1:], strict=False))[:: -1 if reverse else 1]

    def rows(self, start: int, stop: int) -> slice:
        """The rows of the steps from ``start`` to before ``stop``."""
        return slice(self._offsets[start], self._offsets[stop])

    def order(self, start: int, stop: int, back: bool = False) -> range:
        """The steps of a chunk in the order of time, or back."""
        return range(start, stop) if back == self.reverse else range(stop - 1, start - 1, -1)

    def sizes(self, start: int, stop: int) -> list[int]:
        """Rows of each of some steps."""
        return [b - a for a, b in pairwise(self._offsets[start : stop + 1])]

    @property
    def total(self) -> int:
        """Rows of all steps."""
        return self._offsets[-1]


@dataclass
class Scan:
    """What one direction of a layer keeps.

    Attributes:
        cell: Its kind of cell.
        steps: Its time steps.
        weight_ih: ``[gates · h, d]``.
        weight_hh: ``[gates · h, h]``.
        wants: Whether gradients of both weights and both biases are asked for.
        chunks: Of the input, the states before and the factors ``[r, h]``, or several ``[factors, r, h]``, in the order
            of time.
    """

    cell: Cell
    steps: Steps
    weight_ih: Handle | None
    weight_hh: Handle | None
    wants: tuple[bool, ...]
    chunks: list[tuple[Handle | None, Handle | None, Handle | None]] = field(default_factory=list)

    @classmethod
    def begin(cls, keep: Keep, cell: Cell, steps: Steps, x: Tensor, weights: Sequence[Tensor | None]) -> Scan:
        """A scan without any chunks so far.

        Args:
            keep: Where things are kept.
            cell: The kind of cell.
            steps: The time steps.
            x: The layer's input.
            weights: ``weight_ih``, ``weight_hh`` and the biases or ``None``.
        """
        # A weight meets the gradient in every step, so that even an estimate of a computed one would not do.
        weight_ih, weight_hh = keep.exact(weights[0], keep.wants(x)), keep.exact(weights[1])
        return cls(cell, steps, weight_ih, weight_hh, tuple(keep.wants(weight) for weight in weights))

    def back(
        self, kept: Kept, grad_out: Tensor | None, grad_last: Sequence[Tensor], grad_x: Tensor | None
    ) -> list[Tensor | None]:
        """Goes back through time.

        Args:
            kept: What was kept.
            grad_out: Of the outputs ``[T, n, h]`` or ``[r, h]``.
            grad_last: Of the last states ``[n, h]``; overwritten by those of the first.
            grad_x: Is added the gradient of the input ``[r, d]``.

        Returns:
            The gradients of weights and biases.
        """
        cell, steps, (state, *others) = self.cell, self.steps, grad_last
        weight_ih, weight_hh = (None if t is None else t.to(state.dtype) for t in self._weights(kept))
        assert weight_hh is not None
        second, h = (others[0] if others else None), weight_hh.shape[1]
        (ih, hh), roll = (slice(a * h, b * h) for a, b in (cell.ih, cell.hh)), cell.roll * h
        if weight_ih is not None and roll:
            weight_ih = weight_ih.roll(roll, 0)
        grads: list[Tensor | None] = [None] * 4
        length = max(rows.stop - rows.start for rows in (steps.rows(*chunk) for chunk in steps.chunks))
        buffer = state.new_empty(length, cell.blocks * h)
        for (start, stop), (x_, h_, factors_) in zip(reversed(steps.chunks), reversed(self.chunks), strict=True):
            chunk = steps.rows(start, stop)
            # What autograd may need later is not overwritten: where it is on each step has memory of its own.
            own = torch.is_grad_enabled()
            sums = buffer[: chunk.stop - chunk.start]
            factors = kept.dense(factors_)
            factors = factors.view(*([cell.factors] if cell.factors > 1 else []), len(sums), h)
            if factors.dtype == torch.uint8:  # read before it is overwritten, each step
                factors = factors.to(sums.dtype) if own else sums.copy_(factors)
            sizes = steps.sizes(start, stop)
            parts = [sums.new_empty(size, sums.shape[1]) for size in sizes] if own else sums.split(sizes)
            each = list(zip(*(kind.split(sizes, -2) for kind in cell.kinds(factors)), strict=True))
            from_out: Sequence[Tensor] = ()
            if grad_out is not None:
                from_out = grad_out[start:stop].unbind() if grad_out.dim() == 3 else grad_out[chunk].split(sizes)
            for t in steps.order(start, stop, back=True):
                i, size = t - start, sizes[t - start]
                grad, part = _first(state, size), parts[i]
                if grad_out is not None:
                    grad += from_out[i]
                past = cell.retreat(each[i], apart(grad), None if second is None else _first(second, size), part)
                if past is None:
                    into(grad, torch.mm, part[:, hh], weight_hh)
                else:
                    into(grad, torch.addmm, past, part[:, hh], weight_hh)
            if own:
                sums = torch.cat(parts)
            from_x, from_h = sums[:, ih], sums[:, hh]
            if grad_x is not None:
                assert weight_ih is not None
                grad_x[chunk].addmm_(from_x, weight_ih)
            found = (from_x, x_, roll), (from_h, h_, 0)
            for i, (part, summary_, shift) in enumerate(found):
                if self.wants[i]:
                    _add(grads, i, _of_weight(kept[summary_], part), shift)
                if self.wants[2 + i]:
                    _add(grads, 2 + i, part.sum(0), shift)
        return grads

    def _weights(self, kept: Kept) -> tuple[Tensor | None, Tensor | None]:
        return kept[self.weight_ih], kept[self.weight_hh]


def _first(tensor: Tensor, rows: int) -> Tensor:
    return tensor if rows == len(tensor) else tensor[:rows]


def _add(grads: list[Tensor | None], place: int, part: Tensor, shift: int) -> None:
    part = part.roll(-shift, 0) if shift else part
    known = grads[place]
    grads[place] = part if known is None else known.add_(part)


def _of_weight(item: Tensor | Summary, grads: Tensor) -> Tensor:
    """``gradsᵀ x`` for gradients ``[r, o]``."""
    if isinstance(item, Summary):
        return item.grad_weight(grads.unflatten(0, item.shape[:-1]))
    return grads.t() @ item.reshape(-1, item.shape[-1])
