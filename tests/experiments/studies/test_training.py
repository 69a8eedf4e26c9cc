"""Training against a plain loop; models that draw; one stream of random numbers for each purpose; bytes as measured."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from digits import GROUPS
from outcomes import equal, outcome
from torch import nn

import experiments.models
import experiments.studies.training
import rad
from experiments.models import MLP
from experiments.runs.directory import RunDir
from experiments.runs.parts import make
from experiments.runs.resources import generator
from experiments.runs.study import build
from experiments.studies.trainer import Trainer

METHODS = GROUPS["method"]
SMALL = ["data=cifar10", "model.widths=[3072,12,10]"]


def run(trainer):
    """Runs to the end; returns records without times, and states."""
    records, states = [], []
    trainer.run(records.append, lambda state: states.append(copy.deepcopy(state)))
    return [{k: v for k, v in r.items() if k != "train_seconds"} for r in records], states


@pytest.mark.parametrize("clip", [None, 0.4])
def test_training_is_that_of_a_plain_loop(config, clip):
    rates = ["optimizer=sgd", "optimizer.lr=0.1", "optimizer.weight_decay=0.05", "schedule.step_size=2"]
    evaluations = ["evaluate.test_every=2", "evaluate.train_every=3", "evaluate.train_examples=7"]
    options = ["iterations=7", f"clip_norm={clip or 'null'}", "data.crop=2", "data.flip=true", "seed=5"]
    settings = config(*SMALL, "method=exact", *rates, "schedule.gamma=0.5", *evaluations, *options)
    trainer, _ = build(settings)
    records, _ = run(trainer)

    data, (bootstrap, batches, changes) = make(settings.data), (streams(5, "bootstrap", "batches", "augmentation"))
    chosen = torch.randint(300, (300,), generator=bootstrap)
    images, labels = data.x_train[chosen], data.y_train[chosen]
    torch.manual_seed(generator(5, "initial weights").initial_seed())
    model = MLP([3072, 12, 10])
    spread = torch.tensor([round(i * 299 / 6) for i in range(7)])

    def scores(x, y):
        with torch.no_grad():
            logits = model(data.inputs(x))
        return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).double().mean().item()

    expected, losses, clipped = [], [], 0
    for iteration in range(8):
        entry = {"batch_loss": sum(losses) / len(losses) if losses else None}
        entry["learning_rate"] = rate = 0.1 * 0.5 ** (iteration // 2)
        if iteration in (0, 3, 6, 7):
            entry["train_loss"], entry["train_accuracy"] = scores(images[spread], labels[spread])
        if iteration in (0, 2, 4, 6, 7):
            entry["test_loss"], entry["test_accuracy"] = scores(data.x_test, data.y_test)
        if len(entry) > 2:
            expected.append({"iteration": iteration, "data": data.name, **entry})
            losses = []
        if iteration == 7:
            break
        batch = torch.randint(300, (30,), generator=batches)
        x = data.augmentation(images[batch], data.augmentation.draw(30, changes))
        loss = F.cross_entropy(model(data.inputs(x)), labels[batch])
        losses.append(loss.item())
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.cat([g.flatten() for g in gradient]).norm().item()
        clipped += norm > 0.4
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradient, strict=True):
                p -= rate * (g * min(1, (clip or norm) / norm) + 0.05 * p)

    assert clipped > 3
    for found, wanted in zip(records, expected, strict=True):
        assert found.keys() == wanted.keys()
        assert found == {k: pytest.approx(v, rel=1e-4) if isinstance(v, float) else v for k, v in wanted.items()}
    for p, q in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


class Dropping(MLP):
    """A model that draws in training, and says in which mode and with what gradients it was called."""

    def __init__(self, widths):
        super().__init__(widths)
        self.insert(len(self) - 1, nn.Dropout(0.5))
        self.calls = []
        self.register_forward_pre_hook(lambda *_: self.calls.append((self.training, torch.is_grad_enabled())))


@pytest.fixture
def dropping(config, monkeypatch):
    """Builds a trainer of a model with dropout."""
    monkeypatch.setattr(experiments.models, "MLP", Dropping)
    return lambda *overrides: build(config(*SMALL, *overrides, "iterations=6", "evaluate.test_every=2"))[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_draws_goes_on_bit_for_bit(dropping, method):
    records, states = run(dropping(f"method={method}"))
    middle, resumed = states[1], dropping(f"method={method}")
    torch.manual_seed(99)  # another process has drawn other numbers
    resumed.restore(copy.deepcopy(middle))
    rest, later = run(resumed)
    assert rest == [r for r in records if r["iteration"] > middle["iteration"] > 0]
    assert equal(later, states[2:])


@pytest.mark.parametrize("method", ["exact", "rad_diff"])
def test_a_run_of_a_model_that_draws_goes_on_from_its_files(cli, tmp_path, monkeypatch, method):
    monkeypatch.setattr(experiments.models, "MLP", Dropping)
    options = [f"method={method}", "model.widths=[784,12,10]", "iterations=8", "evaluate.test_every=2"]
    cli(*options, f"run_dir={tmp_path / 'whole'}")
    append, at = RunDir.append, iter(range(100))

    def interrupted(self, record):
        append(self, record)
        if next(at) == 2:  # recorded, but not yet saved
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDir, "append", interrupted)
    with pytest.raises(SystemExit):
        cli(*options, f"run_dir={tmp_path / 'parts'}")
    torch.manual_seed(99)
    cli(*options, f"run_dir={tmp_path / 'parts'}")
    (state, records), (state_parts, records_parts) = outcome(tmp_path / "whole"), outcome(tmp_path / "parts")
    assert equal(state, state_parts)
    assert records == records_parts
    assert [r["iteration"] for r in records] == [0, 2, 4, 6, 8]


def test_what_a_model_draws_depends_on_the_seed_alone(dropping):
    rest = torch.get_rng_state()
    for seed in (0, 1):
        dropping(f"seed={seed}")
        assert torch.equal(torch.get_rng_state(), generator(seed, "forward pass").get_state())
    assert not torch.equal(torch.get_rng_state(), rest)


def test_it_draws_in_training_and_never_in_evaluation(dropping):
    trainer = dropping("method=exact", "evaluate.batch_size=50")
    trainer.model.calls.clear()
    x, y = trainer.data.x_test, trainer.data.y_test
    assert trainer.evaluate(x, y) == trainer.evaluate(x, y)
    assert set(trainer.model.calls) == {(False, False)}
    trainer.model.calls.clear()
    for _ in range(2):
        trainer.step(*trainer.batch())
    assert trainer.model.calls == [(True, True)] * 2


def streams(seed, *purposes):
    return [generator(seed, purpose) for purpose in purposes]


def test_every_seed_and_purpose_has_a_stream_of_its_own():
    purposes = ["batches", "sketches", "ab", "ba", "a", "initial weights 1", "initial weights 2", "", "é"]
    seeds = [g.initial_seed() for seed in (0, 1, 2, 10**6) for g in streams(seed, *purposes)]
    assert len(set(seeds)) == len(seeds)
    assert seeds[: len(purposes)] == [g.initial_seed() for g in streams(0, *purposes)]


def test_no_two_purposes_of_a_run_share_a_stream(config, monkeypatch):
    asked = []
    monkeypatch.setattr(experiments.studies.training, "generator", lambda *args: asked.append(args) or generator(*args))
    trainer, _ = build(config(*SMALL, "data.crop=2", "seed=4"))
    assert len(asked) == len(set(asked)) >= 6
    assert {seed for seed, _ in asked} == {4}
    states = [g.get_state() for g in trainer.generators.values()]
    assert not any(torch.equal(a, b) for i, a in enumerate(states) for b in states[:i])


@pytest.mark.parametrize("method", METHODS)
def test_augmentation_is_paired_and_leaves_the_batches_alone(config, method):
    plain, changed = (
        build(config(*SMALL, f"method={method}", *options))[0] for options in ([], ["data.crop=2", "data.flip=true"])
    )
    exact, _ = build(config(*SMALL, "method=exact", "data.crop=2", "data.flip=true"))
    for _ in range(3):
        (x, y), (x_plain, y_plain), (x_exact, _) = changed.batch(), plain.batch(), exact.batch()
        assert torch.equal(y, y_plain)
        assert not torch.equal(x, x_plain)
        assert torch.equal(x, x_exact[: len(x)])


@pytest.mark.parametrize("method", METHODS)
def test_bytes_are_those_of_a_step(config, method):
    trainer, meta = build(config(f"method={method}"))
    x, y = trainer.batch()
    assert len(y) == meta["batch_size"] == (meta["batch_size"] if method == "small_batch" else 30)
    assert (meta["at_once"] < len(y)) == (method == "accumulate")
    x, y = x[: meta["at_once"]].clone(), y[: meta["at_once"]].clone()
    held = rad.measure.saved_bytes(lambda: trainer.data.loss(trainer.model(x), y)).total
    assert meta["saved_bytes"] == held
    plain = MLP([784, 300, 300, 300, 10])
    x, y = trainer.data.inputs(trainer.data.x_train[:30]), trainer.data.y_train[:30].clone()
    assert meta["exact_saved_bytes"] == rad.measure.saved_bytes(lambda: F.cross_entropy(plain(x), y)).total
    assert meta["exact_peak_bytes"] == rad.measure.peak_bytes(lambda: F.cross_entropy(plain(x), y).backward())
    if method != "compile_budget":  # whose measure is its own
        assert (method == "exact") == (held == meta["exact_saved_bytes"])


@pytest.mark.parametrize("at_once", [1, 7, 29])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(config, monkeypatch, at_once):
    monkeypatch.setattr("experiments.rivals._Fitting.largest", lambda *args: at_once)
    (whole, _), (parts, meta) = (build(config(*SMALL, f"method={m}", "clip_norm=0.4")) for m in ("exact", "accumulate"))
    assert (meta["batch_size"], meta["at_once"]) == (30, at_once)
    sizes = []
    parts.model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    for _ in range(3):
        (x, y), again = whole.batch(), parts.batch()
        assert torch.equal(x, again[0])
        torch.testing.assert_close(parts.step(*again), whole.step(x, y))
        for p, q in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-4)
    assert sizes == 3 * ([at_once] * (30 // at_once) + [30 % at_once] * (30 % at_once > 0))


def test_building_leaves_running_statistics_alone_and_training_and_evaluation_use_them(config):
    trainer, _ = build(config("experiment=cifar_resnet", "method=exact"))
    norm = trainer.model[1]
    assert norm.num_batches_tracked == 0
    assert not norm.running_mean.any()
    trainer.step(*trainer.batch())
    assert norm.num_batches_tracked == 1
    before = copy.deepcopy(trainer.model.state_dict())
    one, all_ = (trainer.evaluate(trainer.data.x_test[:n], trainer.data.y_test[:n]) for n in (1, 60))
    alone = trainer.evaluate(trainer.data.x_test[:1], trainer.data.y_test[:1])
    assert equal(before, trainer.model.state_dict())
    assert one == alone != all_
    with torch.no_grad():
        logits = copy.deepcopy(trainer.model).eval()(trainer.data.inputs(trainer.data.x_test))
    assert all_[0] == pytest.approx(F.cross_entropy(logits, trainer.data.y_test).item(), rel=1e-5)


def test_text_is_scored_by_the_character(config):
    trainer, _ = build(config("experiment=source_lstm", "method=exact", "evaluate.batch_size=7"))
    x, y = trainer.data.x_test, trainer.data.y_test
    with torch.no_grad():
        logits = trainer.model(x.long())
    bits = -(logits.log_softmax(-1).gather(-1, y.long()[..., None])).mean().item() / math.log(2)
    loss, accuracy = trainer.evaluate(x, y)
    assert loss == pytest.approx(bits, rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(-1) == y).double().mean().item())
    assert bits == pytest.approx(7, abs=0.2)  # of 128 symbols, before training


def test_steps_take_subnormal_numbers_for_zero_and_the_process_does_not_afterwards(cli, monkeypatch):
    def subnormal() -> bool:
        return bool(torch.full((1,), 1e-30) * 1e-10 > 0)

    seen, step = [], Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, x, y: seen.append(subnormal()) or step(self, x, y))
    assert subnormal()
    cli("method=exact", "iterations=2")
    assert seen == [False, False]
    assert subnormal()
