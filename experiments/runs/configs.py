"""Configs composed as ``run.py`` composes them, but each choice of groups only once, and their values."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

import experiments.budgets  # noqa: F401  # what configs say of them
from experiments.errors import UserError

__all__ = ["CONFIGS", "composed", "parsed", "resolved", "usual"]

CONFIGS = Path(__file__).parents[2] / "configs"


def composed(overrides: Sequence[str]) -> DictConfig:
    """The config of a command line, which becomes Hydra's present one.

    Raises:
        HydraException: If there is no such choice or setting.
    """
    groups, settings = parsed(overrides)
    config = copy.deepcopy(usual(groups))
    ConfigLoaderImpl._apply_overrides_to_config(settings, config)
    with read_write(config):
        config.hydra.overrides.task = list(overrides)
    HydraConfig.instance().set_config(config)
    return config


def parsed(overrides: Sequence[str]) -> tuple[tuple[str, ...], list[Override]]:
    """Of a command line the choices of groups, as they are written, and the settings."""
    found = [o for o in OverridesParser.create().parse_overrides(list(overrides)) if not o.is_hydra_override()]
    groups = [o for o in found if (CONFIGS / o.key_or_group).is_dir()]
    return tuple(str(o.input_line) for o in groups), [o for o in found if o not in groups]


@lru_cache(maxsize=256)
def usual(groups: tuple[str, ...]) -> DictConfig:
    """The config of some choices of groups, with no setting changed; not to be written to."""
    return _loader().load_configuration("config", list(groups), RunMode.RUN)


@lru_cache(maxsize=1)
def _loader() -> ConfigLoaderImpl:
    return ConfigLoaderImpl(create_config_search_path(str(CONFIGS)))


def resolved(config: DictConfig) -> dict[str, Any]:
    """All settings of a run with their values, as ``config.yaml`` holds them.

    Raises:
        UserError: If one of them has none.
    """
    if config.scale is not None and not OmegaConf.is_dict(config.get("scales")):
        raise UserError(
            f"scale={config.scale} needs an experiment that says what it means; set experiment, or no scale"
        )
    if config.scale is not None and config.scale not in config.scales:
        raise UserError(f"scale must be one of {', '.join(map(str, config.scales))}, got {config.scale!r}")
    try:
        found = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the config cannot be resolved: {str(error).splitlines()[0]}") from error
    assert isinstance(found, dict)
    return {str(k): v for k, v in found.items() if k not in ("run_dir", "hydra")}
