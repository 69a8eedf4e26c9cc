"""The building blocks of common nets, for tests of what goes around conversion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """A transformer block of functional calls, ``[n, t, d]``."""

    def __init__(self, d: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = (u.view(n, t, self.heads, -1).transpose(1, 2) for u in self.qkv(self.before(x)).chunk(3, -1))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(n, t, d))
        return x + self.down(F.gelu(self.up(self.after(x))))


class Residual(nn.Module):
    """Two convolutions with batch norm and ReLU, ``[n, c, h, w]``."""

    def __init__(self, c: int = 16) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(c, c, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2, self.relu = nn.BatchNorm2d(c), nn.BatchNorm2d(c), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x))))))


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Of the output's mean square, by parameter."""
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(model(x).square().mean(), list(named.values())), strict=True))


def distance(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """``‖actual − expected‖ ÷ ‖expected‖`` over all entries."""
    off = sum((actual[name] - g).double().square().sum() for name, g in expected.items())
    return (off / sum(g.double().square().sum() for g in expected.values())).sqrt().item()
