"""Plain PyTorch models. None of them knows of any method."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from experiments.schema import Count
from rad.nn import FinalState

__all__ = ["CNN", "GPT", "IRNN", "LSTM", "MLP", "ResNet"]


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


class _Residual(nn.Module):
    """Two convolutions with BatchNorm, added to what came in; maps ``[B, C, H, W]`` to ``[B, D, H/s, W/s]``."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_first, self.norm_second = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.around: nn.Module = nn.Identity()
        if stride > 1 or channels != width:
            self.around = nn.Sequential(nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm_first(self.first(x)))
        return F.relu(self.norm_second(self.second(inner)) + self.around(x))


class ResNet(nn.Sequential):
    """Residual net for small square images ``[B, channels, size, size]``; logits ``[B, outputs]``.

    With two blocks in each of four stages it is ResNet-18 as used for images of 32 pixels: a convolution of 3 × 3 in
    place of the first one and its pooling.

    Args:
        channels: Of the images.
        width: Channels of the first stage; 64 in the paper. Each later stage has twice as many at half the size.
        blocks: Of two convolutions each, by stage.
        outputs: Classes.

    References:
        He, Zhang, Ren, Sun. Deep residual learning for image recognition. CVPR 2016. arXiv:1512.03385.
    """

    def __init__(
        self, channels: Count, width: Count, blocks: Annotated[list[Count], Field(min_length=1)], outputs: Count
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        before = width
        for stage, count in enumerate(blocks):
            for block in range(count):
                layers.append(_Residual(before, width, stride=2 if stage and not block else 1))
                before = width
            width *= 2
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, outputs))


class _Places(nn.Module):
    """Symbols ``[B, T]`` as vectors ``[B, T, width]``, to which those of their places are added."""

    def __init__(self, symbols: int, length: int, width: int) -> None:
        super().__init__()
        self.symbols, self.places = nn.Embedding(symbols, width), nn.Parameter(torch.zeros(length, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.symbols(x) + self.places[: x.shape[1]]


class _Attending(nn.Module):
    """A block of a decoder: attention to what came before, then a net of two layers, each normalized and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_net = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, width = x.shape
        mixed = self.mix(self.norm_attention(x)).view(b, t, 3, self.heads, width // self.heads)
        q, k, v = mixed.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(b, t, width))
        return x + self.down(F.gelu(self.up(self.norm_net(x))))


class GPT(nn.Sequential):
    """Transformer that predicts the next symbol, from symbols ``[B, T]``; logarithms of their probabilities.

    These are ``[B, T, symbols]``, and part of the model, for they are a good part of what it keeps.

    Args:
        symbols: Of the alphabet.
        length: Largest ``T``.
        width: Of each vector.
        heads: Of attention, a divisor of ``width``.
        layers: Blocks.

    Raises:
        ValueError: If ``heads`` does not divide ``width``.

    References:
        Radford, Wu, Child, Luan, Amodei, Sutskever. Language models are unsupervised multitask learners. 2019.
    """

    def __init__(self, symbols: Count, length: Count, width: Count, heads: Count, layers: Count) -> None:
        if width % heads:
            raise ValueError(f"heads must divide width, {width}, got {heads}")
        blocks = [_Attending(width, heads) for _ in range(layers)]
        last = nn.LayerNorm(width), nn.Linear(width, symbols), nn.LogSoftmax(-1)
        super().__init__(_Places(symbols, length, width), *blocks, *last)
        for name, p in self.named_parameters():  # as GPT-2: small, and smaller where it is added, 2 layers a block
            if p.dim() > 1:
                nn.init.normal_(
                    p, std=0.02 * (2 * layers) ** -0.5 if name.endswith(("out.weight", "down.weight")) else 0.02
                )
            elif name.endswith("bias"):
                nn.init.zeros_(p)


class _States(nn.LSTM):
    """An LSTM of which the states of all steps go on, without those of the last one apart."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class LSTM(nn.Sequential):
    """Recurrent net that predicts the next symbol, from symbols ``[B, T]``; logarithms of their probabilities.

    These are ``[B, T, symbols]``, and part of the model, for they are a good part of what it keeps.

    Args:
        symbols: Of the alphabet.
        width: Of each layer, and of the vectors that stand for symbols.
        layers: Of the LSTM.

    References:
        Hochreiter, Schmidhuber. Long short-term memory. Neural Computation 9(8), 1997. doi:10.1162/neco.1997.9.8.1735.
    """

    def __init__(self, symbols: Count, width: Count, layers: Count) -> None:
        states = _States(width, width, num_layers=layers, batch_first=True)
        super().__init__(nn.Embedding(symbols, width), states, nn.Linear(width, symbols), nn.LogSoftmax(-1))
