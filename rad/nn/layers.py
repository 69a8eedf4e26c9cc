"""The layers that a converted model consists of: stock modules whose forward calls ``rad.functional``."""

from __future__ import annotations

from torch import Tensor, nn

from rad import functional
from rad.nn.convert import recipe, register

__all__ = ["RadLinear", "RadReLU"]


@register(nn.Linear)
class RadLinear(nn.Linear):
    """``nn.Linear`` that keeps a sketch of its input ``[..., in_features]``."""

    def forward(self, input: Tensor) -> Tensor:
        """Output ``[..., out_features]``."""
        how = recipe(self)
        return functional.linear(input, self.weight, self.bias, how.sketch, how.generator)

    def extra_repr(self) -> str:
        """The stock description and the sketch."""
        return f"{super().extra_repr()}, sketch={recipe(self).sketch}"


@register(nn.ReLU)
class RadReLU(nn.ReLU):
    """``nn.ReLU`` that keeps one bit per entry, whatever the sketch."""

    def forward(self, input: Tensor) -> Tensor:
        """Output of the shape of the input."""
        return functional.relu(input, self.inplace)
