"""What the config of each kind of study holds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from experiments.data import Dataset
from experiments.methods import Method
from experiments.runs.parts import part
from experiments.runs.settings import Budget, BudgetOrSize, Settings
from experiments.schema import Count, Finite, Natural, Positive, Strict
from rad.pde import Problem

__all__ = ["COMPARED", "DepthSettings", "NoiseSettings", "ReactorSettings", "TrainingSettings"]

COMPARED = 0.1  # budget at which the table of gradient noise compares

_Method, _Model, _Data = part(Method), part(nn.Module), part(Dataset)
_Optimizer = part(Optimizer, lr=Positive, weight_decay=Annotated[float, Field(ge=0)])
_Schedule = part(LRScheduler, step_size=Count, gamma=Positive)
_Points = Annotated[int, Field(ge=3, le=10_000)]
_Problem = part(Problem, nx=_Points, ny=_Points, steps=Annotated[int, Field(ge=1, le=10**7)])
_Draws = Annotated[int, Field(ge=3, lt=2**31)]  # for a standard error
_Depths = Annotated[list[Annotated[int, Field(ge=1, le=1000)]], Field(min_length=2)]  # to fit a growth


class Evaluate(Strict):
    """When and how to evaluate."""

    test_every: Count
    train_every: Count
    train_examples: Count | None
    batch_size: Count


class TrainingSettings(Settings):
    """Of the training of a net."""

    budget: BudgetOrSize
    method: _Method
    model: _Model
    data: _Data
    optimizer: _Optimizer
    batch_size: Count
    held_out: Natural
    bootstrap: bool
    clip_norm: Positive | None
    schedule: _Schedule
    evaluate: Evaluate
    reference: str = "rad.Project"  # the sketch whose bytes small_batch and accumulate may hold
    segments: Count = 2  # of method=checkpoint


class ReactorSettings(Settings):
    """Of the control of a reaction-diffusion equation."""

    method: _Method
    optimizer: _Optimizer
    problem: _Problem
    steady: Finite
    snapshots: Count


class _Net(Strict):
    model: _Model
    data: _Data
    batch_size: Count
    draws: _Draws
    lr: Positive
    examples: Count
    step: Positive


def _compares(budgets: list[Any]) -> list[Any]:
    if not {COMPARED, 1} <= set(budgets):
        raise ValueError(f"must hold {COMPARED}, at which the table compares, and 1, got {budgets}")
    return budgets


def _measures_batches(estimators: dict[str, Any]) -> dict[str, Any]:
    if "small_batch" not in estimators:
        raise ValueError("must hold small_batch, with whose noise all are compared")
    return estimators


class NoiseSettings(Settings):
    """Of the comparison of estimators."""

    nets: Annotated[dict[str, _Net], Field(min_length=1)]
    estimators: Annotated[dict[str, _Method], AfterValidator(_measures_batches)]
    budgets: Annotated[list[Budget], AfterValidator(_compares)]
    steps: Annotated[list[Natural], Field(min_length=1)]
    reference: str = "rad.Project"  # as for a training


class _DeepNet(Strict):
    width: Count
    depths: _Depths
    batch_size: Count
    draws: Count
    lr: Positive


class DepthSettings(Settings):
    """Of variance against depth."""

    data: _Data
    width: Count
    edges: Count
    depths: _Depths
    draws: Count
    net: _DeepNet

    @model_validator(mode="after")
    def _random(self) -> DepthSettings:
        if self.edges >= self.width:
            raise ValueError(f"edges must be less than width, {self.width}, got {self.edges}; else nothing is random")
        return self
