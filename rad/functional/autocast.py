"""What stock autocast does to the operands of a product."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["autocast", "full_precision"]


def autocast(operand: Tensor) -> Tensor:
    """The operand in the low precision of autocast where that is on; float64 is left alone, as by stock.

    To be called before anything is kept: it is the low-precision input then.
    """
    kind = operand.device.type
    if operand.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return operand
    return operand.to(torch.get_autocast_dtype(kind))


def full_precision(operand: Tensor, *devices: str) -> Tensor:
    """The operand in single precision where autocast computes in that.

    Args:
        operand: What is computed with.
        devices: Types of devices on which it does so for this operation, by default all.
    """
    half = operand.dtype in (torch.float16, torch.bfloat16) and operand.device.type in (
        devices or (operand.device.type,)
    )
    return operand.float() if half and torch.is_autocast_enabled(operand.device.type) else operand
