"""The figure of time against memory: what a method costs in the one and saves of the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.labels import Look
from experiments.show.figures import style

__all__ = ["Point", "tradeoff_figure"]


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
        for axes, (title, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw(axes, title, points)
    return figure


def _draw(axes: Axes, title: str, points: Sequence[Point]) -> None:
    axes.axhline(1, color="#BBBBBB", lw=0.8, zorder=1)
    axes.axvline(1, color="#BBBBBB", lw=0.8, zorder=1)
    for point in points:
        low, middle, high = point.time
        bars = [[middle - low], [high - middle]]
        axes.errorbar(point.memory, middle, yerr=bars, fmt="o", ms=6, color=point.look.colour, capsize=2, lw=1)
    right = max([1.0, *(point.memory for point in points)])
    bottom, top = (f(1.0, *(point.time[1] for point in points)) for f in (min, max))
    room = 0.12 * max(top - bottom, 0.1)
    axes.set(xlim=(0, 1.12 * right), ylim=(bottom - room, top + room))
    axes.set(title=title, xlabel="memory peak of a step ÷ exact", ylabel="time of a step ÷ exact (quartiles)")
    _name(axes, points, right)


def _name(axes: Axes, points: Sequence[Point], right: float) -> None:
    """Names beside their points, moved up and down until none covers another."""
    low, high = axes.get_ylim()
    line = 0.055 * (high - low)
    taken: list[tuple[float, float, float]] = []  # from, to and height
    for point in sorted(points, key=lambda p: p.time[1]):
        width = 0.021 * right * len(point.look.label)
        left = point.memory > 0.62 * right
        start = point.memory - 0.03 * right - width if left else point.memory + 0.03 * right
        height = point.time[1]
        while any(abs(height - y) < line and start < b and a < start + width for a, b, y in taken):
            height += line / 4
        taken.append((start, start + width, height))
        beside = point.memory + (-0.03 if left else 0.03) * right
        axes.annotate(
            point.look.label,
            (point.memory, point.time[1]),
            (beside, height),
            ha="right" if left else "left",
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": "#BBBBBB", "lw": 0.6, "shrinkB": 4, "shrinkA": 0},
        )
