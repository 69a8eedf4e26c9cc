"""Budgets of runs: a fraction of the exact bytes, or a size such as ``50MB``.

Records hold a number either way, the size in bytes; no fraction is larger than 1.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from omegaconf import OmegaConf

__all__ = ["number", "said", "size"]

_STAND_IN = 0.1  # for the fraction that a size comes to, as long as model and batch are not known


def size(budget: Any) -> int | None:
    """Bytes of a budget that is a size, ``None`` of one that is not."""
    if not isinstance(budget, str):
        return None
    from rad.budget import bytes_of  # and all of PyTorch, which takes seconds

    with suppress(ValueError):
        return bytes_of(budget)
    return None


def number(budget: Any) -> Any:
    """What records hold of it."""
    return size(budget) or budget


def said(number: float) -> str:
    """A number from the records as people write it."""
    if number <= 1:
        return f"{number:g}"
    from rad.budget.size import shown

    return shown(int(number)).replace(" ", "")


# In configs: what a sketch is made with before its method is told the size.
OmegaConf.register_new_resolver("fraction", lambda b: b if size(b) is None else _STAND_IN, replace=True)
