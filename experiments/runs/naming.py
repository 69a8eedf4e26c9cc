"""Names of runs: on disk by what differs from the defaults, on a screen by method, budget and seed."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.budgets import said
from experiments.errors import UserError
from experiments.labels import BUDGET_FREE
from experiments.runs.configs import parsed, usual

__all__ = ["experiment_name", "label", "passes", "run_directory"]

# Settings that do not say what a run computes; a run may be resumed with others. (What `tuned` and `scales` list for
# the run's own method and size stands in `optimizer`, `iterations` and so on as well.)
PASSING = ("runs", "run_dir", "device", "threads", "tracker", "tuned", "scale", "scales")
_PASSING_LEAF = "root"  # of a data set, wherever one stands

_FIRST = ("method", "budget", "seed")
_FOLDER = ("model", "data")  # name the folder above where no experiment is chosen
_ASIDE = ("experiment", "debug", "tracker")
_LONGEST = 200


def passes(name: str) -> bool:
    """Whether a setting, by its dotted name, says nothing of what a run computes."""
    return any(name == p or name.startswith(f"{p}.") for p in PASSING) or name.rpartition(".")[2] == _PASSING_LEAF


def label(experiment: str, method: str | None = None, budget: float | None = None, seed: int | None = None) -> str:
    """What a screen calls a run; a method that reads no budget is shown without."""
    shown = method if method != "all" else None  # of a study that compares all of them
    parts = [experiment, shown, said(budget) if shown and budget is not None and shown not in BUDGET_FREE else None]
    return " ".join([part for part in parts if part] + ([f"seed {seed}"] if seed is not None else []))


def experiment_name() -> str:
    """Of the experiment chosen, or else of model and data."""
    choices = HydraConfig.get().runtime.choices
    return choices.experiment or f"{choices.model}-{choices.data}"


def run_directory(config: DictConfig) -> Path:
    """``run_dir``, or ``<runs>/<experiment, or model-data>/<what differs>``: the same settings find the same run."""
    if config.run_dir is not None:
        return _folder("run_dir", config.run_dir)
    return _folder("runs", config.runs) / experiment_name() / _differences(config)


def _folder(setting: str, value: Any) -> Path:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or "\0" in str(value):
        raise UserError(f"{setting} must name a folder, got {value!r}")
    return Path(str(value))  # 3 is a name, too


def _differences(config: DictConfig) -> str:
    """Choices and settings that differ from those of the experiment; ``default`` if none does."""
    chosen = HydraConfig.get().runtime.choices
    groups, given = parsed(HydraConfig.get().overrides.task)
    least = usual(tuple(group for group in groups if group.lstrip("+").startswith("experiment=")))
    aside = _ASIDE if chosen.experiment else (*_ASIDE, *_FOLDER)
    found = {
        name: str(choice)
        for name, choice in chosen.items()
        if not (name in aside or name.startswith("hydra/")) and least.hydra.runtime.choices.get(name) != choice
    }
    before = usual(groups)
    for override in given:
        name = override.key_or_group
        if override.is_delete():
            found[f"~{name}"] = ""
        elif not passes(name) and _matters(config, before, name):
            found[name] = _shown(OmegaConf.select(config, name))
    order = sorted(found, key=lambda n: (_FIRST.index(n) if n in _FIRST else len(_FIRST), n))
    name = ",".join(f"{n}={found[n]}" if found[n] else n for n in order) or "default"
    safe = re.sub(r"[^\w.,=~@+\[\]-]", "_", name)
    if safe == name and len(name) <= _LONGEST:
        return name
    return f"{safe[:_LONGEST]},{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _matters(config: DictConfig, before: DictConfig, name: str) -> bool:
    """Whether a setting would have another value, had it not been given."""
    parent, _, last = name.rpartition(".")
    node = OmegaConf.select(before, parent) if parent else before
    as_written = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else {}
    if last not in as_written:
        return True
    without = copy.deepcopy(config)
    OmegaConf.update(without, name, as_written[last], merge=False, force_add=True)
    return _shown(OmegaConf.select(without, name)) != _shown(OmegaConf.select(config, name))


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)  # 1 and 1.0 are the same setting
    plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    return json.dumps(plain, separators=(",", ":"), sort_keys=True)
