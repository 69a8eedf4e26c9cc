"""How results are shown: the convergence figure and the summary table as Markdown."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from experiments.budgets import said
from experiments.labels import look
from experiments.runs.records import INTERVAL, METRICS, SEPARATOR, Runs, curve_statistics, union
from experiments.show.tables import markdown

_LABELS = {"train_loss": "training loss", "test_loss": "test loss", "test_accuracy": "test accuracy (%)"}
_FEW_POINTS = 12
_EARLY = 0.05
_LEGEND_WIDTH = 155  # letters in a row, those that the line samples take included


@dataclass(frozen=True)
class Line:
    """Of one method at one budget in a figure of curves.

    Attributes:
        method: Its name in records.
        budget: NaN if it does not read it.
        label: In the legend.
        colour: Lighter where less is kept, if the method is shown at several budgets.
    """

    method: str
    budget: float
    label: str
    colour: tuple[float, float, float]

    def draw(self, axes: Axes, statistics: pd.DataFrame, level: float) -> None:
        """Mean and range over iterations, of its rows of `curve_statistics`; exact gradients lie below all else."""
        budgets = statistics["budget"]
        mine = budgets.isna() if math.isnan(self.budget) else budgets == self.budget
        part = statistics[(statistics["method"] == self.method) & mine]
        its = look(self.method)
        shown = {"color": self.colour, "linestyle": its.dash, "linewidth": its.width, "label": self.label}
        shown |= {"zorder": 1.5 if its.width > 2 else level, "marker": "o" if len(part) <= _FEW_POINTS else ""}
        if len(part):
            axes.plot(part["iteration"], part["mean"], **shown)
            axes.fill_between(part["iteration"], part["low"], part["high"], color=self.colour, alpha=0.18, lw=0)


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


def shade(colour: str, place: float) -> tuple[float, float, float]:
    """A colour made lighter or darker: at 0 pale, at 1 nearly black, in steps that the eye can tell apart."""
    hue, _, saturation = colorsys.rgb_to_hls(*mpl.colors.to_rgb(colour))
    return colorsys.hls_to_rgb(hue, 0.78 - 0.6 * place, saturation)


def plain_ticks(axis: Axis) -> None:
    """Labels a logarithmic axis with powers of ten if it spans many of them, else with numbers as one writes them."""
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    if decades > 3:
        return
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if decades > 0.9 else MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def lines(curves: pd.DataFrame, name_all: bool = False) -> list[Line]:
    """One line for each method and budget, in the order of the frame.

    Args:
        curves: `Runs.curves`.
        name_all: Whether labels name the budget of a method that has only one.
    """
    pairs = curves[["method", "budget"]].drop_duplicates()
    found = []
    for method, budget in pairs.itertuples(index=False):
        budgets = pairs["budget"][pairs["method"] == method]
        its = look(method)
        several = len(budgets) > 1
        named = several or (name_all and not math.isnan(budget))
        label = its.label + (f", budget {said(budget)}" if named else "")
        place = (budgets < budget).sum() / (len(budgets) - 1) if several else 0
        colour = shade(its.colour, place) if several else mpl.colors.to_rgb(its.colour)
        found.append(Line(method, budget, label, colour))
    return found


def convergence_figure(curves: pd.DataFrame) -> Figure:
    """Draw training loss, test loss and test accuracy over iterations: mean and range over seeds.

    Args:
        curves: `Runs.curves` of one experiment on one data set.

    Raises:
        ValueError: If there are several experiments or data sets; see `Runs.studies`.
    """
    shown = lines(curves)
    studies = curves[["experiment", "data"]].drop_duplicates()
    if len(studies) != 1:
        raise ValueError(f"a figure shows one experiment on one data set, got {len(studies)}")
    experiment, data = studies.iloc[0]
    with style():
        figure = Figure(figsize=(10.5, 4), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
        panels = figure.subplots(1, len(METRICS))
        for axes, metric in zip(panels, METRICS, strict=True):
            _draw_panel(axes, curve_statistics(curves, metric), metric, shown)
        figure.suptitle(f"{experiment} on {data}{_budgets(curves)}", fontsize=12, fontweight="bold")
        found = {line.get_label(): line for axes in panels for line in axes.get_lines()}
        labels = [line.label for line in shown if line.label in found]
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
        "method": look(row["method"]).label,
        "budget": "–" if math.isnan(row["budget"]) else said(row["budget"]),
        "n": str(row["n"]),
        "batch": row["batch_size"],
        "bytes": f"{row['saved_bytes']:,.0f}",
        "of exact": f"{row['bytes_ratio']:.3f}",
        "peak of exact": _plus_minus(row["peak_ratio"], math.nan, ".3f"),
        f"iterations to {row['target_loss']:g}": reached,
        "final train loss": _plus_minus(row["train_loss"], row["train_loss_half"], ".3g"),
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


def _draw_panel(axes: Axes, statistics: pd.DataFrame, metric: str, shown: list[Line]) -> None:
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
    for number, line in enumerate(shown):
        line.draw(axes, statistics, 2 + number / 100)
    if not is_loss and len(statistics) > 1:
        # The first steps up from chance would squeeze the rest into a line; they enter from below instead.
        later = statistics[statistics["iteration"] >= _EARLY * statistics["iteration"].max()]
        room = max(1.0, 0.08 * (later["mean"].max() - later["mean"].min()))
        axes.set_ylim(later["mean"].min() - room, min(100.0, later["mean"].max()) + room)
    # A single lucky seed must not stretch the panel.
    positive = statistics["mean"][statistics["mean"] > 0]
    if is_loss and len(positive):
        axes.set_ylim(bottom=positive.min() / (positive.max() / positive.min()) ** 0.06)
        plain_ticks(axes.yaxis)
    axes.set_xlim(left=0)


def _budgets(curves: pd.DataFrame) -> str:
    budgets = sorted(curves["budget"].dropna().unique())
    plural = "s" * (len(budgets) > 1)
    return f", budget{plural} {', '.join(said(budget) for budget in budgets)}" if budgets else ""


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
