"""The cases of the study of depth: nets that start alike and are trained, graphs against their closed form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sketches import seeded

import experiments.studies.gradient_noise
import experiments.studies.graph_depth
from experiments.runs.parts import make
from experiments.runs.resources import generator
from experiments.runs.study import build
from experiments.studies.graph_depth import GRAPHS, NETS, _net, _on_graph, _on_net, _relative, growth
from rad.measure import Moments, gradients


@pytest.fixture
def depth(composed):
    """Composes a small study of depth."""
    small = ["scale=smoke", "data=mnist", "iterations=4", "net.width=20", "net.batch_size=40", "seed=3"]
    return lambda *more: composed("experiment=graph_depth", *small, *more)


@pytest.mark.parametrize("layers", [1, 3])
def test_nets_of_one_depth_start_alike_and_see_the_same_batches(depth, layers):
    config = depth()
    data = make(config.data)
    nets = {how: _net(config, data, how, layers, seeded(0)) for how in NETS}
    plain = list(nets["exact"].parameters())
    for how, net in nets.items():
        assert all(torch.equal(p, q) for p, q in zip(plain, net.parameters(), strict=True)), how
        injected = [layer for layer in net if type(layer).__name__ == "_Injected"]
        assert len(injected) == (layers if how == "every" else 0)
    entries = {how: _on_net(config, data, how, layers) for how in NETS}
    assert len({entry["first_loss"] for entry in entries.values()}) == 1
    assert len({entry["train_loss"] for entry in entries.values()}) == 3


def test_examples_have_draws_of_their_own(depth):
    config = depth()
    data = make(config.data)
    x, y = data.draw(40, seeded(1))
    exact, weight = (_net(config, data, how, 2, seeded(0)) for how in ("exact", "weight"))
    found, plain = ([*gradients(net, lambda n=net: F.cross_entropy(n(x), y)).values()] for net in (weight, exact))
    # Of the last layer's inputs none is left out by all 40, as most would be with one draw for the batch.
    alive = plain[-2].ne(0).any(0)
    assert alive.sum() > 5
    assert found[-2].ne(0).any(0)[alive].all()


def test_a_net_is_trained_and_judged_on_the_training_set(depth):
    config = depth()
    data = make(config.data)
    entry, batches = _on_net(config, data, "exact", 2), generator(3, "batches")
    net = _net(config, data, "exact", 2, seeded(0))
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    data.draw(40, batches)  # the batch at which the variance is measured
    losses = []
    for _ in range(4):
        x, y = data.draw(40, batches)
        losses.append(F.cross_entropy(net(x), y))
        for p, g in zip(net.parameters(), torch.autograd.grad(losses[-1], list(net.parameters())), strict=True):
            p.grad = g
        adam.step()
    assert entry["first_loss"] == losses[0].item()
    final = F.cross_entropy(net(data.inputs(data.x_train)), data.y_train).item()
    assert entry["train_loss"] == pytest.approx(final, rel=1e-5)


@pytest.mark.parametrize("family", GRAPHS)
def test_variance_on_a_graph_is_the_one_predicted(depth, family):
    config = depth("width=6", "edges=3", "draws=600")
    for layers in (1, 3):
        entry = _on_graph(config, family, layers)
        assert abs(entry["variance"] - entry["predicted"]) < 4 * entry["variance_error"]
        assert entry["bias"] < 2.5 * entry["bias_error"]
        assert entry["predicted"] == pytest.approx(growth(6, 3) ** (layers if GRAPHS[family][1] else 1) - 1)


def test_moments_are_relative_to_the_exact_gradient():
    found = _relative(Moments(norm2=16.0, variance=8.0, variance_error=4.0, bias=2.0, bias_error=1.0))
    assert found == {"variance": 0.5, "variance_error": 0.25, "bias": 0.5, "bias_error": 0.25}


@pytest.mark.filterwarnings("ignore::rad.BudgetFloorWarning")
def test_all_cases_of_a_study_draw_from_streams_of_their_own(composed, monkeypatch):
    asked = []
    for study in (experiments.studies.gradient_noise, experiments.studies.graph_depth):
        monkeypatch.setattr(study, "generator", lambda *args: asked.append(args) or generator(*args))
    shared = {"initial weights", "batches mlp", "batches", "initial weights 1", "initial weights 2"}
    noise = ["~nets.cnn", "~nets.irnn", "budgets=[0.1,1]", "nets.mlp.model.widths=[784,16,10]"]
    graphs = ["data=mnist", "depths=[1,2]", "net.depths=[1,2]", "net.width=9"]
    for options in (["experiment=gradient_noise", *noise], ["experiment=graph_depth", *graphs]):
        asked.clear()
        build(composed(*options, "scale=smoke", "seed=6"))[0].run(lambda record: None, lambda state: None)
        purposes = [purpose for _, purpose in asked if purpose not in shared]
        assert len(purposes) == len(set(purposes)) > 9
        assert {seed for seed, _ in asked} == {6}
