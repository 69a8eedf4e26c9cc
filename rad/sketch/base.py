"""The Sketch contract: a random summary of a tensor from which an unbiased estimate can be rebuilt.

Shapes used throughout: ``n`` rows (batch elements), ``d`` features, ``k`` kept features, ``o`` outputs.
"""

from __future__ import annotations

import math
import numbers
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rad.sketch.random import Stream

__all__ = ["BudgetFloorWarning", "Compressed", "Layout", "Sketch", "check_budget", "kept_count"]


class BudgetFloorWarning(UserWarning):
    """The budget was too small for even one unit of the summary, so more than the budget is kept."""


class Layout(NamedTuple):
    """Everything about a summary but its tensors."""

    kept: int
    shape: torch.Size
    dtype: torch.dtype


@dataclass(frozen=True)
class Compressed:
    """What a sketch keeps of one tensor.

    Attributes:
        kept: The summary itself; together with the seed, all that has to live until the backward pass.
        seed: int64 scalar on the CPU from which the randomness is replayed; ``None`` where ``kept`` is the tensor
            itself. It is a tensor so that it travels with ``kept`` through saved-tensor hooks: a recomputed
            forward pass (``torch.utils.checkpoint``) then brings the seed that belongs to its own summary.
        shape: Shape ``[n, d]`` of the tensor summarized.
        dtype: Its dtype.
    """

    kept: tuple[Tensor, ...]
    seed: Tensor | None
    shape: torch.Size
    dtype: torch.dtype

    @property
    def exact(self) -> bool:
        """Whether ``kept`` is the tensor itself."""
        return self.seed is None

    @property
    def nbytes(self) -> int:
        """Bytes of ``kept``; the 8 bytes of the seed come on top."""
        return sum(t.numel() * t.element_size() for t in self.kept)

    @property
    def device(self) -> torch.device:
        """Device of the summary, and of the estimate rebuilt from it."""
        return self.kept[0].device

    def stream(self) -> Stream:
        """The random numbers that ``compress`` used, from their beginning."""
        assert self.seed is not None, "an exact summary holds no randomness"
        return Stream(int(self.seed), self.device)

    def split(self) -> tuple[tuple[Tensor, ...], Layout]:
        """The tensors to save for the backward pass, and what ``join`` needs besides them."""
        tensors = self.kept if self.seed is None else (*self.kept, self.seed)
        return tensors, Layout(len(self.kept), self.shape, self.dtype)

    @classmethod
    def join(cls, tensors: Sequence[Tensor], layout: Layout) -> Compressed:
        """Undoes ``split``."""
        kept, seed = tuple(tensors[: layout.kept]), tensors[layout.kept :]
        return cls(kept, seed[0] if seed else None, layout.shape, layout.dtype)


@dataclass(frozen=True)
class Sketch(ABC):
    """A random summary within a memory budget; its fields are its whole configuration.

    A subclass implements ``_compress`` and ``_expand``, and may override ``_grad_weight`` where the product can be
    formed without rebuilding the dense estimate. All randomness comes from a ``Stream``: the one given to ``_compress``
    is replayed by ``Compressed.stream()``.

    Attributes:
        budget: Fraction of the bytes of the tensor that may be kept, in (0, 1]. At 1 the tensor itself is kept and
            every gradient is exact.

    Raises:
        TypeError: If ``budget`` is not a number.
        ValueError: If ``budget`` lies outside (0, 1].
    """

    budget: float

    def __post_init__(self) -> None:
        check_budget(self.budget)

    def compress(self, x: Tensor, generator: torch.Generator | None = None) -> Compressed:
        """Summarizes a tensor.

        Args:
            x: Tensor ``[n, d]`` of floating point.
            generator: CPU generator from which one 64-bit seed is drawn; the global one if ``None``.

        Returns:
            A summary of at most ``budget`` times the bytes of ``x``, unless that is less than one unit of the
            summary (then a ``BudgetFloorWarning`` is issued); the seed's 8 bytes apart.

        Raises:
            ValueError: If ``x`` is not a matrix of floating point.
        """
        if x.dim() != 2 or not x.is_floating_point():
            raise ValueError(f"a sketch summarizes a floating-point matrix [n, d], got {x.dtype} {list(x.shape)}")
        if self.budget == 1 or x.numel() == 0:
            return Compressed((x,), None, x.shape, x.dtype)
        seed = torch.randint(2**63 - 1, (), generator=generator, device="cpu")
        return Compressed(self._compress(x, Stream(int(seed), x.device)), seed, x.shape, x.dtype)

    def expand(self, compressed: Compressed) -> Tensor:
        """Rebuilds an estimate ``[n, d]`` with ``E[expand(compress(x))] = x``."""
        return compressed.kept[0] if compressed.exact else self._expand(compressed)

    def grad_weight(self, compressed: Compressed, grad_out: Tensor) -> Tensor:
        """Unbiased estimate ``[o, d]`` of ``grad_outᵀ x``, the gradient of a weight that was applied to ``x``.

        Args:
            compressed: Summary of ``x``, ``[n, d]``.
            grad_out: Gradient of the output, ``[n, o]``.
        """
        if compressed.exact:
            return grad_out.t() @ compressed.kept[0]
        return self._grad_weight(compressed, grad_out)

    @abstractmethod
    def _compress(self, x: Tensor, stream: Stream) -> tuple[Tensor, ...]:
        """Tensors to keep of ``x`` ``[n, d]``; called with ``budget < 1`` and at least one element."""

    @abstractmethod
    def _expand(self, compressed: Compressed) -> Tensor:
        """Estimate ``[n, d]`` from what ``_compress`` returned."""

    def _grad_weight(self, compressed: Compressed, grad_out: Tensor) -> Tensor:
        return grad_out.t() @ self._expand(compressed)


def check_budget(budget: float) -> None:
    """Refuses a budget that is not a number in (0, 1].

    Raises:
        TypeError: If it is not a number.
        ValueError: If it lies outside (0, 1].
    """
    if isinstance(budget, bool) or not isinstance(budget, numbers.Real):
        raise TypeError(f"budget must be a number in (0, 1], got {budget!r}; for example 0.1 keeps a tenth")
    if not 0 < budget <= 1:
        raise ValueError(f"budget must lie in (0, 1], got {budget!r}; for example 0.1 keeps a tenth, 1 everything")


def kept_count(allowed: float, what: str) -> int:
    """Rounds a budget to the whole units that are kept: down, but never below one.

    Args:
        allowed: Units that the budget allows (features, bits per element).
        what: The unit's name and the tensor's, for the warning.

    Returns:
        The largest whole number of units within the budget, or 1.
    """
    # The small factor keeps 0.29 * 100 = 28.999999999999996 from being rounded down to 28.
    count = math.floor(allowed * (1 + 1e-12))
    if count < 1:
        warnings.warn(
            f"the budget allows {allowed:.3g} {what}; one is kept, which is more than the budget",
            BudgetFloorWarning,
            stacklevel=2,
        )
        return 1
    return count
