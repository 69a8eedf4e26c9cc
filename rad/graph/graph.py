"""The linearized computational graph, and three ways to sum over its paths.

Shapes used throughout: ``V`` vertices, ``E`` edges, ``I`` inputs, ``O`` outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

__all__ = ["Graph"]

PATH_LIMIT = 1_000_000


@dataclass(frozen=True, eq=False)
class Graph:
    """A directed acyclic graph whose edges carry derivatives.

    Vertices are numbered in topological order, edges sorted by their source, so one pass over the edges is one
    sweep of forward accumulation, and one pass backwards one of reverse accumulation. The Jacobian of the outputs with
    respect to the inputs is Bauer's formula (eq. 1 of the paper): the sum over all paths of the product of their edges'
    derivatives. Make one with ``linearize`` or ``Graph.build``.

    Attributes:
        source: Where each edge begins, int64 ``[E]``, ascending.
        target: Where it ends, int64 ``[E]``; always a higher number than ``source``.
        derivative: Derivative of its end with respect to its beginning, float64 ``[E]``.
        inputs: Vertices of the independent variables, int64 ``[I]``.
        outputs: Vertices of the results, int64 ``[O]``.
        labels: A word for each vertex, ``V`` of them.
        start: The edges that leave vertex ``v`` are ``start[v]`` to ``start[v + 1]``, int64 ``[V + 1]``.

    References:
        Bauer. Computational graphs and rounding error. SIAM J. Numer. Anal. 11(1), 1974. doi:10.1137/0711010.
    """

    source: np.ndarray
    target: np.ndarray
    derivative: np.ndarray
    inputs: np.ndarray
    outputs: np.ndarray
    labels: tuple[str, ...]
    start: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        start = np.concatenate([[0], np.cumsum(np.bincount(self.source, minlength=self.vertices))])
        object.__setattr__(self, "start", start)

    @classmethod
    def build(
        cls,
        source: Sequence[int] | np.ndarray,
        target: Sequence[int] | np.ndarray,
        derivative: Sequence[float] | np.ndarray,
        inputs: Iterable[int],
        outputs: Iterable[int],
        labels: Sequence[str] | None = None,
    ) -> Graph:
        """Sorts vertices and edges, adds up parallel edges and drops those that lead to no output.

        Args:
            source: Where each edge begins, any numbering of the vertices from 0.
            target: Where it ends.
            derivative: Its derivative.
            inputs: Vertices of the independent variables.
            outputs: Vertices of the results.
            labels: A word for each vertex; its number by default.

        Returns:
            The graph, its vertices renumbered in topological order if they were not in it.

        Raises:
            ValueError: If the edges form a cycle, a derivative is not finite, a vertex is negative, an edge leads to
                an input, the three arrays differ in length, or no path leads from an input to an output.
        """
        begin, end = np.asarray(source, np.int64), np.asarray(target, np.int64)
        slope = np.asarray(derivative, np.float64)
        into, out = np.asarray(list(inputs), np.int64), np.asarray(list(outputs), np.int64)
        if not begin.shape == end.shape == slope.shape == (len(begin),):
            raise ValueError(
                f"source, target and derivative must be as long as each other, got {begin.shape}, {end.shape} "
                f"and {slope.shape}"
            )
        if not np.isfinite(slope).all():
            bad = int(np.flatnonzero(~np.isfinite(slope))[0])
            raise ValueError(f"the derivative of edge {begin[bad]} → {end[bad]} is {slope[bad]}; it must be finite")
        ids = np.concatenate([begin, end, into, out])
        if (ids < 0).any():
            raise ValueError(f"vertices are numbered from 0, got {ids.min()}")
        if np.isin(into, end).any():
            bad = int(into[np.isin(into, end)][0])
            raise ValueError(f"an edge leads to input {bad}; an independent variable depends on nothing")
        count = int(ids.max(initial=-1)) + 1 if labels is None else len(labels)
        words = np.array([str(v) for v in range(count)] if labels is None else list(labels), dtype=object)
        if (begin >= end).any():
            rank = _topological_rank(begin, end, count)
            begin, end, into, out = rank[begin], rank[end], rank[into], rank[out]
            words = words[np.argsort(rank)]
        # Parallel edges are one with the sum of their derivatives: a path that both continue is then one path.
        key, place = np.unique(begin * count + end, return_inverse=True)
        slope = np.bincount(place, weights=slope, minlength=len(key)) if len(key) else slope
        begin, end = np.divmod(key, max(count, 1))
        useful = _reached(end[::-1], begin[::-1], out, count)[end]
        graph = cls(begin[useful], end[useful], slope[useful], into, out, tuple(words))
        if not _reached(graph.source, graph.target, into, count)[out].any():
            raise ValueError("no path leads from an input to an output, so there is nothing to differentiate")
        return graph

    @property
    def vertices(self) -> int:
        """Number of vertices."""
        return len(self.labels)

    @property
    def edges(self) -> int:
        """Number of edges."""
        return len(self.source)

    def reached(self) -> np.ndarray:
        """Whether a path leads from an input to each vertex, bool ``[V]``."""
        return _reached(self.source, self.target, self.inputs, self.vertices)

    def levels(self) -> np.ndarray:
        """Edges on the longest path that leads to each vertex, int64 ``[V]``."""
        level = np.zeros(self.vertices, np.int64)
        for s, t in zip(self.source.tolist(), self.target.tolist(), strict=True):
            level[t] = max(level[t], level[s] + 1)
        return level

    def count_paths(self) -> int:
        """Number of paths from inputs to outputs, without walking them."""
        counts = [0] * self.vertices
        for v in self.inputs.tolist():
            counts[v] += 1
        for s, t in zip(self.source.tolist(), self.target.tolist(), strict=True):
            counts[t] += counts[s]
        return sum(counts[v] for v in self.outputs.tolist())

    def paths(self) -> Iterator[tuple[list[int], float]]:
        """Every path from an input to an output: its vertices, and the product of its derivatives."""
        outputs, target, slope = set(self.outputs.tolist()), self.target.tolist(), self.derivative.tolist()
        for first in dict.fromkeys(self.inputs.tolist()):
            stack = [([first], 1.0)]
            while stack:
                path, product = stack.pop()
                if path[-1] in outputs:
                    yield path, product
                edges = range(self.start[path[-1]], self.start[path[-1] + 1])
                stack.extend(([*path, target[e]], product * slope[e]) for e in reversed(edges))

    def bauer(self, limit: int = PATH_LIMIT) -> Tensor:
        """The Jacobian as the sum over all paths (eq. 1 of the paper), float64 ``[O, I]``.

        Args:
            limit: The most paths to walk; their number grows exponentially with depth.

        Raises:
            ValueError: If there are more.
        """
        count = self.count_paths()
        if count > limit:
            raise ValueError(f"the graph has {count:,} paths, more than limit={limit:,}; use reverse() or raise limit")
        sums: dict[tuple[int, int], float] = {}
        for path, product in self.paths():
            ends = path[0], path[-1]
            sums[ends] = sums.get(ends, 0.0) + product
        return torch.tensor([[sums.get((i, o), 0.0) for i in self.inputs] for o in self.outputs], dtype=torch.float64)

    def forward(self) -> Tensor:
        """The Jacobian by forward accumulation, one sweep an input, float64 ``[O, I]``."""
        columns = [self._sweep(i, self.source, self.target, self.derivative)[self.outputs] for i in self.inputs]
        return torch.from_numpy(np.stack(columns, 1))

    def reverse(self) -> Tensor:
        """The Jacobian by reverse accumulation, one sweep an output, float64 ``[O, I]``."""
        return torch.from_numpy(np.stack([self.adjoints(o)[self.inputs] for o in self.outputs]))

    def adjoints(self, output: int) -> np.ndarray:
        """Derivatives of the vertex ``output`` with respect to every vertex, float64 ``[V]``."""
        return self._sweep(output, self.target[::-1], self.source[::-1], self.derivative[::-1])

    def _sweep(self, first: int, begin: np.ndarray, end: np.ndarray, slope: np.ndarray) -> np.ndarray:
        # Lists: what an edge adds depends on the edge before, and item by item they are faster than arrays.
        values = [0.0] * self.vertices
        values[first] = 1.0
        for b, e, d in zip(begin.tolist(), end.tolist(), slope.tolist(), strict=True):
            values[e] += d * values[b]
        return np.array(values)


def _reached(begin: np.ndarray, end: np.ndarray, first: np.ndarray, count: int) -> np.ndarray:
    """Which vertices can be reached from ``first``, over edges in an order in which no path goes back."""
    reached = [False] * count
    for v in first.tolist():
        reached[v] = True
    for b, e in zip(begin.tolist(), end.tolist(), strict=True):
        if reached[b]:
            reached[e] = True
    return np.array(reached, dtype=bool)


def _topological_rank(begin: np.ndarray, end: np.ndarray, count: int) -> np.ndarray:
    """Place of each vertex in a topological order (Kahn's algorithm)."""
    following: list[list[int]] = [[] for _ in range(count)]
    waiting = np.bincount(end, minlength=count).tolist()
    for b, e in zip(begin.tolist(), end.tolist(), strict=True):
        following[b].append(e)
    order = [v for v in range(count) if waiting[v] == 0]
    for v in order:  # grows on the way
        for e in following[v]:
            waiting[e] -= 1
            if waiting[e] == 0:
                order.append(e)
    if len(order) < count:
        cyclic = next(v for v in range(count) if waiting[v] > 0)
        raise ValueError(f"the edges form a cycle that vertex {cyclic} is on or behind; a computation has none")
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    return rank
