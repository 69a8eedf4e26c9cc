"""What a config may name, and what it may hold: a schema says so before any work starts."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

import rad
from experiments.errors import UserError
from experiments.models import MLP
from experiments.runs.configs import composed, resolved
from experiments.runs.parts import make
from experiments.runs.resources import device
from experiments.runs.study import validate

RAD = {"_target_": "experiments.methods.Rad", "name": "x"}
LINEAR = {"_target_": "experiments.models.MLP", "widths": [4, 2]}


def test_parts_are_made_nested_and_with_arguments_that_are_still_missing():
    assert isinstance(make(LINEAR), MLP)
    method = make(
        {"_target_": "experiments.methods.Rad", "name": "x", "sketch": {"_target_": "rad.Project", "budget": 1}}
    )
    assert method.sketch == rad.Project(1)
    config = OmegaConf.create({"a": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": "${b}"}, "b": 0.5})
    assert make(config.a, make(LINEAR).parameters()).defaults["lr"] == 0.5
    betas = {"_target_": "torch.optim.AdamW", "_partial_": True, "betas": [0.5, 0.9]}  # in no file, but of torch.optim
    assert make(betas, make(LINEAR).parameters()).defaults["betas"] == (0.5, 0.9)


FOREIGN = [
    "os.system",
    "builtins.eval",
    "pandas.read_pickle",
    "torch.load",
    "torch.optim.os",
    "torch.optim.lr_scheduler.types.FunctionType",
    "torch.optim.Nothing",
    "torch.optim.Adam.register_step_pre_hook",
    "torch.optim.lr_scheduler.StepLR.step",
    "experiments.runs.directory.os",
    "experiments.reproduction.runner.run_all",
    "rad.sketch.kernels.numba",
    "",
    None,
    3,
    ["os.system"],
]


@pytest.mark.parametrize("target", FOREIGN, ids=str)
def test_nothing_else_is_made(target):
    for node in (
        {"_target_": target},
        {"_target_": "experiments.methods.Rad", "name": "x", "sketch": {"_target_": target}},
    ):
        with pytest.raises(UserError, match="cannot be made from"):
            make(node)


@pytest.mark.parametrize("value", [3, None, [1], {"budget": 0.1}])
def test_a_part_is_not_made_of_something_else(value):
    node = {"_target_": "experiments.methods.Rad", "name": "x", "sketch": value}
    with pytest.raises(UserError, match=r"\.sketch must be a Sketch, got"):
        make(node)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"depth": 3}, r"\.depth is no setting of MLP, which takes widths"),
        ({"_args_": [[4, 2]]}, r"\._args_ is no setting"),
        ({"widths": [4, 0]}, r"\.widths\[1\] must be at least 1, got 0"),
        ({"widths": "abc"}, r"\.widths must be a list"),
        ({"widths": [4, 2**31]}, r"\.widths\[1\] must be below"),
    ],
)
def test_arguments_are_those_of_the_signature(changed, said):
    with pytest.raises(UserError, match=said):
        make({**LINEAR, **changed})
    with pytest.raises(UserError, match=r"\.widths is missing"):
        make({"_target_": LINEAR["_target_"]})


WRONG = {
    "+budgett=0.1": "budgett is no setting here; did you mean budget?",
    "+evaluate.x=1": "evaluate.x is no setting here",
    "+model.x=1": "model.x is no setting of MLP",
    "~optimizer": "optimizer is missing",
    "~evaluate.test_every": "evaluate.test_every is missing",
    "evaluate=null": "evaluate must hold settings of its own, got None",
    "bootstrap=1": "bootstrap must be true or false, got 1",
    "threads=100000000000000": "threads must be at most 1024",
    "iterations=2.0": "iterations must be a whole number, got 2.0",
    "device=3": "device must be text, got 3",
    "clip_norm=nan": "clip_norm must be a finite number, got nan",
    "data.mean=[nan]": r"data.mean\[0\] must be a finite number",
    "data.std=[-1]": r"data.std\[0\] must be greater than 0, got -1",
    "schedule.gamma=abc": "schedule.gamma must be a number, got 'abc'",
    "schedule.gamma=-1": "schedule.gamma must be greater than 0, got -1",
    "method=rad_same method.sketch.replacement=maybe": "method.sketch.replacement must be true or false, got 'maybe'",
    f"method=rad_round method.sketch.group={10**21}": "method.sketch.group must be a whole number of at most 18 digits",
    "method._target_=experiments.models.MLP": "method.name is no setting of MLP",
    "model._target_=experiments.data.mnist5k ~model.widths": "model must make a Module, but mnist5k does not",
    "study._target_=experiments.models.MLP": "study.widths is missing",
    "experiment=graph_depth scale=smoke depths=3": "depths must be a list, got 3",
    "experiment=graph_depth scale=smoke net.lr=nan": "net.lr must be a finite number",
    "experiment=gradient_noise scale=smoke budgets=3": "budgets must be a list, got 3",
    "experiment=gradient_noise scale=smoke ~estimators.small_batch": "estimators must hold small_batch",
    "experiment=gradient_noise scale=smoke nets=null": "nets must hold settings of its own, got None",
    f"experiment=reactor scale=smoke problem.steps={10**20}": "problem.steps must be a whole number of at",
    "experiment=reactor scale=smoke steady=inf": "steady must be a finite number",
}


@pytest.mark.parametrize(("overrides", "said"), WRONG.items(), ids=WRONG)
def test_what_is_wrong_is_said_before_any_work(overrides, said):
    base = [] if overrides.startswith("experiment=") else ["data=mnist", "batch_size=30"]
    config = composed([*base, *overrides.split()])
    with pytest.raises(UserError, match=said):
        validate(config)


@pytest.mark.parametrize(
    "experiment", ["mnist_mlp", "cifar_cnn", "smnist_irnn", "adding_irnn", "graph_depth", "reactor"]
)
def test_what_is_right_is_taken(experiment):
    for scale in ("smoke", "laptop", "paper"):
        config = composed([f"experiment={experiment}", f"scale={scale}"])
        assert validate(config, resolved(config)).settings.model_validate(resolved(config))


def test_a_device_that_holds_no_values_is_none():
    assert device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="device must be one that is there"):
        device("meta")
