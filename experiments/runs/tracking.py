"""Trackers mirror the records of a run; nothing reads from them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, Protocol

from experiments.budgets import said
from experiments.errors import UserError
from experiments.runs.naming import label

__all__ = ["NoTracker", "Tracker", "Wandb"]


class Tracker(Protocol):
    """Receives what is written to the run directory."""

    def start(self, run_dir: Path, meta: dict[str, Any], config: dict[str, Any]) -> None:
        """Begins or, after an interruption, goes on with the run of this directory."""

    def log(self, record: dict[str, Any]) -> None:
        """Takes one record of ``metrics.jsonl``."""

    def finish(self, failed: bool = False) -> None:
        """Ends the run."""


class NoTracker:
    """Mirrors nothing."""

    def start(self, run_dir: Path, meta: dict[str, Any], config: dict[str, Any]) -> None: ...

    def log(self, record: dict[str, Any]) -> None: ...

    def finish(self, failed: bool = False) -> None: ...


class Wandb:
    """Weights & Biases: group = experiment, job type = method, one run for each run directory, resumed with it.

    Args:
        project: Name of the project.
        mode: ``online``, ``offline`` or ``disabled``.
    """

    def __init__(self, project: str, mode: Literal["online", "offline", "disabled"] = "offline") -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("tracker=wandb needs its package: pip install -e '.[wandb]', or tracker=none") from error
        self._wandb = wandb
        self._project = project
        self._mode = mode
        self._run: Any = None

    def start(self, run_dir: Path, meta: dict[str, Any], config: dict[str, Any]) -> None:
        tags = (
            meta["data"],
            meta.get("model"),
            f"budget {said(meta['budget'])}",
            meta["scale"] and f"scale {meta['scale']}",
        )
        begun = f"{run_dir.resolve()} {meta['sessions'][0]['started']}"
        self._run = self._wandb.init(
            id=hashlib.sha256(begun.encode()).hexdigest()[:16],
            resume="allow",
            project=self._project,
            mode=self._mode,
            dir=str(run_dir),
            name=label("", meta["method"], meta["budget"], meta["seed"]),
            group=meta["experiment"],
            job_type=meta["method"],
            tags=[str(tag) for tag in tags if tag is not None],
            config={**config, "meta": meta},
            settings=self._wandb.Settings(silent=True),
        )

    def log(self, record: dict[str, Any]) -> None:
        self._run.log({k: v for k, v in record.items() if k != "iteration"}, step=record["iteration"])

    def finish(self, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))
