"""Random matrix injection: vertex sampling on the vectorized graph, through the same sketches as the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rad.graph.graph import Graph
from rad.sketch import Sketch

__all__ = ["chain", "inject", "injected_product"]


def chain(graph: Graph) -> list[Tensor]:
    """The Jacobians of a vectorized graph ``A → B → C → …``, whose product is the Jacobian.

    Vertices stand as far from the inputs as their longest path; the vector at distance ``l`` holds every vertex up to
    there that is still needed beyond, carried along by a one where it has been there before.

    Args:
        graph: Any graph; meant for small ones, for the matrices are dense.

    Returns:
        Float64 matrices ``[d_{l+1}, d_l]`` from the inputs on; the first has ``d_0 = I`` columns, the last has ``O``
        rows.
    """
    level = graph.levels()
    depth = int(level.max(initial=0))
    last = np.full(graph.vertices, -1)  # distance of the last vertex that needs this one
    np.maximum.at(last, graph.source, level[graph.target])
    last[graph.outputs] = depth + 1
    matrices, before = [], graph.inputs
    for here in range(1, depth + 1):
        after = np.flatnonzero((level <= here) & (last > here)) if here < depth else graph.outputs
        column = {v: np.flatnonzero(before == v) for v in set(before.tolist())}
        matrix = torch.zeros(len(after), len(before), dtype=torch.float64)
        entering = level[graph.target] == here
        edges: dict[int, list[tuple[int, float]]] = {}
        for s, t, d in zip(graph.source[entering], graph.target[entering], graph.derivative[entering], strict=True):
            edges.setdefault(int(t), []).append((int(s), float(d)))
        for row, v in enumerate(after.tolist()):
            for s, d in edges.get(v, []) if level[v] == here else [(v, 1.0)]:
                if s in column:
                    matrix[row, column[s]] = d
        matrices.append(matrix)
        before = after
    return matrices


def injected_product(jacobians: Sequence[Tensor], sketch: Sketch, generator: torch.Generator | None = None) -> Tensor:
    """Estimate of ``J_L ⋯ J_2 J_1`` with a random matrix before each Jacobian but the first (eqs. 3 to 5 of the paper).

    With a linear sketch that is ``J_L P_L ⋯ J_2 P_2 J_1``, where ``P = R Rᵀ`` and ``E P = I``: only ``J R``, the
    summary, would have to be kept. The matrices are independent, so the product is unbiased, and for the same reason
    it is with a sketch that is not linear, such as rounding.

    Args:
        jacobians: ``[d_{l+1}, d_l]``, the innermost first, as ``chain`` returns them.
        sketch: The summary of the rows of each partial product.
        generator: CPU generator of the seeds; the global one if ``None``.

    Returns:
        The estimate ``[d_L, d_0]``.
    """
    product = jacobians[-1]
    for jacobian in reversed(jacobians[:-1]):
        product = sketch.expand(sketch.compress(product, generator)) @ jacobian
    return product


def inject(x: Tensor, sketch: Sketch, generator: torch.Generator | None = None) -> Tensor:
    """The identity with a random Jacobian: ``x`` as it is, its gradient as its sketch remembers it.

    Put between the layers of a net it randomizes every Jacobian on the way down, as the paper's first attempts did
    (§3.3); ``rad.convert`` randomizes only ∂h/∂W. Each row has its draw according to the sketch.

    Args:
        x: ``[..., d]``.
        sketch: Of the gradient ``[..., d]``.
        generator: CPU generator of the seeds; the global one if ``None``.

    Returns:
        A tensor equal to ``x``.
    """
    return _Inject.apply(x, sketch, generator)


class _Inject(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sketch: Sketch, generator: Any) -> Tensor:
        ctx.sketch, ctx.generator = sketch, generator
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None]:
        rows = grad_out.reshape(-1, grad_out.shape[-1])
        return ctx.sketch.expand(ctx.sketch.compress(rows, ctx.generator)).view(grad_out.shape), None, None
