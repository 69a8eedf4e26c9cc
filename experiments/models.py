"""Plain PyTorch models. None of them knows of any method."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from experiments.schema import Count
from rad.nn import FinalState

__all__ = ["CNN", "IRNN", "MLP"]


class MLP(nn.Sequential):
    """Fully connected ReLU net on flattened images ``[B, C, H, W]``; logits ``[B, widths[-1]]``.

    Args:
        widths: Sizes of all layers, inputs first.
    """

    def __init__(self, widths: Annotated[list[Count], Field(min_length=2)]) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        super().__init__(*layers[:-1])


class CNN(nn.Sequential):
    """Convolutional ReLU net on square images ``[B, channels, size, size]``; logits ``[B, outputs]``.

    Args:
        channels: Of the images.
        blocks: Channels of the convolutions, block by block; each block ends with a pooling that halves the size.
        kernel_size: Of all convolutions, odd; zero padding keeps the size.
        size: Height and width of the images, divisible by two once for each block.
        outputs: Classes.

    Raises:
        ValueError: If ``kernel_size`` is even or the size cannot be halved often enough.
    """

    def __init__(
        self, channels: Count, blocks: list[list[Count]], kernel_size: Count, size: Count, outputs: Count
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        if size % 2 ** len(blocks):
            raise ValueError(f"size must be divisible by {2 ** len(blocks)} for {len(blocks)} blocks, got {size}")
        layers: list[nn.Module] = []
        for block in blocks:
            for width in block:
                layers += [nn.Conv2d(channels, width, kernel_size, padding=kernel_size // 2), nn.ReLU()]
                channels = width
            layers.append(nn.AvgPool2d(2))
        size //= 2 ** len(blocks)
        super().__init__(*layers, nn.Flatten(), nn.Linear(channels * size * size, outputs))


class IRNN(nn.Sequential):
    """Recurrent ReLU net that starts from the identity, on sequences ``[B, T, inputs]``; outputs ``[B, outputs]``.

    Args:
        inputs: Numbers in each time step.
        hidden: Units.
        outputs: Classes, or numbers to predict.

    References:
        Le, Jaitly, Hinton. A simple way to initialize recurrent networks of rectified linear units. 2015.
        arXiv:1504.00941.
    """

    def __init__(self, inputs: Count, hidden: Count, outputs: Count) -> None:
        recurrent, readout = (
            FinalState(inputs, hidden, nonlinearity="relu", batch_first=True),
            nn.Linear(hidden, outputs),
        )
        for name, parameter in [*recurrent.named_parameters(), *readout.named_parameters()]:
            if "bias" in name:
                nn.init.zeros_(parameter)
            elif name == "weight_hh_l0":
                nn.init.eye_(parameter)
            else:
                nn.init.normal_(parameter, std=0.001)
        super().__init__(recurrent, readout)
