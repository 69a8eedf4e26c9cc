"""The noise of each estimator's gradient against the bytes it is measured to hold, beside that of the minibatch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from experiments.data import Dataset
from experiments.labels import look
from experiments.methods import Batch, Exact, Method, measured
from experiments.rivals import SmallBatch
from experiments.runs.directory import RunDir
from experiments.runs.parts import make
from experiments.runs.resources import device, generator
from experiments.runs.study import Record, Study
from experiments.show.figures import save
from experiments.show.tables import command, markdown, provenance_lines
from experiments.studies.cases import Cases
from experiments.studies.noise_figure import noise_figure
from experiments.studies.settings import COMPARED, NoiseSettings
from experiments.studies.step_noise import BATCH_DRAWS, step_cases, step_figure, step_report
from rad.measure import gradient_noise, gradients
from rad.nn import Seeds

__all__ = ["PAPER", "GradientNoiseStudy", "at_equal_bytes", "draw_counts", "ratio"]

PHASES = ("initial", "trained")
PAPER = ("rad_same", "rad_diff", "rad_proj")
TOLERANCE = 1.1  # between bytes that count as equal


@dataclass(frozen=True)
class _Setting:
    """A net at one point of its training, with the batch at which estimators are compared."""

    model: nn.Module
    data: Dataset
    batch: Batch
    exact: dict[str, Tensor]
    exact_saved_bytes: int


class GradientNoiseStudy(Study):
    """Added variance of each estimator over budgets, for several nets, at initialization and after some training."""

    settings = NoiseSettings

    def build(self, config: DictConfig) -> tuple[Cases, Record]:
        where = device(config.device)
        data = {net: make(settings.data).to(where) for net, settings in config.nets.items()}
        trained = partial(_trained, config, data)
        setting = lru_cache(maxsize=1)(partial(_setting, config, data))
        cases: list[Callable[[], Record]] = []
        for net in config.nets:
            for phase in PHASES:
                for name, estimator in config.estimators.items():
                    for budget in config.budgets:
                        # At budget 1 all are exact; the batch is then the full one.
                        if budget < 1 or name == "small_batch":
                            method = _with_budget(estimator, budget)
                            cases.append(partial(_case, config, setting, net, phase, method, budget))
        compared = {name: _with_budget(estimator, COMPARED) for name, estimator in config.estimators.items()}
        cases += step_cases(config, data, trained, compared, Exact("exact"))
        meta = {
            "method": "all",
            "command": command(),
            "model": ", ".join(config.nets),
            "data": ", ".join(d.name for d in data.values()),
            "iterations": len(cases),
        }
        return Cases(cases, where), meta

    def headline(self, meta: Record) -> str:
        return f"gradient noise of {meta['model']} on {meta['data']}: {meta['iterations']} cases"

    def summarize(self, run: RunDir, into: Path) -> str:
        records, meta = run.records(), run.meta()
        counted = pd.DataFrame([record for record in records if "steps" in record])
        frame = _added(pd.DataFrame([record for record in records if "steps" not in record]))
        figures = [save(noise_figure(frame), into / "noise")[1], save(step_figure(counted), into / "steps")[1]]
        text = _report(frame, meta) + "\n" + "\n".join(step_report(counted)) + "\n"
        (into / "table.md").write_text(text, encoding="utf-8")
        frame.to_csv(into / "noise.csv", index=False)
        counted.to_csv(into / "steps.csv", index=False)
        return f"{text}\nfigures: {figures[0]}, {figures[1]}"


def _with_budget(estimator: DictConfig, budget: float) -> Method:
    estimator = copy.deepcopy(estimator)
    for part in ("sketch", "reference"):
        if part in estimator:
            estimator[part].budget = budget
    return make(estimator)


def _trained(
    config: DictConfig, sets: dict[str, Dataset], net: str, iterations: int
) -> tuple[nn.Module, torch.Generator]:
    """A net after some training, and the generator of its batches."""
    settings, data = config.nets[net], sets[net]
    torch.manual_seed(generator(config.seed, "initial weights").initial_seed())
    model: nn.Module = make(settings.model).to(data.x_train.device)
    numbers = generator(config.seed, f"batches {net}")
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    for _ in range(iterations):
        x, y = data.draw(settings.batch_size, numbers)
        optimizer.zero_grad()
        data.loss(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.zero_grad()
    return model, numbers


def _setting(config: DictConfig, sets: dict[str, Dataset], net: str, phase: str) -> _Setting:
    settings, data = config.nets[net], sets[net]
    model, numbers = _trained(config, sets, net, config.iterations if phase == "trained" else 0)
    x, y = batch = data.draw(settings.batch_size, numbers)
    exact = gradients(model, lambda: data.loss(model(x), y))
    return _Setting(model, data, batch, exact, measured(Exact("exact"), model, batch, data.loss))


def _case(
    config: DictConfig,
    setting: Callable[[str, str], _Setting],
    net: str,
    phase: str,
    method: Method,
    budget: float,
) -> Record:
    at, draws = setting(net, phase), config.nets[net].draws
    numbers = generator(config.seed, f"{net} {phase} {method.name} {budget}")
    size = method.batch_size(at.model, at.batch, at.data.loss)
    batch = at.batch[0][:size].clone(), at.batch[1][:size].clone()
    model = method.prepare(copy.deepcopy(at.model), Seeds(numbers))

    def loss() -> Tensor:
        # A smaller batch is random by its examples, a sketch by its draw for the batch at hand.
        x, y = at.data.draw(size, numbers) if isinstance(method, SmallBatch) else batch
        return at.data.loss(model(x), y)

    exact = None if isinstance(method, SmallBatch) else at.exact
    draws *= BATCH_DRAWS if isinstance(method, SmallBatch) else 1
    noise = gradient_noise(lambda: gradients(model, loss), draws, exact)
    return {
        "net": net,
        "data": at.data.name,
        "phase": phase,
        "estimator": method.name,
        "budget": budget,
        "batch_size": size,
        "saved_bytes": measured(method, at.model, batch, at.data.loss),
        "exact_saved_bytes": at.exact_saved_bytes,
        "gradient2": sum(g.double().square().sum().item() for g in at.exact.values()),
        "variance": noise.total.variance,
        "variance_error": noise.total.variance_error,
        "bias": None if math.isnan(noise.total.bias) else noise.total.bias,
        "bias_error": noise.total.bias_error,
        "draws": noise.draws,
        "layers": {name: m.variance for name, m in noise.layers.items()},
    }


def _added(frame: pd.DataFrame) -> pd.DataFrame:
    """Records with the variance that comes on top of the full batch's, in units of it, and whether none beats them."""
    parts = []
    for _, part in frame.drop(columns="layers").groupby(["net", "phase"], sort=False):
        full = part[(part["estimator"] == "small_batch") & (part["budget"] == 1)].iloc[0]
        part = part.assign(bytes_ratio=part["saved_bytes"] / part["exact_saved_bytes"], full_batch=full["batch_size"])
        small = part["estimator"] == "small_batch"
        added = part["variance"] - np.where(small, full["variance"], 0)
        error = np.hypot(part["variance_error"], np.where(small, full["variance_error"], 0))
        part = part.assign(added=added / full["variance"], added_error=error / full["variance"])
        part = part[part["budget"] < 1]
        beaten = [
            ((part["saved_bytes"] <= row.saved_bytes) & (part["added"] < row.added)).any() for row in part.itertuples()
        ]
        parts.append(part.assign(front=~np.array(beaten)))
    return pd.concat(parts, ignore_index=True)


def _best(part: pd.DataFrame, limit: float) -> pd.Series:
    """The least added variance of those that hold no more than ``limit`` bytes."""
    allowed = part[part["saved_bytes"] <= limit]
    return allowed.loc[allowed["added"].idxmin()]


def ratio(a: pd.Series, b: pd.Series) -> tuple[float, float]:
    """Added variance of one row over another's, and half of its 95 % interval (to first order)."""
    quotient = a["added"] / b["added"]
    return quotient, 1.96 * abs(quotient) * math.hypot(a["added_error"] / a["added"], b["added_error"] / b["added"])


def at_equal_bytes(frame: pd.DataFrame) -> Iterator[tuple[str, str, pd.Series, pd.Series]]:
    """Net, phase, the paper's best estimator at the budget compared, and the best of all at its bytes.

    Args:
        frame: Records with their added variance, as the study writes them to ``noise.csv``.
    """
    for (net, phase), part in frame.groupby(["net", "phase"], sort=False):
        paper = part[(part["budget"] == COMPARED) & part["estimator"].isin(PAPER)]
        best = _best(paper, paper["saved_bytes"].max())
        yield str(net), str(phase), best, _best(part, TOLERANCE * best["saved_bytes"])


def draw_counts(frame: pd.DataFrame) -> str:
    """How many gradients each net's variances are taken from."""
    batches = frame["estimator"] == "small_batch"
    counts = (frame[where].groupby("net", sort=False)["draws"].first() for where in (~batches, batches))
    sketches, batches = ([f"{net} {n}" for net, n in count.items()] for count in counts)
    return f"{', '.join(sketches)}; of smaller batches {', '.join(batches)}"


def _ratio(a: pd.Series, b: pd.Series) -> str:
    quotient, half = ratio(a, b)
    return f"{quotient:.3g} ± {half:.1g}"


def _report(frame: pd.DataFrame, meta: Record) -> str:
    equal, small, everything = [], [], []
    for net, phase, best, winner in at_equal_bytes(frame):
        part = frame[(frame["net"] == net) & (frame["phase"] == phase)]
        at = part[part["budget"] == COMPARED].set_index("estimator", drop=False)
        first = {"net": net, "weights": phase}
        equal.append(
            {
                **first,
                "bytes ÷ exact": f"{best['bytes_ratio']:.3f}",
                "paper's best": f"{look(best['estimator']).label}: {best['added']:.3g}",
                "best": f"{look(winner['estimator']).label} ({winner['bytes_ratio']:.3f}): {winner['added']:.3g}",
                "paper's best ÷ best": _ratio(best, winner),
            }
        )
        batch = at.loc["small_batch"]
        cells = {**first, "smaller batch": f"{batch['batch_size']} of {batch['full_batch']}: {batch['added']:.3g}"}
        cells["closed form"] = f"{batch['full_batch'] / batch['batch_size'] - 1:.3g}"
        for name in [*(m for m in PAPER if m in at.index), "rad_round"]:
            cells[f"{look(name).label} ÷ smaller batch"] = _ratio(at.loc[name], batch)
        small.append(cells)
        for name, rows in part.groupby("estimator", sort=False):
            cells = {**first, "estimator": look(str(name)).label}
            for row in rows.itertuples():
                mark = "**" if row.front else ""
                cells[f"{row.budget:g}"] = f"{mark}{row.added:.3g}{mark} ({row.bytes_ratio:.3f})"
            everything.append(cells)
    biased = frame[frame["bias"] > 3 * frame["bias_error"]]
    lines = [
        "# Variance of the gradient against measured bytes",
        "",
        *provenance_lines(meta),
        f"- Draws: {draw_counts(frame)}",
        "",
        "Added variance: of the whole gradient, on top of that of the full batch, in units of that of the full batch.",
        "± is a 95 % interval from standard errors over draws. Bytes are measured, with everything autograd holds.",
        "",
        f"## At equal bytes: {TOLERANCE:g} times those of the paper's best at budget {COMPARED:g}, at most",
        "",
        markdown(equal),
        "",
        f"## Against a smaller batch that holds the same bytes, budget {COMPARED:g}",
        "",
        markdown(small),
        "",
        "## All: added variance (bytes ÷ exact) by budget, the front in bold",
        "",
        markdown(everything),
        "",
        f"Bias beyond three times what it comes to by chance: {len(biased)} of {int(frame['bias'].notna().sum())}.",
    ]
    return "\n".join(lines) + "\n"
