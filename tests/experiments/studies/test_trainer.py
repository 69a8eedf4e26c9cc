"""Training: what is paired, what is drawn, what is evaluated, and that a state is everything."""

from __future__ import annotations

import copy

import pytest
import torch
from digits import GROUPS

from experiments.errors import UserError
from experiments.runs.configs import resolved
from experiments.runs.directory import digest
from experiments.runs.study import build

METHODS = GROUPS["method"]


def train(trainer):
    """Runs to the end; returns records and states."""
    records, states = [], []
    trainer.run(records.append, lambda state: states.append(copy.deepcopy(state)))
    return records, states


@pytest.mark.parametrize("method", [m for m in METHODS if m != "exact"])
def test_methods_share_initial_weights_data_and_batches(config, method):
    (a, _), (b, _) = build(config("method=exact")), build(config(f"method={method}"))
    for (name, p), (other, q) in zip(a.model.named_parameters(), b.model.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(p, q)
    assert torch.equal(a.data.x_train, b.data.x_train)
    for _ in range(3):
        (x, y), (x_b, y_b) = a.batch(), b.batch()
        # A smaller batch consists of the first examples of the full one.
        assert torch.equal(x[: len(x_b)], x_b)
        assert torch.equal(y[: len(y_b)], y_b)


def test_seeds_differ_in_weights_data_batches_and_sketches(config):
    (a, _), (b, _) = build(config("seed=0")), build(config("seed=1"))
    assert not torch.equal(next(a.model.parameters()), next(b.model.parameters()))
    assert not torch.equal(a.data.x_train, b.data.x_train)
    assert not torch.equal(a.generators["batches"].get_state(), b.generators["batches"].get_state())
    assert not torch.equal(a.generators["sketches"].get_state(), b.generators["sketches"].get_state())


def test_settings_are_told_apart_but_seeds_are_not(config):
    lines = ["seed=0"], ["seed=1"], ["optimizer.lr=0.1"], ["device=cpu", "runs=/x"]
    first, seed, rate, place = (digest(resolved(config(*line))) for line in lines)
    assert first == seed == place != rate


def test_bootstrap_draws_with_replacement_from_the_training_set(config):
    (plain, _), (boot, _) = build(config("bootstrap=false")), build(config())
    originals = {image.numpy().tobytes() for image in plain.data.x_train}
    drawn = [image.numpy().tobytes() for image in boot.data.x_train]
    assert set(drawn) < originals
    assert len(drawn) == len(plain.data.x_train)
    assert torch.equal(plain.data.x_test, boot.data.x_test)


def test_evaluations_come_when_they_are_due(config):
    trainer, _ = build(config("iterations=7", "evaluate.test_every=2", "evaluate.train_every=3"))
    records, _ = train(trainer)
    assert {r["iteration"] for r in records if "test_loss" in r} == {0, 2, 4, 6, 7}
    assert {r["iteration"] for r in records if "train_loss" in r} == {0, 3, 6, 7}
    assert all(r["data"] == "mnist" for r in records)


def test_evaluation_is_the_mean_over_the_set_whatever_its_batches(config):
    trainer, _ = build(config("evaluate.batch_size=7"))
    with torch.no_grad():
        logits = trainer.model(trainer.data.inputs(trainer.data.x_test))
    expected = torch.nn.functional.cross_entropy(logits, trainer.data.y_test).item()
    accuracy = (logits.argmax(1) == trainer.data.y_test).double().mean().item()
    assert trainer.evaluate(trainer.data.x_test, trainer.data.y_test) == pytest.approx((expected, accuracy), rel=1e-5)


def test_evaluating_more_often_does_not_change_the_training(config):
    often, _ = build(config("method=rad_diff", "iterations=6", "evaluate.test_every=1"))
    rarely, _ = build(config("method=rad_diff", "iterations=6", "evaluate.test_every=6"))
    train(often), train(rarely)
    for p, q in zip(often.model.parameters(), rarely.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_learning_rate_decays_in_steps(config):
    trainer, _ = build(config("iterations=5", "schedule.step_size=2", "schedule.gamma=0.5", "evaluate.test_every=1"))
    records, _ = train(trainer)
    assert [r["learning_rate"] for r in records] == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4, 2.5e-4])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(config, method):
    trainer, _ = build(config(f"method={method}", "budget=0.5", "iterations=60", "evaluate.train_every=60"))
    records, _ = train(trainer)
    assert records[-1]["train_loss"] < 0.5 * records[0]["train_loss"]


def test_a_loss_that_is_not_finite_ends_training_before_it_is_saved(config):
    trainer, _ = build(config("method=exact", "iterations=40", "optimizer.lr=1e30", "evaluate.test_every=10"))
    saved = []
    with pytest.raises(UserError, match=r"_loss is (nan|inf) at iteration 10; lower optimizer.lr"):
        trainer.run(lambda record: None, saved.append)
    assert [s["iteration"] for s in saved] == [0]


@pytest.mark.parametrize("choice", [[], ["experiment=cifar_resnet"], ["experiment=source_gpt"]], ids=str)
def test_checkpointing_trains_like_exact_gradients(config, choice):
    curves, steps = [], 4 if choice else 30
    for method in ("exact", "checkpoint"):
        options = [f"iterations={steps}", "evaluate.test_every=2", "evaluate.train_every=2"]
        trainer, meta = build(config(*choice, f"method={method}", *options))
        assert (method == "exact") == (meta["saved_bytes"] > 0.9 * meta["exact_saved_bytes"])
        records = []
        trainer.run(records.append, lambda state: None)
        curves.append([{k: v for k, v in record.items() if k != "train_seconds"} for record in records])
    assert curves[0] == curves[1]
