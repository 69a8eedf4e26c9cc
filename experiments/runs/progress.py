"""How far runs are, from their files alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from experiments.errors import UserError, reading
from experiments.labels import BUDGET_FREE
from experiments.runs.directory import RunDir, find_runs

__all__ = ["Progress", "find", "progress"]

_SHOWN = ("method=", "budget=", "seed=")  # in fields of their own


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        name: Experiment and run directory.
        experiment: As recorded, or else the folder of the run directory.
        method: As configured; ``all`` of a study that compares all.
        budget: That the method reads, if it reads one.
        seed: As configured.
        also: What else the run directory is named by, part by part.
        state: ``running``, ``finished``, ``failed`` (its loss was no longer finite), ``stopped`` (the same command goes
            on) or ``damaged``.
        iteration: Of the last record.
        iterations: Where it ends.
        train_loss: The last one.
        test_loss: The last one.
        problem: What is damaged, in a sentence.
        seconds_left: At the pace of this session, of a run that is running and has recorded something since it began.
    """

    name: str
    state: str
    experiment: str = ""
    method: str = ""
    budget: float | None = None
    seed: int | None = None
    also: frozenset[str] = frozenset()
    iteration: int = 0
    iterations: int = 0
    train_loss: float | None = None
    test_loss: float | None = None
    problem: str = ""
    seconds_left: float | None = None


def find(root: Path, now: datetime) -> list[Progress]:
    """How far all runs below a folder are, running ones first.

    Raises:
        UserError: If there is no such folder, or no run in it.
    """
    order = ["running", "stopped", "failed", "damaged", "finished"]
    runs = [progress(path, now) for path in find_runs([root])]
    return sorted(
        runs, key=lambda p: (order.index(p.state), p.experiment, p.method, p.budget or 0, p.seed or 0, p.name)
    )


def progress(path: Path, now: datetime) -> Progress:
    """How far the run in a directory is; whatever is wrong with it, others are not to be hidden by that."""
    try:
        with reading(path, "delete it to begin this run anew"):
            return _progress(path, now)
    except UserError as error:
        name = f"{path.parent.name}/{path.name}"
        return Progress(name, "damaged", path.parent.name, also=frozenset([path.name]), problem=str(error))


def _progress(path: Path, now: datetime) -> Progress:
    run, name = RunDir(path), f"{path.parent.name}/{path.name}"
    also = frozenset(part for part in path.name.split(",") if not part.startswith(_SHOWN) and part != "default")
    meta, records = run.meta(), run.records()
    run.finished()  # or says what it has lost
    state = meta["status"] if meta["status"] != "running" else "running" if run.busy() else "stopped"
    iterations, session = meta["iterations"], meta["sessions"][-1]
    experiment, method, seed = (meta[key] for key in ("experiment", "method", "seed"))
    iteration = records[-1]["iteration"] if records else 0
    left = None
    done = iteration - session.get("iteration", 0)
    if state == "running" and done > 0:
        recorded = (path / "metrics.jsonl").stat().st_mtime
        pace = (recorded - datetime.fromisoformat(session["started"]).timestamp()) / done
        left = max(0.0, pace * (iterations - iteration) - (now.timestamp() - recorded))
    losses = {
        key: next((float(record[key]) for record in reversed(records) if record.get(key) is not None), None)
        for key in ("train_loss", "test_loss")
    }
    budget = None if method in (*BUDGET_FREE, "all") else float(meta["budget"])
    if budget is not None and not 0 < budget < math.inf:
        raise ValueError(f"its budget is {budget}")
    which = (str(experiment), str(method), budget, int(seed), also)
    return Progress(name, state, *which, iteration, int(iterations), seconds_left=left, **losses)
