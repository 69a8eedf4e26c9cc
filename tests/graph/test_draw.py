"""Drawings: every vertex and edge is there, and kept edges stand out."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
from examples import fig1_graph, layered

from rad.graph import Graph, draw, sample_paths
from rad.graph.draw import _graphviz, _layered


def arrows(axes):
    return [t for t in axes.texts if getattr(t, "arrow_patch", None) is not None]


def test_every_vertex_and_edge_is_drawn(tmp_path):
    graph = fig1_graph()
    axes = draw(graph)
    assert len(arrows(axes)) == graph.edges
    assert sorted(t.get_text() for t in axes.texts if t.get_text()) == sorted(graph.labels)
    axes.figure.savefig(tmp_path / "fig1.png")


def test_kept_edges_stand_out():
    graph = layered([1, 4, 4, 1])
    kept = sample_paths(graph, 1)
    axes = draw(graph, kept, labels=False)
    coloured = [a for a in arrows(axes) if a.arrow_patch.get_linewidth() > 1]
    assert len(coloured) == kept.edges < graph.edges == len(arrows(axes))
    assert not [t for t in axes.texts if t.get_text()]


def test_vertices_that_no_kept_path_reaches_are_hollow():
    graph = layered([1, 4, 4, 1])
    kept = sample_paths(graph, 1)
    assert not kept.reached().all()
    for some, reached in ((None, graph.reached()), (kept, kept.reached())):
        (vertices,) = [c for c in draw(graph, some, labels=False).collections if len(c.get_offsets()) == graph.vertices]
        assert ((vertices.get_facecolors()[:, :3] < 1).any(1) == reached).all()


def test_large_graphs_are_drawn_by_collections():
    graph = layered([1, 20, 20, 1])
    axes = draw(graph, labels=False)
    assert sum(len(c.get_segments()) for c in axes.collections if hasattr(c, "get_segments")) == graph.edges


@pytest.mark.parametrize(
    "place",
    [_layered, pytest.param(_graphviz, marks=pytest.mark.skipif(not shutil.which("dot"), reason="no Graphviz"))],
)
def test_edges_lead_to_the_right_and_no_two_vertices_coincide(place):
    for graph in (fig1_graph(), layered([2, 3, 1])):
        points = place(graph)
        assert (points[graph.target, 0] > points[graph.source, 0]).all()
        assert len(np.unique(points.round(6), axis=0)) == graph.vertices


def test_parallel_lines_do_not_cross():
    # Two chains whose vertices are numbered crosswise.
    graph = Graph.build([0, 1, 2, 3, 4, 5], [3, 2, 5, 4, 6, 6], np.ones(6), [0, 1], [6])
    y = _layered(graph)[:, 1]
    lower = y[0] < y[1]
    assert (y[3] < y[2]) == lower
    assert (y[4] < y[5]) == lower


def test_a_sample_of_another_graph_is_refused():
    with pytest.raises(ValueError, match="has 4 vertices and not 7"):
        draw(fig1_graph(), layered([1, 2, 1]))


def test_matplotlib_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.collections", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        draw(fig1_graph())
