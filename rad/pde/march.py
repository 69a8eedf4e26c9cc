"""Marching through a problem by chunks of time steps: forwards, and backwards with the adjoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rad.pde.kernels import Scheme, advance, retreat
from rad.pde.problem import Problem

__all__ = ["Adjoint", "March", "check_theta"]

# Values in a chunk of fields: enough for the loops to outweigh what each chunk costs besides, few enough for a cache.
_CHUNK_VALUES = 2**17


def check_theta(theta: Tensor, problem: Problem) -> None:
    """Refuses parameters that the problem's source cannot take.

    Raises:
        TypeError: If ``theta`` is not float32 or float64.
        ValueError: If ``theta`` has another length than the source's, or is not finite.
    """
    if theta.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"theta must be float32 or float64, got {theta.dtype}; for example theta.float()")
    size = problem.source.size
    if theta.shape != (size,):
        raise ValueError(f"theta must hold the {size} parameters of {problem.source}, got shape {list(theta.shape)}")
    if not theta.isfinite().all():
        raise ValueError(f"theta must be finite, got {theta.tolist()}; a smaller learning rate may keep it so")


class March:
    """A problem with parameters, ready to take steps.

    Fields are flattened without their first column, see ``rad.pde.kernels``.

    Args:
        problem: What is simulated.
        theta: Parameters of its source, in whose dtype and on whose device everything is computed.

    Attributes:
        chunks: First step of each chunk and the step after its last.
        scheme: The weights of a step.

    Raises:
        ValueError: If source or target does not have one amplitude for each of its modes.
    """

    def __init__(self, problem: Problem, theta: Tensor) -> None:
        self.problem, self.theta = problem, theta.detach()
        nx, ny, dt = problem.nx, problem.ny, problem.dt
        length = max(1, _CHUNK_VALUES // (nx * ny))
        self.chunks = [*pairwise([*range(0, problem.steps, length), problem.steps])]
        x, y = (torch.linspace(0, 1, n, dtype=torch.float64, device=theta.device) for n in (nx, ny))
        self._x, self._y = x[:, None], y[None, :]
        diffusion = torch.as_tensor(problem.diffusion, dtype=torch.float64, device=theta.device)
        metric = (diffusion / diffusion.max()).expand(nx, ny)
        modes = dt * self._stack(problem.source.modes(self._x, self._y))
        fields = {
            "wx": diffusion * dt * (nx - 1) ** 2,
            "wy": diffusion * dt * (ny - 1) ** 2,
            "modes": modes,
            "duals": modes / metric,
            "target_modes": self._stack(problem.target.modes(self._x, self._y)),
            "pull": 2 * dt / (nx * ny) * metric,
        }
        self.scheme = Scheme(**{name: self._core(field) for name, field in fields.items()})
        times = torch.arange(problem.steps, dtype=torch.float64, device=theta.device) * dt
        self._times = times.to(theta.dtype)
        with torch.no_grad():
            self.amplitudes = self._rows(problem.source.amplitudes(self.theta, self._times))
            self.wanted = self._rows(problem.target.amplitudes(self._times))
        for part, rows, modes in (
            (problem.source, self.amplitudes, self.scheme.modes),
            (problem.target, self.wanted, self.scheme.target_modes),
        ):
            if rows.shape[1] != len(modes):
                raise ValueError(f"{part} must have an amplitude for each mode, got {rows.shape[1]} for {len(modes)}")

    def start(self) -> Tensor:
        """The initial field ``[nx · w]``."""
        return self.embed(self._core(self.problem.initial(self._x, self._y)))

    def embed(self, core: Tensor) -> Tensor:
        """Fields ``[..., core]`` with the first and last row added, ``[..., nx · w]``."""
        width = self.problem.ny - 1
        return torch.nn.functional.pad(core, (width, width))

    def interior(self, fields: Tensor) -> Tensor:
        """A view ``[m, nx − 2, ny − 2]`` of the interior points of fields ``[m, nx · w]``."""
        return fields.view(-1, self.problem.nx, self.problem.ny - 1)[:, 1:-1, :-1]

    def room(self) -> Tensor:
        """Zeros for the fields of one chunk and the one after it, ``[m + 1, nx · w]``; to be used again for each."""
        return self.theta.new_zeros(self.chunks[0][1] + 1, self.problem.nx * (self.problem.ny - 1))

    def sweep(self, fields: Tensor) -> Iterator[tuple[int, int, float]]:
        """Takes all steps from the initial field, chunk by chunk.

        Args:
            fields: A ``room()``; holds the field before the chunk at hand and those after each of its steps, and in the
                end the last field in the first place.

        Yields:
            First step of a chunk, the step after its last, and what it adds to the loss.

        Raises:
            FloatingPointError: If the field is no longer finite.
        """
        fields[0] = self.start()
        for start, stop in self.chunks:
            yield start, stop, self.advance(fields, start, stop)
            fields[0] = fields[stop - start]

    def advance(self, fields: Tensor, start: int, stop: int) -> float:
        """Takes the steps ``start`` to ``stop − 1``.

        Args:
            fields: A ``room()``; given the first field, receives the field after each step in the next.
            start: First step.
            stop: Step after the last.

        Returns:
            What these fields add to the loss.

        Raises:
            FloatingPointError: If the field is no longer finite.
        """
        fields = fields[: stop - start + 1]
        squares = advance(fields, self.amplitudes[start:stop], self.wanted[start:stop], self.scheme)
        if not math.isfinite(squares):
            dt = self.problem.dt
            raise FloatingPointError(
                f"the field diverges between t = {start * dt:.4g} and {stop * dt:.4g}: its distance from the target "
                f"is {squares}; choose a smaller theta, got {self.theta.tolist()}"
            )
        return squares * self.problem.dt / (self.problem.nx * self.problem.ny)

    def pull_back(self, grad_amplitudes: Tensor) -> Tensor:
        """Gradient ``[size]`` for that of all steps' amplitudes, ``[steps, R]``."""
        with torch.enable_grad():
            theta = self.theta.clone().requires_grad_()
            amplitudes = self._rows(self.problem.source.amplitudes(theta, self._times))
        return torch.autograd.grad(amplitudes, theta, grad_amplitudes)[0]

    def _stack(self, modes: Sequence[Tensor]) -> Tensor:
        return torch.stack([mode.expand(self.problem.nx, self.problem.ny) for mode in modes])

    def _rows(self, amplitudes: Sequence[Tensor]) -> Tensor:
        rows = [amplitude.expand(self.problem.steps).to(self.theta.dtype) for amplitude in amplitudes]
        return torch.stack(rows, -1)

    def _core(self, field: Tensor) -> Tensor:
        """Fields ``[..., nx, ny]`` on the interior rows, flattened, with zero at the end of each row."""
        shape = torch.broadcast_shapes(field.shape, (self.problem.nx, self.problem.ny))
        inner = field.expand(shape)[..., 1:-1, 1:].clone()
        inner[..., -1] = 0
        return inner.flatten(-2).to(self.theta.dtype)


class Adjoint:
    """The backward pass, from the last chunk to the first (eq. 7 of the paper).

    With ``λ_k = ∂L/∂φ_k`` and the step's matrix ``A_k`` it is

        λ_k = 2 dt/(nx ny) (φ_k − target_{k−1}) + A_kᵀ λ_{k+1},    ∂L/∂C_k = dt λ_{k+1} φ_k.

    The scheme is linear, so ``A_k`` does not depend on ``φ``: it is computed anew from the source, and exact. Only
    ``φ_k`` is needed of the forward pass, and may be an estimate. ``λ_{k+1}`` depends on the estimates of later steps
    alone, so the product is unbiased if those of any two steps are independent.

    What is marched is ``D λ``, for ``D A_kᵀ = A_k D`` also where ``D`` is a field: the forward pass's steps will do.

    Args:
        march: The problem.
        final: The last field ``[nx · w]``, exact.
    """

    def __init__(self, march: March, final: Tensor) -> None:
        self.march = march
        self._grad = torch.empty_like(march.amplitudes)
        # Field k is compared with the target of step k − 1. Field 0 is with none: nothing hangs on its adjoint.
        self._wanted = torch.cat([march.wanted[:1], march.wanted[:-1]])
        core = slice(march.problem.ny - 1, 1 - march.problem.ny)
        away = final[core] - march.wanted[-1] @ march.scheme.target_modes
        self._state = march.embed(march.scheme.pull * away)

    def chunk(self, start: int, stop: int, fields: Tensor) -> None:
        """Goes back over the steps ``start`` to ``stop − 1``, given the fields before them, ``[m, nx · w]``."""
        steps = slice(start, stop)
        scheme = self.march.scheme
        self._grad[steps] = retreat(self._state, fields, self.march.amplitudes[steps], self._wanted[steps], scheme)

    def grad(self) -> Tensor:
        """Gradient of the loss ``[size]``, once all chunks are done."""
        return self.march.pull_back(self._grad)
