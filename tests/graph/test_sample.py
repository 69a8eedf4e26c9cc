"""Path sampling: every draw of small graphs enumerated, certificates on random ones, and the cost."""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import pytest
import torch
from examples import fig1_graph, layered, random_graph
from sketches import assert_unbiased, seeded

from rad.graph import sample_paths
from rad.sketch.random import Stream


def choices(*degrees):
    """Words that choose each of a vertex's edges in turn, for draws at vertices of the given degrees."""
    return product(*[[(2 * i + 1) * 2**31 // d << 32 for i in range(d)] for d in degrees])


def enumerated(monkeypatch, graph, edges, degrees):
    draws = []
    for words in choices(*degrees):
        fixed = torch.tensor([w - 2**64 if w >= 2**63 else w for w in words], dtype=torch.int64)
        with monkeypatch.context() as patch:
            patch.setattr(Stream, "words", lambda self, count, fixed=fixed: fixed if count == len(fixed) else None)
            draws.append(sample_paths(graph, edges))
    return draws


def test_every_draw_of_paths_of_fig1(monkeypatch):
    graph = fig1_graph()
    degrees = np.diff(graph.start)
    assert sorted(degrees.tolist()) == [0, 1, 1, 1, 1, 2, 2]  # x2 and a have a choice
    draws = enumerated(monkeypatch, graph, 1, [2, 2])
    assert len(draws) == 4
    mean = torch.stack([d.reverse() for d in draws]).mean(0)
    assert (mean - graph.reverse()).abs().max() < 1e-12
    # One path an input: that is what a sample keeps.
    assert all(d.count_paths() == 2 for d in draws)
    # Vertices that no kept path reaches are left alone.
    assert any(not d.reached()[[i for i, w in enumerate(graph.labels) if w == "sin"][0]] for d in draws)
    assert all(d.reached()[d.source].all() for d in draws)


@pytest.mark.parametrize("edges", [1, 2])
def test_every_draw_of_paths_of_a_small_graph(monkeypatch, edges):
    graph = layered([2, 3, 3, 1])
    crowded = [3] * 2 * edges + [3] * 3 * edges
    if edges == 2:
        graph = layered([1, 3, 3, 1])
        crowded = [3] * 4 * edges
    draws = enumerated(monkeypatch, graph, edges, crowded)
    assert len(draws) == 3 ** len(crowded)
    mean = torch.stack([d.reverse() for d in draws]).mean(0)
    assert (mean - graph.reverse()).abs().max() < 1e-12


# 4 entries for each of six graphs and two numbers of edges, at five standard errors.
@pytest.mark.parametrize("edges", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_paths_are_unbiased(edges, seed):
    graph, generator = random_graph(seed), seeded(seed)
    draws = torch.stack([sample_paths(graph, edges, generator).reverse() for _ in range(2000)])
    assert_unbiased(draws, graph.reverse())
    assert draws.std(0).max() > 0


def test_vertices_with_few_edges_are_exact():
    graph = random_graph(0)
    sparse = sample_paths(graph, graph.vertices, seeded(0))
    torch.testing.assert_close(sparse.reverse(), graph.reverse(), rtol=0, atol=0)


@pytest.mark.parametrize("edges", [1, 2, 3])
def test_only_vertices_with_more_edges_are_sampled(edges):
    # Inputs have two edges, the vertices behind them three.
    graph = layered([2, 2, 3, 1])
    for seed in range(10):
        sparse = sample_paths(graph, edges, seeded(seed))
        kept, degree = np.diff(sparse.start), np.diff(graph.start)
        reached = sparse.reached()
        assert (kept[reached] <= np.minimum(degree, edges)[reached]).all()
        whole = reached & (degree <= edges)
        assert (kept[whole] == degree[whole]).all()


@pytest.mark.parametrize("edges", [0, -1, 1.5, True])
def test_number_of_edges_is_checked(edges):
    with pytest.raises(ValueError, match=f"got {edges}"):
        sample_paths(fig1_graph(), edges)


@pytest.mark.parametrize("widths", [[1, *[100] * 11, 1], [1, *[2] * 25_000, 1]], ids=["wide", "deep"])
def test_a_hundred_thousand_edges_take_less_than_a_second(widths):
    graph = layered(widths, scale=0.1)
    assert graph.edges > 0.99e5
    sample_paths(graph, 1).reverse()  # compiles what is to be compiled
    start = time.process_time()
    sample_paths(graph, 4).reverse()
    assert time.process_time() - start < 1
