"""Injection of random matrices: every matrix enumerated, certificates with every sketch, and whose draws they are."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from examples import fig1_graph, layered, random_graph
from sketches import SKETCHES, assert_unbiased, normal, seeded

import rad
from rad.graph import Graph, chain, inject, injected_product, sample_paths
from rad.sketch.random import Stream


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


@pytest.mark.parametrize(("per", "patterns"), [("batch", 1), ("element", 4)])
def test_injection_treats_each_row_as_the_sketch_says(per, patterns):
    x = normal(2, 10, 8, dtype=torch.float64).requires_grad_()
    grad_out = normal(2, 10, 8, seed=1, dtype=torch.float64)
    out = inject(x, rad.Sample(0.25, per=per, replacement=False), seeded(0))
    assert out.data_ptr() == x.data_ptr()
    (found,) = torch.autograd.grad(out, x, grad_out)
    # Two of eight entries of each row, four times as large, from one of four starts.
    kept = found != 0
    assert (kept.sum(2) == 2).all()
    assert len(kept.view(20, 8).unique(dim=0)) == patterns
    torch.testing.assert_close(found[kept], 4 * grad_out[kept])


def test_there_is_a_matrix_between_any_two_jacobians_and_no_more(monkeypatch):
    jacobians, shapes, compress = chain(layered([2, 4, 3, 5])), [], rad.Sample.compress
    monkeypatch.setattr(
        rad.Sample, "compress", lambda self, x, generator: shapes.append(tuple(x.shape)) or compress(self, x, generator)
    )
    injected_product(jacobians, rad.Sample(0.5))
    assert shapes == [(5, 3), (5, 4)]


def injected(generator):
    x = normal(4, 8).requires_grad_()
    return torch.autograd.grad(inject(x, rad.Project(0.5), generator).sum(), x)[0]


DRAWS = {
    "paths": lambda generator: sample_paths(layered([1, 5, 5, 1]), 1, generator).reverse(),
    "product": lambda generator: injected_product(chain(layered([2, 6, 6, 1])), rad.Project(0.5), generator),
    "net": injected,
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_all_randomness_is_that_of_the_generator(draw):
    ambient = torch.get_rng_state()
    first, again, other = (draw(seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    generator = seeded(0)
    assert not torch.equal(draw(generator), draw(generator))
    assert torch.equal(torch.get_rng_state(), ambient)
    # Without one it is that of PyTorch.
    torch.manual_seed(7)
    without = draw(None)
    torch.manual_seed(7)
    assert torch.equal(draw(None), without)
    assert not torch.equal(draw(None), without)
