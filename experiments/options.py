"""Types of command-line options: a value out of range is refused, in one sentence, before any work starts."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["THREADS", "listed", "positive", "present", "size", "whole"]


def whole(least: int, most: int = 10**6) -> Callable[[str], int]:
    """The type of a whole number in a range."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise ArgumentTypeError(f"must be a whole number from {least} to {most}, got {text!r:.40}")
        return value

    return read


THREADS = whole(1, 1024)  # or processes at a time


def positive(text: str) -> float:
    """The type of a finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"must be a positive number, got {text!r:.40}")
    return value


def size(text: str) -> int:
    """The type of a number of bytes, such as 2GB."""
    from rad.budget import bytes_of  # and all of PyTorch, which only some scripts need

    try:
        return bytes_of(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error).removeprefix("nbytes ")) from error


def listed(known: Collection[str] | Callable[[str], object], what: str = "") -> Callable[[str], list]:
    """The type of a list, separated by commas: of known words, or of what another type makes of each."""

    def one(text: str) -> object:
        if callable(known):
            return known(text)
        if text not in known:
            raise ArgumentTypeError(f"there is no {what} {text!r:.40}; choose from {', '.join(known)}")
        return text

    return lambda text: list(dict.fromkeys(map(one, text.split(","))))  # what is named twice is measured once


def present(text: str) -> torch.device:
    """The type of a device that computes, and is there."""
    import torch

    try:
        device = torch.device(text)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()):
        return device
    raise ArgumentTypeError(f"must be cpu, or cuda where PyTorch finds such a device, got {text!r:.40}")
