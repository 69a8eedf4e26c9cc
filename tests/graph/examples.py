"""Graphs that the tests share."""

from __future__ import annotations

import numpy as np
import torch
from sketches import seeded

from rad.graph import Graph, linearize


def fig1(x1, x2):
    """The worked example of the paper's Fig. 1."""
    a = torch.exp(x1)
    b = torch.sin(x2)
    c = b * x2
    d = a * c
    return a * d


POINT = (0.5, 1.2)


def fig1_graph() -> Graph:
    return linearize(fig1, *POINT)


def random_graph(seed: int, vertices: int = 12, density: float = 0.4) -> Graph:
    """Two inputs, two outputs, random edges from lower to higher numbers."""
    generator = seeded(seed)
    source, target = torch.triu_indices(vertices, vertices, 1)
    chosen = torch.rand(len(source), generator=generator) < density
    chosen |= (source == 0) & (target == vertices - 1)
    chosen &= target > 1  # inputs depend on nothing
    derivative = torch.randn(len(source), generator=generator, dtype=torch.float64)
    edges = (t[chosen].numpy() for t in (source, target, derivative))
    return Graph.build(*edges, inputs=[0, 1], outputs=[vertices - 2, vertices - 1])


def layered(widths, seed: int = 0, scale: float = 1.0) -> Graph:
    """Every vertex of a layer leads to every one of the next."""
    first = np.cumsum([0, *widths])
    pairs = [np.meshgrid(*(np.arange(first[i + j], first[i + j + 1]) for j in (0, 1))) for i in range(len(widths) - 1)]
    source, target = (np.concatenate([p[i].ravel() for p in pairs]) for i in (0, 1))
    derivative = scale * torch.randn(len(source), generator=seeded(seed), dtype=torch.float64).numpy()
    return Graph.build(source, target, derivative, range(widths[0]), range(first[-2], first[-1]))
