"""How far runs are, from their files alone."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from experiments.errors import UserError
from experiments.runs.directory import RunDir

__all__ = ["Progress", "find", "progress"]


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        name: Experiment and run directory.
        state: ``running``, ``finished``, ``failed`` (its loss was no longer finite), ``stopped`` (the same command goes
            on) or ``damaged``.
        iteration: Of the last record.
        iterations: Where it ends.
        train_loss: The last one.
        test_loss: The last one.
        seconds_left: At the pace of this session, of a run that is running and has recorded something since it began.
    """

    name: str
    state: str
    iteration: int = 0
    iterations: int = 0
    train_loss: float | None = None
    test_loss: float | None = None
    seconds_left: float | None = None


def find(root: Path, now: datetime) -> list[Progress]:
    """All runs below a folder, running ones first.

    Raises:
        UserError: If there is no such folder, or no run in it.
    """
    if not root.is_dir():
        raise UserError(f"{root} is no folder; name the one that holds the runs")
    order = ["running", "stopped", "failed", "damaged", "finished"]
    found = sorted(_all(root, now), key=lambda p: (order.index(p.state), p.name))
    if not found:
        raise UserError(f"there is no run below {root}; start one with python run.py, or name another folder")
    return found


def _all(root: Path, now: datetime) -> Iterator[Progress]:
    for file in glob.iglob(str(root / "**" / "meta.json"), recursive=True):  # follows links, as rglob does not
        yield progress(Path(file).parent, now)


def progress(path: Path, now: datetime) -> Progress:
    """How far the run in a directory is."""
    run, name = RunDir(path), f"{path.parent.name}/{path.name}"
    try:
        meta, records = run.meta(), run.records()
        state = meta["status"] if meta["status"] != "running" else "running" if run.busy() else "stopped"
        iterations, session = meta["iterations"], meta["sessions"][-1]
    except (UserError, KeyError, IndexError, OSError):
        return Progress(name, "damaged")
    iteration = records[-1]["iteration"] if records else 0
    left = None
    done = iteration - session.get("iteration", 0)
    if state == "running" and done > 0:
        recorded = (path / "metrics.jsonl").stat().st_mtime
        pace = (recorded - datetime.fromisoformat(session["started"]).timestamp()) / done
        left = max(0.0, pace * (iterations - iteration) - (now.timestamp() - recorded))
    losses = {
        key: next((record[key] for record in reversed(records) if key in record), None)
        for key in ("train_loss", "test_loss")
    }
    return Progress(name, state, iteration, iterations, seconds_left=left, **losses)
