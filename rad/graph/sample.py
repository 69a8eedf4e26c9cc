"""Path sampling: a sparse graph whose paths are an unbiased sample of all."""

from __future__ import annotations

import numbers

import numpy as np
import torch

from rad.graph.graph import Graph
from rad.sketch.random import Stream, bounded

__all__ = ["sample_paths"]


def sample_paths(graph: Graph, edges: int, generator: torch.Generator | None = None) -> Graph:
    """Samples outgoing edges of each vertex in one pass in topological order (§3.1 of the paper).

    Of a vertex with ``m`` outgoing edges, ``edges`` are drawn uniformly with replacement and each is weighted by
    ``m / edges`` for every time it was drawn; all are kept where there are no more than that. A path through the sparse
    graph then has the expected weight 1, as the draws of its vertices are independent, so any accumulation over
    the sparse graph is unbiased. Vertices that no kept path reaches are left without edges: only the others take
    part in reverse mode, and only their edges need be remembered.

    Args:
        graph: The full graph, on which the forward pass runs.
        edges: Edges to draw at each vertex.
        generator: CPU generator of the seed; the global one if ``None``.

    Returns:
        The sparse graph, of the same vertices; ``reverse()`` of it is the estimate of the Jacobian.

    Raises:
        ValueError: If ``edges`` is not a whole number of at least 1.
    """
    if isinstance(edges, bool) or not isinstance(edges, numbers.Integral) or edges < 1:
        raise ValueError(f"edges must be a whole number of at least 1, got {edges!r}; 1 keeps a single edge a vertex")
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    degree = np.diff(graph.start)
    crowded = np.flatnonzero(degree > edges)
    words = Stream(seed, torch.device("cpu")).words(len(crowded) * int(edges)).view(-1, int(edges))
    drawn = bounded(words, torch.from_numpy(degree[crowded, None])).numpy() + graph.start[crowded, None]
    counts = np.ones(graph.edges)
    counts[np.repeat(degree > edges, degree)] = 0
    counts += np.bincount(drawn.ravel(), minlength=graph.edges)
    weight = np.where(degree > edges, degree / edges, 1.0)[graph.source] * counts
    return _kept(graph, weight)


def _kept(graph: Graph, weight: np.ndarray) -> Graph:
    """The edges of positive weight that can be reached from the inputs, their derivatives times the weight."""

    def part(chosen: np.ndarray) -> Graph:
        ends = graph.source[chosen], graph.target[chosen], (graph.derivative * weight)[chosen]
        return Graph(*ends, graph.inputs, graph.outputs, graph.labels)

    drawn = weight > 0
    return part(drawn & part(drawn).reached()[graph.source])
