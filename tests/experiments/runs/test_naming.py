"""Where runs are kept, and that configs composed in short are those that run.py composes."""

from __future__ import annotations

import re

import pytest
from digits import CONFIGS
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from experiments.runs.configs import composed, resolved
from experiments.runs.directory import digest
from experiments.runs.naming import label, run_directory

LINES = [
    [],
    ["method=rad_round", "budget=0.05", "seed=3"],
    ["experiment=mnist_mlp", "scale=smoke", "optimizer.lr=0.5", "iterations=7"],
    ["data=smnist", "data@data.images=mnist5k", "model=irnn", "data.length=98"],
    ["experiment=gradient_noise", "data@nets.mlp.data=mnist5k", "~nets.cnn", "+nets.mlp.note=x"],
    ["experiment=reactor", "method=exact", "problem.steps=9", "runs=elsewhere"],
]


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_configs_are_those_of_hydra(line):
    for again in range(2):  # the second time from what is kept of the first
        made = composed(line)
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            expected = compose("config", line, return_hydra_config=True)
        assert resolved(made) == resolved(expected), again
        assert made.hydra.runtime.choices == expected.hydra.runtime.choices
        assert made.hydra.overrides.task == expected.hydra.overrides.task
        assert OmegaConf.is_struct(made)


def test_what_there_is_not_is_refused_as_by_hydra():
    for line in (["iteration=3"], ["method=magic"], ["optimizer.learning_rate=1"]):
        with pytest.raises(HydraException):
            composed(line)


def place(*line: str) -> str:
    return str(run_directory(composed([*line, "runs=r"])))


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("", "mlp-mnist5k/default"),
        ("seed=0 budget=1e-1 method=rad_proj optimizer.lr=0.001", "mlp-mnist5k/default"),
        ("method=exact seed=0", "mlp-mnist5k/method=exact"),
        ("seed=3 budget=5e-2 method=rad_diff", "mlp-mnist5k/method=rad_diff,budget=0.05,seed=3"),
        ("threads=1 device=cpu tracker=wandb method=exact data=mnist data.root=/x", "mlp-mnist/method=exact"),
        ("experiment=mnist_mlp scale=paper iterations=20000", "mnist_mlp/default"),
        ("experiment=mnist_mlp data=mnist5k scale=smoke", "mnist_mlp/data=mnist5k,scale=smoke"),
        ("experiment=mnist_mlp method=exact optimizer.lr=1.35e-3", "mnist_mlp/method=exact"),
        ("experiment=mnist_mlp method=rad_diff optimizer.lr=1.35e-3", "mnist_mlp/method=rad_diff,optimizer.lr=0.00135"),
        ("method=rad_same budget=0.05 method.sketch.budget=0.05", "mlp-mnist5k/method=rad_same,budget=0.05"),
        (
            "method=rad_same budget=0.05 method.sketch.budget=0.1",  # the default, were it not for the budget
            "mlp-mnist5k/method=rad_same,budget=0.05,method.sketch.budget=0.1",
        ),
        ("clip_norm=1.0", "mlp-mnist5k/clip_norm=1"),
        ("clip_norm=null evaluate.train_examples=null", "mlp-mnist5k/default"),
        ("model.widths=[784,10]", "mlp-mnist5k/model.widths=[784,10]"),
        ("experiment=gradient_noise ~nets.cnn", "gradient_noise/~nets.cnn"),
        ("run_dir=mine method=exact", None),
    ],
)
def test_a_run_is_named_by_what_differs_from_the_defaults(line, name):
    assert place(*line.split()) == ("mine" if name is None else f"r/{name}")


def test_the_same_settings_share_a_directory_and_others_do_not():
    lines = [
        "method=exact",
        "method=exact seed=0",
        "seed=0 method=exact budget=0.1",
        "seed=1 method=exact",
        "budget=0.2",
    ]
    settings = [digest({**resolved(composed(line.split())), "seed": 0, "is": "seed=1" in line}) for line in lines]
    places = [place(*line.split()) for line in lines]
    assert [settings.index(s) for s in settings] == [places.index(p) for p in places] == [0, 0, 0, 3, 4]


@pytest.mark.parametrize("value", ["../../etc", "a/b", "/root", "x" * 300, "a b", "ü" * 200])
def test_no_name_leaves_the_folder_of_runs_or_is_too_long(value):
    places = [place(f"+note='{value}'"), place(f"+note='{value}.'")]
    assert places[0] != places[1]
    for found in places:
        assert re.fullmatch(r"r/mlp-mnist5k/[^/]+", found)
        assert len(found.encode()) < 500
        assert len(found.split("/")[2]) <= 210


@pytest.mark.parametrize(
    ("which", "text"),
    [
        (("mnist_mlp", "rad_diff", 0.05, 1), "mnist_mlp rad_diff 0.05 seed 1"),
        (("mnist_mlp", "exact", 0.05, 1), "mnist_mlp exact seed 1"),
        (("", "checkpoint", 0.05, 0), "checkpoint seed 0"),
        (("graph_depth", "all", 0.3, 0), "graph_depth seed 0"),
        (("graph_depth", None, 0.3), "graph_depth"),
    ],
)
def test_labels_are_short(which, text):
    assert label(*which) == text
