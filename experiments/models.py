"""Plain PyTorch models. None of them knows of any method."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

__all__ = ["MLP"]


class MLP(nn.Sequential):
    """Fully connected ReLU net on flattened images ``[B, C, H, W]``; logits ``[B, widths[-1]]``.

    Args:
        widths: Sizes of all layers, inputs first.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        super().__init__(*layers[:-1])
