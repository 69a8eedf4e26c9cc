"""A small data set in the place of MNIST, and run.py without a new process for each call."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from digits import write_digits
from digits import write_run as write_run_at
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

import run
from experiments.runs.configs import composed


@pytest.fixture(scope="session")
def written_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    write_digits(folder, "fashion_mnist")
    write_digits(folder, "cifar10", shape=(32, 32, 3))
    return folder


@pytest.fixture
def digits(written_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a small MNIST and a small CIFAR-10, as RAD_DATA; a test may write to it."""
    folder = tmp_path / "data"
    shutil.copytree(written_digits, folder)
    monkeypatch.setenv("RAD_DATA", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _fresh_hydra() -> None:
    GlobalHydra.instance().clear()


@pytest.fixture
def config(digits: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """Composes a config as run.py does, on small data; an experiment at its smallest scale on its own."""

    def made(*overrides: str) -> DictConfig:
        experiment = any(o.startswith("experiment=") for o in overrides)
        data = ["scale=smoke", "evaluate.train_examples=null"] if experiment else ["data=mnist"]
        if any(o.startswith("experiment=source_") for o in overrides):  # much less to read than the standard library
            data.append(f"data.folder={Path(run.__file__).parent / 'rad'}")
        if "method=compile_budget" in overrides:  # the same partitioner, but no C++ compiler
            data.append("method.backend=aot_eager_decomp_partition")
        return composed([*data, f"runs={tmp_path / 'runs'}", "batch_size=30", "threads=1", *overrides])

    return made


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


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run directory of a name below the test's own folder; see `digits.write_run`."""
    return lambda name, *args, **more: write_run_at(tmp_path / "runs" / name, *args, **more)
