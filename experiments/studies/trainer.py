"""Training by iterations: minibatches drawn with replacement, evaluations as records, resumable to the bit.

Several processes (see ``distributed``) share each batch: all draw the same one, take their share of it and average
gradients, so that they train as one process does, but for rounding and for sketches, of which each draws its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import rad
from experiments.data import Dataset
from experiments.errors import UserError
from experiments.runs import distributed
from rad.nn import Seeds

__all__ = ["Evaluation", "Trainer"]


@dataclass(frozen=True)
class Evaluation:
    """When and how to evaluate.

    Attributes:
        test_every: Iterations between evaluations on the test set.
        train_every: Iterations between evaluations on the training set.
        train_examples: How many training examples are evaluated, evenly spaced; ``None`` for all.
        batch_size: Examples at a time.
    """

    test_every: int
    train_every: int
    train_examples: int | None
    batch_size: int

    def due(self, iteration: int, last: int) -> tuple[bool, bool]:
        """Whether the test set and whether the training set is evaluated after an iteration."""
        ends = iteration in (0, last)
        return ends or iteration % self.test_every == 0, ends or iteration % self.train_every == 0


class Trainer:
    """One model in training.

    Args:
        model: Prepared by a method, on its device.
        data: Training and test set, on the same device.
        optimizer: Of the model's parameters.
        schedule: Learning-rate schedule of the optimizer.
        iterations: Steps in all.
        full_batch: Examples drawn for each step, the same for every method.
        batch_size: How many of them, the first ones, are trained on.
        at_once: How many of those pass forward and backward at a time.
        clip_norm: Largest norm of the whole gradient, or ``None``.
        evaluation: When and how to evaluate.
        allocator: Plans the model anew on the way, or ``None``.
        generators: ``batches`` of the minibatches, ``augmentation`` of their random changes, and ``sketches``, the one
            the model was prepared with.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        iterations: int,
        full_batch: int,
        batch_size: int,
        at_once: int,
        clip_norm: float | None,
        evaluation: Evaluation,
        generators: dict[str, torch.Generator | Seeds],
        allocator: rad.Allocator | None = None,
    ) -> None:
        self.model, self.data = model, data
        self.optimizer, self.schedule = optimizer, schedule
        self.iterations, self.full_batch, self.batch_size = iterations, full_batch, batch_size
        self.at_once, self.clip_norm, self.allocator = at_once, clip_norm, allocator
        self.evaluation, self.generators = evaluation, generators
        self.device = data.x_train.device
        count = evaluation.train_examples or len(data.x_train)
        chosen = torch.linspace(0, len(data.x_train) - 1, count, device=self.device).round().long()
        whole = count == len(data.x_train)
        self.train_set = (data.x_train, data.y_train) if whole else (data.x_train[chosen], data.y_train[chosen])
        self.forward = distributed.synchronized(model)
        self.iteration = 0
        self.seconds = 0.0
        self.restored = False

    def run(self, record: Callable[[dict[str, Any]], None], save: Callable[[dict[str, Any]], None]) -> None:
        """Trains to the last iteration, evaluating, recording and saving on the way.

        Args:
            record: Takes one record an evaluation.
            save: Takes the state after each record; from it ``restore`` goes on bit for bit (on the CPU, with as
                many threads).

        Raises:
            UserError: If a loss is no longer finite.
        """
        if not self.restored:
            self._evaluate(record, save, batch_loss=None)
        total, steps = torch.zeros((), device=self.device), 0
        start = time.perf_counter()
        quiet = None if distributed.leads() else True  # None: wherever the output is no terminal
        with tqdm(total=self.iterations, initial=self.iteration, disable=quiet, unit="it") as progress:
            while self.iteration < self.iterations:
                total += self.step(*self.batch())
                steps += 1
                progress.update()
                if any(self.evaluation.due(self.iteration, self.iterations)):
                    batch_loss = distributed.total(total).item() / steps
                    self.seconds += time.perf_counter() - start
                    self._evaluate(record, save, batch_loss)
                    progress.set_postfix(loss=f"{batch_loss:.4f}")
                    total.zero_()
                    steps, start = 0, time.perf_counter()

    def batch(self) -> tuple[Tensor, Tensor]:
        """The next minibatch, or this process's share of it: inputs of the model and targets."""
        # All that is drawn is drawn for a full batch, so that every method sees the same examples in the same order.
        chosen = torch.randint(len(self.data.x_train), (self.full_batch,), generator=self.generators["batches"])
        share = distributed.share(self.batch_size)
        chosen = chosen[share].to(self.device)
        x = self.data.x_train[chosen]
        if self.data.augmentation is not None:
            draws = self.data.augmentation.draw(self.full_batch, self.generators["augmentation"])
            x = self.data.augmentation(x, draws[share])
        return self.data.inputs(x), self.data.y_train[chosen]

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step on a minibatch; returns its loss before the step, or this process's part of that loss."""
        if self.allocator is not None:
            self.allocator.step(lambda: self.data.loss(self.model(x), y))
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        for inputs, targets in zip(x.split(self.at_once), y.split(self.at_once), strict=True):
            value = self.data.loss(self.forward(inputs), targets)
            part = len(targets) / self.batch_size  # of the batch; 1 if it is not divided
            (value * (part * distributed.processes())).backward()  # gradients become means over processes
            total += value.detach() * part
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        self.iteration += 1
        return total

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, of all processes."""
        own = {
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            "allocator": None if self.allocator is None else self.allocator.state_dict(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        return {
            "iteration": self.iteration,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": distributed.gathered(own),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a state.

        Raises:
            KeyError: If something is missing in it.
            RuntimeError: If it belongs to another model.
            ValueError: If it was saved by another number of processes.
        """
        if len(state["random"]) != distributed.processes():
            raise ValueError(f"saved by {len(state['random'])} processes, not {distributed.processes()}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        own = state["random"][distributed.rank()]
        for name, g in self.generators.items():
            g.set_state(own["generators"][name])
        if self.allocator is not None:
            self.allocator.load_state_dict(own["allocator"])
        torch.set_rng_state(own["torch"])
        if own["cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda"], self.device)
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.restored = True

    def _evaluate(
        self,
        record: Callable[[dict[str, Any]], None],
        save: Callable[[dict[str, Any]], None],
        batch_loss: float | None,
    ) -> None:
        if distributed.leads():
            self._record(record, batch_loss)
        save(self.state())

    def _record(self, record: Callable[[dict[str, Any]], None], batch_loss: float | None) -> None:
        on_test, on_train = self.evaluation.due(self.iteration, self.iterations)
        entry: dict[str, Any] = {
            "iteration": self.iteration,
            "data": self.data.name,
            "batch_loss": batch_loss,
            "learning_rate": self.schedule.get_last_lr()[0],
            "train_seconds": round(self.seconds, 3),
        }
        if on_train:
            entry["train_loss"], entry["train_accuracy"] = self.evaluate(*self.train_set)
        if on_test:
            entry["test_loss"], entry["test_accuracy"] = self.evaluate(self.data.x_test, self.data.y_test)
        record(entry)
        for name in ("batch_loss", "train_loss", "test_loss"):
            if entry.get(name) is not None and not np.isfinite(entry[name]):
                raise UserError(
                    f"{name} is {entry[name]} at iteration {self.iteration}; lower optimizer.lr "
                    f"({entry['learning_rate']:.3g} now), the records and the checkpoint before it are kept"
                )

    @torch.no_grad()
    def evaluate(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """Mean loss and accuracy over all targets of stored examples."""
        self.model.eval()
        total, correct = 0.0, 0
        size = self.evaluation.batch_size
        for examples, targets in zip(x.split(size), y.split(size), strict=True):
            outputs = self.model(self.data.inputs(examples))
            total += self.data.loss(outputs, targets, reduction="sum").item()
            correct += int(self.data.correct(outputs, targets).sum())
        self.model.train()
        return total / y.numel(), correct / y.numel()
