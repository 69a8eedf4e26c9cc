"""Every yaml is composed, built and taken two steps."""

from __future__ import annotations

import pytest
import torch
from digits import CONFIGS, GROUPS, write_digits

from experiments.errors import UserError
from experiments.runs.configs import composed
from experiments.runs.parts import make
from experiments.runs.study import build

# Experiments of other kinds have tests of their own.
TRAINING = [
    name
    for name in GROUPS["experiment"]
    if "override /study" not in (CONFIGS / "experiment" / f"{name}.yaml").read_text()
]


RECURRENT = [name for name in TRAINING if name.endswith(("irnn", "lstm"))]


def quick(name: str | None, method: str) -> bool:
    """Compilation takes seconds; of all experiments but the default one two methods stand for all."""
    return method in ("exact", "rad_round") or (name is None and method != "compile_budget")


PAIRS = [
    pytest.param(name, method, marks=[] if quick(name, method) else [pytest.mark.slow])
    for name in (None, *TRAINING)
    for method in GROUPS["method"]
    if not (method == "compile_budget" and name in RECURRENT)
]


@pytest.mark.filterwarnings("ignore::rad.BudgetFloorWarning")  # of the two inputs of the adding problem one is kept
@pytest.mark.filterwarnings("ignore:BatchNorm normalizes each micro-batch")
@pytest.mark.parametrize(("experiment", "method"), PAIRS)
def test_every_method_of_every_experiment_takes_two_steps(config, experiment, method):
    choice = ["debug=two_steps"] if experiment is None else [f"experiment={experiment}", "iterations=2"]
    choice += ["budget=0.2"] if method == "rad_auto" else []  # what stays exact of small nets takes more than a tenth
    trainer, meta = build(config(*choice, f"method={method}"))
    records = []
    trainer.run(records.append, lambda state: None)
    assert records[-1]["iteration"] == 2
    assert meta["method"] == method
    assert {"train_loss", "test_loss", "test_accuracy"} <= records[-1].keys()


@pytest.mark.parametrize("experiment", RECURRENT)
def test_what_the_compiler_cannot_take_is_refused(config, experiment):
    with pytest.raises(UserError, match=r"method=compile_budget cannot compile \w+ into one graph .*; choose another"):
        build(config(f"experiment={experiment}", "method=compile_budget"))


@pytest.mark.parametrize(
    ("name", "label", "stored", "given"),
    [
        ("mnist", "mnist", (1, 28, 28), (1, 28, 28)),
        ("mnist5k", "mnist5k", (1, 28, 28), (1, 28, 28)),
        ("fashion_mnist", "fashion_mnist", (1, 28, 28), (1, 28, 28)),
        ("cifar10", "cifar10 (unknown copy)", (3, 32, 32), (3, 32, 32)),
        ("smnist", "smnist", (1, 28, 28), (784, 1)),
        ("adding", "adding-100", (100, 2), (100, 2)),
    ],
)
def test_data_sets_have_the_shape_of_their_kind(config, name, label, stored, given):
    data = make(config(f"data={name}").data)
    assert data.name == label
    assert data.x_train.shape[1:] == data.x_test.shape[1:] == stored
    assert data.inputs(data.x_train[:3]).shape == (3, *given)


@pytest.mark.parametrize("name", GROUPS["data"])
def test_every_data_set_can_be_trained_on(config, digits, name):
    settings = config(f"data={name}").data
    if "root" in settings and not (digits / f"{settings.name}.npz").exists():  # one that is new here
        write_digits(digits, settings.name, shape=(20, 20, 3) if len(settings.mean) == 3 else (20, 20))
    data = make(settings)
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert len(x) == len(y) > 0
        inputs, targets = data.inputs(x[:3]), y[:3]
        assert inputs.isfinite().all()
        if name == "sources":
            assert inputs.dtype == torch.int64  # symbols
            outputs = torch.zeros(*targets.shape, 128).log_softmax(-1)
        else:
            assert inputs.dtype == torch.float32
            outputs = torch.zeros(len(targets), 1 if y.is_floating_point() else 10)
        assert data.loss(outputs, targets) > 0


@pytest.mark.parametrize("group", [g for g in GROUPS if g not in ("experiment", "debug")])
def test_the_default_config_can_be_composed_with_every_choice(group):
    for name in GROUPS[group]:
        assert composed([f"{group}={name}"])


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_every_yaml_says_what_it_is(file):
    assert file.read_text().startswith("#")
