"""What is to be run for a report, and what of it is there already."""

from __future__ import annotations

import shlex
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from experiments.errors import UserError
from experiments.runs.configs import composed
from experiments.runs.directory import RunDir
from experiments.runs.naming import label, run_directory
from experiments.runs.parts import make
from experiments.runs.study import build
from experiments.schema import Positive, Strict, sentence

__all__ = ["PARTS", "ROOT", "Plan", "Planned", "Sweep", "make_plan", "make_sweep", "measured_step"]

ROOT = Path(__file__).parent.parent.parent
PARTS = ("main", "fractions", "rates")
_STEPS = 60


@dataclass(frozen=True)
class Planned:
    """One process to start.

    Attributes:
        name: What progress and errors call it: experiment, method, budget and seed.
        command: Its arguments after ``python``.
        path: The run directory, or the file that it makes.
        seconds: That it takes, about, on one thread where the plan was timed; 0 if nobody knows.
    """

    name: str
    command: tuple[str, ...]
    path: Path
    seconds: float

    def finished(self) -> bool:
        """Whether there is nothing left to do. What is damaged is not finished: starting it says what is wrong."""
        try:
            return self.path.is_file() or RunDir(self.path).finished()
        except UserError:
            return False


@dataclass(frozen=True)
class Sweep:
    """Runs of one command.

    Attributes:
        experiment: Its name.
        title: What varies in it, in short.
        command: As a user would type it.
        part: One of ``PARTS`` of the experiment: ``main`` compares methods, ``fractions`` what they keep, ``rates``
            methods that share a learning rate.
        runs: One for each combination.
    """

    experiment: str
    title: str
    command: str
    part: str
    runs: tuple[Planned, ...]


@dataclass(frozen=True)
class Plan:
    """All that a report is made of.

    Attributes:
        scale: ``smoke``, ``laptop``, ``desk`` or ``paper``.
        sweeps: In the order in which they are run.
        scripts: Commands that are not runs: that of Table 1, or none.
        targets: Training losses to count iterations to, by experiment.
        step_ms: Of the machine where ``seconds`` were measured.
        notes: What cannot be run as planned, a sentence each.
    """

    scale: str
    sweeps: tuple[Sweep, ...]
    scripts: tuple[Planned, ...]
    targets: dict[str, tuple[float, ...]]
    step_ms: float
    notes: list[str] = field(default_factory=list)

    def jobs(self) -> list[Planned]:
        """All processes."""
        return [run for sweep in self.sweeps for run in sweep.runs] + list(self.scripts)


class _Entry(Strict):
    """A sweep, as the head of ``plan.yaml`` describes it."""

    sweep: Annotated[str, Field(pattern=r"(^|\s)experiment=\w")]
    seconds: Positive
    needs: dict[str, str | None] = {}
    part: Literal["main", "fractions", "rates"] = "main"


class _Timed(Strict):
    """What takes so long."""

    seconds: Positive


class _Scale(Strict):
    """All that is run at a scale."""

    sweeps: list[_Entry]
    targets: dict[str, Positive | list[Positive]]
    table1: _Timed | None = None


class _File(BaseModel):
    """A whole plan."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, _Scale]
    step_ms: Positive


def make_plan(file: Path, scale: str, runs: Path, look: bool = True) -> Plan:
    """Reads a plan and looks for the data sets that it needs.

    Args:
        file: A yaml like ``plan.yaml``.
        scale: One of those that it lists.
        runs: Where run directories are or will be.
        look: Without, data sets are not needed: nothing will be run.

    Raises:
        UserError: If there is no such scale, a sweep is empty, or a config cannot be composed.
    """
    try:
        plan = _File.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise UserError(f"{file} is no plan: {sentence(error)}") from error
    scales = plan.__pydantic_extra__
    if scale not in scales:
        raise UserError(f"the scale must be one of {', '.join(scales)}, got {scale!r}")
    chosen = scales[scale]
    sweeps: list[Sweep] = []
    notes: list[str] = []
    missing: dict[str, str] = {}
    for entry in chosen.sweeps:
        needs = entry.needs if look else {}
        missing |= {name: _missing(name) for name in needs if name not in missing}
        absent = [name for name in needs if missing[name]]
        sweep, experiment = " ".join(entry.sweep.split()), _experiment(entry.sweep)
        want = f"for want of {' and '.join(absent)}"
        if any(needs[name] is None for name in absent):
            notes.append(f"`{experiment}` is left out, {want}.")
            continue
        if absent:
            instead = " ".join(needs[name] for name in absent)
            notes.append(f"`{experiment}` is run with `{instead}`, {want}.")
            sweep = f"{sweep} {instead}"
        sweeps.append(make_sweep(sweep, runs, entry.seconds, entry.part))
    notes = [*dict.fromkeys(notes), *(f"{name}: {reason}" for name, reason in missing.items() if reason)]
    table = runs / "table1" / "table1.csv"
    written = table.with_suffix(".md")
    if written.is_relative_to(ROOT):  # where scripts are run: a table names the command that made it
        written = written.relative_to(ROOT)
    script = ("scripts/table1.py", "--out", str(written))
    timed = chosen.table1
    scripts = (Planned("table1", script, table, timed.seconds),) if timed else ()
    targets = {name: tuple(v) if isinstance(v, list) else (v,) for name, v in chosen.targets.items()}
    return Plan(scale, tuple(sweeps), scripts, targets, plan.step_ms, notes)


def measured_step() -> float:
    """Milliseconds of an exact step of the default run on one thread of this machine, median."""
    threads = torch.get_num_threads()
    try:
        trainer, _ = build(composed(["method=exact", "threads=1"]))
        taken = []
        for _ in range(_STEPS):
            start = time.perf_counter()
            trainer.step(*trainer.batch())
            taken.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1000 * statistics.median(taken)


def make_sweep(sweep: str, runs: Path, seconds: float = 0, part: str = "main") -> Sweep:
    """The runs of a command.

    Args:
        sweep: Overrides of ``run.py``, with lists as in a sweep.
        runs: Where run directories are or will be.
        seconds: That one run takes.
        part: One of ``PARTS``.

    Raises:
        UserError: If it is empty or cannot be composed, or there is no such part.
    """
    if part not in PARTS:
        raise UserError(f"the part of a sweep must be one of {', '.join(PARTS)}, got {part!r}: `{sweep}`")
    try:
        parsed = OverridesParser.create().parse_overrides(shlex.split(sweep))
        combinations = [c for part in BasicSweeper.split_arguments(parsed, None) for c in part]
        found: list[Planned] = []
        varied: dict[str, dict[str, None]] = {}
        for overrides in combinations:
            config = composed([*overrides, f"runs={runs}"])
            path = run_directory(config)
            command = ("run.py", *overrides, f"runs={runs}", "threads=1")
            said = {"budget": config.budget, "seed": config.seed}
            if "method" in config and "method=" in sweep:  # some studies compare all methods in one run
                said |= {"method": config.method.name}
            for key, value in said.items():
                varied.setdefault(key, {})[f"{value}"] = None
            found.append(Planned(label(path.parent.name, **said), command, path, seconds))
    except HydraException as error:
        raise UserError(f"the sweep `{sweep}` is not valid: {str(error).splitlines()[0]}") from error
    if not found:
        raise UserError(f"the sweep `{sweep}` is empty; give every list at least one value")
    experiment = found[0].path.parent.name
    title = ": ".join([experiment, *filter(None, [", ".join(varied.get("method", {}))])])
    title += "".join(f"; {key} {', '.join(varied[key])}" for key in ("budget", "seed") if len(varied[key]) > 1)
    return Sweep(experiment, title, f"python run.py -m {sweep}", part, tuple(found))


def _experiment(sweep: str) -> str:
    return next(part for part in sweep.split() if part.startswith("experiment=")).removeprefix("experiment=")


def _missing(name: str) -> str:
    """Why a data set cannot be had; empty if it can."""
    try:
        make(composed([f"data={name}"]).data)
    except UserError as error:
        return str(error)
    return ""
