"""How the reactor is shown: loss over iterations, the field beside its target, the control, all of it moving."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pandas as pd
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.labels import look
from experiments.runs.records import curve_statistics
from experiments.show.figures import lines, plain_ticks, style
from rad.pde import Problem, Trajectory, trajectory

__all__ = ["animate", "control_figure", "curves_figure", "run_figure"]

_DIVERGING, _SEQUENTIAL = "RdBu_r", "magma"
_SHOWN = 6


def curves_figure(curves: pd.DataFrame) -> Figure:
    """Loss over iterations, a line for each method and budget: mean and range over seeds (Fig. 6b of the paper)."""
    with style():
        figure = Figure(figsize=(6.5, 4.2), layout="constrained")
        axes = figure.subplots()
        _draw_curves(axes, curves)
        counts = curves.drop_duplicates("run").groupby(["method", "budget"], dropna=False).size()
        n = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
        axes.legend(title=f"mean and range, n = {n}", fontsize=8)
    return figure


def control_figure(theta: Tensor, problem: Problem, title: str) -> Figure:
    """Field, target and their difference at several times, and the control over place and time."""
    with style():
        figure = Figure(figsize=(10.5, 7.4), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(3, 1.1))
        shown = trajectory(theta, problem, _spread(problem, 2 * _SHOWN + 1)[1::2])  # its ends are periods of the target
        _draw_fields(above, shown)
        _draw_control(below.subplots(1, 2), theta, problem)
        figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure


def run_figure(curves: pd.DataFrame, theta: Tensor, problem: Problem) -> Figure:
    """Loss over iterations and the control that one run has found."""
    with style():
        figure = Figure(figsize=(10.5, 3.2), layout="constrained")
        panels = figure.subplots(1, 3)
        _draw_curves(panels[0], curves)
        panels[0].legend()
        _draw_control(panels[1:], theta, problem)
    return figure


def animate(theta: Tensor, problem: Problem, path: Path, frames: int = 80) -> Path:
    """Writes field and target side by side over time as a GIF; returns its path."""
    shown = trajectory(theta, problem, _spread(problem, frames))
    with style():
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        images = []
        for axes, name, values in zip(
            figure.subplots(1, 2), ("field", "target"), (shown.field, shown.target), strict=True
        ):
            images.append(_picture(axes, values[0], 0, float(shown.target.max()), _SEQUENTIAL))
            axes.set_title(name)

        def draw(frame: int) -> None:
            figure.suptitle(f"t = {shown.times[frame]:.2f}")
            for image, values in zip(images, (shown.field, shown.target), strict=True):
                image.set_data(values[frame].T.numpy())

        path.parent.mkdir(parents=True, exist_ok=True)
        FuncAnimation(figure, draw, frames=len(shown.times)).save(path, writer=PillowWriter(fps=12), dpi=80)
    return path


def _draw_curves(axes: Axes, curves: pd.DataFrame) -> None:
    statistics = curve_statistics(curves, "train_loss")
    for number, line in enumerate(lines(curves, name_all=True)):
        line.draw(axes, statistics, 2 + number / 100)
    axes.set(xlabel="iteration", ylabel="loss", yscale="log")
    axes.set_xlim(left=0)
    plain_ticks(axes.yaxis)


def _draw_fields(figure: mpl.figure.SubFigure, shown: Trajectory) -> None:
    away = shown.field - shown.target
    rows = {
        "field": (shown.field, 0, float(shown.target.max()), _SEQUENTIAL),
        "target": (shown.target, 0, float(shown.target.max()), _SEQUENTIAL),
        "field − target": (away, -float(away.abs().max()), float(away.abs().max()), _DIVERGING),
    }
    panels = figure.subplots(len(rows), len(shown.times))
    for line, (name, (values, low, high, colours)) in zip(panels, rows.items(), strict=True):
        for column, axes in enumerate(line):
            image = _picture(axes, values[column], low, high, colours)
        line[0].set_ylabel(name)
        figure.colorbar(image, ax=list(line), fraction=0.02)
    for axes, t in zip(panels[0], shown.times, strict=True):
        axes.set_title(f"t = {t:.2f}")


def _draw_control(panels: list[Axes], theta: Tensor, problem: Problem) -> None:
    shown = trajectory(theta, problem, _spread(problem, 100))
    along = shown.control[:, 1:-1, problem.ny // 2]
    control, parameters = panels
    extent = (0, float(shown.times[-1]), 0, 1)
    image = control.imshow(along.T.numpy(), origin="lower", aspect="auto", extent=extent, cmap=_SEQUENTIAL)
    control.set(xlabel="t", ylabel="x", title="control C at y = ½")
    control.grid(False)
    control.figure.colorbar(image, ax=control)
    parameters.bar(range(len(theta)), theta.tolist(), color=look("exact").colour)
    parameters.set(xlabel="j", title="parameters θⱼ", xticks=range(len(theta)))
    parameters.bar_label(parameters.containers[0], fmt="%.3f", fontsize=7, padding=2)
    parameters.margins(y=0.15)


def _picture(axes: Axes, values: Tensor, low: float, high: float, colours: str) -> mpl.image.AxesImage:
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    return axes.imshow(values.T.numpy(), origin="lower", vmin=low, vmax=high, cmap=colours, extent=(0, 1, 0, 1))


def _spread(problem: Problem, count: int) -> list[int]:
    """So many steps from the first to the last."""
    return torch.linspace(0, problem.steps - 1, min(count, problem.steps), dtype=torch.float64).round().int().tolist()
