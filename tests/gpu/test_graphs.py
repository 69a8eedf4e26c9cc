"""CUDA graphs of training steps, whose replays draw what the steps would draw."""

from __future__ import annotations

import pytest
import torch
from blocks import Attention, Residual
from on_device import gpu
from sketches import normal

import rad
from rad.nn import CUDAGraph, Seeds

pytestmark = gpu
BLOCKS = {"attention": (Attention, (16, 64, 32)), "residual": (Residual, (8, 16, 24, 24))}
SKETCHES = {
    "rounding": rad.Rounding(bits=3),
    "same": rad.Sample(0.2, per="batch"),
    "projection": rad.Project(0.2),
    "sampled": rad.RoundedSample(0.05),
}


class Steps:
    """Steps of a net, which is moved by each."""

    def __init__(self, name: str, sketch: rad.Sketch) -> None:
        make, shape = BLOCKS[name]
        torch.manual_seed(0)
        self.model, self.seeds = make().cuda(), Seeds(5)
        rad.convert(self.model, sketch, generator=self.seeds)
        self.x = normal(*shape).cuda()
        self.start = [p.detach().clone() for p in self.model.parameters()]

    def step(self) -> None:
        self.model.zero_grad()
        self.model(self.x).square().mean().backward()
        with torch.no_grad():
            for p in self.model.parameters():
                p.sub_(p.grad, alpha=0.01)

    def captured(self) -> CUDAGraph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = CUDAGraph(self.model)
        with torch.cuda.graph(graph):
            self.step()
        return graph

    def again(self) -> None:
        """From the first step on."""
        self.seeds.set_state(Seeds(5).get_state())
        with torch.no_grad():
            for p, start in zip(self.model.parameters(), self.start, strict=True):
                p.copy_(start)

    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


@pytest.fixture(autouse=True)
def _same_every_time(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("name", BLOCKS)
def test_replays_draw_what_the_steps_would_draw(name, sketch):
    net = Steps(name, SKETCHES[sketch])
    graph = net.captured()
    net.again()
    found = []
    for replayed in (True, False):
        net.again()
        for i in range(4):
            if replayed and i != 2:  # and one in between without
                graph.replay()
            else:
                net.step()
        found.append((net.weights(), int(net.seeds.get_state())))
    assert found[0][1] == found[1][1]
    assert torch.equal(found[0][0], found[1][0])


def test_each_replay_draws_anew():
    net = Steps("residual", SKETCHES["rounding"])
    graph = net.captured()
    drawn = []
    for _ in range(2):
        net.again()
        net.seeds.set_state(net.seeds.get_state() + 1000 * len(drawn))
        graph.replay()
        drawn.append(net.weights())
    assert not torch.equal(*drawn)


def test_a_capture_takes_no_seed():
    net = Steps("residual", SKETCHES["rounding"])
    graph = net.captured()
    state = int(net.seeds.get_state())
    graph.replay()
    once = int(net.seeds.get_state()) - state
    assert once > 0
    net.step()
    assert int(net.seeds.get_state()) == state + 2 * once


@pytest.mark.parametrize("loops", [True, False], ids=["loops", "plain"])
def test_a_graph_of_another_kind_is_refused(loops, monkeypatch):
    monkeypatch.setattr(rad.sketch.gpu, "enabled", loops)
    net = Steps("residual", SKETCHES["rounding"])
    net.step()
    with pytest.raises(RuntimeError, match=r"rad\.nn\.CUDAGraph"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        net.step()
    net.step()


def test_numbers_of_plain_pytorch_are_shifted_too(monkeypatch):
    monkeypatch.setattr(rad.sketch.gpu, "enabled", False)
    test_replays_draw_what_the_steps_would_draw("residual", "rounding")
