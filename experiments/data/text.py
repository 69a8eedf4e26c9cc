"""Text that every installation has: the sources of Python's standard library, character by character."""

from __future__ import annotations

import hashlib
import math
import platform
import sysconfig
import zlib
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from experiments.data.dataset import Dataset
from experiments.errors import UserError, reading
from experiments.schema import Count

__all__ = ["SYMBOLS", "sources"]

SYMBOLS = 128  # ASCII; all other bytes share its last one, which no source holds
_ASIDE = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}  # need not be installed
_PARTS = 10  # of the files, of which one is for the test


class _Symbols(nn.Module):
    """Stored bytes ``[N, T]`` as the integers that an embedding takes."""

    def forward(self, windows: Tensor) -> Tensor:
        return windows.long()


def sources(
    length: Annotated[int, Field(ge=2)], train: Count | None, test: Count, folder: str | None = None
) -> Dataset:
    """Windows of Python source code, of which each character is to be predicted from those before.

    Files are read in the order of their names; a checksum of its name says whether one is for training or, one in ten,
    for the test, on whatever machine and whichever others there are. The loss is in bits per character. The name of
    the set holds a digest of all that was read, for another version of Python has another text.

    Args:
        length: Characters to be predicted in each window, at least 2; windows do not overlap.
        train: So many windows of the training files, evenly spaced; all by default.
        test: So many of the test files.
        folder: Of ``*.py`` files, at any depth; by default the standard library's, without its tests.

    Raises:
        UserError: If there are not enough sources.
    """
    root = Path(sysconfig.get_paths()["stdlib"] if folder is None else folder).expanduser()
    files = {f.relative_to(root).as_posix(): f for f in root.rglob("*.py") if not _ASIDE & {*f.relative_to(root).parts}}
    digest, texts = hashlib.sha256(), {True: bytearray(), False: bytearray()}
    for name in sorted(files):
        with reading(files[name], "set data.folder to another folder of Python files"):
            content = files[name].read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
        texts[zlib.crc32(name.encode()) % _PARTS == 0] += content
    windows = _windows(texts[False], length), _windows(texts[True], length)
    wanted = train or max(1, len(windows[0])), test
    if any(len(there) < count for there, count in zip(windows, wanted, strict=True)):
        raise UserError(
            f"{root} holds {len(windows[0]):,} training and {len(windows[1]):,} test windows of {length} characters in "
            f"{len(files):,} Python files, but {train or 1:,} and {test:,} are needed; lower data.length, data.train "
            "or data.test, or set data.folder to a folder of Python files"
        )
    learned, held = (
        there[torch.linspace(0, len(there) - 1, count, dtype=torch.float64).round().long()]
        for there, count in zip(windows, wanted, strict=True)
    )
    origin = f"Python {platform.python_version()}" if folder is None else root.name
    return Dataset(
        name=f"{origin} sources, {length} characters ({digest.hexdigest()[:8]})",
        x_train=learned[:, :-1].contiguous(),
        y_train=learned[:, 1:].contiguous(),
        x_test=held[:, :-1].contiguous(),
        y_test=held[:, 1:].contiguous(),
        inputs=_Symbols(),
        loss=_bits,
        correct=_guessed,
    )


def _windows(text: bytearray, length: int) -> Tensor:
    symbols = np.minimum(np.frombuffer(bytes(text), np.uint8), SYMBOLS - 1)
    count = max(0, len(symbols) - 1) // length  # a window ends with the character with which the next one begins
    starts = np.arange(count)[:, None] * length
    return torch.from_numpy(symbols[starts + np.arange(length + 1)])


def _bits(logs: Tensor, symbols: Tensor, reduction: str = "mean") -> Tensor:
    """Bits per character, of the logarithms of probabilities ``[B, T, symbols]``.

    They are a good part of what a small model holds; of what is picked from only the places are kept here, which leaves
    it to the model whether it holds them.
    """
    flat = logs.flatten(0, 1)
    picked = flat[torch.arange(len(flat), device=flat.device), symbols.long().flatten()]
    return (picked.mean() if reduction == "mean" else picked.sum()) / -math.log(2)


def _guessed(logs: Tensor, symbols: Tensor) -> Tensor:
    return logs.argmax(-1) == symbols
