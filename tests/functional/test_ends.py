"""The sketches of the paper stand at the ends of paths alone: all gradients but those of weights stay exact."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from calls import Case, answered, leaf, path, quiet
from cases import CASES
from sketches import SKETCHES, assert_unbiased, held, normal
from torch import Tensor

from rad.nn import Seeds

pytestmark = [*quiet, pytest.mark.filterwarnings("ignore::rad.BudgetFloorWarning")]

PAPER = {name: make(0.4) for name, make in SKETCHES.items() if not make(0.4).serves_factors}
EVERY = {name: make(0.4) for name, make in SKETCHES.items()}
ENDS = {
    "linear": Case("linear", F.linear, [path(6, 16), leaf(5, 16), leaf(5)]),
    "addmm": Case("addmm", torch.addmm, [leaf(5), path(6, 16), leaf(16, 5)]),
    "matmul": Case("matmul", torch.matmul, [path(2, 3, 16), leaf(16, 5)]),
    "conv1d": Case("conv1d", F.conv1d, [path(3, 2, 12), leaf(4, 2, 3), leaf(4)]),
    "conv2d": Case("conv2d", F.conv2d, [path(3, 2, 5, 6), leaf(4, 2, 3, 2), leaf(4), 2, 1]),
    "conv_transpose2d": Case("conv_transpose2d", F.conv_transpose2d, [path(3, 2, 5, 6), leaf(2, 4, 3, 2), leaf(4)]),
    "scale": Case("scale", torch.mul, [path(6, 16), leaf(16)]),
}


def place_of_weight(case: Case) -> int:
    return max(case.places, key=lambda i: (case.inputs[i].role == "leaf") * case.tensors()[i].numel())


@pytest.mark.montecarlo
@pytest.mark.parametrize("sketch", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("case", ENDS.values(), ids=ENDS)
def test_the_weight_gradient_is_random_and_right_on_average(case, sketch):
    stock, seeds, weight = case.run().grads, Seeds(0), case.places.index(place_of_weight(case))
    draws = []
    for _ in range(80):
        grads = case.run(sketch, seeds=seeds).grads
        draws.append(grads[weight])
        for i, (ours, exact) in enumerate(zip(grads, stock, strict=True)):
            if i != weight:
                torch.testing.assert_close(ours, exact)
    assert torch.stack(draws).std(0).max() > 1e-6
    assert_unbiased(torch.stack(draws), stock[weight])


# The same with so many elements that no summary is at its floor.
LARGE = {
    "linear": Case("linear", F.linear, [path(12, 200), leaf(5, 200)]),
    "addmm": Case("addmm", torch.addmm, [leaf(5), path(12, 200), leaf(200, 5)]),
    "matmul": Case("matmul", torch.matmul, [path(2, 6, 200), leaf(200, 5)]),
    "conv1d": Case("conv1d", F.conv1d, [path(6, 2, 200), leaf(4, 2, 3)]),
    "conv2d": Case("conv2d", F.conv2d, [path(6, 2, 10, 20), leaf(4, 2, 3, 2)]),
    "conv_transpose2d": Case("conv_transpose2d", F.conv_transpose2d, [path(6, 2, 10, 20), leaf(2, 4, 3, 2)]),
    "scale": Case("scale", torch.mul, [path(12, 200), leaf(200)]),
}


@pytest.mark.parametrize("sketch", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_of_what_forms_a_weight_gradient_a_summary_is_kept(case, sketch):
    tensors = case.tensors(torch.float32, [place_of_weight(case)])
    x = next(t for t in tensors if t.numel() == 2400)
    nbytes = held(lambda: case.call(tensors, sketch))
    assert 0.2 * x.nbytes < nbytes <= 0.4 * x.nbytes + 8


@pytest.mark.parametrize("sketch", [PAPER["project"], PAPER["sample-batch"]], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_else_is_exact(case, sketch):
    ours, stock = case.run(sketch).grads, case.run().grads
    for place, mine, theirs in zip(case.places, ours, stock, strict=True):
        # A weight that is computed is one all the same: its gradient is random, and exact what it is passed on by.
        if case.inputs[place].role == "path" and not ("computed" in case.name and place == 1):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("sketch", EVERY.values(), ids=EVERY)
def test_a_summary_within_the_budget_is_kept_of_the_input(sketch):
    x, weight = normal(6, 200), torch.nn.Parameter(normal(5, 200))

    def run() -> Tensor:
        with answered(sketch):
            return F.linear(x, weight)

    assert held(run) <= 0.4 * x.nbytes + 8
    x.requires_grad_()
    assert held(run) - weight.nbytes <= 0.4 * x.nbytes + 8
    weight.requires_grad_(False)
    assert held(run) == weight.nbytes
