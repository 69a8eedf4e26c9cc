"""The noise that counts, against closed forms: of a quadratic loss, all of them are known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from sketches import normal, seeded
from torch import Tensor, nn

import rad
from experiments.data import Dataset
from experiments.methods import Batch, Exact, Loss, Method
from experiments.rivals import SmallBatch
from experiments.studies import step_noise
from experiments.studies.step_noise import MEASURES, ratios, step_cases, step_figure, step_report
from rad.nn import Seeds

SIZE, SMALL, EXAMPLES, DRAWS, RATE, SPREAD = 10, 4, 25, 100, 0.1, 0.7


@dataclass(frozen=True)
class Noisy(Method):
    """Adds normal noise of a known size to every entry of the gradient."""

    def prepare(self, model: nn.Module, seeds: Seeds) -> nn.Module:
        numbers = seeded(5)
        model.weight.register_hook(lambda g: g + SPREAD * torch.randn(g.shape, generator=numbers))
        return model


class Few(SmallBatch):
    """A smaller batch of a known size."""

    def batch_size(self, model: nn.Module, batch: Batch, loss: Loss) -> int:
        return SMALL


def trained(net: str, steps: int) -> tuple[nn.Module, torch.Generator]:
    torch.manual_seed(0)
    model = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        model.weight *= 1 + steps
    return model, torch.Generator()


@pytest.fixture(scope="module")
def measured() -> dict[tuple[int, str], dict]:
    """Records by steps of training and estimator."""
    x, y = normal(2 * EXAMPLES - 1, 6) * torch.tensor([3.0, 2, 1, 1, 0.5, 0.1]), normal(2 * EXAMPLES - 1, 1, seed=1)
    data = Dataset("quadratic", x, y, x, y, nn.Identity(), loss=F.mse_loss)
    net = {"examples": EXAMPLES, "batch_size": SIZE, "step": RATE, "draws": DRAWS}
    config = OmegaConf.create({"nets": {"net": net}, "steps": [0, 2], "seed": 3})
    assert isinstance(config, DictConfig)
    methods = {"small_batch": Few("small_batch", rad.Project(0.5)), "noisy": Noisy("noisy")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_noise, "_CHUNK", 15)  # a whole one and a part
        records = [case() for case in step_cases(config, {"net": data}, trained, methods, Exact("exact"))]
    return {(r["steps"], r["estimator"]): r for r in records}


def closed_forms(steps: int) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """The covariance of each estimator's noise with the Hessian, and the squared norm of the gradient."""
    x, y = normal(2 * EXAMPLES - 1, 6) * torch.tensor([3.0, 2, 1, 1, 0.5, 0.1]), normal(2 * EXAMPLES - 1, 1, seed=1)
    x, y = x[::2].double(), y[::2].double()  # evenly spaced
    each = 2 * x * (x @ trained("net", steps)[0].weight.detach().double().T - y)
    of_one = torch.cov(each.T, correction=0)
    hessian = 2 * x.T @ x / len(x)
    noises = {"full_batch": of_one / SIZE, "small_batch": of_one / SMALL, "noisy": SPREAD**2 * torch.eye(6).double()}
    return {name: (sigma, hessian) for name, sigma in noises.items()}, each.mean(0).square().sum().item()


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", ["full_batch", "small_batch", "noisy"])
def test_noise_is_that_of_the_closed_form(measured, steps, name):
    """Of 36 numbers each lies within 4 standard errors."""
    found, (noises, gradient2) = measured[steps, name], closed_forms(steps)
    sigma, hessian = noises[name]
    curved = (hessian @ sigma).trace().item()
    expected = {"variance": sigma.trace().item(), "curved": curved, "lost": RATE**2 / 2 * curved}
    for measure, value in expected.items():
        error = found[f"{measure}_error"]
        assert abs(found[measure] - value) < 4 * error, measure
        assert 0 < error < 0.2 * value, measure
    assert found["gradient2"] == pytest.approx(gradient2, rel=1e-4)
    assert found["draws"] == (DRAWS if name == "noisy" else 4 * DRAWS)
    assert found["batch_size"] == (SMALL if name == "small_batch" else SIZE)
    assert (found["full_batch"], found["examples"], found["rate"]) == (SIZE, EXAMPLES, RATE)


@pytest.mark.parametrize("steps", [0, 2])
def test_errors_are_those_of_normal_noise(measured, steps):
    """Its quadratic form has the variance 2 tr (HΣ)²; the loss has no other part, for its first order is taken off."""
    sigma, hessian = closed_forms(steps)[0]["noisy"]
    spread = math.sqrt(2 * (hessian @ sigma @ hessian @ sigma).trace().item() / DRAWS)
    found = measured[steps, "noisy"]
    assert 0.6 < found["curved_error"] / spread < 1.5
    assert 0.6 < found["lost_error"] / (RATE**2 / 2 * spread) < 1.5


def test_what_a_step_loses_is_counted_from_where_it_ends():
    """Of a loss that is not quadratic the place matters."""
    x, y = normal(EXAMPLES, 6), normal(EXAMPLES, 1, seed=1)
    data = Dataset("quartic", x, y, x, y, nn.Identity(), loss=lambda out, wanted: (out - wanted).pow(4).mean())
    model, noise = trained("net", 0)[0], normal(1, 6, seed=9)
    found = step_noise._Point(model, data, x, y, SIZE, 0.02).lost({"weight": noise})

    def loss(weight: Tensor) -> Tensor:
        return (x.double() @ weight.T - y.double()).pow(4).mean()

    def slope(weight: Tensor) -> Tensor:
        return torch.autograd.functional.jacobian(loss, weight)

    start = model.weight.detach().double()
    end = start - 0.02 * slope(start)
    first = 0.02 * (slope(end) * noise).sum()
    assert found == pytest.approx((loss(end - 0.02 * noise) - loss(end) + first).item(), rel=1e-4)


def frame() -> pd.DataFrame:
    """Noise of a full batch, a smaller one, and two sketches of which one adds none that can be seen."""
    values = {"full_batch": (2.0, 0.3), "small_batch": (10.0, 0.4), "rad_diff": (1.0, 0.1), "rad_round": (-0.1, 0.1)}
    rows = []
    for net, factor in (("mlp", 1.0), ("cnn", 2.0)):
        for steps in (0, 200):
            for name, (value, error) in values.items():
                numbers = {m: value * (1 if "batch" in name else 1 / factor) for m in MEASURES}
                numbers |= {f"{m}_error": error for m in MEASURES}
                sizes = {"batch_size": 3 if name == "small_batch" else 20, "full_batch": 20, "examples": 1000}
                setting = {"net": net, "steps": steps, "estimator": name, "rate": 0.05}
                rows.append({**setting, **sizes, **numbers, "draws": 120 if "batch" in name else 30})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("measure", MEASURES)
def test_ratios_are_of_what_is_added_to_the_full_batch(measure):
    found = ratios(frame(), measure).set_index(["net", "steps", "estimator"]).sort_index()
    assert list(found.loc[("mlp", 200)].index) == ["rad_diff", "rad_round"]
    assert found.loc[("mlp", 200, "rad_diff"), "value"] == pytest.approx(8)
    # √(0.3² + 0.4²) of 8 and 0.1 of 1
    assert found.loc[("mlp", 200, "rad_diff"), "half"] == pytest.approx(1.96 * 8 * math.hypot(0.5 / 8, 0.1))
    assert found.loc[("cnn", 0, "rad_diff"), "value"] == pytest.approx(16)
    assert found.loc[("mlp", 200, "rad_round")].isna().all()


def test_tables_and_figure_show_values_and_ratios():
    text = step_report(frame())
    tables = "\n".join(text).split("### ")
    assert "mlp: batch 20, smaller 3, 1,000 examples, η 0.05, 120 draws of batches and 30 of sketches" in tables[0]
    assert "| mlp | 200 steps | tr HΣ | 2 ± 0.6 | 10 ± 0.8 | 1 ± 0.2 | -0.1 ± 0.2 |" in tables[0]
    assert "| tr HΣ | mlp | 200 steps | 8 ± 2 | – |" in tables[1]
    many = frame().assign(curved=lambda f: f["curved"].where(f["estimator"] != "rad_diff", 0.01))
    assert "| tr HΣ | mlp | 200 steps | 800 ± 15,680 | – |" in "\n".join(step_report(many))
    figure = step_figure(frame())
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert set(panels) == {f"{net}: {label}" for net in ("mlp", "cnn") for label in MEASURES.values()}
    (line,) = [line for line in panels["cnn: tr HΣ"].lines if len(line.get_xdata()) == 2 and line.get_marker() == "o"]
    assert list(line.get_ydata()) == pytest.approx([16, 16])
