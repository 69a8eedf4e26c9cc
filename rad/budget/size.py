"""Numbers of bytes as people write them."""

from __future__ import annotations

import math
import re

__all__ = ["bytes_of", "shown"]

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{prefix}b": 1000 ** (i + 1) for i, prefix in enumerate("kmgt")}
_UNITS |= {f"{prefix}ib": 1024 ** (i + 1) for i, prefix in enumerate("kmgt")}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)


def bytes_of(size: int | float | str, name: str = "nbytes") -> int:
    """A number of bytes.

    Args:
        size: The number itself, or text such as ``"50MB"`` (millions) or ``"1.5GiB"`` (of 1024³).
        name: What to call it in errors.

    Raises:
        TypeError: If it is neither a number nor text.
        ValueError: If it is not positive, or text that says no size.
    """
    if isinstance(size, str):
        found = _SIZE.fullmatch(size)
        unit = _UNITS.get(found[2].lower()) if found else None
        if found is None or unit is None:
            raise ValueError(f'{name} must be a number of bytes or a size such as "50MB" or "1.5GiB", got {size!r}')
        number = float(found[1]) * unit
    elif isinstance(size, bool) or not isinstance(size, int | float):
        raise TypeError(f'{name} must be a number of bytes or a size such as "50MB" or "1.5GiB", got {size!r}')
    else:
        number = size
    if not 1 <= number < math.inf:
        raise ValueError(f"{name} must be at least one byte and finite, got {size!r}")
    return int(number)


def shown(nbytes: int) -> str:
    """A number of bytes in the unit that suits it."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= size:
            return f"{nbytes / size:.4g} {unit}"
    return f"{nbytes} bytes"
