"""How much sooner each method reaches a training loss than another, with bootstrap intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from experiments.budgets import said
from experiments.labels import look
from experiments.runs.records import Runs, mean_interval
from experiments.show.figures import plain_ticks, style
from experiments.show.verdicts import Interval

__all__ = [
    "MEASURES",
    "Ratio",
    "final_losses",
    "rates_table",
    "ratio_of_means",
    "reached",
    "speed_figure",
    "speed_table",
]

MEASURES = {"iterations": "iterations", "train_seconds": "seconds of training", "epochs": "epochs"}
_RESAMPLES = 9999


@dataclass(frozen=True)
class Ratio:
    """A ratio of means over seeds.

    Attributes:
        value: The ratio, or a bound of it.
        low: Lower end of the 95 % bootstrap interval of the value; NaN of a single seed.
        high: Upper end.
        n: Seeds that both have.
        bound: ``""``, or ``">"`` or ``"<"`` where some run did not get there; ``"–"`` where nothing can be said.
    """

    value: float
    low: float
    high: float
    n: int
    bound: str = ""

    def __str__(self) -> str:
        if self.bound:
            return self.bound if math.isnan(self.value) else f"{self.bound} {self.value:.2f}"
        return f"{self.value:.2f}" + ("" if math.isnan(self.low) else f" ({self.low:.2f} to {self.high:.2f})")

    def interval(self) -> Interval:
        """What the ratio may be: beyond its bound all is possible, the bound itself is not."""
        if self.bound == "<":
            return Interval(0.0, math.nextafter(self.high, 0.0))
        if self.bound == ">":
            return Interval(math.nextafter(self.low, math.inf), math.inf)
        return Interval(self.low, self.high)


def reached(runs: Runs, target: float) -> pd.DataFrame:
    """One row for each run: what it took to the first evaluation whose training loss is at most ``target``.

    Returns:
        Columns run, method, seed, iterations, train_seconds, epochs (as recorded; NaN where the records do not say)
        and met; of a run that did not get there, the values at its last evaluation.
    """
    rows = []
    for run, curve in runs.curves.dropna(subset=["train_loss"]).groupby("run"):
        curve = curve.sort_values("iteration")
        met = curve[curve["train_loss"] <= target]
        at = met.iloc[0] if len(met) else curve.iloc[-1]
        epochs = at["iteration"] * at["batch_size"] / at["examples"] if at.get("examples", 0) > 0 else math.nan
        rows.append(
            {
                "run": run,
                "method": at["method"],
                "seed": at["seed"],
                "iterations": at["iteration"],
                "train_seconds": at.get("train_seconds", math.nan),
                "epochs": epochs,
                "met": len(met) > 0,
            }
        )
    return pd.DataFrame(rows)


def final_losses(runs: Runs) -> pd.DataFrame:
    """One row for each run: its last training loss, infinite if it diverged.

    Returns:
        Columns run, method, budget, seed, iterations, train_loss and met, which is true, as `ratio_of_means` asks.
    """
    last = runs.curves.dropna(subset=["train_loss"]).sort_values("iteration").groupby("run", sort=False).last()
    columns = ["run", "method", "budget", "seed", "iteration", "train_loss"]
    return last.reset_index()[columns].rename(columns={"iteration": "iterations"}).assign(met=True)


def ratio_of_means(table: pd.DataFrame, method: str, baseline: str, measure: str = "iterations") -> Ratio:
    """Of two methods' means over the seeds that both have; seeds are resampled in pairs, for they share their data.

    Args:
        table: As from `reached`.
        method: Above.
        baseline: Below.
        measure: A column.
    """
    above, below = (table[table["method"] == name].set_index("seed") for name in (method, baseline))
    seeds = above.index.intersection(below.index)
    above, below = above.loc[seeds], below.loc[seeds]
    a, b = above[measure].to_numpy(float), below[measure].to_numpy(float)
    if seeds.empty or not np.isfinite([*a, *b]).all() or b.mean() == 0:
        return Ratio(math.nan, math.nan, math.nan, len(seeds), "–")
    # What a run took that did not get there is less than what it would have taken.
    missed = not above["met"].all(), not below["met"].all()
    if all(missed):
        return Ratio(math.nan, math.nan, math.nan, len(seeds), "–")
    low, high = _bootstrap(a, b) if len(seeds) > 1 else (math.nan, math.nan)
    bound = ">" if missed[0] else "<" if missed[1] else ""
    return Ratio(float(a.mean() / b.mean()), low, high, len(seeds), bound)


def _bootstrap(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of the ratio of means of pairs."""
    found = stats.bootstrap(
        (a, b),
        lambda x, y, axis: np.mean(x, axis=axis) / np.mean(y, axis=axis),
        paired=True,
        vectorized=True,
        confidence_level=0.95,
        method="percentile",
        n_resamples=_RESAMPLES,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def _methods(runs: Runs) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each method, with the budget where it has several, and its runs."""
    for method, its in runs.runs.groupby("method", sort=False):
        several = its["budget"].nunique() > 1
        for budget, part in its.groupby("budget", sort=False, dropna=False):
            yield look(str(method)).label + (f", {said(float(budget))}" if several else ""), part  # pyright: ignore


def _against(runs: Runs, mine: pd.DataFrame, baseline: str) -> pd.Series:
    """Names of runs, and of those of a baseline that they are compared with: at the same budget if it has several."""
    base = runs.runs[runs.runs["method"] == baseline]
    if base["budget"].nunique() > 1:
        base = base[base["budget"].isin(mine["budget"])]
    return pd.concat([mine["run"], base["run"]])


def speed_table(runs: Runs, target: float, baselines: tuple[str, ...]) -> list[dict[str, str]]:
    """One row for each method and budget: what it takes to the target relative to each baseline, by each measure.

    Args:
        runs: Of one experiment.
        target: Training loss.
        baselines: Methods to compare with; those without runs are passed over.
    """
    table = reached(runs, target)
    rows = []
    for label, its in _methods(runs):
        mine, method = table[table["run"].isin(its["run"])], its["method"].iloc[0]
        got = int(mine["met"].sum())
        row = {
            "method": label,
            "bytes ÷ exact": f"{(its['saved_bytes'] / its['exact_saved_bytes']).mean():.3f}",
            "n": str(len(mine)),
            "iterations": f"{mine['iterations'].mean():,.0f}"
            if got == len(mine)
            else f"reached by {got} of {len(mine)}",
        }
        for baseline in baselines:
            if baseline in set(table["method"]):
                both = table[table["run"].isin(_against(runs, its, baseline))]
                for measure, name in MEASURES.items():
                    ratio = "1" if method == baseline else str(ratio_of_means(both, method, baseline, measure))
                    row[f"{name} ÷ {look(baseline).label}"] = ratio
        rows.append(row)
    return rows


def speed_figure(runs: Runs, targets: Sequence[float], baseline: str) -> Figure:
    """Iterations to a training loss relative to a baseline, over that loss, a line a method; bounds are left out.

    Args:
        runs: Of one experiment.
        targets: Training losses.
        baseline: A method.
    """
    tables = {target: reached(runs, target) for target in sorted(targets, reverse=True)}
    with style():
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        for label, mine in _methods(runs):
            method, both = mine["method"].iloc[0], _against(runs, mine, baseline)
            found = {
                target: ratio_of_means(table[table["run"].isin(both)], method, baseline)
                for target, table in tables.items()
            }
            found = {target: r for target, r in found.items() if not r.bound}
            if method != baseline and found:
                its, values = look(method), list(found.values())
                bars = [[r.value - r.low for r in values], [r.high - r.value for r in values]]
                shown = {"color": its.colour, "linestyle": its.dash, "label": label, "marker": "o", "capsize": 2}
                axes.errorbar(list(found), [r.value for r in values], np.nan_to_num(bars), **shown)
        axes.axhline(1, color="#999999", lw=0.8, ls="--")
        axes.set(xscale="log", yscale="log", xlabel="training loss", ylabel=f"iterations ÷ {look(baseline).label}")
        axes.invert_xaxis()
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        figure.legend(loc="outside right center")
    return figure


def rates_table(rates: pd.DataFrame) -> list[dict[str, str]]:
    """One row for each optimizer, learning rate and method: its final training loss, and relative to a smaller batch's.

    Args:
        rates: As from `final_losses`, with columns optimizer and rate.
    """
    rows = []
    for (optimizer, rate), part in rates.groupby(["optimizer", "rate"], sort=False):
        for method, losses in part.groupby("method", sort=False):
            n, mean, half = mean_interval(losses["train_loss"])
            against = ratio_of_means(part, str(method), "small_batch", "train_loss")
            rows.append(
                {
                    **{"optimizer": str(optimizer), "learning rate": f"{rate:g}", "method": look(str(method)).label},
                    **{"n": f"{n}", "final training loss": f"{mean:.3g} ± {half:.2g}"},
                    "÷ smaller batch": "1" if method == "small_batch" else str(against),
                }
            )
    return rows
