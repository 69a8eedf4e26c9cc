"""What a data set is to a trainer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.errors import UserError

__all__ = ["ARRAYS", "Augmentation", "Dataset", "Normalize", "classified"]

ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def classified(logits: Tensor, labels: Tensor) -> Tensor:
    """Which examples have their highest logit at their label."""
    return logits.argmax(1) == labels


@dataclass(frozen=True)
class Dataset:
    """Examples and targets, and how to learn from them.

    Attributes:
        name: What every record, figure and table calls the set.
        x_train: Training examples as stored, ``[N, ...]``; images are uint8 ``[N, C, H, W]``.
        y_train: Their targets ``[N]``, or ``[N, T]`` of sequences with a target for each step.
        x_test: Test examples ``[M, ...]``.
        y_test: Their targets ``[M]``.
        inputs: From stored examples to the inputs of a model.
        augmentation: Random change of stored training examples.
        loss: Of outputs and targets, with ``reduction`` as in PyTorch.
        correct: Which of the outputs count as right, for the accuracy.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    inputs: nn.Module
    augmentation: Augmentation | None = None
    loss: Callable[..., Tensor] = F.cross_entropy
    correct: Callable[[Tensor, Tensor], Tensor] = classified

    def to(self, device: torch.device) -> Dataset:
        """The same data on a device."""
        arrays = {name: getattr(self, name).to(device) for name in ARRAYS}
        return replace(self, **arrays, inputs=copy.deepcopy(self.inputs).to(device))

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A minibatch drawn with replacement, without augmentation: inputs of a model and targets."""
        chosen = torch.randint(len(self.x_train), (size,), generator=generator).to(self.x_train.device)
        return self.inputs(self.x_train[chosen]), self.y_train[chosen]

    def hold_out(self, count: int) -> Dataset:
        """The training set alone: ``count`` examples, the same ones at every call, take the place of the test set.

        Args:
            count: 0 leaves everything as it is.

        Raises:
            UserError: If it leaves nothing to train on.
        """
        size = len(self.x_train)
        if not 0 <= count < size:
            raise UserError(
                f"held_out must be a whole number below the {size:,} training examples of {self.name}, 0 "
                f"for none, got {count!r}"
            )
        if count == 0:
            return self
        # Drawn, for a stored set may be sorted by label; from a fixed seed, for all runs are to be judged alike.
        order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
        out, rest = order[:count].sort().values, order[count:].sort().values
        return replace(
            self,
            name=f"{self.name} ({count:,} held out)",
            x_train=self.x_train[rest],
            y_train=self.y_train[rest],
            x_test=self.x_train[out],
            y_test=self.y_train[out],
        )

    def bootstrap(self, generator: torch.Generator) -> Dataset:
        """A training set of the same size, drawn with replacement; the test set stays."""
        chosen = torch.randint(len(self.x_train), (len(self.x_train),), generator=generator).to(self.x_train.device)
        return replace(self, x_train=self.x_train[chosen], y_train=self.y_train[chosen])


class Normalize(nn.Module):
    """uint8 images ``[N, C, H, W]`` as float32 with the set's mean 0 and standard deviation 1.

    Args:
        mean: Mean of each channel of an image scaled to [0, 1].
        std: Standard deviation likewise.
    """

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images.to(torch.float32).div_(255) - self.mean).div_(self.std)


@dataclass(frozen=True)
class Augmentation:
    """Images moved by up to ``crop`` pixels each way, black coming in at the edges, and mirrored half of the time.

    Attributes:
        crop: Pixels; 0 moves none.
        flip: Whether images are mirrored at all.
    """

    crop: int
    flip: bool

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Row, column and mirroring for each of ``count`` images, ``[count, 3]``."""
        moves = torch.randint(2 * self.crop + 1, (count, 2), generator=generator)
        mirrored = torch.randint(1 + self.flip, (count, 1), generator=generator)
        return torch.cat([moves, mirrored], 1)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images ``[N, C, H, W]``, changed as drawn."""
        height, width = images.shape[2:]
        down, right, mirrored = draws.to(images.device).t()
        padded = F.pad(images, (self.crop,) * 4)
        rows = down[:, None] + torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device).expand(len(images), -1)
        columns = right[:, None] + torch.where(mirrored[:, None] == 1, columns.flip(1), columns)
        example = torch.arange(len(images), device=images.device)[:, None, None]
        moved = padded.permute(0, 2, 3, 1)[example, rows[:, :, None], columns[:, None, :]]
        return moved.permute(0, 3, 1, 2)
