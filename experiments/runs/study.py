"""From a config to a finished run: what all kinds of study have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Protocol

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments import budgets
from experiments.errors import StoppedError, UserError, first_line
from experiments.runs import distributed, provenance
from experiments.runs.configs import resolved
from experiments.runs.directory import RunDir, digest
from experiments.runs.naming import experiment_name
from experiments.runs.parts import make
from experiments.runs.resources import memory, undisturbed, without_subnormals
from experiments.runs.settings import Settings, check_settings
from experiments.runs.tracking import Tracker

__all__ = [
    "Record",
    "Study",
    "Task",
    "build",
    "make",
    "study",
    "validate",
]

Record = dict[str, Any]


class Task(Protocol):
    """Work in iterations, with a record now and then, that can go on from a state.

    Attributes:
        iteration: How far it is.
        iterations: How far it goes.
        seconds: Spent in iterations so far, without evaluations.
        device: Where it computes.
    """

    iteration: int
    iterations: int
    seconds: float
    device: torch.device

    def run(self, record: Callable[[Record], None], save: Callable[[Record], None]) -> None:
        """Goes on to the last iteration.

        Args:
            record: Takes one record an evaluation, with at least ``iteration``.
            save: Takes the state after each record; from it ``restore`` goes on bit for bit.

        Raises:
            UserError: If it cannot go on for a reason that the user can mend.
        """

    def restore(self, state: Record) -> None:
        """Goes back to a state.

        Raises:
            KeyError, RuntimeError, TypeError, ValueError: If it belongs to another task.
        """


class Study(ABC):
    """A kind of study: one yaml in ``configs/study`` with its settings and defaults.

    Attributes:
        settings: What its configs may hold.
        distributed: Whether several processes can share one run; its task then calls what is collective.
    """

    settings: type[Settings] = Settings
    distributed = False

    def validate(self, config: DictConfig) -> None:  # noqa: B027
        """Refuses what no schema can tell, before any work starts.

        Raises:
            UserError: Names the setting, its value and what is allowed.
        """

    @abstractmethod
    def build(self, config: DictConfig) -> tuple[Task, Record]:
        """The task, and the meta data that can be said before it starts, besides those of every run.

        Raises:
            UserError: If a part cannot be made as configured.
        """

    @abstractmethod
    def headline(self, meta: Record) -> str:
        """What is run, in a line for the terminal."""

    @abstractmethod
    def summarize(self, run: RunDir, into: Path) -> str:
        """Draws the figure of a finished run into a folder; returns what to print."""


def study(config: DictConfig, settings: Record, run: RunDir) -> None:
    """Runs what a config says, or what is still missing of it, and ends with a summary and a figure.

    Args:
        config: As composed by Hydra.
        settings: The same, resolved.
        run: Where it is kept.

    Raises:
        UserError: For anything the user can mend.
    """
    kind = validate(config, settings)
    with without_subnormals(), distributed.group():
        if distributed.leads():
            _lead(run, kind, config, settings)
        elif distributed.agree(None):
            task, _ = build(config)
            if distributed.agree(None):
                _restore(run, task)
                task.run(_ignore, _ignore)


def _lead(run: RunDir, kind: Study, config: DictConfig, settings: Record) -> None:
    """The part of the process that records; others wait for its word before they build and before they start."""
    run.refuse_foreign(settings)
    if not distributed.agree(not run.finished()):
        print(f"{run.path} is finished already; delete it to run it again")
    else:
        task, meta = build(config)
        tracker = make(config.tracker)
        with run.claimed(settings):
            if distributed.agree(not run.finished()):  # by another process, meanwhile
                print(kind.headline(meta))
                _carry_out(run, task, meta, tracker, settings)
    try:
        said = kind.summarize(run, run.path)
        run.write_summary(said)
    except (OSError, StoppedError):  # of a disk that is full or read-only the run can still be looked at
        said = kind.summarize(run, Path(mkdtemp(prefix="rad-")))
    print(said)


def validate(config: DictConfig, settings: Record | None = None) -> Study:
    """Refuses settings out of range, before any work starts; returns the kind of study.

    Args:
        config: As composed by Hydra.
        settings: The same, resolved.

    Raises:
        UserError: Names the setting, its value and what is allowed.
    """
    settings = settings or resolved(config)
    if "study" not in settings:
        raise UserError("study is missing; choose one of configs/study, for example study=training")
    kind = make(config.study)
    if not isinstance(kind, Study):
        raise UserError(f"study must make a study, got {settings['study']}; choose one of configs/study")
    check_settings(kind.settings, settings)
    make(config.method)  # ranges that only the library knows
    kind.validate(config)
    if distributed.processes() > 1:
        if not kind.distributed:
            raise UserError(
                f"a study of {type(kind).__name__} runs in one process, not {distributed.processes()}; start it "
                "without torchrun"
            )
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise UserError("torchrun takes a single run, not a sweep (-m); give a launcher one process for each run")
    return kind


def build(config: DictConfig, **parts: Any) -> tuple[Any, Record]:
    """The task of a validated config, and all its meta data.

    Args:
        config: As composed by Hydra.
        **parts: Of the task, made already, where the kind of study takes them.

    Returns:
        A ``Task`` of the study's own type, and what ``meta.json`` will say of it.

    Raises:
        UserError: If a part cannot be made as configured.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with memory():
        task, meta = make(config.study).build(config, **parts)
    return task, {
        "experiment": experiment_name(),
        "method": config.method.name,
        "budget": budgets.number(config.budget),
        "seed": config.seed,
        "iterations": config.iterations,
        "scale": config.scale,
        "processes": distributed.processes(),
        **meta,
    }


def _carry_out(run: RunDir, task: Task, meta: Record, tracker: Tracker, settings: Record) -> None:
    resumed = _restore(run, task)
    run.rewind(task.iteration if resumed else -1)
    session = {**provenance.session(task.device), "iteration": task.iteration}
    sessions = [*run.meta().get("sessions", []), session]
    meta = {"status": "running", **meta, "settings": digest(settings), "step_ms": None, "sessions": sessions}
    run.write_meta(meta)
    tracker.start(run.path, meta, settings)
    print(f"iterations {task.iteration} to {task.iterations} in {run.path}")

    def record(entry: Record) -> None:
        run.append(entry)
        tracker.log(entry)

    try:
        with undisturbed(), memory():
            task.run(record, run.save_checkpoint)
    except BaseException as error:
        tracker.finish(failed=True)
        # Anything else may be mended by going on from the last checkpoint.
        if isinstance(error, UserError) and not isinstance(error, StoppedError):
            run.write_meta({**meta, "status": "failed"})
        raise
    run.write_meta(
        {
            **meta,
            "status": "finished",
            "step_ms": round(1000 * task.seconds / task.iterations, 4),
            "finished": provenance.now(),
            "recorded": run.recorded(),
        }
    )
    tracker.finish()


def _restore(run: RunDir, task: Task) -> bool:
    """Goes back to the last checkpoint; whether there is one."""
    checkpoint = run.load_checkpoint()
    if checkpoint is None:
        return False
    try:
        task.restore(checkpoint)
        if not (isinstance(task.iteration, int) and 0 <= task.iteration <= task.iterations):
            raise ValueError(f"it is of iteration {task.iteration} of {task.iterations}")
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{run.path}/checkpoint.pt does not fit this run ({first_line(error)}); delete it to begin anew"
        ) from error
    return True


def _ignore(entry: Record) -> None: ...
