"""The layers that a converted model consists of: stock modules whose forward calls ``rad.functional``."""

from __future__ import annotations

from torch import Tensor, nn

from rad import functional
from rad.functional.pool import window_bits
from rad.nn.convert import Converted, register
from rad.sketch.bits import MAX_BITS

__all__ = ["RadAvgPool2d", "RadConv2d", "RadDropout", "RadLinear", "RadMaxPool2d", "RadReLU"]


@register(nn.Linear)
class RadLinear(Converted, nn.Linear):
    """``nn.Linear`` that keeps a sketch of its input ``[..., in_features]``."""

    def forward(self, input: Tensor) -> Tensor:
        """Output ``[..., out_features]``."""
        return functional.linear(input, self.weight, self.bias, self.recipe.sketch, self.recipe.generator)


@register(nn.Conv2d)
class RadConv2d(Converted, nn.Conv2d):
    """``nn.Conv2d`` that keeps a sketch of the positions of its input ``[n, c, h, w]``."""

    def forward(self, input: Tensor) -> Tensor:
        """Output ``[n, o, y, x]``."""
        if self.unsupported():
            return super().forward(input)
        return functional.conv2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.recipe.sketch,
            self.recipe.generator,
        )

    def unsupported(self) -> str | None:
        """Padding other than by zeros: an operation of its own, which keeps what it is given."""
        return None if self.padding_mode == "zeros" else f"padding_mode={self.padding_mode}"


@register(nn.ReLU)
class RadReLU(Converted, nn.ReLU):
    """``nn.ReLU`` that keeps one bit per entry, whatever the sketch."""

    def forward(self, input: Tensor) -> Tensor:
        """Output of the shape of the input."""
        return functional.relu(input, self.inplace)

    def keeps(self) -> str:
        """What the layer keeps for its backward pass, in a few words."""
        return "1 bit per entry"


@register(nn.Dropout)
class RadDropout(Converted, nn.Dropout):
    """``nn.Dropout`` that keeps one bit per entry, whatever the sketch."""

    def forward(self, input: Tensor) -> Tensor:
        """Output of the shape of the input."""
        return functional.dropout(input, self.p, self.training, self.inplace)

    def keeps(self) -> str:
        """What the layer keeps for its backward pass, in a few words."""
        return "1 bit per entry"


@register(nn.AvgPool2d)
class RadAvgPool2d(Converted, nn.AvgPool2d):
    """``nn.AvgPool2d`` that keeps nothing, whatever the sketch."""

    def forward(self, input: Tensor) -> Tensor:
        """Output ``[n, c, y, x]``."""
        return functional.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )

    def keeps(self) -> str:
        """What the layer keeps for its backward pass, in a few words."""
        return "nothing"


@register(nn.MaxPool2d)
class RadMaxPool2d(Converted, nn.MaxPool2d):
    """``nn.MaxPool2d`` that keeps each winner's place in its window, in a few bits, whatever the sketch."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Output ``[n, c, y, x]``; with ``return_indices`` the places of the maxima as well."""
        if self.unsupported():
            return super().forward(input)
        return functional.max_pool2d(input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)

    def unsupported(self) -> str | None:
        """Indices that somebody else holds anyway, and windows beyond what is packed."""
        if self.return_indices:
            return "return_indices=True"
        return f"kernel_size={self.kernel_size}" if window_bits(self.kernel_size) > MAX_BITS else None

    def keeps(self) -> str:
        """What the layer keeps for its backward pass, in a few words."""
        bits = window_bits(self.kernel_size)
        return super().keeps() if self.unsupported() else f"{bits} bit{'s' * (bits > 1)} per output"
