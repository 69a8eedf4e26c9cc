"""Gated cells: no path through time is biased, and what is kept, when."""

from __future__ import annotations

import pytest
import torch
from sketches import normal
from torch import Tensor, nn

import rad
from rad.functional.operation import Kept
from rad.nn.seeds import Seeds

LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN}
every_layer = pytest.mark.parametrize("stock", LAYERS.values(), ids=LAYERS)


class Settled(nn.Module):
    """A net that rests in its fixed point, each unit by itself.

    All steps have the same factors then, and whatever reaches the first of them has met all in turn: errors that they
    have in common would add up to a bias.
    """

    def __init__(self, stock: type[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = stock(2, 3).double()
        with torch.no_grad():
            blocks = self.net.weight_hh_l0.unflatten(0, (-1, 3))
            blocks.copy_(torch.linspace(1, 0.6, len(blocks))[:, None, None] * torch.eye(3))
            self.x = (2 * normal(1, 12, 2, dtype=torch.float64)).expand(6, -1, -1).contiguous().requires_grad_()
            last = self.net(self.x[:1].expand(100, -1, -1))[1]
        self.first = [t.requires_grad_() for t in (last if isinstance(last, tuple) else [last])]

    def forward(self) -> Tensor:
        return self.net(self.x, tuple(self.first) if len(self.first) == 2 else self.first[0])[0][-1]

    def gradients(self) -> list[Tensor]:
        """Of first states, input and weights, by a loss of the last output alone."""
        upstream = normal(12, 3, seed=1, dtype=torch.float64)
        return list(torch.autograd.grad(self(), [*self.first, self.x, *self.parameters()], upstream))


def bias(draws: Tensor, exact: Tensor) -> tuple[float, float]:
    """An unbiased estimate of bias² ÷ ‖g‖² of ``draws`` ``[N, ...]``, and its standard error without bias."""
    count = len(draws)
    errors = draws - exact
    mean = errors.mean(0)
    scale = exact.square().sum()
    estimate = (mean.square().sum() - errors.var(0).sum() / count) / scale
    gram = (errors - mean) @ (errors - mean).t() / scale
    noise = (gram.square().sum() - gram.diagonal().square().sum()).sqrt() * 2**0.5 / count**2
    return float(estimate), float(noise)


def measured(stock: type[nn.Module], bits: int) -> tuple[float, float]:
    model = Settled(stock)
    exact = model.gradients()
    rad.convert(model, rad.Rounding(bits=bits, group=16), generator=Seeds(3))

    def alike(grads: list[Tensor]) -> Tensor:
        # All tensors count alike; those of the first states are small, for they have come furthest.
        return torch.cat([(g / e.norm()).flatten() for g, e in zip(grads, exact, strict=True)])

    return bias(torch.stack([alike(model.gradients()) for _ in range(300)]), alike(exact))


@pytest.mark.montecarlo
@every_layer
@pytest.mark.parametrize("bits", [2, 3])
def test_no_path_through_time_is_biased(stock, bits):
    estimate, noise = measured(stock, bits)
    assert abs(estimate) < 5 * noise


@every_layer
def test_one_draw_for_all_steps_would_be_a_bias(stock, monkeypatch):
    dense = Kept.dense

    def same(kept: Kept, factors) -> Tensor:
        found = dense(kept, factors)
        steps = found.reshape(-1, 6, 12, 3)
        return steps[:, :1].expand_as(steps).contiguous().view(found.shape)

    monkeypatch.setattr(Kept, "dense", same)
    estimate, noise = measured(stock, 2)
    assert estimate > 5 * noise
