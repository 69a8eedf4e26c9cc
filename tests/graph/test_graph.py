"""Bauer's formula, forward and reverse accumulation: equal to each other, and refused where there is nothing to sum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from examples import POINT, fig1, fig1_graph, layered, random_graph
from hypothesis import given
from hypothesis import strategies as st

from rad.graph import Graph


def test_fig1_has_four_paths_that_add_up_to_the_gradient():
    graph = fig1_graph()
    x1, x2 = POINT
    a, b = math.exp(x1), math.sin(x2)
    c, d = b * x2, a * b * x2
    by_hand = {0: [a * d, a * c * a], 1: [b * a * a, math.cos(x2) * x2 * a * a]}
    found: dict[int, list[float]] = {0: [], 1: []}
    for path, product in graph.paths():
        found[path[0]].append(product)
    for i in (0, 1):
        assert sorted(found[i]) == pytest.approx(sorted(by_hand[i]), rel=1e-12)
    x = torch.tensor(POINT, dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(fig1(*x), x)
    for jacobian in (graph.bauer(), graph.forward(), graph.reverse()):
        torch.testing.assert_close(jacobian, exact[None], rtol=1e-12, atol=0)


@given(seed=st.integers(0, 10_000), vertices=st.integers(4, 12), density=st.floats(0.2, 1))
def test_three_sums_over_the_same_paths(seed, vertices, density):
    graph = random_graph(seed, vertices, density)
    expected = graph.bauer()
    assert expected.shape == (2, 2)
    assert len(list(graph.paths())) == graph.count_paths()
    for jacobian in (graph.forward(), graph.reverse()):
        torch.testing.assert_close(jacobian, expected, rtol=1e-10, atol=1e-10)


@given(seed=st.integers(0, 10_000))
def test_numbering_does_not_matter(seed):
    graph = random_graph(seed)
    order = np.random.default_rng(seed).permutation(graph.vertices)
    shuffled = Graph.build(
        order[graph.source], order[graph.target], graph.derivative, order[graph.inputs], order[graph.outputs]
    )
    assert (shuffled.source < shuffled.target).all()
    assert (np.diff(shuffled.source) >= 0).all()
    torch.testing.assert_close(shuffled.reverse(), graph.reverse())
    # A label stays with its vertex.
    assert [shuffled.labels[v] for v in shuffled.inputs] == [str(order[v]) for v in graph.inputs]


def test_parallel_edges_add_up_and_dead_ends_go():
    graph = Graph.build([0, 0, 0, 2], [1, 1, 2, 3], [2.0, 0.5, 7.0, 7.0], [0], [1])
    assert (graph.edges, graph.count_paths()) == (1, 1)
    assert graph.reverse().item() == 2.5


def test_an_output_may_lead_on_and_an_input_may_be_an_output():
    graph = Graph.build([0, 1], [1, 2], [2.0, 3.0], [0], [0, 1, 2])
    expected = torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64)
    for jacobian in (graph.bauer(), graph.forward(), graph.reverse()):
        assert torch.equal(jacobian, expected)


def test_a_deep_chain_and_a_wide_layer():
    deep = Graph.build(range(50_000), range(1, 50_001), np.ones(50_000), [0], [50_000])
    assert deep.bauer().item() == deep.reverse().item() == 1
    wide = layered([1, 300, 300, 1], scale=0.1)
    assert wide.edges == 300 * 302
    torch.testing.assert_close(wide.reverse(), wide.forward())


def test_paths_are_counted_before_they_are_walked():
    graph = layered([1, *[10] * 8, 1])
    assert graph.count_paths() == 10**8
    with pytest.raises(ValueError, match=r"100,000,000 paths, more than limit=1,000,000"):
        graph.bauer()
    few = layered([1, 3, 2, 1])
    torch.testing.assert_close(few.bauer(limit=6), few.reverse())
    with pytest.raises(ValueError, match="6 paths, more than limit=5"):
        few.bauer(limit=5)


def test_levels_count_the_longest_path_in_whatever_order_edges_come():
    # To the last vertex by three, two and one edge: the shortest path comes last.
    graph = Graph.build([0, 1, 2, 1, 0, 2], [1, 2, 3, 3, 3, 4], np.ones(6), [0], [3, 4])
    assert graph.levels().tolist() == [0, 1, 2, 3, 3]
    late = Graph.build([0, 0, 1, 2, 0], [1, 2, 4, 4, 3], np.ones(5), [0], [4, 3])
    assert late.levels().tolist() == [0, 1, 1, 1, 2]
    assert random_graph(3, 9, 1.0).levels().tolist()[-1] == 7


def test_an_input_named_twice_has_a_column_for_each():
    graph = Graph.build([0, 1], [1, 2], [2.0, 3.0], [0, 0], [2])
    for jacobian in (graph.bauer(), graph.forward(), graph.reverse()):
        assert jacobian.tolist() == [[6.0, 6.0]]


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (([0, 1, 2], [1, 2, 1], [1.0, 1, 1], [0], [2]), "cycle that vertex 1"),
        (([0, 1], [1, 1], [1.0, 1], [0], [1]), "cycle"),
        (([0, 1], [1, 2], [1.0, 1], [0, 1], [2]), "an edge leads to input 1"),
        (([0, 2], [1, 3], [1.0, 1], [0], [3]), "no path leads"),
        (([0], [1], [math.nan], [0], [1]), "edge 0 → 1 is nan"),
        (([0], [1], [math.inf], [0], [1]), "edge 0 → 1 is inf"),
        (([-1], [1], [1.0], [0], [1]), "got -1"),
        (([0], [-1], [1.0], [0], [1]), "got -1"),
        (([0], [1], [1.0], [0, -2], [1]), "got -2"),
        (([0], [1], [1.0], [0], [1, -3]), "got -3"),
        (([0, 1], [1], [1.0], [0], [1]), "as long as each other"),
    ],
)
def test_what_is_no_computation_is_refused(edges, message):
    with pytest.raises(ValueError, match=message):
        Graph.build(*edges)
