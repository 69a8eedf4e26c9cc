"""Budgets, and the whole units that they allow."""

from __future__ import annotations

import math
import numbers
import warnings

__all__ = ["BudgetFloorWarning", "check_budget", "kept_count"]


class BudgetFloorWarning(UserWarning):
    """The budget was too small for even one unit of the summary, so more than the budget is kept."""


def check_budget(budget: float) -> None:
    """Refuses a budget that is not a number in (0, 1].

    Raises:
        TypeError: If it is not a number.
        ValueError: If it lies outside (0, 1].
    """
    if isinstance(budget, bool) or not isinstance(budget, numbers.Real):
        raise TypeError(f"budget must be a number in (0, 1], got {budget!r}; for example 0.1 keeps a tenth")
    if not 0 < budget <= 1:
        raise ValueError(f"budget must lie in (0, 1], got {budget!r}; for example 0.1 keeps a tenth, 1 everything")


def kept_count(allowed: float, what: str) -> int:
    """Rounds a budget to the whole units that are kept: down, but never below one.

    Args:
        allowed: Units that the budget allows (features, bits per element).
        what: The unit's name and the tensor's, for the warning.

    Returns:
        The largest whole number of units within the budget, or 1.
    """
    count = math.floor(allowed * (1 + 1e-12))  # so that 0.29 * 100 = 28.999999999999996 is not rounded down to 28
    if count < 1:
        warnings.warn(
            f"the budget allows {allowed:.3g} {what}; one is kept, which is more than the budget",
            BudgetFloorWarning,
            stacklevel=2,
        )
        return 1
    return count
