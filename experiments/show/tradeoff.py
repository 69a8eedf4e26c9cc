"""The figure of time against memory: what a method costs in the one and saves of the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.labels import Look
from experiments.show.figures import style

__all__ = ["Point", "tradeoff_figure"]


_MARKERS = "osD^vP<>Xh"  # by which points are told apart without their colours


@dataclass(frozen=True)
class Point:
    """What was measured of one method, both ÷ exact.

    Attributes:
        look: How it is called and drawn.
        memory: Peak of a step.
        time: Lower quartile, median and upper quartile of a step's time.
    """

    look: Look
    memory: float
    time: tuple[float, float, float]


def tradeoff_figure(panels: Sequence[tuple[str, Sequence[Point]]]) -> Figure:
    """One panel for each net, with its title and points.

    Raises:
        ValueError: If there is no panel.
    """
    if not panels:
        raise ValueError("a figure of time against memory needs at least one net")
    with style():
        figure = Figure(figsize=(5.4 * len(panels), 4.2), layout="constrained")
        names = dict.fromkeys(point.look.label for _, points in panels for point in points)
        markers = dict(zip(names, cycle(_MARKERS)))
        for axes, (title, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw(axes, title, points, markers)
        _explain(figure)
    return figure


def _draw(axes: Axes, title: str, points: Sequence[Point], markers: dict[str, str]) -> None:
    axes.axhline(1, color="#BBBBBB", lw=0.8, zorder=1)
    axes.axvline(1, color="#BBBBBB", lw=0.8, zorder=1)
    for point in points:
        low, middle, high = point.time
        axes.errorbar(
            point.memory,
            middle,
            yerr=[[middle - low], [high - middle]],
            fmt=markers[point.look.label],
            ms=6,
            color=point.look.colour,
            capsize=2,
            lw=1,
            label=point.look.label,
        )
    right = max([1.0, *(point.memory for point in points)])
    bottom, top = (f(1.0, *(point.time[1] for point in points)) for f in (min, max))
    room = 0.12 * max(top - bottom, 0.1)
    axes.set(xlim=(0, 1.12 * right), ylim=(bottom - room, top + room))
    axes.set(title=title, xlabel="memory peak of a step ÷ exact", ylabel="time of a step ÷ exact (quartiles)")


def _explain(figure: Figure) -> None:
    """One legend for all panels."""
    named = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(named.values(), named, loc="outside lower center", ncols=min(5, len(named)), frameon=False)
