"""The Sketch contract: a random summary of a tensor from which an unbiased estimate can be rebuilt.

Shapes used throughout: ``n`` rows (batch elements), ``d`` features, ``k`` kept features, ``o`` outputs; ``m`` matrices
in a stack (time steps), each with a draw of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from rad.sketch.random import Stream
from rad.sketch.units import check_budget

__all__ = [
    "Compressed",
    "Layout",
    "Sketch",
    "coherent",
    "incoherent",
    "product",
]


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
        seed: int64 scalar on the CPU from which the randomness is replayed, ``None`` where ``kept`` is the tensor
            itself; a tensor, for it travels with ``kept`` where a forward pass is recomputed.
        shape: Shape ``[n, d]`` or ``[m, n, d]`` of the tensor summarized.
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
    def stack(self) -> torch.Size:
        """The shape as that of a stack, ``[m, n, d]``."""
        return self.shape if len(self.shape) == 3 else torch.Size((1, *self.shape))

    @property
    def device(self) -> torch.device:
        """Device of the summary, and of the estimate rebuilt from it."""
        return self.kept[0].device

    def stream(self) -> Stream:
        """The random numbers that ``compress`` used, from their beginning."""
        assert self.seed is not None, "an exact summary holds no randomness"
        return Stream(self.seed, self.device)

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

    A subclass implements ``_compress`` and ``_expand`` for stacks ``[m, n, d]``. It may override ``_grad_weight`` and
    ``_columns`` where the dense estimate need not be rebuilt, and ``_variance`` where a closed form is known. All
    randomness comes from a ``Stream``: the one given to ``_compress`` is replayed by ``Compressed.stream()``.

    Attributes:
        budget: Fraction of the bytes of the tensor that may be kept, in (0, 1]. At 1 the tensor itself is kept and
            every gradient is exact.

    Raises:
        TypeError: If ``budget`` is not a number.
        ValueError: If ``budget`` lies outside (0, 1].
    """

    budget: float

    # Whether estimates may stand for factors inside a path, whose variances multiply, and not only at its end.
    serves_factors: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_budget(self.budget)

    def compress(self, x: Tensor, generator: torch.Generator | None = None, seed: Tensor | None = None) -> Compressed:
        """Summarizes a tensor.

        Args:
            x: Tensor ``[n, d]`` of floating point; or a stack ``[m, n, d]`` of them, each with a draw of its own,
                as the time steps of a loop need.
            generator: CPU generator from which one 64-bit seed is drawn; the global one if ``None``.
            seed: The seed itself, an int64 scalar on the CPU, in place of a generator.

        Returns:
            A summary of at most ``budget`` times the bytes of ``x``, unless that is less than one unit of the
            summary (then a ``BudgetFloorWarning`` is issued); the seed's 8 bytes apart.

        Raises:
            ValueError: If ``x`` is not a matrix or a stack of matrices of floating point.
        """
        if not isinstance(x, Tensor) or x.dim() not in (2, 3) or not x.is_floating_point():
            got = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else repr(x)
            raise ValueError(f"a sketch summarizes a floating-point matrix [n, d] or stack [m, n, d], got {got:.60}")
        if self.exact or x.numel() == 0:
            return Compressed((x,), None, x.shape, x.dtype)
        if seed is None:
            seed = torch.randint(2**63 - 1, (), generator=generator, device="cpu")
        stack = x if x.dim() == 3 else x[None]
        return Compressed(self._compress(stack, Stream(seed, x.device)), seed, x.shape, x.dtype)

    def expand(self, compressed: Compressed) -> Tensor:
        """Rebuilds an estimate of the shape of ``x`` with ``E[expand(compress(x))] = x``."""
        return compressed.kept[0] if compressed.exact else self._expand(compressed).view(compressed.shape)

    def times(self, compressed: Compressed, grad: Tensor, out: Tensor | None = None) -> Tensor:
        """``expand(compressed) · grad`` in the dtype of ``grad``, that of ``x`` or a wider one; in ``out`` if given.

        ``grad`` is contiguous and of the shape of ``x``, or has one number for each row.
        """
        found = compressed.kept[0] if compressed.exact else self.expand(compressed)
        new = compressed.exact or out is not None or found.dtype != grad.dtype
        return torch.mul(grad, found, out=out) if new else found.mul_(grad)

    def grad_weight(self, compressed: Compressed, grad_out: Tensor) -> Tensor:
        """Unbiased estimate ``[o, d]`` of ``grad_outᵀ x``, the gradient of a weight that was applied to ``x``.

        Args:
            compressed: Summary of ``x``, ``[n, d]`` or ``[m, n, d]``.
            grad_out: Gradient of the output, ``[n, o]`` or ``[m, n, o]``; a stack's products are added up.
        """
        if compressed.exact:
            return product(grad_out, compressed.kept[0])
        return self._grad_weight(compressed, grad_out if grad_out.dim() == 3 else grad_out[None])

    def columns(self, compressed: Compressed) -> tuple[Tensor | None, Tensor]:
        """The estimate without the features that are zero in all rows, where the draw leaves such.

        Whoever contracts the features (the positions of a convolution, the points of a grid) has nothing to compute
        for the others.

        Args:
            compressed: Summary of ``x``, ``[n, d]`` or ``[m, n, d]``.

        Returns:
            ``(index, values)``: ``values`` ``[(m,) n, k]`` belong to the features ``index`` ``[(m,) k]``, int64, and
            add up where one occurs twice; or ``(None, expand(compressed))`` if no feature is left out.
        """
        return (None, compressed.kept[0]) if compressed.exact else self._columns(compressed)

    def variance(self, x: Tensor, grad_out: Tensor) -> Tensor:
        """Total variance of ``grad_weight(compress(x), grad_out)``, the sum over its entries, in closed form.

        Args:
            x: What is summarized, ``[n, d]`` or ``[m, n, d]``.
            grad_out: Gradient of the output, ``[n, o]`` or ``[m, n, o]``.

        Returns:
            float64 scalar, 0 where the summary is exact.

        Raises:
            NotImplementedError: If the sketch has no closed form.
        """
        if self.exact or x.numel() == 0:
            return torch.zeros((), dtype=torch.float64, device=x.device)
        x, grad_out = (t if t.dim() == 3 else t[None] for t in (x, grad_out))
        return self._variance(x, grad_out.double())

    @property
    def exact(self) -> bool:
        """Whether the tensor itself is kept."""
        return self.budget == 1

    def fraction(self, itemsize: int) -> float:
        """The share of a large tensor's bytes that is kept, for elements of ``itemsize`` bytes."""
        return self.budget

    def noise(self, compressed: Compressed) -> Tensor:
        """The variance of each element of ``expand(compressed)``, known without the values.

        Errors are independent in pairs. With it a term that is quadratic in the estimate is corrected:
        ``E[x̂_i²] = x_i² + noise_i``.

        Returns:
            Tensor that broadcasts against the shape of the summarized one; zero where the summary is exact.

        Raises:
            TypeError: If the sketch cannot say.
        """
        if compressed.exact:
            return compressed.kept[0].new_zeros(())
        raise TypeError(
            f"{type(self).__name__} cannot tell the noise of its estimates without the values, which terms of second "
            "order need; use rad.Rounding, or leave the operation exact"
        )

    def note(self, compressed: Compressed, reach: Callable[[], Tensor]) -> None:  # noqa: B027
        """For those who measure: ``Σ (∂/∂x_j)²`` of a weight's gradient, ``[b, 1, d]`` for ``x`` in ``b`` blocks."""

    @abstractmethod
    def _compress(self, x: Tensor, stream: Stream) -> tuple[Tensor, ...]:
        """Tensors to keep of ``x`` ``[m, n, d]``; called with ``budget < 1`` and at least one element."""

    @abstractmethod
    def _expand(self, compressed: Compressed) -> Tensor:
        """Estimate from what ``_compress`` returned, as ``[m, n, d]`` or anything that can be viewed so."""

    def _grad_weight(self, compressed: Compressed, grad_out: Tensor) -> Tensor:
        return product(grad_out, self._expand(compressed))

    def _columns(self, compressed: Compressed) -> tuple[Tensor | None, Tensor]:
        return None, self.expand(compressed)

    def _variance(self, x: Tensor, grad_out: Tensor) -> Tensor:
        """For stacks ``x`` ``[m, n, d]`` of its own dtype and float64 ``grad_out`` ``[m, n, o]``; ``budget < 1``."""
        raise NotImplementedError(f"{type(self).__name__} has no closed form; measure it: rad.measure.gradient_noise")


def product(grad_out: Tensor, x: Tensor) -> Tensor:
    """``grad_outᵀ x`` ``[o, d]``, summed over the matrices of a stack."""
    return grad_out.flatten(0, -2).t() @ x.flatten(0, -2)


def coherent(x: Tensor, grad_out: Tensor) -> Tensor:
    """``‖grad_outᵀ x‖²``, float64, added up over a stack: what a draw shared by all rows scales."""
    return (grad_out.double().mT @ x.double()).square().sum()


def incoherent(x: Tensor, grad_out: Tensor) -> Tensor:
    """``Σ_b ‖x_b‖² ‖grad_out_b‖²``, float64: what a draw of its own for every row scales."""
    return (x.double().square().sum(2) * grad_out.double().square().sum(2)).sum()
