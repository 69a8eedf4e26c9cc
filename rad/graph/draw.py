"""Drawing a graph and the edges that a sample has kept. Needs matplotlib; uses Graphviz where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import numpy as np

from rad.graph.graph import Graph

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

_SWEEPS = 8


def draw(graph: Graph, kept: Graph | None = None, axes: Axes | None = None, labels: bool = True) -> Axes:
    """Draws a graph from left to right.

    Args:
        graph: The full graph.
        kept: A sample of it; its edges are drawn in colour, the others in grey, and vertices that it does not reach are
            hollow.
        axes: Where to draw; a new figure by default.
        labels: Whether to write the labels of the vertices.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If ``kept`` has other vertices.
    """
    try:
        from matplotlib.collections import LineCollection
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing a graph needs matplotlib: pip install matplotlib") from error
    if kept is not None and kept.vertices != graph.vertices:
        raise ValueError(f"kept must be a sample of graph, but has {kept.vertices} vertices and not {graph.vertices}")
    if axes is None:
        axes = Figure(figsize=(6, 3), layout="constrained").subplots()
    place = _graphviz(graph) if shutil.which("dot") else _layered(graph)
    edges = set(zip(graph.source.tolist(), graph.target.tolist(), strict=True))
    chosen = edges if kept is None else set(zip(kept.source.tolist(), kept.target.tolist(), strict=True))
    for group, colour, width in ((edges - chosen, "#CCCCCC", 0.8), (chosen, "#0072B2", 1.6)):
        if len(edges) > 200:
            axes.add_collection(LineCollection([place[list(e)] for e in group], colors=colour, linewidths=width / 2))
            continue
        for s, t in sorted(group):
            style = {"arrowstyle": "-|>", "color": colour, "lw": width, "shrinkA": 10, "shrinkB": 10}
            axes.annotate("", tuple(place[t]), tuple(place[s]), arrowprops=style)
    alive = (graph if kept is None else kept).reached()
    fill = np.where(alive, "#0072B2", "#FFFFFF")
    axes.scatter(*place.T, s=300 if labels else 60, c=fill, edgecolors="#0072B2", zorder=3)
    if labels:
        for v, (x, y) in enumerate(place):
            colour = "white" if alive[v] else "#0072B2"
            axes.annotate(graph.labels[v], (x, y), ha="center", va="center", color=colour, fontsize=7, zorder=4)
    axes.margins(0.08, 0.12)
    axes.set_axis_off()
    return axes


def _layered(graph: Graph) -> np.ndarray:
    """Places ``[V, 2]``: columns by longest path from the inputs, rows in the order of the neighbours' mean."""
    x, y = graph.levels(), np.zeros(graph.vertices)
    columns = [np.flatnonzero(x == column) for column in range(int(x.max(initial=0)) + 1)]
    for column in columns:
        y[column] = np.linspace(0, 1, len(column) + 2)[1:-1]
    for sweep in range(_SWEEPS):
        begin, end = (graph.source, graph.target) if sweep % 2 == 0 else (graph.target, graph.source)
        for column in columns if sweep % 2 == 0 else reversed(columns):
            sums, counts = (np.bincount(end, w, graph.vertices)[column] for w in (y[begin], None))
            wanted = np.where(counts > 0, sums / np.maximum(counts, 1), y[column])
            y[column[np.argsort(wanted, kind="stable")]] = np.linspace(0, 1, len(column) + 2)[1:-1]
    return np.stack([x, -y], 1)


def _graphviz(graph: Graph) -> np.ndarray:
    """Places ``[V, 2]`` by the program ``dot``."""
    edges = "".join(f"{s}->{t};" for s, t in zip(graph.source.tolist(), graph.target.tolist(), strict=True))
    vertices = "".join(f"{v};" for v in range(graph.vertices))
    text = f"digraph{{rankdir=LR;{vertices}{edges}}}"
    plain = subprocess.run(["dot", "-Tplain"], input=text, capture_output=True, text=True, check=True).stdout
    place = np.zeros((graph.vertices, 2))
    for words in map(str.split, plain.splitlines()):
        if words[0] == "node":
            place[int(words[1])] = float(words[2]), float(words[3])
    return place
