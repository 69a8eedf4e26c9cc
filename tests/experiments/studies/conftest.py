"""Configs of studies of all kinds, on small data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from digits import CONFIGS
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


@pytest.fixture
def composed(digits: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """Composes a config from overrides alone."""

    def compose_(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            made = compose("config", [*overrides, f"runs={tmp_path}", "threads=1"], return_hydra_config=True)
        HydraConfig.instance().set_config(made)
        return made

    return compose_
