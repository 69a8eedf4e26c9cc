"""How the noise of gradients is shown: added variance against measured bytes."""

from __future__ import annotations

from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.labels import look
from experiments.show.figures import plain_ticks, style

__all__ = ["noise_figure"]


def noise_figure(frame: pd.DataFrame) -> Figure:
    """A panel for each net and phase.

    Args:
        frame: Records with their added variance, as the study writes them to ``noise.csv``.
    """
    nets, phases = (list(dict.fromkeys(frame[name])) for name in ("net", "phase"))
    with style():
        figure = Figure(figsize=(3.6 * len(nets), 3.1 * len(phases) + 0.7), layout="constrained")
        panels = figure.subplots(len(phases), len(nets), squeeze=False, sharex=True)
        for (net, phase), part in frame.groupby(["net", "phase"], sort=False):
            axes = panels[phases.index(phase), nets.index(net)]
            _panel(axes, part)
            axes.set_title(fill(f"{net}, {part['data'].iloc[0]}, {phase}", 36))
        for axes in panels[-1]:
            axes.set_xlabel("bytes held for backward ÷ exact")
        for axes in panels[:, 0]:
            axes.set_ylabel("added variance ÷ full batch's")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, 1 + len(nets)))
    return figure


def _panel(axes: Axes, part: pd.DataFrame) -> None:
    for name, rows in part.groupby("estimator", sort=False):
        its = look(str(name))
        rows = rows[rows["added"] > 0].sort_values("saved_bytes")
        bars = np.minimum(1.96 * rows["added_error"], 0.9 * rows["added"])  # the axis is logarithmic
        dots = axes.errorbar(
            *(rows["bytes_ratio"], rows["added"], bars), fmt="o", color=its.colour, label=its.label, capsize=2
        )
        dots[0].set_linestyle(its.dash)
    front = part[part["front"] & (part["added"] > 0)].sort_values("saved_bytes")
    axes.plot(front["bytes_ratio"], front["added"], "o", ms=8, mfc="none", mec="black", label="Pareto front")
    axes.axhline(1, color="#999999", lw=0.8, ls="--")
    axes.set(xscale="log", yscale="log")
    plain_ticks(axes.xaxis)
