"""What a control does: the field over time, beside its target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rad.pde.march import March, check_theta
from rad.pde.problem import Problem

__all__ = ["Trajectory", "trajectory"]


class Trajectory(NamedTuple):
    """Fields ``[n, nx, ny]`` after some steps.

    Attributes:
        times: Of the targets and controls of these steps, ``[n]``.
        field: ``φ`` after each of them.
        target: What it is compared with.
        control: ``C`` in the step, zero on the boundary.
    """

    times: Tensor
    field: Tensor
    target: Tensor
    control: Tensor


@torch.no_grad()
def trajectory(theta: Tensor, problem: Problem, steps: Sequence[int]) -> Trajectory:
    """Simulates once and keeps the fields after a few steps.

    Args:
        theta: Parameters ``[size]`` of the problem's source, float32 or float64.
        problem: What is simulated.
        steps: The steps to show, ascending, each in [0, ``problem.steps``).

    Raises:
        TypeError: If ``theta`` is not float32 or float64.
        ValueError: If ``theta`` does not suit the source, or ``steps`` are out of range or order.
        FloatingPointError: If the field diverges.
    """
    check_theta(theta, problem)
    chosen = [*steps]
    if chosen != sorted(set(chosen)) or not all(0 <= step < problem.steps for step in chosen):
        raise ValueError(f"steps must ascend within [0, {problem.steps}), got {chosen}")
    march = March(problem, theta)
    fields, shown = march.room(), []
    for start, stop, _ in march.sweep(fields):
        shown += [fields[step - start + 1].clone() for step in chosen if start <= step < stop]
    target = march.wanted[chosen] @ march.scheme.target_modes
    control = march.amplitudes[chosen] @ march.scheme.modes / problem.dt
    times = torch.tensor(chosen, dtype=theta.dtype, device=theta.device) * problem.dt
    flat = (torch.stack(shown), march.embed(target), march.embed(control))
    return Trajectory(times, *(_whole(f, problem) for f in flat))


def _whole(flat: Tensor, problem: Problem) -> Tensor:
    """Flattened fields ``[n, nx · w]`` as ``[n, nx, ny]``."""
    return torch.nn.functional.pad(flat.view(len(flat), problem.nx, problem.ny - 1), (1, 0))
