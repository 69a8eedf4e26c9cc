"""The formula behind the paper's Table 1, and what is measured beside it."""

from __future__ import annotations

import pytest
import torch

from experiments.runs.configs import composed
from experiments.runs.parts import make
from scripts.table1 import FRACTIONS, NETS, cells, left, measure


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.model)
def test_the_formula_gives_the_papers_figures(net):
    for fraction, figure in zip(FRACTIONS, net.paper, strict=True):
        assert net.formula(fraction) / 1e6 == pytest.approx(figure, abs=0.011)


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.model)
def test_weights_are_counted(net):
    model = make(composed([f"model={net.model}"]).model)
    assert sum(p.numel() for p in model.parameters()) == net.parameters


@pytest.mark.parametrize("fraction", [1.0, 0.1])
def test_a_measured_cell_is_the_formula_and_what_is_explained(fraction):
    (net,) = (net for net in NETS if net.model == "mlp")
    threads = torch.get_num_threads()
    try:
        found = measure(net.model, net.inputs, "rad_same", fraction)
    finally:
        torch.set_num_threads(threads)
    assert abs(left(net, fraction, found)) < 0.03
    row = cells(net, f"{fraction:g}", fraction, found)
    assert row["measured"] == f"{(found.saved + found.weights) / 1e6:.2f}"
    assert found.allocated > found.saved - 4 * net.parameters
