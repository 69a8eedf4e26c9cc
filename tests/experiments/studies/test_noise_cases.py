"""The cases of the study of gradient noise: what is trained, what is random, what is measured."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig

from experiments.models import MLP
from experiments.runs.configs import composed
from experiments.runs.parts import make
from experiments.runs.resources import generator
from experiments.runs.study import build
from rad.measure import gradients

pytestmark = pytest.mark.filterwarnings("ignore::rad.BudgetFloorWarning")

SEED, BATCH, DRAWS, STEPS = 6, 40, 4, 3


@pytest.fixture(scope="module")
def noise(written_digits) -> Iterator[tuple[pd.DataFrame, DictConfig]]:
    """Records of one small net, every estimator at two budgets and the full batch, and the config; only to be read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAD_DATA", str(written_digits))
        yield measured()


def measured() -> tuple[pd.DataFrame, DictConfig]:
    overrides = (
        *("experiment=gradient_noise", "scale=smoke", f"iterations={STEPS}", f"seed={SEED}", "~nets.cnn", "~nets.irnn"),
        *("nets.mlp.model.widths=[784,16,10]", f"nets.mlp.batch_size={BATCH}", f"nets.mlp.draws={DRAWS}"),
        *("budgets=[0.1,0.4,1]", "steps=[0]", "threads=1"),
    )
    config = composed(overrides)
    records = []
    build(config)[0].run(records.append, lambda state: None)
    frame = pd.DataFrame(records)
    return frame[frame["phase"].notna()], config


def test_noise_is_measured_before_and_after_training(noise):
    frame, config = noise
    data, norms = make(config.nets.mlp.data), {}
    for phase in ("initial", "trained"):
        torch.manual_seed(generator(SEED, "initial weights").initial_seed())
        model, numbers = MLP([784, 16, 10]), generator(SEED, "batches mlp")
        adam = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(STEPS if phase == "trained" else 0):
            x, y = data.draw(BATCH, numbers)
            gradient = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
            norm = torch.cat([g.flatten() for g in gradient]).norm()
            for p, g in zip(model.parameters(), gradient, strict=True):
                p.grad = g / max(1.0, norm)
            adam.step()
        x, y = data.draw(BATCH, numbers)
        found = gradients(model, lambda m=model, x=x, y=y: F.cross_entropy(m(x), y))
        norms[phase] = sum(g.square().sum().item() for g in found.values())
    for phase, part in frame.groupby("phase"):
        assert part["gradient2"].to_numpy() == pytest.approx(norms[phase], rel=1e-4)
    assert norms["trained"] != pytest.approx(norms["initial"], rel=1e-2)


def test_a_smaller_batch_is_random_by_its_examples_and_a_sketch_by_its_draw(noise):
    frame, _ = noise
    small = frame["estimator"] == "small_batch"
    assert (frame[small]["draws"] == 4 * DRAWS).all()
    assert (frame[~small]["draws"] == DRAWS).all()
    assert frame[small]["bias"].isna().all()
    assert frame[~small]["bias"].notna().all()
    assert set(frame[~small]["batch_size"]) == {BATCH}
    for _, part in frame.groupby("phase"):
        batches = part[part["estimator"] == "small_batch"].set_index("budget")
        assert batches.loc[1.0, "batch_size"] == BATCH
        for budget in (0.1, 0.4):  # inverse to the batch: to a factor of three, of 16 draws each
            ratio = batches.loc[budget, "variance"] / batches.loc[1.0, "variance"]
            assert 1 / 3 < ratio / (BATCH / batches.loc[budget, "batch_size"]) < 3
        rounded = part[part["estimator"] == "rad_round"]
        assert (rounded["variance"] < 0.2 * batches.loc[1.0, "variance"]).all()


def test_each_budget_has_its_own_bytes(noise):
    frame, _ = noise
    for (_, estimator), part in frame[frame["budget"] < 1].groupby(["phase", "estimator"]):
        saved = part.set_index("budget")["saved_bytes"]
        assert 2 * saved[0.1] < saved[0.4] < 0.5 * part["exact_saved_bytes"].iloc[0], estimator
    at = frame[(frame["budget"] == 0.1) & (frame["phase"] == "initial")].set_index("estimator")["saved_bytes"]
    assert 0.8 * at["rad_proj"] < at["small_batch"] <= at["rad_proj"]
