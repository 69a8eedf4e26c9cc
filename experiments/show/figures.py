"""How results are shown: the convergence figure and the summary table as Markdown."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.runs.records import INTERVAL, METRICS, SEPARATOR, Runs, curve_statistics, union
from experiments.show.tables import markdown

# Okabe and Ito's palette, which stays apart under the common kinds of colour blindness.
METHOD_STYLE = {
    "exact": ("exact", "#000000"),
    "checkpoint": ("checkpointing", "#999999"),
    "small_batch": ("smaller batch", "#E69F00"),
    "rad_same": ("RAD, same sample", "#56B4E9"),
    "rad_even": ("RAD, evenly spaced sample", "#332288"),
    "rad_diff": ("RAD, different sample", "#0072B2"),
    "rad_proj": ("RAD, projection", "#D55E00"),
    "rad_round": ("RAD, rounding", "#009E73"),
    "rad_mixed": ("RAD, sampling and rounding", "#CC79A7"),
}
_OTHER_COLOURS = ["#CC79A7", "#882255", "#999933", "#661100", "#6699CC"]
_DASHES = ["-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)), (0, (8, 3))]
_LABELS = {"train_loss": "training loss", "test_loss": "test loss", "test_accuracy": "test accuracy (%)"}
_FEW_POINTS = 12
_EARLY = 0.05
_LEGEND_WIDTH = 155  # letters in a row, those that the line samples take included


@dataclass(frozen=True)
class _Line:
    method: str
    budget: float
    label: str
    colour: str
    dash: object


@contextmanager
def style() -> Iterator[None]:
    """Apply the project's matplotlib settings inside the block and restore the caller's afterwards."""
    settings = {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#E4E4E4",
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "lines.linewidth": 1.5,
        "lines.markersize": 3.5,
        "legend.frameon": False,
        "legend.handlelength": 2.4,
        "legend.columnspacing": 1.4,
        "legend.title_fontsize": 8.5,
        "pdf.fonttype": 42,
        "savefig.dpi": 160,
    }
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        yield


def method_style(method: str) -> tuple[str, str]:
    """Return label and colour of a method; an unknown one keeps its name and always gets the same spare colour."""
    spare = _OTHER_COLOURS[zlib.crc32(method.encode()) % len(_OTHER_COLOURS)]
    return METHOD_STYLE.get(method, (method, spare))


def convergence_figure(curves: pd.DataFrame) -> Figure:
    """Draw training loss, test loss and test accuracy over iterations: mean and range over seeds.

    Args:
        curves: `Runs.curves` of one experiment on one data set.

    Raises:
        ValueError: If there are several experiments or data sets; see `Runs.studies`.
    """
    lines = _lines(curves)
    studies = curves[["experiment", "data"]].drop_duplicates()
    if len(studies) != 1:
        raise ValueError(f"a figure shows one experiment on one data set, got {len(studies)}")
    experiment, data = studies.iloc[0]
    with style():
        figure = Figure(figsize=(10.5, 4), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
        panels = figure.subplots(1, len(METRICS))
        for axes, metric in zip(panels, METRICS, strict=True):
            _draw_panel(axes, curve_statistics(curves, metric), metric, lines)
        figure.suptitle(f"{experiment} on {data}{_budgets(curves)}", fontsize=12, fontweight="bold")
        found = {line.get_label(): line for axes in panels for line in axes.get_lines()}
        labels = [line.label for line in lines if line.label in found]
        widths = [len(label) + 8 for label in labels] or [1]
        columns = len(widths) if sum(widths) <= _LEGEND_WIDTH else max(1, _LEGEND_WIDTH // max(widths))
        figure.set_figheight(4.0 + 0.2 * math.ceil(len(widths) / columns))
        handles = [found[label] for label in labels]
        figure.legend(handles, labels, title=_caption(curves), loc="outside lower center", ncols=columns)
    return figure


def save(figure: Figure, stem: str | Path, kinds: Sequence[str] = ("pdf", "png")) -> list[Path]:
    """Write `stem`.pdf and `stem`.png, byte for byte the same whenever the figure is; return the paths."""
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in kinds]
    with style():
        for path in paths:
            figure.savefig(path, metadata={"CreationDate": None} if path.suffix == ".pdf" else None)
    return paths


def table_markdown(table: pd.DataFrame, runs: Runs, command: str) -> str:
    """Render the result of `summary_table` with what is needed to judge and repeat it.

    Args:
        table: One or more rows of `summary_table`.
        runs: The runs it was made from.
        command: The command that makes it, quoted in the header.
    """
    commits = union(runs.runs["commits"])
    mixed = " (mixed: not all rows come from the same code)" if SEPARATOR in commits else ""
    header = [
        f"# {union(table['experiment'])} on {union(table['data'])}",
        "",
        f"- Data set: {union(table['data'])}",
        f"- Target: training loss ≤ {table['target_loss'].iloc[0]:g}, at the first evaluation that meets it",
        f"- Intervals: mean ± half-width of the {INTERVAL}; n = 1 has none",
        "- Bytes: measured, held by autograd for the backward pass of one step at the row's batch size;"
        " the ratio is to exact backpropagation at the experiment's batch size",
        f"- Commit: {commits}{mixed}",
        f"- Hardware: {union(runs.runs['hardware'])}",
        f"- Software: {union(runs.runs['software'])}",
        f"- Command: `{command}`",
        "",
    ]
    return "\n".join([*header, markdown(summary_cells(table))]) + "\n"


def summary_cells(table: pd.DataFrame) -> list[dict[str, str]]:
    """Rows of `summary_table` as texts."""
    several = table[["experiment", "data"]].nunique().max() > 1
    return [_table_row(row, several) for _, row in table.iterrows()]


def _table_row(row: pd.Series, several: bool) -> dict[str, str]:
    if math.isnan(row["reached"]):
        reached = "not recorded"
    elif row["reached"] < row["n"]:
        reached = f"reached by {row['reached']:.0f} of {row['n']}"
    else:
        reached = _plus_minus(row["iterations_to_target"], row["iterations_to_target_half"], ",.0f")
    cells = {"experiment": row["experiment"], "data": row["data"]} if several else {}
    cells |= {
        "method": row["method"],
        "budget": _plus_minus(row["budget"], math.nan, "g"),
        "n": str(row["n"]),
        "batch": row["batch_size"],
        "bytes": f"{row['saved_bytes']:,.0f}",
        "of exact": f"{row['bytes_ratio']:.3f}",
        f"iterations to {row['target_loss']:g}": reached,
        "final train loss": _plus_minus(row["train_loss"], row["train_loss_half"], ".2g"),
        "final test accuracy (%)": _plus_minus(100 * row["test_accuracy"], 100 * row["test_accuracy_half"], ".2f"),
        "step (ms)": _plus_minus(row["step_ms"], math.nan, ".2f"),
        "commit": row["commits"],
        "notes": row["notes"],
    }
    return cells


def _plus_minus(mean: float, half: float, form: str) -> str:
    if math.isnan(mean):
        return "–"
    if math.isinf(mean):
        return "diverged"
    return f"{mean:{form}}" + ("" if math.isnan(half) else f" ± {half:{form}}")


def _draw_panel(axes: Axes, statistics: pd.DataFrame, metric: str, lines: list[_Line]) -> None:
    axes.set(xlabel="iteration", ylabel=_LABELS[metric])
    if statistics.empty:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not recorded in these runs", transform=axes.transAxes, ha="center", color="#666666")
        return
    is_loss = metric.endswith("loss")
    axes.set_yscale("log" if is_loss else "linear")
    statistics = statistics.replace([np.inf, -np.inf], np.nan)
    columns = ["mean", "low", "high"]
    statistics[columns] *= 1 if is_loss else 100
    for number, line in enumerate(lines):
        same_budget = statistics["budget"].isna() if math.isnan(line.budget) else statistics["budget"] == line.budget
        part = statistics[(statistics["method"] == line.method) & same_budget]
        # Wide and below: exact backpropagation stays visible where another method lies right on top of it.
        look = {"linewidth": 3.0} if line.method == "exact" else {}
        look |= {"marker": "o"} if len(part) <= _FEW_POINTS else {}
        look |= {"color": line.colour, "linestyle": line.dash, "label": line.label, "zorder": 2 + number / 100}
        if len(part):
            axes.plot(part["iteration"], part["mean"], **look)
            axes.fill_between(part["iteration"], part["low"], part["high"], color=line.colour, alpha=0.18, lw=0)
    if not is_loss and len(statistics) > 1:
        # The first steps up from chance would squeeze the rest into a line; they enter from below instead.
        later = statistics[statistics["iteration"] >= _EARLY * statistics["iteration"].max()]
        room = max(1.0, 0.08 * (later["mean"].max() - later["mean"].min()))
        axes.set_ylim(later["mean"].min() - room, min(100.0, later["mean"].max()) + room)
    # A single lucky seed must not stretch the panel.
    positive = statistics["mean"][statistics["mean"] > 0]
    if is_loss and len(positive):
        axes.set_ylim(bottom=positive.min() / 1.6)
    axes.set_xlim(left=0)


def _lines(curves: pd.DataFrame) -> list[_Line]:
    """List one line for each method and budget, in the order of the frame."""
    pairs = curves[["method", "budget"]].drop_duplicates()
    lines = []
    for method, budget in pairs.itertuples(index=False):
        budgets = pairs["budget"][pairs["method"] == method]
        label, colour = method_style(method)
        if len(budgets) > 1:
            label += f", budget {budget:g}"
        # Checkpointing has exact gradients, hence the same curve: its dashes let that one show through.
        number = int((budgets < budget).sum()) + (method == "checkpoint")
        lines.append(_Line(method, budget, label, colour, _DASHES[number % len(_DASHES)]))
    return lines


def _budgets(curves: pd.DataFrame) -> str:
    budgets = sorted(curves["budget"].dropna().unique())
    plural = "s" * (len(budgets) > 1)
    return f", budget{plural} {', '.join(f'{budget:g}' for budget in budgets)}" if budgets else ""


def _caption(curves: pd.DataFrame) -> str:
    runs = curves.drop_duplicates("run")
    counts = runs.groupby(["method", "budget"], dropna=False).size()
    low, high = counts.min(), counts.max()
    if high == 1:
        text = "single runs (n = 1), no range"
    else:
        count = low if low == high else f"{low} to {high}"
        text = f"mean and range (smallest to largest) of {count} seeds"
    unfinished = int((~runs["finished"]).sum())
    if unfinished:
        text += f"; {unfinished} of {len(runs)} runs failed or unfinished"
    diverged = curves["run"][np.isinf(curves[METRICS]).any(axis=1)].nunique()
    return text + (f"; {diverged} diverged, where their line ends" if diverged else "")
