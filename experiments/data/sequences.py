"""Sequences: images pixel by pixel, and the adding problem."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from experiments.data.dataset import Dataset
from experiments.errors import UserError
from experiments.schema import Count, Natural

__all__ = ["adding", "pixel_by_pixel"]

_TOLERANCE = 0.04  # the usual margin within which a sum counts as right


class _Pixels(nn.Module):
    """Images ``[N, 1, H, W]`` as sequences ``[N, length, 1]`` of (means of successive) pixels in a given order."""

    def __init__(self, length: int, order: Tensor) -> None:
        super().__init__()
        self.length = length
        self.register_buffer("order", order)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1)[:, self.order]
        return pixels.view(len(images), self.length, -1).mean(2, keepdim=True)


def pixel_by_pixel(images: Dataset, length: Count, permuted: bool) -> Dataset:
    """A set of images of one channel, read pixel by pixel, row by row.

    Args:
        images: The set; its name gets an ``s`` in front, and length and order behind where they are not the usual ones.
        length: Time steps; a divisor of the pixels of an image, whose successive pixels are averaged.
        permuted: Whether pixels come in a random order, the same for all images, runs and machines.

    Raises:
        UserError: If the images have several channels or ``length`` does not divide their pixels.
    """
    channels, height, width = images.x_train.shape[1:]
    pixels = height * width
    if channels != 1:
        raise UserError(f"{images.name} has {channels} channels; only images of one channel are read pixel by pixel")
    if pixels % length:
        divisors = ", ".join(str(n) for n in range(1, pixels + 1) if pixels % n == 0)
        raise UserError(
            f"data.length must divide the {pixels} pixels of {images.name}, got {length!r}; choose one of {divisors}"
        )
    order = torch.randperm(pixels, generator=torch.Generator().manual_seed(0)) if permuted else torch.arange(pixels)
    name = f"s{images.name}" + f"-{length}" * (length != pixels) + "-permuted" * permuted
    return replace(images, name=name, inputs=nn.Sequential(images.inputs, _Pixels(length, order)))


def adding(length: Annotated[int, Field(ge=2)], train: Count, test: Count, seed: Natural) -> Dataset:
    """The adding problem: of a sequence of random numbers, two are marked, and their sum is to be found.

    Inputs are ``[N, length, 2]``: numbers uniform in [0, 1), and marks, one in each half. An output counts as right
    within 0.04 of the sum; answering 1 always has a mean squared error of 1/6.

    Args:
        length: Time steps, at least 2.
        train: Training examples.
        test: Test examples.
        seed: Of the examples; the same for all methods and runs that are to be compared.

    References:
        Hochreiter, Schmidhuber. Long short-term memory. Neural Computation 9(8), 1997. doi:10.1162/neco.1997.9.8.1735.
        Le, Jaitly, Hinton. A simple way to initialize recurrent networks of rectified linear units. 2015.
        arXiv:1504.00941.
    """
    generator, count, half = torch.Generator().manual_seed(seed), train + test, length // 2
    numbers, marks = torch.rand(count, length, generator=generator), torch.zeros(count, length)
    first = torch.randint(half, (count, 1), generator=generator)
    second = half + torch.randint(length - half, (count, 1), generator=generator)
    marks.scatter_(1, first, 1).scatter_(1, second, 1)
    x, y = torch.stack([numbers, marks], 2), (numbers * marks).sum(1)
    return Dataset(
        f"adding-{length}", x[:train], y[:train], x[train:], y[train:], nn.Identity(), loss=_squares, correct=_close
    )


def _squares(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    return F.mse_loss(outputs.squeeze(1), targets, reduction=reduction)


def _close(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.squeeze(1) - targets).abs() < _TOLERANCE
