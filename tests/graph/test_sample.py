"""Path sampling and injection: every draw of small graphs enumerated, certificates on random ones, and the cost."""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import pytest
import torch
from examples import fig1_graph, layered, random_graph
from sketches import SKETCHES, assert_unbiased, normal, seeded

import rad
from rad.graph import Graph, chain, inject, injected_product, sample_paths
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


def test_generator_decides():
    graph, state = layered([1, 5, 5, 1]), torch.get_rng_state()
    first, again, other = (sample_paths(graph, 1, seeded(s)).reverse() for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


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


@pytest.mark.parametrize("seed", range(5))
def test_chain_multiplies_to_the_jacobian(seed):
    graph = random_graph(seed)
    product_ = torch.eye(2, dtype=torch.float64)
    for jacobian in chain(graph):
        product_ = jacobian @ product_
    torch.testing.assert_close(product_, graph.reverse())


def test_chain_of_fig1_carries_what_is_needed_later():
    assert [tuple(j.shape) for j in chain(fig1_graph())] == [(3, 2), (2, 3), (2, 2), (1, 2)]
    layers = chain(layered([2, 4, 3]))
    assert [tuple(j.shape) for j in layers] == [(4, 2), (3, 4)]
    both = chain(Graph.build([0, 1], [1, 2], [2.0, 3.0], [0], [0, 1, 2]))
    assert torch.equal(both[1] @ both[0], torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64))


def outcomes(sketch, widths, method):
    """Every outcome of a sketch's random numbers for rows of the given widths, one draw each."""
    if method == "integers":
        return product(*[list(product(range(d), repeat=sketch.rank(d) if sketch.replacement else 1)) for d in widths])
    return product(*[list(product((-1, 1), repeat=d * sketch.rank(d))) for d in widths])


@pytest.mark.parametrize(
    ("sketch", "method"),
    [
        pytest.param(rad.Sample(0.67), "integers", id="with replacement"),
        pytest.param(rad.Sample(0.67, replacement=False), "integers", id="without"),
        pytest.param(rad.Project(0.5), "signs", id="project"),
    ],
)
def test_every_injected_matrix_of_fig1(monkeypatch, sketch, method):
    graph = fig1_graph()
    jacobians, draws = chain(graph), []
    for numbers in outcomes(sketch, [2, 2, 3], method):  # from the output on
        # Asked for in compress and again in expand.
        queue = iter([n for group in numbers for n in (group, group)])

        def fixed(self, *args, queue=queue):
            dtype = next((a for a in args if isinstance(a, torch.dtype)), torch.int64)
            values = torch.tensor(next(queue), dtype=dtype)
            return values.view(next((a for a in args if isinstance(a, tuple)), (-1,)))

        with monkeypatch.context() as patch:
            patch.setattr(Stream, method, fixed)
            draws.append(injected_product(jacobians, sketch))
    found = torch.stack(draws)
    assert (found.mean(0) - graph.reverse()).abs().max() < 1e-12
    assert found.std(0).min() > 0.1


@pytest.mark.parametrize("name", SKETCHES)
def test_injection_is_unbiased_with_every_sketch(name):
    jacobians = [normal(8, 3, dtype=torch.float64), normal(8, 8, seed=1, dtype=torch.float64)]
    jacobians.append(normal(4, 8, seed=2, dtype=torch.float64))
    generator, sketch = seeded(0), SKETCHES[name](0.5)
    draws = torch.stack([injected_product(jacobians, sketch, generator) for _ in range(1500)])
    assert_unbiased(draws, jacobians[2] @ jacobians[1] @ jacobians[0])


def test_injection_into_a_net():
    x, weight = normal(5, 8, dtype=torch.float64).requires_grad_(), normal(3, 8, seed=1, dtype=torch.float64)
    sketch, generator = rad.Sample(0.5, per="element"), seeded(0)
    out = inject(x, sketch, generator)
    assert torch.equal(out, x)
    draws = [torch.autograd.grad((inject(x, sketch, generator) @ weight.T).sum(), x)[0] for _ in range(1500)]
    assert_unbiased(torch.stack(draws), weight.sum(0).expand(5, 8))
    (exact,) = torch.autograd.grad((inject(x, rad.Exact()) @ weight.T).sum(), x)
    torch.testing.assert_close(exact, weight.sum(0).expand(5, 8))
