"""The explicit scheme on a chunk of time steps, forwards and for the adjoint.

Shapes: ``m`` time steps; fields flattened from ``[nx, w]``, ``w = ny − 1``: the zero boundary after the end of a row is
also the one before the next, so that the neighbours of place ``i`` are ``i ± 1`` and ``i ± w`` everywhere. The ``core``
is such a field without its first and last row. Whatever belongs to a boundary is zero in all weights and modes, which
keeps it zero without any case distinction. One step is

    (A_r x)_i = x_i + wx_i (x_{i−w} + x_{i+w} − 2 x_i) + wy_i (x_{i−1} + x_{i+1} − 2 x_i) + rate_{r,i} x_i

with ``rate_r = amplitudes[r] @ modes`` for ``R`` modes, and the target is ``wanted[r] @ target_modes`` for ``Q``. The
compiled loops need numba; plain PyTorch does the same on any device.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rad.sketch import kernels

__all__ = ["Scheme", "advance", "retreat"]


class Scheme(NamedTuple):
    """What is the same in all steps.

    Attributes:
        wx: Diffusion times ``dt/dx²``, ``[core]``.
        wy: Diffusion times ``dt/dy²``, ``[core]``.
        modes: Spatial modes of the source times ``dt``, ``[R, core]``.
        duals: The modes by which the product of field and adjoint is contracted, ``[R, core]``.
        target_modes: Spatial modes of the target, ``[Q, core]``.
        pull: What the distance of a field from its target is multiplied by in the adjoint, ``[core]``.
    """

    wx: Tensor
    wy: Tensor
    modes: Tensor
    duals: Tensor
    target_modes: Tensor
    pull: Tensor


def advance(fields: Tensor, amplitudes: Tensor, wanted: Tensor, scheme: Scheme) -> float:
    """``fields[r + 1] = A_r fields[r]`` for all steps.

    Args:
        fields: ``[m + 1, nx · w]``, of which the first is given and the others are overwritten.
        amplitudes: Of the source's modes, ``[m, R]``.
        wanted: Amplitudes of the target's modes, ``[m, Q]``.
        scheme: The weights.

    Returns:
        Sum over all steps and places of the squared distance of ``fields[r + 1]`` from target ``r``.
    """
    if kernels.usable(fields):
        return _advance(*_arrays(fields, amplitudes, wanted, *scheme[:3], scheme.target_modes))
    width, total = _width(fields, scheme), 0.0
    for r in range(len(amplitudes)):
        new = _step(fields[r], amplitudes[r] @ scheme.modes, scheme, width)
        fields[r + 1, width:-width] = new
        total += (new - wanted[r] @ scheme.target_modes).square().sum(dtype=torch.float64)
    return float(total)


def retreat(state: Tensor, fields: Tensor, amplitudes: Tensor, wanted: Tensor, scheme: Scheme) -> Tensor:
    """``state = A_r state + pull · (fields[r] − target r)`` from the last step to the first.

    Args:
        state: ``[nx · w]``, overwritten.
        fields: ``[m, nx · w]``.
        amplitudes: Of the source's modes, ``[m, R]``.
        wanted: Amplitudes of the target's modes, ``[m, Q]``.
        scheme: The weights.

    Returns:
        ``Σ_i duals_{j,i} · state_i · fields_{r,i}`` ``[m, R]`` with the state as it was before step ``r``.
    """
    grad = torch.empty_like(amplitudes)
    if kernels.usable(state):
        _retreat(*_arrays(state, fields, amplitudes, wanted, *scheme, grad))
        return grad
    width = _width(fields, scheme)
    core = slice(width, -width)
    for r in reversed(range(len(amplitudes))):
        grad[r] = scheme.duals @ (state[core] * fields[r, core])
        away = fields[r, core] - wanted[r] @ scheme.target_modes
        state[core] = _step(state, amplitudes[r] @ scheme.modes, scheme, width) + scheme.pull * away
    return grad


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [t.numpy() for t in tensors]


def _width(fields: Tensor, scheme: Scheme) -> int:
    return (fields.shape[-1] - scheme.wx.shape[-1]) // 2


def _step(x: Tensor, rate: Tensor, scheme: Scheme, width: int) -> Tensor:
    """``A x`` ``[core]``."""
    here, stop = x[width:-width], len(x) - width
    along_x = x[: -2 * width] + x[2 * width :] - 2 * here
    along_y = x[width - 1 : stop - 1] + x[width + 1 : stop + 1] - 2 * here
    return here + scheme.wx * along_x + scheme.wy * along_y + rate * here


# Sums in any order, which is what lets them be vectorized.
_LOOSE = {"fastmath": {"reassoc", "contract", "nsz"}}


def _combine(amplitudes, modes, out):
    """``out = amplitudes @ modes``."""
    out[:] = 0
    for j in range(amplitudes.size):
        amplitude, mode = amplitudes[j], modes[j]
        for i in range(out.size):
            out[i] += amplitude * mode[i]


def _stencil(x, rate, wx, wy, out):
    """``out = A x`` on the core of ``out``."""
    width = (x.size - rate.size) // 2
    here, new = x[width : x.size - width], out[width : x.size - width]
    west, east, north, south = x[: -2 * width], x[2 * width :], x[width - 1 :], x[width + 1 :]
    for i in range(rate.size):
        twice = here[i] + here[i]  # 2 * x would be computed in float64
        along_x, along_y = west[i] + east[i] - twice, north[i] + south[i] - twice
        new[i] = here[i] + wx[i] * along_x + wy[i] * along_y + rate[i] * here[i]


def _distance(x, target):
    """Sum of squares of ``x − target``."""
    total = x.dtype.type(0)
    for i in range(x.size):
        total += (x[i] - target[i]) * (x[i] - target[i])
    return total


_combine, _stencil, _distance = (kernels.compiled(fn, **_LOOSE) for fn in (_combine, _stencil, _distance))


@kernels.compiled
def _advance(fields, amplitudes, wanted, wx, wy, modes, target_modes):
    rate, target = np.empty_like(wx), np.empty_like(wx)
    width = (fields.shape[1] - wx.size) // 2
    total = 0.0
    for r in range(amplitudes.shape[0]):
        _combine(amplitudes[r], modes, rate)
        _combine(wanted[r], target_modes, target)
        _stencil(fields[r], rate, wx, wy, fields[r + 1])
        total += _distance(fields[r + 1, width : width + wx.size], target)
    return total


def _retreat(state, fields, amplitudes, wanted, wx, wy, modes, duals, target_modes, pull, grad):
    rate, target, new = np.empty_like(wx), np.empty_like(wx), np.zeros_like(state)
    width = (state.size - wx.size) // 2
    core, new_core = state[width : width + wx.size], new[width : width + wx.size]
    for r in range(amplitudes.shape[0] - 1, -1, -1):
        _combine(amplitudes[r], modes, rate)
        _combine(wanted[r], target_modes, target)
        _stencil(state, rate, wx, wy, new)
        field = fields[r, width : width + wx.size]
        for j in range(duals.shape[0]):
            total = state.dtype.type(0)
            for i in range(wx.size):
                total += duals[j, i] * core[i] * field[i]
            grad[r, j] = total
        for i in range(wx.size):
            core[i] = new_core[i] + pull[i] * (field[i] - target[i])


_retreat = kernels.compiled(_retreat, **_LOOSE)
