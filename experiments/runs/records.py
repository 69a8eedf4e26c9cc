"""Read runs back from their directories: tidy frames, statistics over seeds, the summary table."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from experiments.errors import UserError
from experiments.labels import BUDGET_FREE, rank
from experiments.runs.directory import RunDir, find_runs

GROUP = ["experiment", "data", "method", "budget"]
METRICS = ["train_loss", "test_loss", "test_accuracy"]
SEPARATOR = "; "
INTERVAL = "95 % Student-t interval of the mean over seeds"

_TEXT = ["status", "experiment", "method", "model", "data"]
_NUMBERS = ["budget", "seed", "iterations", "batch_size", "saved_bytes", "exact_saved_bytes", "parameters"]


@dataclass(frozen=True)
class Runs:
    """Several runs, read from disk.

    Attributes:
        runs: One row per run: the fields of meta.json, `run` (its directory), `finished`, and from its sessions
            `commits`, `dirty`, `hardware` and `software`.
        curves: One row per evaluation, with every column of `runs`; a value that was not recorded is NaN, a loss
            that was recorded as NaN is infinite, and the budget of a method that does not read it is NaN.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame

    def studies(self) -> Iterator[tuple[str, str, Runs]]:
        """Yield (experiment, data, the runs of both), in alphabetical order."""
        for (experiment, data), part in self.runs.groupby(["experiment", "data"]):
            curves = self.curves[self.curves["run"].isin(part["run"])]
            yield experiment, data, Runs(part.reset_index(drop=True), curves.reset_index(drop=True))


def load_runs(paths: Iterable[str | Path]) -> Runs:
    """Read all runs at or below `paths`; what cannot be read is named in a warning and left out.

    Of runs that agree in all of `GROUP`, settings and seed, the finished, longest, latest one is kept.

    Raises:
        UserError: If a path leads to no run, or if none can be read.
    """
    rows, evaluations = [], []
    for path in find_runs(paths):
        try:
            row = _read_meta(path / "meta.json")
            RunDir(path).finished()  # or says what it has lost
            records = _read_records(path / "metrics.jsonl", row)
        except (OSError, UserError, ValueError, RecursionError) as error:
            reason = f"{Path(error.filename).name} is missing" if isinstance(error, FileNotFoundError) else error
            warnings.warn(f"{path} is left out: {reason}", stacklevel=2)
            continue
        rows.append({"run": str(path), **row})
        evaluations += [{"run": str(path), **record} for record in records]
    if not rows:
        raise UserError("None of the directories found holds a run that can be read")

    runs = pd.DataFrame(rows).sort_values(["finished", "iterations", "started", "run"])
    kept = runs.drop_duplicates([*GROUP, "settings", "seed"], keep="last")
    for path in runs["run"][~runs["run"].isin(kept["run"])]:
        warnings.warn(f"{path} is left out: another run has its settings and seed", stacklevel=2)
    kept = _in_order(kept, "seed")
    curves = pd.DataFrame(evaluations)
    curves = curves.reindex(columns=list(dict.fromkeys(["run", "iteration", *METRICS, *curves.columns])))
    # A resumed run repeats the evaluations after its checkpoint: the later record of an iteration is the valid one.
    curves = curves.groupby(["run", "iteration"], as_index=False).last()
    return Runs(kept, kept.merge(curves, on="run"))


def mean_interval(values: Iterable[float]) -> tuple[int, float, float]:
    """Return n, the mean and the half-width of its 95 % t interval; the half-width is NaN for n = 1."""
    series = pd.Series(list(values), dtype=float).dropna()
    with np.errstate(invalid="ignore"):  # a diverged run makes the mean infinite and its interval NaN
        return len(series), float(series.mean()), float(_half_width(series.std(), len(series)))


def curve_statistics(df: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Average one metric over seeds, separately for every method, budget and iteration.

    The band around the mean is the range of the seeds. For the few seeds of a study a t interval of a loss that
    spans orders of magnitude says nothing: it reaches below zero or, of logarithms, beyond all bounds.

    Args:
        df: `Runs.curves`.
        metric: Name of one of its columns; evaluations without a value for it are passed over.

    Returns:
        Columns experiment, data, method, budget, metric, iteration, n, mean, low (smallest) and high (largest of the
        seeds); low and high are NaN for n = 1.
    """
    groups = df.dropna(subset=[metric]).groupby([*GROUP, "iteration"], dropna=False)[metric]
    table = groups.agg(n="count", mean="mean", low="min", high="max").reset_index()
    table.insert(len(GROUP), "metric", metric)
    table.loc[table["n"] == 1, ["low", "high"]] = np.nan
    return _in_order(table, "iteration")


def summary_table(runs: Runs, target_loss: float) -> pd.DataFrame:
    """Summarize runs in one row per (experiment, data, method, budget).

    A column `x_half` is the half-width of the 95 % t interval of the mean `x`. Iterations to the target are those of
    the first evaluation with train_loss <= target_loss; their mean is NaN unless every seed got there, because the
    mean of the successful ones alone would flatter the method. The final values of a run that failed or goes on are
    those of its last evaluation; `notes` counts such runs. Mixed commits and modified trees raise a warning.
    """
    per_run = runs.runs.set_index("run")
    curves = runs.curves.sort_values("iteration")
    per_run = per_run.join(curves.groupby("run")[["train_loss", "test_accuracy"]].last())
    per_run["reached_at"] = curves[curves["train_loss"] <= target_loss].groupby("run")["iteration"].min()

    rows = []
    for key, part in per_run.groupby(GROUP, dropna=False):
        row = dict(zip(GROUP, key, strict=True)) | {"n": len(part), "batch_size": union(part["batch_size"].astype(str))}
        row["saved_bytes"] = part["saved_bytes"].mean()
        row["bytes_ratio"] = (part["saved_bytes"] / part["exact_saved_bytes"]).mean()
        row["peak_ratio"] = part["peak_ratio"].mean()
        reached = int(part["reached_at"].notna().sum())
        row |= {"target_loss": target_loss, "reached": reached if part["train_loss"].notna().any() else math.nan}
        part = part.assign(iterations_to_target=part["reached_at"] if reached == len(part) else math.nan)
        for name in ("iterations_to_target", "train_loss", "test_accuracy"):
            _, row[name], row[f"{name}_half"] = mean_interval(part[name])
        row["step_ms"] = part["step_ms"].mean()
        row |= {"unfinished": int((~part["finished"]).sum()), "commits": union(part["commits"])}
        rows.append(row | {"notes": SEPARATOR.join(_notes(part))})

    commits = union(runs.runs["commits"])
    if SEPARATOR in commits:
        warnings.warn(f"The table mixes runs of different code: {commits}", stacklevel=2)
    elif runs.runs["dirty"].any():
        warnings.warn(f"Runs come from a tree with uncommitted changes: {commits}", stacklevel=2)
    return _in_order(pd.DataFrame(rows))


def union(texts: Iterable[str]) -> str:
    """Join the distinct parts of texts that are themselves such joins."""
    return SEPARATOR.join(sorted({part for text in texts for part in text.split(SEPARATOR)}))


def _ratio(part: object, whole: object) -> float:
    return float(part / whole) if _is_number(part) and _is_number(whole) and whole > 0 else math.nan


def _read_meta(path: Path) -> dict:
    meta = _object(path.read_text(encoding="utf-8"), path.name)
    wrong = [key for key in _TEXT if not isinstance(meta.get(key), str)]
    wrong += [key for key in _NUMBERS if not (_is_number(meta.get(key)) and 0 <= meta[key] < 2**63)]
    sessions = meta.get("sessions")
    if not (isinstance(sessions, list) and sessions and all(isinstance(session, dict) for session in sessions)):
        wrong.append("sessions")
    if wrong:
        raise ValueError(f"meta.json lacks a valid {', '.join(wrong)}")
    dirty = [bool(session.get("dirty")) for session in sessions]
    names = [str(session.get("commit") or "unknown")[:10] for session in sessions]
    return {key: meta[key] for key in [*_TEXT, *_NUMBERS]} | {
        "step_ms": float(meta["step_ms"]) if _is_number(meta.get("step_ms")) else math.nan,
        "peak_ratio": _ratio(meta.get("peak_bytes"), meta.get("exact_peak_bytes")),
        "budget": math.nan if meta["method"] in BUDGET_FREE else float(meta["budget"]),
        "examples": float(meta["examples"]) if _is_number(meta.get("examples")) else math.nan,
        "settings": str(meta.get("settings") or ""),
        "finished": meta["status"] == "finished",
        "started": str(sessions[-1].get("started") or ""),
        "commits": union(name + "-dirty" * flag for name, flag in zip(names, dirty, strict=True)),
        "dirty": any(dirty),
        "hardware": union(_hardware(session) for session in sessions),
        "software": union(f"Python {s.get('python', '?')} with torch {s.get('torch', '?')}" for s in sessions),
    }


def _hardware(session: dict) -> str:
    cpu, device, threads = (session.get(key, "unknown") for key in ("cpu", "device", "threads"))
    return f"{cpu}, device {device}, threads used: {threads}"


def _read_records(path: Path, row: dict) -> list[dict]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = _object(line, f"line {number}")
            if not _is_number(record.get("iteration")):
                raise ValueError(f"line {number} names no iteration")
            strange = [key for key in METRICS if not (record.get(key) is None or _is_number(record[key]))]
            if strange:
                raise ValueError(f"line {number} holds no number as {strange[0]}")
        except ValueError as error:
            # A killed run stops in the middle of its last line; anywhere else a bad line is worth a word.
            if number < len(lines):
                warnings.warn(f"{path} is read without one line: {error}", stacklevel=3)
            continue
        if record.get("data", row["data"]) != row["data"]:
            raise ValueError(f"its records name the data set {record['data']} and its meta.json {row['data']}")
        records.append({key: value for key, value in record.items() if _is_number(value) and key not in row})
    if not records:
        raise ValueError("metrics.jsonl holds no evaluation")
    return records


def _object(text: str, name: str) -> dict:
    try:
        # NaN is a diverged loss. As infinity it stays in the mean; as NaN it would vanish like a value not recorded.
        value = json.loads(text, parse_constant=lambda _: math.inf)
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not a JSON object")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _half_width(std: pd.Series | float, n: pd.Series | int) -> pd.Series | float:
    return stdtrit(np.subtract(n, 1), 0.975) * std / np.sqrt(n)


def _in_order(table: pd.DataFrame, *more: str) -> pd.DataFrame:
    columns = ["experiment", "data", "rank", "method", "budget", *more]
    return table.assign(rank=table["method"].map(rank)).sort_values(columns, ignore_index=True).drop(columns="rank")


def _notes(part: pd.DataFrame) -> Iterator[str]:
    for status, count in part["status"][~part["finished"]].value_counts().items():
        # A killed run still says that it is running.
        yield f"{count} of {len(part)} {'failed' if status == 'failed' else 'unfinished'}"
    if SEPARATOR in union(part["commits"]):
        yield "mixed commits"
    if part["dirty"].any():
        yield "uncommitted changes"
    for name in ("model", "iterations", "batch_size", "settings"):
        if part[name].nunique() > 1:
            yield f"mixed {name}"
