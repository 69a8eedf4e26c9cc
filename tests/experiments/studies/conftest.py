"""Configs of studies of all kinds, on small data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from experiments.runs.configs import composed as compose


@pytest.fixture
def composed(digits: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """Composes a config from overrides alone."""

    def compose_(*overrides: str) -> DictConfig:
        return compose([*overrides, f"runs={tmp_path}", "threads=1"])

    return compose_
