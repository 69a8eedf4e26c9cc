"""The noise that counts: what a step loses by each estimator's noise, and the curvature in whose direction it lies."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor, nn

from experiments.data import Dataset
from experiments.labels import look, rank
from experiments.methods import Method, measured
from experiments.rivals import SmallBatch
from experiments.runs.resources import generator
from experiments.runs.study import Record
from experiments.show.figures import style
from experiments.show.tables import markdown
from experiments.studies.noise_report import short_name
from rad.measure import gradient_noise, gradients, hessian_product
from rad.nn import Seeds

__all__ = ["BATCH_DRAWS", "MEASURES", "around", "ratios", "step_cases", "step_figure", "step_report"]

MEASURES = {"variance": "tr Σ", "curved": "tr HΣ", "lost": "loss added by a step"}
_CHUNK = 100  # examples at a time: a second derivative holds several times what a gradient does
BATCH_DRAWS = 4  # times as many of batches: their noise is that of fewer numbers, so its size is less certain


@dataclass(frozen=True)
class _Point:
    """A net after some training, and a fixed set of examples, from which all batches are drawn."""

    model: nn.Module
    data: Dataset
    x: Tensor
    y: Tensor
    batch_size: int
    rate: float

    def batch(self, size: int, numbers: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(self.y), (size,), generator=numbers).to(self.y.device)
        return self.x[chosen], self.y[chosen]

    def parts(self, model: nn.Module) -> Iterator[Callable[[], Tensor]]:
        """The loss of the whole set, part by part."""
        like = next(model.parameters())
        for x, y in zip(self.x.split(_CHUNK), self.y.split(_CHUNK), strict=True):
            x = x.to(like.dtype) if x.is_floating_point() else x
            yield lambda x=x, y=y: self.data.loss(model(x), y) * (len(y) / len(self.y))

    def curvature(self, vector: dict[str, Tensor]) -> dict[str, Tensor]:
        """The Hessian of the loss times a vector."""
        return _sum(hessian_product(self.model, part, vector) for part in self.parts(self.model))

    @cached_property
    def gradient(self) -> dict[str, Tensor]:
        return _sum(gradients(self.model, part) for part in self.parts(self.model))

    @cached_property
    def after(self) -> tuple[float, dict[str, Tensor]]:
        """The loss after an exact step, and its gradient there, in double precision."""
        moved = self._moved(None)
        return self._loss(moved), _sum(gradients(moved, part) for part in self.parts(moved))

    def lost(self, noise: dict[str, Tensor]) -> float:
        """What the loss after a step is higher for some noise of the gradient, but for its first order.

        That has the expectation zero, for the noise has, and by far most of the spread.
        """
        loss, slope = self.after
        first = sum((slope[name] * noise[name].double()).sum().item() for name in slope)
        return self._loss(self._moved(noise)) - loss + self.rate * first

    def _moved(self, noise: dict[str, Tensor] | None) -> nn.Module:
        moved, gradient = copy.deepcopy(self.model).double(), self.gradient
        with torch.no_grad():
            for name, p in moved.named_parameters():
                p -= self.rate * (gradient[name].double() + (0 if noise is None else noise[name].double()))
        return moved

    @torch.no_grad()
    def _loss(self, model: nn.Module) -> float:
        return sum(part().item() for part in self.parts(model))


def step_cases(
    config: DictConfig,
    sets: dict[str, Dataset],
    trained: Callable[[str, int], tuple[nn.Module, torch.Generator]],
    methods: dict[str, Method],
    full: Method,
) -> list[Callable[[], Record]]:
    """One case for each net, number of training steps and estimator, and for the full batch.

    Args:
        config: Of the study of gradient noise.
        sets: Data by net.
        trained: A net after so many steps of training.
        methods: Estimators by name, at the budget at which they are compared.
        full: The exact gradient of the full batch.
    """

    @lru_cache(maxsize=1)
    def point(net: str, steps: int) -> _Point:
        settings, data = config.nets[net], sets[net]
        chosen = torch.linspace(0, len(data.x_train) - 1, settings.examples, dtype=torch.float64).round().long()
        chosen = chosen.to(data.x_train.device)
        model, _ = trained(net, steps)
        x = data.inputs(data.x_train[chosen])
        return _Point(model, data, x, data.y_train[chosen], settings.batch_size, settings.step)

    return [
        partial(_case, config, point, net, steps, name, method)
        for net in config.nets
        for steps in config.steps
        for name, method in {"full_batch": full, **methods}.items()
    ]


def _case(
    config: DictConfig, point: Callable[[str, int], _Point], net: str, steps: int, name: str, method: Method
) -> Record:
    at, numbers = point(net, steps), generator(config.seed, f"{net} {steps} steps {name}")
    loss, whole = at.data.loss, at.batch(at.batch_size, numbers)
    size = method.batch_size(at.model, whole, loss)
    noisy = method.prepare(copy.deepcopy(at.model), Seeds(numbers))
    of_batches = isinstance(method, SmallBatch) or name == "full_batch"
    lost: list[float] = []

    def draw() -> dict[str, Tensor]:
        """The noise alone: of a batch about the whole set's gradient, of a sketch about that of its batch."""
        x, y = at.batch(size, numbers)
        found = gradients(noisy, lambda: loss(noisy(x), y))
        centre = at.gradient if of_batches else gradients(at.model, lambda: loss(at.model(x), y))
        noise = {key: g - centre[key] for key, g in found.items()}
        lost.append(at.lost(noise))
        return noise

    zero = {key: torch.zeros_like(g) for key, g in at.gradient.items()}
    draws = config.nets[net].draws * (BATCH_DRAWS if of_batches else 1)
    noise = gradient_noise(draw, draws, zero, at.curvature)
    values = torch.tensor(lost, dtype=torch.float64)
    x, y = whole[0][:size].clone(), whole[1][:size].clone()
    return {
        "net": net,
        "data": at.data.name,
        "steps": steps,
        "estimator": name,
        "batch_size": size,
        "full_batch": at.batch_size,
        "examples": len(at.y),
        "rate": at.rate,
        "saved_bytes": measured(method, at.model, (x, y), loss),
        "gradient2": sum(g.double().square().sum().item() for g in at.gradient.values()),
        "variance": noise.total.variance,
        "variance_error": noise.total.variance_error,
        "curved": noise.curved,
        "curved_error": noise.curved_error,
        "lost": values.mean().item(),
        "lost_error": values.std().item() / math.sqrt(draws),
        "draws": draws,
    }


def _sum(parts: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    total = next(parts)
    for part in parts:
        total = {name: t + part[name] for name, t in total.items()}
    return total


def ratios(frame: pd.DataFrame, measure: str) -> pd.DataFrame:
    """What the smaller batch adds to the full batch's noise, over what each sketch adds to it.

    Args:
        frame: Records, as the study writes them to ``steps.csv``.
        measure: One of ``MEASURES``.

    Returns:
        Columns net, steps, estimator, value and half, half of a 95 % interval (to first order); both are NaN where the
        sketch was not seen to add any.
    """
    rows = []
    for (net, steps), part in frame.groupby(["net", "steps"], sort=False):
        at = part.set_index("estimator")
        small, full = at.loc["small_batch"], at.loc["full_batch"]
        above = small[measure] - full[measure]
        error = math.hypot(small[f"{measure}_error"], full[f"{measure}_error"])
        for name in at.index.drop(["small_batch", "full_batch"]):
            below = at.loc[name, measure]
            value = above / below if below > 0 else math.nan
            half = 1.96 * abs(value) * math.hypot(error / above, at.loc[name, f"{measure}_error"] / below)
            rows.append({"net": net, "steps": steps, "estimator": name, "value": value, "half": half})
    return pd.DataFrame(rows)


def step_report(frame: pd.DataFrame) -> list[str]:
    """Lines of Markdown."""
    values, quotients = [], []
    for (net, steps), part in frame.groupby(["net", "steps"], sort=False):
        for measure, label in MEASURES.items():
            cells = {"net": net, "after": f"{steps:,} steps", "": label}
            for row in part.to_dict("records"):
                cells[short_name(row["estimator"])] = around(row[measure], 1.96 * row[f"{measure}_error"])
            values.append(cells)
    for measure, label in MEASURES.items():
        for (net, steps), part in ratios(frame, measure).groupby(["net", "steps"], sort=False):
            cells = {"": label, "net": net, "after": f"{steps:,} steps"}
            cells |= {short_name(row.estimator): around(row.value, row.half) for row in part.itertuples()}
            quotients.append(cells)
    setting = "; ".join(
        f"{net}: batch {row.full_batch}, smaller {small}, {row.examples:,} examples, η {row.rate:g}, {row.draws} draws "
        f"of batches and {sketched} of sketches"
        for net, part in frame.groupby("net", sort=False)
        for row in part[part["estimator"] == "full_batch"].head(1).itertuples()
        for small in [part[part["estimator"] == "small_batch"]["batch_size"].iloc[0]]
        for sketched in [part["draws"].min()]
    )
    return [
        "## The noise that counts",
        "",
        "Σ is the covariance of the gradient's noise, H the Hessian of the loss of a fixed set of training examples,",
        "from which all batches are drawn. Batches: noise about that set's gradient; sketches: noise that they add to",
        "that of the full batch. Loss added by a step: E L(w − η(g + noise)) − L(w − ηg), to second order ½η² tr HΣ.",
        f"± is a 95 % interval over draws. {setting}.",
        "",
        markdown(values),
        "",
        "### What the smaller batch adds to the full batch's noise ÷ what a sketch of the same bytes adds",
        "",
        markdown(quotients),
    ]


def step_figure(frame: pd.DataFrame) -> Figure:
    """A panel for each measure of noise: smaller batch ÷ sketch, over the steps of training, a line style a net."""
    nets = list(dict.fromkeys(frame["net"]))
    with style():
        figure = Figure(figsize=(3.6 * len(nets), 3.1 * len(MEASURES) + 0.6), layout="constrained")
        panels = figure.subplots(len(MEASURES), len(nets), squeeze=False, sharex="col")
        for row, (measure, label) in enumerate(MEASURES.items()):
            for column, net in enumerate(nets):
                axes = panels[row, column]
                part = ratios(frame[frame["net"] == net], measure)
                part = part[part["value"] > 0]
                for name, points in sorted(part.groupby("estimator"), key=lambda pair: rank(str(pair[0]))):
                    its = look(str(name))
                    bars = points["half"].clip(upper=0.9 * points["value"])  # the axis is logarithmic
                    axes.errorbar(
                        points["steps"], points["value"], bars, fmt="o-", color=its.colour, label=its.label, capsize=2
                    )
                axes.axhline(1, color="#999999", lw=0.8, ls="--")
                axes.set(yscale="log", title=f"{net}: {label}")
        for axes in panels[:, 0]:
            axes.set_ylabel("added: smaller batch ÷ sketch")
        for axes in panels[-1]:
            axes.set_xlabel("steps of training")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, 1 + len(nets)))
    return figure


def around(value: float, half: float) -> str:
    """A number with half of its interval, as tables show it."""
    if math.isnan(value):
        return "–"
    size = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{size} ± {half:.1g}" if half < 9.5 else f"{size} ± {half:,.0f}"
