"""The noise of each estimator's gradient against the bytes it is measured to hold, beside that of the minibatch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from experiments.data import Dataset
from experiments.methods import Batch, Exact, Method, measured
from experiments.rivals import SmallBatch
from experiments.runs.directory import RunDir
from experiments.runs.parts import make
from experiments.runs.resources import device, generator
from experiments.runs.study import Record, Study
from experiments.show.figures import save
from experiments.show.tables import command
from experiments.studies.cases import Cases
from experiments.studies.noise_figure import noise_figure
from experiments.studies.noise_report import added, noise_report
from experiments.studies.settings import COMPARED, NoiseSettings
from experiments.studies.step_noise import BATCH_DRAWS, step_cases, step_figure, step_report
from rad.measure import gradient_noise, gradients
from rad.nn import Seeds

__all__ = ["GradientNoiseStudy"]

PHASES = ("initial", "trained")


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
        of_steps = pd.DataFrame([record for record in records if "steps" in record])
        of_budgets = pd.DataFrame([record for record in records if "steps" not in record])
        frame = added(of_budgets)
        figures = [save(noise_figure(frame), into / "noise")[1], save(step_figure(of_steps), into / "steps")[1]]
        text = noise_report(of_budgets, meta) + "\n" + "\n".join(step_report(of_steps)) + "\n"
        (into / "table.md").write_text(text, encoding="utf-8")
        frame.to_csv(into / "noise.csv", index=False)
        of_steps.to_csv(into / "steps.csv", index=False)
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
