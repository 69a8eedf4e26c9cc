"""What a tracker is told of a run, by a stand-in for its package."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from experiments.runs.tracking import Wandb

META = {
    "experiment": "mnist_mlp",
    "method": "rad_diff",
    "budget": 0.1,
    "seed": 3,
    "data": "mnist",
    "model": "mlp",
    "scale": None,
    "sessions": [{"started": "2026-01-01T10:00:00"}],
}
RESUMED = {**META, "sessions": [*META["sessions"], {"started": "2026-01-01T12:00:00"}]}
AGAIN = {**META, "sessions": [{"started": "2026-01-02T10:00:00"}]}


@pytest.fixture
def wandb(monkeypatch):
    """What the package was told: runs that were begun, records with their steps, and how runs ended."""
    told = SimpleNamespace(begun=[], logged=[], ended=[])

    def init(**options):
        told.begun.append(options)
        return SimpleNamespace(
            log=lambda record, step: told.logged.append((step, record)),
            finish=lambda exit_code: told.ended.append(exit_code),
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=lambda **options: options))
    return told


def test_a_resumed_run_is_the_same_and_one_begun_anew_is_another(wandb, tmp_path):
    for path, meta in (("a", META), ("a", RESUMED), ("a", AGAIN), ("b", META)):
        Wandb("rad").start(tmp_path / path, meta, {})
    first, resumed, again, elsewhere = (options["id"] for options in wandb.begun)
    assert first == resumed
    assert len({first, again, elsewhere}) == 3
    assert all(options["resume"] == "allow" for options in wandb.begun)


def test_a_run_is_named_as_on_a_screen_and_mirrors_its_records(wandb, tmp_path):
    tracker = Wandb("rad", "disabled")
    tracker.start(tmp_path, META, {"seed": 3})
    (options,) = wandb.begun
    assert (options["project"], options["mode"], options["dir"]) == ("rad", "disabled", str(tmp_path))
    assert (options["name"], options["group"], options["job_type"]) == ("rad_diff 0.1 seed 3", "mnist_mlp", "rad_diff")
    assert options["tags"] == ["mnist", "mlp", "budget 0.1"]
    assert options["config"] == {"seed": 3, "meta": META}
    tracker.log({"iteration": 40, "train_loss": 0.5})
    assert wandb.logged == [(40, {"train_loss": 0.5})]
    tracker.finish()
    tracker.finish(failed=True)
    assert wandb.ended == [0, 1]
