"""How variance against depth is shown, and the paper's worked example."""

from __future__ import annotations

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.show.figures import style
from experiments.studies.families import independent, interleaved
from rad.graph import draw, linearize, sample_paths

__all__ = ["GRAPHS", "NETS", "depth_figure", "example_figure"]

# What is sampled, and whether its relative variance should grow with depth.
GRAPHS = {
    "independent, path sampling": ("#009E73", False),
    "interleaved, path sampling": ("#D55E00", True),
    "interleaved, vertex sampling": ("#0072B2", True),
}
NETS = {"exact": ("#000000", "exact"), "weight": ("#0072B2", "∂h/∂W only"), "every": ("#D55E00", "every Jacobian")}


def depth_figure(graphs: pd.DataFrame, nets: pd.DataFrame, data: str, steps: int) -> Figure:
    """Two small graphs with a sample, and relative variance and training loss over depth.

    Args:
        graphs: Records of graphs, as the study writes them.
        nets: Those of nets.
        data: What the nets are trained on.
        steps: For how long.
    """
    with style():
        figure = Figure(figsize=(11, 6.4), layout="constrained")
        panels = figure.subplot_mosaic([["one", "graphs", "graphs"], ["all", "variance", "loss"]])
        numbers = torch.Generator().manual_seed(1)
        for name, family in (("one", independent), ("all", interleaved)):
            graph = family(4, 4, numbers)
            draw(graph, sample_paths(graph, 1, numbers), panels[name], labels=False)
            panels[name].set_title(f"{family.__name__} paths, one edge kept a vertex")
        _graphs(panels["graphs"], graphs)
        _nets(panels["variance"], nets[nets["variance"].notna()], "variance")
        panels["variance"].set(title=f"deep ReLU net, {data}", ylabel="relative variance")
        _nets(panels["loss"], nets, "train_loss")
        panels["loss"].set(title=f"the same net after {steps:,} steps", ylabel="training loss")
        handles, labels = panels["loss"].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", ncols=len(NETS))
    return figure


def example_figure() -> Figure:
    """The paper's worked example with the edges of one sample."""

    def fn(x1: Tensor, x2: Tensor) -> Tensor:
        a = torch.exp(x1)
        b = torch.sin(x2)
        c = b * x2
        d = a * c
        return a * d

    graph = linearize(fn, 0.5, 1.2)
    with style():
        figure = Figure(figsize=(9, 2.6), layout="constrained")
        whole_graph, sampled = figure.subplots(1, 2)
        draw(graph, axes=whole_graph)
        draw(graph, sample_paths(graph, 1, torch.Generator().manual_seed(0)), sampled)
        whole_graph.set_title(f"linearized graph of Fig. 1: {graph.count_paths()} paths")
        sampled.set_title("a sample: one outgoing edge of each vertex")
    return figure


def _graphs(axes: Axes, frame: pd.DataFrame) -> None:
    """Points are measured; the closed form is a wide pale line below them."""
    for number, (family, part) in enumerate(frame.groupby("family", sort=False)):
        colour = GRAPHS[str(family)][0]
        axes.plot(part["depth"], part["predicted"], color=colour, lw=6 - 3 * (number == 2), alpha=0.3)
        # Beside each other, for two kinds of sampling have the same closed form.
        depth, error = part["depth"] + 0.06 * (number - 1), 1.96 * part["variance_error"]
        axes.errorbar(depth, part["variance"], error, fmt="o", color=colour, capsize=2, label=str(family))
    axes.plot([], [], color="#555555", lw=6, alpha=0.3, label="closed form")
    axes.set(title="graphs", xlabel="layers", ylabel="relative variance", yscale="log")
    axes.legend()


def _nets(axes: Axes, frame: pd.DataFrame, column: str) -> None:
    for how, part in frame.groupby("how", sort=False):
        colour, label = NETS[str(how)]
        error = 1.96 * part["variance_error"] if column == "variance" else None
        axes.errorbar(part["depth"], part[column], error, fmt="o-", color=colour, label=label, capsize=2)
    axes.set(xlabel="hidden layers", yscale="log")
