"""The loss of a control, with a gradient from a sketch of the fields."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rad.pde.march import Adjoint, March, check_theta
from rad.pde.problem import Problem
from rad.sketch import Sketch, load, once, save

__all__ = ["simulate"]


def simulate(theta: Tensor, problem: Problem, sketch: Sketch, generator: torch.Generator | None = None) -> Tensor:
    """The loss of the control ``theta``: exact, with an unbiased gradient from a sketch of the fields (§5).

    Kept for the backward pass are ``theta``, the last field, and a summary of the interior points of each field before
    it, with a draw of its own for each. Dense fields exist for one chunk of time steps at a time. Without a gradient
    to come nothing is kept or drawn.

    Args:
        theta: Parameters ``[size]`` of the problem's source, float32 or float64; the simulation takes place on its
            device and in its dtype.
        problem: What is simulated.
        sketch: Summary of the fields; ``rad.Exact()`` keeps them whole.
        generator: CPU generator of the sketch's seeds, one for each chunk; the global one if ``None``.

    Returns:
        The loss, a scalar.

    Raises:
        TypeError: If ``theta`` is not float32 or float64.
        ValueError: If ``theta`` has another length than the source's, or is not finite.
        FloatingPointError: If the field diverges.
    """
    check_theta(theta, problem)
    # Within no_grad a Function is still told that theta needs a gradient.
    return _Simulate.apply(theta if torch.is_grad_enabled() else theta.detach(), problem, sketch, generator)


class _Simulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, theta: Tensor, problem: Problem, sketch: Sketch, generator: Any) -> Tensor:
        ctx.problem, ctx.sketch = problem, sketch
        march = March(problem, theta)
        fields, loss, kept = march.room(), 0.0, []
        for start, stop, added in march.sweep(fields):
            loss += added
            if ctx.needs_input_grad[0]:
                # One row for each time step: a stack, so that each has a draw of its own.
                rows = march.interior(fields[: stop - start]).clone(memory_format=torch.contiguous_format)
                kept.append(sketch.compress(rows.view(stop - start, 1, problem.interior), generator))
        save(ctx, theta, fields[0].clone(), *kept)
        return theta.new_tensor(loss)

    @staticmethod
    @once
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        theta, final, *kept = load(ctx)
        march = March(ctx.problem, theta)
        adjoint = Adjoint(march, final)
        fields = march.room()
        for (start, stop), compressed in zip(reversed(march.chunks), reversed(kept), strict=True):
            part = fields[: stop - start]
            interior = march.interior(part)
            interior.copy_(ctx.sketch.expand(compressed).view(interior.shape))
            adjoint.chunk(start, stop, part)
        return grad_out * adjoint.grad(), None, None, None
