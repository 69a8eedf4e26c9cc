"""A control problem without any symmetry, and its scheme as written on paper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from sketches import normal
from torch import Tensor

from rad.pde import Problem


@dataclass(frozen=True)
class Wave:
    """A source that depends on its parameters nonlinearly."""

    size: int = 3

    def modes(self, x, y):
        return [torch.ones((), dtype=x.dtype), x * y, (3 * x).cos() + y]

    def amplitudes(self, theta, t):
        return [theta[0].exp(), theta[0] * theta[1] * t, (theta[2] * t).sin()]


@dataclass(frozen=True)
class Ramp:
    def modes(self, x, y):
        return [x - y * y, y]

    def amplitudes(self, t):
        return [t, 1 + t * t]


def start(x, y):
    return 1 + x - 2 * y


def wave(nx: int = 6, ny: int = 5, steps: int = 9, diffusion: float | Tensor | None = None) -> Problem:
    diffusion = 0.005 * (1 + normal(nx, ny, seed=4, dtype=torch.float64).abs()) if diffusion is None else diffusion
    return Problem(Wave(), start, Ramp(), diffusion, nx, ny, 0.2, steps)


def parameters(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values or (0.3, -0.7, 1.9), dtype=dtype, requires_grad=True)


class Step(NamedTuple):
    time: float
    field: Tensor
    target: Tensor
    control: Tensor


def steps(theta: Tensor, problem: Problem) -> Iterator[Step]:
    """One step after the other, on the whole grid; target and control are zero on the boundary."""
    nx, ny, dt = problem.nx, problem.ny, problem.dt
    x, y = torch.linspace(0, 1, nx, dtype=theta.dtype)[:, None], torch.linspace(0, 1, ny, dtype=theta.dtype)[None]
    inside = torch.zeros(nx, ny, dtype=theta.dtype)
    inside[1:-1, 1:-1] = 1
    field = problem.initial(x, y) * inside
    for k in range(problem.steps):
        t = torch.tensor(k * dt, dtype=theta.dtype)
        control, target = (
            inside * sum(a * mode for a, mode in zip(amplitudes, part.modes(x, y), strict=True))
            for part, amplitudes in (
                (problem.source, problem.source.amplitudes(theta, t)),
                (problem.target, problem.target.amplitudes(t)),
            )
        )
        along_x = (field.roll(1, 0) + field.roll(-1, 0) - 2 * field) * (nx - 1) ** 2
        along_y = (field.roll(1, 1) + field.roll(-1, 1) - 2 * field) * (ny - 1) ** 2
        field = inside * (field + dt * (problem.diffusion * (along_x + along_y) + control * field))
        yield Step(k * dt, field, target, control)


def oracle(theta: Tensor, problem: Problem) -> Tensor:
    """The loss, by plain autograd."""
    return sum(problem.dt * (s.field - s.target).square().mean() for s in steps(theta, problem))
