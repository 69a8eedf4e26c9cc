"""What several runs of the reactor say together: one row for each method and budget, and what a gradient costs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor

from experiments.errors import reading, writing
from experiments.labels import look
from experiments.methods import Method
from experiments.runs import provenance
from experiments.runs.directory import RunDir
from experiments.runs.parts import make
from experiments.runs.records import GROUP, Runs, mean_interval, union
from experiments.runs.study import Record
from experiments.show.figures import save
from experiments.show.tables import markdown
from experiments.show.verdicts import Interval, verdict
from experiments.studies.reactor.control import Simulation, found, simulation
from experiments.studies.reactor.figures import control_figure, curves_figure
from rad.measure import gradient_noise, saved_bytes
from rad.pde import Problem, reactor

__all__ = [
    "SHARE",
    "claim",
    "cost_table",
    "gradient_costs",
    "here",
    "loss_ratio",
    "one_percent",
    "publish_reactor",
    "reactor_markdown",
    "reactor_table",
    "recorded_costs",
    "shown_control",
    "threads_of",
]

# Where the published implementation is compared with: near the steady state.
THETA = (4.932, 0.05, -0.03, 0.02, 0.01, -0.02, 0.04)
_COSTS = ["method", "budget", "seconds", "noise", "noise_error", "measured"]
SHARE = 1.05  # of the exact final loss that the claim allows


def publish_reactor(runs: Runs, out: Path, target: float, costs: pd.DataFrame, command: str) -> str:
    """Writes figures, table.csv and table.md; returns the latter's text.

    Args:
        runs: Of ``experiment=reactor``, one problem.
        out: Folder.
        target: Loss to count iterations to.
        costs: As from `gradient_costs`.
        command: That makes them.
    """
    save(curves_figure(runs.curves), out / "curves")
    theta, problem, title = shown_control(runs)
    save(control_figure(theta, problem, title), out / "control")
    table = reactor_table(runs, target)
    table.merge(costs, on=["method", "budget"], how="left").to_csv(out / "table.csv", index=False)
    head = [f"- Gradients: {union(costs['measured'])}", f"- Command: `{command}`"]
    text = reactor_markdown(table, costs, runs, target, head)
    (out / "table.md").write_text(text, encoding="utf-8")
    return text


@contextmanager
def threads_of(runs: Runs) -> Iterator[None]:
    """As many threads as the runs had: what a gradient costs is the same in every table of them."""
    before = torch.get_num_threads()
    threads = RunDir(Path(runs.runs["run"].iloc[0])).config().get("threads")
    torch.set_num_threads(threads if isinstance(threads, int) and 0 < threads <= 1024 else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def reactor_table(runs: Runs, target: float) -> pd.DataFrame:
    """One row for each method and budget, in the order of the runs.

    Args:
        runs: Of ``experiment=reactor``, one problem.
        target: Loss to count iterations to.

    Returns:
        Columns method, budget, n, saved_bytes, bytes_ratio, final, final_half (of the 95 % t interval), of_exact (the
        final loss over exact's of the same seeds; NaN without those), reached, iterations, iterations_half (NaN unless
        all seeds got there) and finished.
    """
    last = runs.curves.sort_values("iteration").groupby("run")["train_loss"].last()
    met = runs.curves[runs.curves["train_loss"] <= target].groupby("run")["iteration"].min()
    per_run = runs.runs.set_index("run").assign(final=last, met=met)
    exact = per_run[per_run["method"] == "exact"].set_index("seed")["final"]
    rows = []
    for (_, _, method, budget), part in per_run.groupby(GROUP, dropna=False, sort=False):
        n, final, final_half = mean_interval(part["final"])
        reached = int(part["met"].notna().sum())
        _, iterations, half = mean_interval(part["met"]) if reached == n else (0, math.nan, math.nan)
        paired = part[part["seed"].isin(exact.index)]
        rows.append(
            {
                "method": method,
                "budget": budget,
                "n": n,
                "saved_bytes": part["saved_bytes"].mean(),
                "bytes_ratio": (part["saved_bytes"] / part["exact_saved_bytes"]).mean(),
                "final": final,
                "final_half": final_half,
                "of_exact": paired["final"].mean() / exact.loc[paired["seed"]].mean() if len(paired) else math.nan,
                "reached": reached,
                "iterations": iterations,
                "iterations_half": half,
                "finished": bool(part["finished"].all()),
            }
        )
    return pd.DataFrame(rows)


def gradient_costs(runs: Runs, rounds: int, draws: int) -> pd.DataFrame:
    """Measures one gradient of each method and budget of some runs, at the same control.

    Args:
        runs: As for `reactor_table`.
        rounds: Gradients to time of each, in turn.
        draws: Gradients to estimate the variance from.

    Returns:
        Columns method, budget, seconds (median, forward and backward pass), noise (root mean square error relative to
        the norm of the exact gradient), noise_error (its standard error) and measured (where, and of how many).
    """
    with threads_of(runs):
        first = runs.runs.drop_duplicates(["method", "budget"])
        losses = [_loss(RunDir(Path(path)).config()) for path in first["run"]]
        seconds = _interleaved(losses, rounds)
        exact = _gradient(_loss({**RunDir(Path(first["run"].iloc[0])).config(), "method": _EXACT}))
        measured = f"{here()}; median of {rounds}, variance of {draws} draws"
        rows = []
        for row, loss, took in zip(first.itertuples(), losses, seconds, strict=True):
            found = gradient_noise(partial(_gradient, loss), draws, exact).total
            noise = math.sqrt(found.variance / found.norm2)
            error = found.variance_error / (2 * noise * found.norm2) if noise else 0.0
            costs = {"seconds": took, "noise": noise, "noise_error": error}
            rows.append({"method": row.method, "budget": row.budget, **costs, "measured": measured})
        return pd.DataFrame(rows, columns=_COSTS)


def recorded_costs(runs: Runs, file: Path, rounds: int, draws: int) -> pd.DataFrame:
    """The same, measured once: whoever draws the runs again needs neither time nor a quiet machine.

    Args:
        runs: As for `gradient_costs`.
        file: Where they are kept; measured and written if it is not there or lacks a method or budget.
        rounds: As for `gradient_costs`.
        draws: As for `gradient_costs`.

    Raises:
        UserError: If the file is damaged or cannot be written.
    """
    asked = runs.runs[["method", "budget"]].drop_duplicates()
    if file.exists():
        with reading(file, "delete it to measure again"):
            costs = pd.read_csv(file, usecols=_COSTS)
            if len(found := asked.merge(costs.astype({"budget": float}), on=["method", "budget"])) == len(asked):
                return found
    costs = gradient_costs(runs, rounds, draws)
    with writing(file):
        costs.to_csv(file, index=False)
    return costs


def shown_control(runs: Runs) -> tuple[Tensor, Problem, str]:
    """Control and problem of an exact run, or of the first there is, and whose they are."""
    order = runs.runs.assign(other=runs.runs["method"] != "exact").sort_values(["other", "seed"])
    first = order.iloc[0]
    budget = "" if math.isnan(first["budget"]) else f", budget {first['budget']:g}"
    title = f"control of the reactor: {look(first['method']).label}{budget}, seed {first['seed']}"
    return *found(RunDir(Path(first["run"]))), title


def here() -> str:
    """Hardware and commit of this process, in a line."""
    return provenance.describe(provenance.session(torch.device("cpu")))


def cost_table(sizes: Iterable[tuple[int, int]], methods: Mapping[str, Method], rounds: int) -> list[dict[str, str]]:
    """Seconds and bytes of a gradient against the size of the grid and the number of steps.

    Args:
        sizes: Pairs of points along a side and steps; the step is as long as stability allows at that size.
        methods: By the name to show.
        rounds: Gradients to time of each, in turn.
    """
    cells = []
    for points, steps in sizes:
        problem = reactor(nx=points, ny=points, dt=0.25 / (points - 1) ** 2, steps=steps, diffusion=0.25)
        draws = torch.Generator().manual_seed(0)
        losses = [simulation(method, problem, 10, draws) for method in methods.values()]
        theta = torch.tensor(THETA, requires_grad=True)
        row = {"grid": f"{points} × {points}", "steps": f"{steps:,}"}
        for name, loss, took in zip(methods, losses, _interleaved(losses, rounds), strict=True):
            row[f"{name}: s"] = f"{took:.3f}"
            row[f"{name}: MB"] = f"{saved_bytes(partial(loss, theta)).total / 1e6:.2f}"
        cells.append(row)
    return cells


def reactor_markdown(table: pd.DataFrame, costs: pd.DataFrame, runs: Runs, target: float, head: Sequence[str]) -> str:
    """The tables of `reactor_table` and `gradient_costs` side by side, with the verdict on the paper's claim."""
    joined = table.merge(costs, on=["method", "budget"], how="left")
    cells = []
    for row in joined.itertuples():
        iterations = f"{row.iterations:,.0f}{_half(row.iterations_half, ',.0f')}"
        cells.append(
            {
                "method": look(row.method).label,
                "budget": "–" if math.isnan(row.budget) else f"{row.budget:g}",
                "n": f"{row.n}{'' if row.finished else ' (unfinished)'}",
                "kept bytes": f"{row.saved_bytes:,.0f}",
                "of all fields": f"{row.bytes_ratio:.5f}",
                "s a gradient": f"{row.seconds:.3f}",
                "relative error of a gradient": f"{row.noise:.2g} ± {1.96 * row.noise_error:.1g}",
                f"iterations to {target:g}": iterations
                if row.reached == row.n
                else f"{row.reached} of {row.n} reached",
                "final loss": f"{row.final:.6f}{_half(row.final_half, '.6f')}",
                "÷ exact": "–" if math.isnan(row.of_exact) else f"{row.of_exact:.3f}",
            }
        )
    lines = [
        "# Control of the reactor",
        "",
        f"- Problem: {union(runs.runs['data'])}, {union(runs.runs['iterations'].astype(str))} iterations",
        f"- Runs: commit {union(runs.runs['commits'])}; {union(runs.runs['software'])}; {union(runs.runs['hardware'])}",
        *head,
        "",
        markdown(cells, right=True),
        "",
        "± is half of a 95 % t interval over seeds; for the error of a gradient, 1.96 standard errors over draws. That",
        f"error is the root of the variance over the squared norm of the exact gradient at θ = {THETA}.",
    ]
    return "\n".join([*lines, "", claim(table), ""])


def one_percent(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of `reactor_table` that the claim is about: finished, 1 % of the fields or less, beside exact ones."""
    return table[(table["bytes_ratio"] <= 0.011) & table["finished"]].dropna(subset=["of_exact"])


def loss_ratio(row: pd.Series) -> tuple[str, Interval]:
    """Final loss over exact's of a row of `reactor_table`, as a text and as an interval."""
    half = row["final_half"] / row["final"] * row["of_exact"]
    text = f"{row['of_exact']:.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")
    return text, Interval.around(row["of_exact"], half)


def claim(table: pd.DataFrame) -> str:
    """What the runs say of the claim that 99 % of the memory is saved without a significant slowdown."""
    kept = one_percent(table)
    if kept.empty:
        return "No run keeps 1 % of the fields or less beside exact ones of the same seeds: no verdict."
    lines = []
    for _, row in kept.sort_values("bytes_ratio", ascending=False).iterrows():
        said, interval = loss_ratio(row)
        lines.append(
            f"* {look(row['method']).label} with {row['bytes_ratio']:.2%} of the bytes: final loss {said} "
            f"of exact's (n = {row['n']}); within {SHARE - 1:.0%}: {verdict([interval.within(high=SHARE)])}."
        )
    return "\n".join(["Claim: 99 % of the memory saved without a significant slowdown.", "", *lines])


_EXACT = {"_target_": "experiments.methods.Exact", "name": "exact"}


def _loss(config: Record) -> Simulation:
    settings = DictConfig(config)
    draws = torch.Generator().manual_seed(0)
    return simulation(make(settings.method), make(settings.problem), settings.snapshots, draws)


def _gradient(loss: Simulation) -> dict[str, torch.Tensor]:
    theta = torch.nn.Parameter(torch.tensor(THETA))
    (gradient,) = torch.autograd.grad(loss(theta), theta)
    return {"control.theta": gradient}


def _interleaved(losses: Sequence[Simulation], rounds: int) -> list[float]:
    """Median seconds of a gradient of each, after one that does not count."""
    taken: list[list[float]] = [[] for _ in losses]
    for number in range(rounds + 1):
        for times, loss in zip(taken, losses, strict=True):
            start = time.perf_counter()
            _gradient(loss)
            if number:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in taken]


def _half(half: float, form: str) -> str:
    return "" if math.isnan(half) else f" ± {half:{form}}"
