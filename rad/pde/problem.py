"""What is simulated: ∂φ/∂t = D ∇²φ + C(x, y, t; θ) φ on the unit square, with φ = 0 on its boundary.

Shapes: ``nx × ny`` grid points, boundary included; ``n`` time steps. Source and target are sums of products of a
spatial *mode*, a function of ``x`` ``[nx, 1]`` and ``y`` ``[1, ny]`` that broadcasts to ``[nx, ny]``, and its
*amplitude*, a function of ``t`` ``[n]`` that broadcasts to ``[n]``: series, finite elements and stored pictures are of
that form, and no field of all points and times is ever needed.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Fourier", "Problem", "Slosh", "Source", "Target", "bump", "reactor"]


class Source(Protocol):
    """A control of the reaction rate, ``C = Σ_j amplitude_j(t; θ) mode_j(x, y)``."""

    @property
    def size(self) -> int:
        """Number of parameters."""
        ...

    def modes(self, x: Tensor, y: Tensor) -> Sequence[Tensor]:
        """Spatial modes."""
        ...

    def amplitudes(self, theta: Tensor, t: Tensor) -> Sequence[Tensor]:
        """Amplitudes of the modes, differentiable by autograd in ``theta`` ``[size]``, linearly or not."""
        ...


class Target(Protocol):
    """A wanted field, ``Σ_j amplitude_j(t) mode_j(x, y)``."""

    def modes(self, x: Tensor, y: Tensor) -> Sequence[Tensor]:
        """Spatial modes."""
        ...

    def amplitudes(self, t: Tensor) -> Sequence[Tensor]:
        """Amplitudes of the modes."""
        ...


@dataclass(frozen=True)
class Fourier:
    """The paper's control: a Fourier series of seven terms, constant in y.

    θ₀ + θ₁ sin πt + θ₂ cos πt + θ₃ sin 2πx sin πt + θ₄ sin 2πx cos πt + θ₅ cos 2πx sin πt + θ₆ cos 2πx cos πt
    """

    @property
    def size(self) -> int:
        """Number of parameters."""
        return 7

    def modes(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """1, sin 2πx and cos 2πx."""
        return [torch.ones_like(x), (2 * math.pi * x).sin(), (2 * math.pi * x).cos()]

    def amplitudes(self, theta: Tensor, t: Tensor) -> list[Tensor]:
        """Their factors."""
        sin, cos = (math.pi * t).sin(), (math.pi * t).cos()
        return [
            theta[0] + theta[1] * sin + theta[2] * cos,
            theta[3] * sin + theta[4] * cos,
            theta[5] * sin + theta[6] * cos,
        ]


def bump(x: Tensor, y: Tensor) -> Tensor:
    """The paper's initial field sin πx sin πy."""
    return (math.pi * x).sin() * (math.pi * y).sin()


@dataclass(frozen=True)
class Slosh:
    """The paper's target: the bump, leaning from side to side by ¼ sin πt sin 2πx sin πy."""

    def modes(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Both terms without time."""
        return [bump(x, y), (2 * math.pi * x).sin() * (math.pi * y).sin()]

    def amplitudes(self, t: Tensor) -> list[Tensor]:
        """1 and ¼ sin πt."""
        return [torch.ones_like(t), 0.25 * (math.pi * t).sin()]


@dataclass(frozen=True)
class Problem:
    """A control problem and its discretization: explicit Euler steps, five-point Laplacian, zero boundary.

    Step ``k = 0 … steps − 1`` at ``t_k = k dt`` is ``φ ← φ + dt (D ∇²φ + C(t_k) φ)`` on the interior points, after
    which ``dt/(nx ny) Σ (φ − target(t_k))²`` is added to the loss. The sum is over the interior points: the boundary,
    which no control can move, counts as being on target. The loss is an integral over time, not divided by its length.

    Attributes:
        source: The control ``C``.
        initial: ``φ₀`` as a function of ``x`` and ``y``; its values on the boundary are ignored.
        target: The wanted field.
        diffusion: ``D`` in area per time, positive: a number or a field ``[nx, ny]``.
        nx: Grid points along x.
        ny: Grid points along y.
        dt: Length of a time step.
        steps: Number of time steps.

    Raises:
        ValueError: If the grid is below 3 × 3, a number is not positive, the diffusion field has another shape than
            the grid, or the scheme is unstable: ``2 D dt (1/dx² + 1/dy²) < 1`` must hold.
    """

    source: Source
    initial: Callable[[Tensor, Tensor], Tensor]
    target: Target
    diffusion: float | Tensor
    nx: int
    ny: int
    dt: float
    steps: int

    def __post_init__(self) -> None:
        for name, least in (("nx", 3), ("ny", 3), ("steps", 1)):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if not (math.isfinite(self.dt) and self.dt > 0):
            raise ValueError(f"dt must be a positive number, got {self.dt!r}; for example 1/4096")
        diffusion = torch.as_tensor(self.diffusion, dtype=torch.float64)
        if diffusion.shape not in ((), (self.nx, self.ny)):
            raise ValueError(
                f"diffusion must be a number or a field {[self.nx, self.ny]} like the grid, got {list(diffusion.shape)}"
            )
        low, high = float(diffusion.min()), float(diffusion.max())
        if not (low > 0 and math.isfinite(high)):
            raise ValueError(f"diffusion must be positive and finite, got values from {low:g} to {high:g}")
        speed = 2 * high * ((self.nx - 1) ** 2 + (self.ny - 1) ** 2)
        if self.dt * speed >= 1:
            raise ValueError(
                f"unstable: 2 D dt (1/dx² + 1/dy²), on a square grid 4 D dt/dx², must be below 1, got "
                f"{self.dt * speed:.4g} for dt = {self.dt:g}; choose dt below {1 / speed:.4g} or a coarser grid"
            )

    @property
    def interior(self) -> int:
        """Number of points inside the boundary, the only ones that need keeping."""
        return (self.nx - 2) * (self.ny - 2)


def reactor(nx: int = 33, ny: int = 33, dt: float = 1 / 4096, steps: int = 40_961, diffusion: float = 0.25) -> Problem:
    """The paper's fission reactor (§5), by default on its grid.

    A constant control of 4.932 ≈ 2 D π² nearly holds the bump in place. The number of steps is that of the
    published code, one more than ``10/dt``.
    """
    return Problem(Fourier(), bump, Slosh(), diffusion, nx, ny, dt, steps)
