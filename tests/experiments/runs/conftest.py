"""A run made once, for all that is done to copies of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.runs.configs import composed
from experiments.runs.launch import launch

SETTINGS = ["data=mnist", "batch_size=30", "iterations=4", "evaluate.test_every=2", "method=exact", "threads=1"]


@pytest.fixture(scope="session")
def made(written_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "mine"
    os.environ["RAD_DATA"] = str(written_digits)
    launch(composed([*SETTINGS, f"run_dir={path}"]))
    del os.environ["RAD_DATA"]
    return path


@pytest.fixture
def finished(made: Path, tmp_path: Path, digits: Path) -> Path:
    """A finished run that a test may change."""
    shutil.copytree(made, tmp_path / "mine")
    return tmp_path / "mine"


@pytest.fixture
def stopped(finished: Path) -> Path:
    """The same, stopped after its last checkpoint."""
    meta = json.loads((finished / "meta.json").read_text())
    (finished / "meta.json").write_text(json.dumps(meta | {"status": "running"}))
    return finished


@pytest.fixture
def again(finished: Path) -> Callable[..., None]:
    """The command that made it, once more."""
    return lambda *more: launch(composed([*SETTINGS, f"run_dir={finished}", *more]))
