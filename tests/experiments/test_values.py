"""What the configs say, against a second transcription of the paper's values, by which a slip in the first shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from digits import CONFIGS, GROUPS
from omegaconf import DictConfig, OmegaConf

import rad
from experiments.methods import Auto, Exact, Method, Rad
from experiments.rivals import Accumulate, Checkpoint, CompileBudget, SmallBatch
from experiments.runs.configs import composed as compose
from experiments.runs.parts import make

BUDGET = 0.15

# §4 of the paper; accumulate, compile_budget, rad_even, rad_round and rad_mixed are ours.
METHODS: dict[str, Method] = {
    "exact": Exact("exact"),
    "checkpoint": Checkpoint("checkpoint", segments=2),
    "compile_budget": CompileBudget("compile_budget", BUDGET, "inductor"),
    "accumulate": Accumulate("accumulate", rad.Project(BUDGET)),
    "small_batch": SmallBatch("small_batch", rad.Project(BUDGET)),
    "rad_proj": Rad("rad_proj", rad.Project(BUDGET)),
    "rad_same": Rad("rad_same", rad.Sample(BUDGET, per="batch", replacement=True)),
    "rad_diff": Rad("rad_diff", rad.Sample(BUDGET, per="element", replacement=True)),
    "rad_even": Rad("rad_even", rad.Sample(BUDGET, per="batch", replacement=False)),
    "rad_round": Rad("rad_round", rad.Rounding(BUDGET, group=256)),
    "rad_auto": Auto("rad_auto", BUDGET, every=1000),
    "rad_mixed": Rad("rad_mixed", rad.RoundedSample(BUDGET, group=256)),
}


def _residual(before, width):
    own = [(width, before, 3, 3), (width, width, 3, 3)]
    return own + [(width, before, 1, 1)] * (before != width)


# Parameters of the paper's nets and of ours, layer by layer.
SHAPES = {
    "mlp": [(300, 784), (300, 300), (300, 300), (10, 300)],
    "cnn": [(16, 3, 5, 5), (32, 16, 5, 5), (32, 32, 5, 5), (32, 32, 5, 5), (10, 32 * 8 * 8)],
    "irnn": [(100, 1), (100, 100), (10, 100)],
    "resnet": [
        (16, 3, 3, 3),
        *(p for a, b in ((16, 16), (16, 32), (32, 64), (64, 128)) for c in (a, b) for p in _residual(c, b)),
        (10, 128),
    ],
    "gpt": [(128, 128)] * 2 + [(384, 128), (128, 128), (512, 128), (128, 512)] * 4 + [(128, 128)],
    "lstm": [(128, 128), *[(512, 128)] * 4, (128, 128)],
}

# Mean and standard deviation of pixels in [0, 1], as they are in common use.
PIXELS = {
    "mnist": ([0.1307], [0.3081]),
    "mnist5k": ([0.1307], [0.3081]),
    "smnist": ([0.1307], [0.3081]),
    "fashion_mnist": ([0.2860], [0.3530]),
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
}

# At the paper's own size; fashion_mlp, adding_irnn, cifar_resnet, source_gpt, source_lstm, gradient_noise,
# source_noise and graph_depth are ours.
TRAINED = {"batch_size": 150, "bootstrap": True, "budget": 0.1, "evaluate.train_examples": None}
SOURCES = {
    **{"batch_size": 32, "bootstrap": False, "reference": "rad.Rounding", "iterations": 20_000, "optimizer": "Adam"},
    **{"data.length": 256, "data.folder": None, "evaluate.train_examples": 2000, "schedule.gamma": 1.0},
    **{"clip_norm": 1.0, "model.width": 384},
}
PAPER = {
    "mnist_mlp": {
        **TRAINED,
        **{"iterations": 20_000, "schedule.step_size": 2000, "schedule.gamma": 0.6, "clip_norm": None},
        **{"data.name": "mnist", "model": "MLP", "optimizer": "Adam"},
    },
    "fashion_mlp": {
        **TRAINED,
        **{"iterations": 20_000, "schedule.step_size": 2000, "schedule.gamma": 0.6, "clip_norm": None},
        **{"data.name": "fashion_mnist", "model": "MLP", "optimizer": "Adam", "optimizer.lr": 5.27e-4},
    },
    "cifar_cnn": {
        **TRAINED,
        **{"iterations": 100_000, "schedule.step_size": 10_000, "schedule.gamma": 0.6, "clip_norm": None},
        **{"data.name": "cifar10", "data.crop": 0, "data.flip": False, "model": "CNN", "optimizer": "Adam"},
    },
    "smnist_irnn": {
        **TRAINED,
        **{"iterations": 200_000, "schedule.gamma": 1.0, "clip_norm": 1.0, "optimizer.lr": 1e-4},
        **{"data.images.name": "mnist", "data.length": 784, "data.permuted": False, "model": "IRNN"},
        **{"optimizer": "SGD", "optimizer.weight_decay": 0.0},
    },
    "adding_irnn": {
        **TRAINED,
        **{"iterations": 100_000, "schedule.gamma": 1.0, "clip_norm": 1.0, "optimizer.lr": 1e-3},
        **{"data.length": 400, "data.train": 20_000, "data.test": 2000, "data.seed": 0, "model": "IRNN"},
        **{"model.inputs": 2, "model.outputs": 1, "optimizer": "Adam"},
    },
    "cifar_resnet": {
        **TRAINED,
        **{"batch_size": 128, "bootstrap": False, "reference": "rad.Rounding", "iterations": 40_000, "clip_norm": None},
        **{"data.name": "cifar10", "data.crop": 4, "data.flip": True, "model": "ResNet", "model.blocks": [2, 2, 2, 2]},
        **{"model.width": 64, "optimizer": "SGD", "optimizer.momentum": 0.9, "optimizer.weight_decay": 5e-4},
    },
    "source_gpt": {**TRAINED, **SOURCES, "model": "GPT", "model.length": 256, "model.layers": 6},
    "source_lstm": {**TRAINED, **SOURCES, "model": "LSTM", "model.layers": 2},
    "reactor": {
        **{"iterations": 800, "optimizer": "Adam", "optimizer.lr": 1e-2, "steady": 4.932, "snapshots": 10},
        **{"problem.nx": 33, "problem.ny": 33, "problem.dt": 1 / 4096, "problem.steps": 40_961},
        **{"problem.diffusion": 0.25, "method.name": "rad_same"},
    },
    "gradient_noise": {
        **{"iterations": 2000, "nets.mlp.batch_size": 150, "nets.cnn.batch_size": 150, "nets.irnn.batch_size": 150},
        **{"nets.mlp.draws": 200, "nets.irnn.data.length": 784, "budgets": [0.01, 0.02, 0.035, 0.05, 0.1, 0.2, 0.5, 1]},
        **{f"nets.{net}.lr": 1e-3 for net in ("mlp", "cnn", "irnn")},
    },
    "source_noise": {
        **{"iterations": 20_000, "reference": "rad.Rounding", "steps": [0, 1000, 20_000]},
        **{"budgets": [0.07, 0.1, 0.13, 0.2, 0.5, 1], "nets.gpt.batch_size": 32, "nets.gpt.lr": 1e-3},
        **{"nets.gpt.draws": 100, "nets.gpt.model.width": 384, "nets.gpt.model.layers": 6},
        **{"nets.gpt.data.length": 256, "nets.gpt.data.train": None},
    },
    "graph_depth": {
        **{"iterations": 4000, "width": 16, "edges": 8, "depths": [1, 2, 3, 4, 5, 6, 8], "draws": 20_000},
        **{"net.width": 100, "net.depths": [1, 2, 4, 6, 8, 12], "net.batch_size": 150, "net.lr": 1e-3, "budget": 0.3},
    },
}

# Learning rate and weight decay that the paper's search found.
TUNED = {
    "mnist_mlp": {
        "exact": (1.350e-3, 4.07e-7),
        "small_batch": (6.45e-4, 5.69e-5),
        "rad_proj": (5.27e-4, 1.01e-3),
        "rad_same": (4.52e-4, 4.06e-6),
        "rad_diff": (9.34e-4, 1.25e-6),
    },
    "cifar_cnn": {
        "exact": (1.240e-3, 4.34e-5),
        "small_batch": (4.30e-4, 1.96e-6),
        "rad_proj": (4.35e-4, 5.49e-5),
        "rad_same": (1.159e-3, 9.99e-4),
        "rad_diff": (2.139e-3, 7.45e-4),
    },
}


def composed(*overrides: str) -> DictConfig:
    return compose(overrides)


def group(folder: str, name: str) -> DictConfig:
    """One object, as its yaml alone says."""
    return OmegaConf.create({"budget": BUDGET, "it": OmegaConf.load(CONFIGS / folder / f"{name}.yaml")}).it


def test_nothing_is_forgotten_below():
    assert set(METHODS) == set(GROUPS["method"])
    assert set(SHAPES) == set(GROUPS["model"])
    assert set(PIXELS) == set(GROUPS["data"]) - {"adding", "sources"}
    assert set(PAPER) == set(GROUPS["experiment"])
    tuned = {name for name in GROUPS["experiment"] if "tuned:" in (CONFIGS / "experiment" / f"{name}.yaml").read_text()}
    assert set(TUNED) == tuned


@pytest.mark.parametrize("name", GROUPS["method"])
def test_a_method_is_that_of_its_name(name):
    assert make(group("method", name)) == METHODS[name]


@pytest.mark.parametrize("name", GROUPS["model"])
def test_a_model_has_the_layers_of_the_paper(name):
    model = make(group("model", name))
    assert [tuple(p.shape) for p in model.parameters() if p.dim() > 1] == SHAPES[name]


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_are_normalized_as_usual(name):
    config = composed(f"data={name}").data
    config = config.images if name == "smnist" else config
    mean, std = PIXELS[name]
    assert (list(config.mean), list(config.std)) == (mean, std)
    for found in config.get("copies", {}).values():  # the same numbers, in [0, 255]
        assert np.abs(np.array(found) / 255 - mean).max() < 5e-4


def test_the_digits_of_the_package_have_about_mean_0_and_deviation_1():
    data = make(composed("data=mnist5k").data)
    pixels = data.inputs(data.x_train)
    assert abs(pixels.mean()) < 0.02
    assert abs(pixels.std() - 1) < 0.02


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_an_optimizer_is_plain(name, kind):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = make(group("optimizer", name), [weight])
    assert type(optimizer) is kind
    changed = {k for k, v in optimizer.defaults.items() if k != "lr" and v != kind([weight], lr=1e-3).defaults[k]}
    assert not changed


def said(config: DictConfig, name: str) -> object:
    value = OmegaConf.select(config, name)
    if isinstance(value, DictConfig):
        return value._target_.rpartition(".")[2]
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


@pytest.mark.parametrize("experiment", PAPER)
def test_an_experiment_has_the_values_of_the_paper(experiment):
    config = composed(f"experiment={experiment}", "scale=paper")
    wanted = PAPER[experiment]
    assert {name: said(config, name) for name in wanted} == wanted


@pytest.mark.parametrize("experiment", TUNED)
@pytest.mark.parametrize("method", GROUPS["method"])
def test_each_method_trains_with_its_own_tuned_values(experiment, method):
    config = composed(f"experiment={experiment}", f"method={method}")
    expected = TUNED[experiment].get(method, TUNED[experiment]["exact"])
    assert (config.optimizer.lr, config.optimizer.weight_decay) == expected


@pytest.mark.parametrize("experiment", PAPER)
def test_smaller_scales_are_smaller(experiment):
    scales = composed(f"experiment={experiment}").scales
    assert [name for name in scales if name != "desk"] == ["paper", "laptop", "smoke"]
    iterations = [scales[name].iterations for name in ("paper", "desk", "laptop", "smoke") if name in scales]
    assert iterations[0] > iterations[-2] > iterations[-1] >= 1
    assert iterations == sorted(iterations, reverse=True)
    for name in scales:
        config = composed(f"experiment={experiment}", f"scale={name}")
        assert config.iterations == scales[name].iterations


def test_a_plain_run_trains_like_the_paper():
    config = composed()
    wanted = {**TRAINED, "schedule.step_size": 2000, "schedule.gamma": 0.6, "clip_norm": None, "seed": 0}
    assert {name: said(config, name) for name in wanted} == wanted
    assert said(config, "method") == "Rad"


@pytest.mark.parametrize("experiment", PAPER)
def test_an_experiment_tells_its_cost(experiment):
    assert (CONFIGS / "experiment" / f"{experiment}.yaml").read_text().count("\n# Cost: ") == 1
