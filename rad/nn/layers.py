"""The layers that a converted model consists of: stock modules whose forward calls ``rad.functional``."""

from __future__ import annotations

from torch import Tensor, nn

from rad import functional
from rad.nn.convert import Converted, register

__all__ = ["RadLinear", "RadReLU"]


@register(nn.Linear)
class RadLinear(Converted, nn.Linear):
    """``nn.Linear`` that keeps a sketch of its input ``[..., in_features]``."""

    def forward(self, input: Tensor) -> Tensor:
        """Output ``[..., out_features]``."""
        return functional.linear(input, self.weight, self.bias, self.recipe.sketch, self.recipe.generator)


@register(nn.ReLU)
class RadReLU(Converted, nn.ReLU):
    """``nn.ReLU`` that keeps one bit per entry, whatever the sketch."""

    def forward(self, input: Tensor) -> Tensor:
        """Output of the shape of the input."""
        return functional.relu(input, self.inplace)

    def keeps(self) -> str:
        """What the layer keeps for its backward pass, in a few words."""
        return "1 bit per entry"
