"""The cells of recurrent nets: their derivatives, and one step back through each of them.

Shapes: ``n`` sequences, ``h`` hidden features; ``r`` rows, which are the sequences of some steps one after the other.

The *sums* of a cell are what its activations are applied to, its *factors* the elementwise derivatives of the states
after a step by its sums and by the states before. A path takes one factor in each step, or two in a step of an LSTM.
All elements of a summary that serves factors have independent errors, those of different steps as well, so that the
product of all factors of a path keeps its expectation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["GRU", "LSTM", "Cell", "ReLU", "Tanh", "TanhStates", "apart", "into"]


def into(out: Tensor, function: Callable[..., Tensor], *args: Tensor) -> None:
    """``function(*args, out=out)``, in a way that autograd can follow where it is on."""
    if torch.is_grad_enabled():
        out.copy_(function(*args))
    else:
        function(*args, out=out)


def apart(tensor: Tensor) -> Tensor:
    """A tensor that will be overwritten: a copy where autograd is on, which may need it later."""
    return tensor.clone() if torch.is_grad_enabled() else tensor


def _threshold_backward(grad: Tensor, factors: Tensor, out: Tensor | None = None) -> Tensor:
    if out is None:
        return torch.ops.aten.threshold_backward(grad, factors, 0)
    return torch.ops.aten.threshold_backward.grad_input(grad, factors, 0, grad_input=out)


def _tanh_backward(grad: Tensor, factors: Tensor, out: Tensor | None = None) -> Tensor:
    if out is None:
        return torch.ops.aten.tanh_backward(grad, factors)
    return torch.ops.aten.tanh_backward.grad_input(grad, factors, grad_input=out)


class Cell:
    """A kind of cell.

    Attributes:
        states: Tensors that it hands on from step to step.
        blocks: Of ``h`` features each in the gradient of the sums.
        ih: The blocks, from first to last, of the sums of ``weight_ih``.
        hh: Those of ``weight_hh``.
        roll: How many blocks further those of ``weight_ih`` begin than the weight's own.
        factors: Of ``h`` features each.
    """

    states = 1
    blocks = 1
    ih = hh = (0, 1)
    roll = 0
    factors = 1

    def kinds(self, factors: Tensor) -> tuple[Tensor, ...]:
        """Factors ``[r, h]``, or ``[factors, r, h]``, as ``retreat`` takes those of one step."""
        return (factors,)

    def retreat(
        self, factors: tuple[Tensor, ...], grad: Tensor, grad_cell: Tensor | None, sums: Tensor
    ) -> Tensor | None:
        """Takes the gradients of the states after a step back to its sums.

        Args:
            factors: As they were kept or estimated, by ``kinds``.
            grad: Of the state ``[n, h]``.
            grad_cell: Of the LSTM's second state, which is taken to the one before in place.
            sums: Receives the gradient of the sums ``[n, blocks · h]``.

        Returns:
            What reaches the state before the step past all sums, if anything does.
        """
        raise NotImplementedError


class ReLU(Cell):
    """``max(sums, 0)``; its factor is anything of the sign of the state."""

    def retreat(self, factors: tuple[Tensor, ...], grad: Tensor, grad_cell: Tensor | None, sums: Tensor) -> None:
        """See ``Cell``."""
        into(sums, _threshold_backward, grad, *factors)


class TanhStates(Cell):
    """``tanh(sums)``, whose states themselves are kept in place of factors."""

    def retreat(self, factors: tuple[Tensor, ...], grad: Tensor, grad_cell: Tensor | None, sums: Tensor) -> None:
        """See ``Cell``."""
        into(sums, _tanh_backward, grad, *factors)


class Tanh(Cell):
    """``tanh(sums)``; its factor is the derivative."""

    def retreat(self, factors: tuple[Tensor, ...], grad: Tensor, grad_cell: Tensor | None, sums: Tensor) -> None:
        """See ``Cell``."""
        into(sums, torch.mul, grad, *factors)


class Gated(Cell):
    """A cell with gates, whose sums are computed once more to find its factors."""

    def derive(
        self,
        from_x: Tensor,
        from_h: Tensor,
        before: Tensor,
        cell: Tensor | None,
        sizes: list[int],
        order: Sequence[int],
    ) -> Tensor:
        """The factors ``[factors, r, h]``.

        Args:
            from_x: What the input adds to the sums ``[r, gates · h]``.
            from_h: What the state before adds.
            before: The state before each step ``[r, h]``.
            cell: The LSTM's second state ``[n, h]`` before the first of the steps, taken to the last in place.
            sizes: Rows of each step.
            order: The steps in the order of time.
        """
        raise NotImplementedError


class LSTM(Gated):
    """``c' = f c + i g`` and ``h' = o tanh(c')`` with sigmoids ``i, f, o`` and ``g`` the tanh of four sums."""

    states = 2
    blocks = 4
    ih = hh = (0, 4)
    factors = 6

    def derive(
        self,
        from_x: Tensor,
        from_h: Tensor,
        before: Tensor,
        cell: Tensor | None,
        sizes: list[int],
        order: Sequence[int],
    ) -> Tensor:
        """``∂c'/∂`` the sums of ``i, f, g``; ``∂h'/∂`` that of ``o``; ``∂h'/∂c'``; ``∂c'/∂c``."""
        assert cell is not None
        i, f, g, o = (from_x + from_h).to(before.dtype).chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        old, new = torch.empty_like(i), i * g
        olds, news, forget = old.split(sizes), new.split(sizes), f.split(sizes)
        for step in order:
            past = cell[: sizes[step]]
            past.copy_(news[step].addcmul_(olds[step].copy_(past), forget[step]))
        shown = new.tanh_()
        return torch.stack(
            [
                i * (1 - i) * g,
                f * (1 - f) * old,
                i * (1 - g * g),
                o * (1 - o) * shown,
                o * (1 - shown * shown),
                f,
            ]
        )

    def kinds(self, factors: Tensor) -> tuple[Tensor, ...]:
        """See ``Cell``."""
        return factors[:3], *factors[3:].unbind()

    def retreat(self, factors: tuple[Tensor, ...], grad: Tensor, grad_cell: Tensor | None, sums: Tensor) -> None:
        """See ``Cell``."""
        assert grad_cell is not None
        gates, output, shown, forget = factors
        grad_cell.addcmul_(grad, shown)
        blocks = sums.view(len(sums), 4, -1).transpose(0, 1)
        into(blocks[:3], torch.mul, apart(grad_cell), gates)
        into(blocks[3], torch.mul, grad, output)
        grad_cell.mul_(forget)


class GRU(Gated):
    """``h' = z h + (1 − z) n`` with sigmoids ``r, z`` of sums and ``n = tanh(s + r m)`` of sums ``s`` and ``m``.

    ``weight_ih`` forms ``r, z, s`` and ``weight_hh`` forms ``r, z, m``: the gradient has the blocks ``s, r, z, m``.
    """

    blocks = 4
    ih, hh, roll = (0, 3), (1, 4), 1
    factors = 5

    def derive(
        self,
        from_x: Tensor,
        from_h: Tensor,
        before: Tensor,
        cell: Tensor | None,
        sizes: list[int],
        order: Sequence[int],
    ) -> Tensor:
        """``∂h'/∂`` the sums ``s, r, z, m``, and the part of ``∂h'/∂h`` past them."""
        (r, z, s), (r_, z_, m) = (t.to(before.dtype).chunk(3, 1) for t in (from_x, from_h))
        r, z = (r + r_).sigmoid_(), (z + z_).sigmoid_()
        n = torch.addcmul(s, r, m).tanh_()
        slope = (1 - z) * (1 - n * n)
        inner = slope * r
        return torch.stack([slope, inner * m * (1 - r), (before - n) * z * (1 - z), inner, z])

    def kinds(self, factors: Tensor) -> tuple[Tensor, ...]:
        """See ``Cell``."""
        return factors[:4], factors[4]

    def retreat(self, factors: tuple[Tensor, ...], grad: Tensor, grad_cell: Tensor | None, sums: Tensor) -> Tensor:
        """See ``Cell``."""
        slopes, past = factors
        into(sums.view(len(sums), 4, -1).transpose(0, 1), torch.mul, grad, slopes)
        return grad * past
