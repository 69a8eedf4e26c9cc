"""How the variance of a randomized gradient grows with depth, on graphs where it is known and on a real net."""

from __future__ import annotations

import math
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

import rad
from experiments.data import Dataset
from experiments.runs.directory import RunDir
from experiments.runs.parts import make
from experiments.runs.resources import device, generator
from experiments.runs.study import Record, Study
from experiments.show.figures import save
from experiments.show.tables import command, markdown, provenance_lines
from experiments.studies.cases import Cases
from experiments.studies.depth_figures import GRAPHS, NETS, depth_figure, example_figure
from experiments.studies.families import independent, interleaved
from experiments.studies.settings import DepthSettings
from rad.graph import chain, inject, injected_product, sample_paths
from rad.measure import gradient_noise, gradients

__all__ = ["GraphDepth", "exponents"]


class GraphDepth(Study):
    """Relative variance against depth: path and vertex sampling on graphs, two ways to randomize a deep net."""

    settings = DepthSettings

    def build(self, config: DictConfig) -> tuple[Cases, Record]:
        where = device(config.device)
        data: Dataset = make(config.data).to(where)
        cases = [partial(_cost, config)]
        cases += [partial(_on_graph, config, family, depth) for family in GRAPHS for depth in config.depths]
        cases += [partial(_on_net, config, data, how, depth) for how in NETS for depth in config.net.depths]
        meta = {"model": "graphs and mlp", "data": data.name, "iterations": len(cases), "steps": config.iterations}
        return Cases(cases, where), {**meta, "method": "all", "command": command()}

    def headline(self, meta: Record) -> str:
        return f"variance against depth: {meta['iterations']} cases on {meta['model']}, {meta['data']}"

    def summarize(self, run: RunDir, into: Path) -> str:
        records, meta = pd.DataFrame(run.records()), run.meta()
        cost = records[records["seconds"].notna()].iloc[0]
        graphs, nets = records[records["family"].notna()], records[records["how"].notna()]
        figure = save(depth_figure(graphs, nets, meta["data"], meta["steps"]), into / "depth")[1]
        save(example_figure(), into / "fig1")
        price = f"One draw of paths on a graph of {cost['edges']:,.0f} edges takes {cost['seconds']:.3f} s of CPU time."
        text = f"{_table(graphs, nets, meta)}\n{price}\n"
        (into / "table.md").write_text(text, encoding="utf-8")
        return f"{text}\nfigure: {figure}"


def growth(width: int, edges: int) -> float:
    """Factor of the second moment for each orthogonal layer of which ``edges`` of ``width`` are sampled.

    A vertex whose ``width`` edges ``w`` lead to adjoints ``a`` gets an estimate of second moment
    ``width/edges · Σ w_j² E a_j² + (1 − 1/edges) E (wᵀa)²``; summed over the vertices of an orthogonal layer that is
    ``(1 + (width − 1)/edges) E‖a‖²``. Vertex sampling in each layer has the same factor.
    """
    return 1 + (width - 1) / edges


def _cost(config: DictConfig) -> Record:
    """CPU seconds of one draw of paths and the reverse sweep over them, on a graph of 100,000 edges."""
    numbers = generator(config.seed, "cost")
    graph, seconds = interleaved(100, 10, numbers), []
    for _ in range(6):
        start = time.process_time()
        sample_paths(graph, config.edges, numbers).reverse()
        seconds.append(time.process_time() - start)
    return {"edges": graph.edges, "seconds": statistics.median(seconds[1:])}  # the first one compiles


def _on_graph(config: DictConfig, family: str, depth: int) -> Record:
    kind, how = family.split(", ")
    numbers = generator(config.seed, f"{family} {depth}")
    graph = {"independent": independent, "interleaved": interleaved}[kind](config.width, depth, numbers)
    if how == "path sampling":

        def estimate() -> Tensor:
            return sample_paths(graph, config.edges, numbers).reverse()
    else:
        jacobians, sketch = chain(graph), rad.Sample(config.edges / config.width)

        def estimate() -> Tensor:
            return injected_product(jacobians, sketch, numbers)

    exact = graph.reverse()
    noise = gradient_noise(lambda: {"inputs": estimate()}, config.draws, {"inputs": exact}).total
    factor = growth(config.width, config.edges)
    return {
        "family": family,
        "depth": depth,
        "predicted": factor**depth - 1 if GRAPHS[family][1] else factor - 1,
        **_relative(noise),
    }


class _Injected(nn.Module):
    """Randomizes the Jacobian of what comes before it."""

    def __init__(self, sketch: rad.Sketch, numbers: torch.Generator) -> None:
        super().__init__()
        self.sketch, self.numbers = sketch, numbers

    def forward(self, x: Tensor) -> Tensor:
        return inject(x, self.sketch, self.numbers)


def _net(config: DictConfig, data: Dataset, how: str, depth: int, numbers: torch.Generator) -> nn.Module:
    """A ReLU net of ``depth`` hidden layers, the same initial weights for each way to randomize it."""
    torch.manual_seed(generator(config.seed, f"initial weights {depth}").initial_seed())
    sketch = rad.Sample(config.budget, per="element")
    fan_in, width, layers = data.x_train[0].numel(), config.net.width, []
    for _ in range(depth):
        linear = nn.Linear(fan_in, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")  # keeps gradients of one size at all depths
        layers += [linear, nn.ReLU(), *([_Injected(sketch, numbers)] if how == "every" else [])]
        fan_in = width
    net = nn.Sequential(nn.Flatten(), *layers, nn.Linear(fan_in, 10)).to(data.x_train.device)
    return net if how == "exact" else rad.convert(net, sketch, generator=numbers)


def _on_net(config: DictConfig, data: Dataset, how: str, depth: int) -> Record:
    numbers, batches = generator(config.seed, f"{how} {depth}"), generator(config.seed, "batches")
    net = _net(config, data, how, depth, numbers)
    x, y = data.draw(config.net.batch_size, batches)
    plain = _net(config, data, "exact", depth, numbers)
    exact = gradients(plain, lambda: F.cross_entropy(plain(x), y))
    named = dict(zip((name for name, _ in net.named_parameters()), exact.values(), strict=True))
    entry: Record = {"how": how, "depth": depth}
    if how != "exact":
        noise = gradient_noise(lambda: gradients(net, lambda: F.cross_entropy(net(x), y)), config.net.draws, named)
        entry |= _relative(noise.total)
    optimizer = torch.optim.Adam(net.parameters(), lr=config.net.lr)
    losses = []
    for _ in range(config.iterations):
        x, y = data.draw(config.net.batch_size, batches)
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        final = F.cross_entropy(net(data.inputs(data.x_train)), data.y_train).item()
    return {**entry, "first_loss": losses[0], "train_loss": final if math.isfinite(final) else None}


def _relative(noise: rad.measure.Moments) -> Record:
    return {
        "variance": noise.variance / noise.norm2,
        "variance_error": noise.variance_error / noise.norm2,
        "bias": noise.bias / noise.norm2**0.5,
        "bias_error": noise.bias_error / noise.norm2**0.5,
    }


def _rate(depth: pd.Series, variance: pd.Series, error: pd.Series) -> tuple[float, float]:
    """Slope of ``log(1 + variance)`` against depth, with its standard error from those of the variances."""
    weight = ((1 + variance) / error.clip(lower=1e-12)) ** 2
    centred = depth - np.average(depth, weights=weight)
    spread = (weight * centred**2).sum()
    return float((weight * centred * np.log1p(variance)).sum() / spread), float(spread**-0.5)


def exponents(graphs: pd.DataFrame) -> pd.DataFrame:
    """Growth of the variance of each family of graphs.

    Args:
        graphs: Records of graphs, as the study writes them.

    Returns:
        Columns family, predicted and fitted (slope of log(1 + variance) against depth), error (standard, of fitted)
        and ratio (fitted over predicted; NaN where nothing is predicted to grow).
    """
    rows = []
    for family, part in graphs.groupby("family", sort=False):
        fitted, error = _rate(part["depth"], part["variance"], part["variance_error"])
        predicted, _ = _rate(part["depth"], part["predicted"], 1 + part["predicted"])
        ratio = fitted / predicted if predicted > 1e-9 else math.nan
        rows.append({"family": family, "predicted": predicted, "fitted": fitted, "error": error, "ratio": ratio})
    return pd.DataFrame(rows)


def _table(graphs: pd.DataFrame, nets: pd.DataFrame, meta: Record) -> str:
    rows = []
    for row in exponents(graphs).itertuples():
        last = graphs[graphs["family"] == row.family].iloc[-1]
        rows.append(
            {
                "graph, estimator": str(row.family),
                "growth exponent a layer, predicted": f"{row.predicted:.3f}",
                "fitted": f"{row.fitted:.3f} ± {1.96 * row.error:.3f}",
                "fitted ÷ predicted": "–" if math.isnan(row.ratio) else f"{row.ratio:.3f}",
                f"relative variance at depth {last['depth']:.0f}, predicted": f"{last['predicted']:.3g}",
                "measured": f"{last['variance']:.3g} ± {1.96 * last['variance_error']:.1g}",
            }
        )
    deep = []
    for depth, part in nets.groupby("depth"):
        by = part.set_index("how")
        cells = {"hidden layers": f"{depth:.0f}"}
        for how in ("weight", "every"):
            cell = f"{by.loc[how, 'variance']:.3g} ± {1.96 * by.loc[how, 'variance_error']:.1g}"
            cells[f"relative variance, {NETS[how][1]}"] = cell
        for how, (_, label) in NETS.items():
            loss = by.loc[how, "train_loss"]
            cells[f"training loss, {label}"] = "diverged" if pd.isna(loss) else f"{loss:.3f}"
        deep.append(cells)
    header = ["# Variance against depth", "", *provenance_lines(meta), ""]
    note = "\n± is a 95 % interval from the standard error over draws; one seed. Variances are relative to ‖g‖².\n"
    return "\n".join([*header, markdown(rows), "", f"Nets after {meta['steps']:,} steps:", "", markdown(deep), note])
