"""Every yaml is composed, built and taken two steps."""

from __future__ import annotations

import pytest
import torch
from digits import CONFIGS, GROUPS
from hydra import compose, initialize_config_dir

from experiments.study import build, make

STUDIES = [None, *GROUPS["experiment"]]


@pytest.mark.parametrize("method", GROUPS["method"])
@pytest.mark.parametrize("experiment", STUDIES)
def test_every_method_of_every_experiment_takes_two_steps(config, experiment, method):
    choice = [] if experiment is None else [f"experiment={experiment}"]
    trainer, meta = build(config(*choice, "debug=two_steps", f"method={method}"))
    records = []
    trainer.run(records.append, lambda state: None)
    assert [r["iteration"] for r in records] == [0, 1, 2]
    assert meta["method"] == method
    assert {"train_loss", "test_loss", "test_accuracy"} <= records[-1].keys()


@pytest.mark.parametrize("experiment", GROUPS["experiment"])
@pytest.mark.parametrize("method", GROUPS["method"])
def test_an_experiment_tells_its_values_for_every_method(config, experiment, method):
    made = config(f"experiment={experiment}", f"method={method}")
    values = made.tuned.get(method, made.tuned.exact)
    assert (made.optimizer.lr, made.optimizer.weight_decay) == (values.lr, values.weight_decay)


@pytest.mark.parametrize("name", GROUPS["data"])
def test_every_data_set_is_made(config, name):
    data = make(config(f"data={name}").data)
    assert data.name == name
    assert data.x_train.dtype == data.x_test.dtype == torch.uint8
    assert data.x_train.shape[1:] == data.x_test.shape[1:] == (1, 28, 28)
    assert len(data.x_train) == len(data.y_train)
    assert len(data.x_test) == len(data.y_test)


@pytest.mark.parametrize("group", [g for g in GROUPS if g not in ("experiment", "debug")])
def test_the_default_config_can_be_composed_with_every_choice(group):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for name in GROUPS[group]:
            assert compose("config", [f"{group}={name}"])


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_every_yaml_says_what_it_is(file):
    assert file.read_text().startswith("#")
