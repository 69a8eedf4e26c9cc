"""Training by iterations: minibatches drawn with replacement, evaluations as records, resumable to the bit."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from experiments.data import Dataset
from experiments.errors import UserError

__all__ = ["Evaluation", "Trainer", "generator", "loss"]

loss = F.cross_entropy


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator of its own for each purpose, so that no choice of method disturbs another's numbers."""
    words = np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))


@dataclass(frozen=True)
class Evaluation:
    """Iterations between evaluations on the test set and on the training set, and their batch size."""

    test_every: int
    train_every: int
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
        evaluation: When and how to evaluate.
        batches: Generator of the minibatches.
        sketches: Generator of the sketches' seeds, the one the model was prepared with.
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
        evaluation: Evaluation,
        batches: torch.Generator,
        sketches: torch.Generator,
    ) -> None:
        self.model, self.data = model, data
        self.optimizer, self.schedule = optimizer, schedule
        self.iterations, self.full_batch, self.batch_size = iterations, full_batch, batch_size
        self.evaluation = evaluation
        self.generators = {"batches": batches, "sketches": sketches}
        self.iteration = 0
        self.train_seconds = 0.0
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
        # What exists by now stays; the garbage collector need not look through it again and again.
        gc.freeze()
        if not self.restored:
            self._evaluate(record, save, batch_loss=None)
        total, steps = torch.zeros((), device=self.data.x_train.device), 0
        start = time.perf_counter()
        with tqdm(total=self.iterations, initial=self.iteration, disable=None, unit="it") as progress:
            while self.iteration < self.iterations:
                total += self.step(*self.batch())
                steps += 1
                progress.update()
                if any(self.evaluation.due(self.iteration, self.iterations)):
                    batch_loss = total.item() / steps
                    self.train_seconds += time.perf_counter() - start
                    self._evaluate(record, save, batch_loss)
                    progress.set_postfix(loss=f"{batch_loss:.4f}")
                    total.zero_()
                    steps, start = 0, time.perf_counter()

    def batch(self) -> tuple[Tensor, Tensor]:
        """The next minibatch: normalized images and labels."""
        size = (self.full_batch,)
        chosen = torch.randint(len(self.data.x_train), size, generator=self.generators["batches"])[: self.batch_size]
        chosen = chosen.to(self.data.x_train.device)
        return self.data.normalize(self.data.x_train[chosen]), self.data.y_train[chosen]

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step on a minibatch; returns its loss before the step."""
        self.optimizer.zero_grad()
        value = loss(self.model(x), y)
        value.backward()
        self.optimizer.step()
        self.schedule.step()
        self.iteration += 1
        return value.detach()

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        return {
            "iteration": self.iteration,
            "train_seconds": self.train_seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a state.

        Raises:
            KeyError: If something is missing in it.
            RuntimeError: If it belongs to another model.
        """
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        for name, g in self.generators.items():
            g.set_state(state["generators"][name])
        torch.set_rng_state(state["torch"])
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        self.iteration, self.train_seconds = state["iteration"], state["train_seconds"]
        self.restored = True

    def _evaluate(
        self,
        record: Callable[[dict[str, Any]], None],
        save: Callable[[dict[str, Any]], None],
        batch_loss: float | None,
    ) -> None:
        on_test, on_train = self.evaluation.due(self.iteration, self.iterations)
        entry: dict[str, Any] = {
            "iteration": self.iteration,
            "data": self.data.name,
            "batch_loss": batch_loss,
            "learning_rate": self.schedule.get_last_lr()[0],
            "train_seconds": round(self.train_seconds, 3),
        }
        if on_train:
            entry["train_loss"], entry["train_accuracy"] = self.evaluate(self.data.x_train, self.data.y_train)
        if on_test:
            entry["test_loss"], entry["test_accuracy"] = self.evaluate(self.data.x_test, self.data.y_test)
        record(entry)
        for name in ("batch_loss", "train_loss", "test_loss"):
            if entry.get(name) is not None and not np.isfinite(entry[name]):
                raise UserError(
                    f"{name} is {entry[name]} at iteration {self.iteration}; lower optimizer.lr "
                    f"({entry['learning_rate']:.3g} now), the records and the checkpoint before it are kept"
                )
        save(self.state())

    @torch.no_grad()
    def evaluate(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """Mean loss and accuracy on uint8 images and their labels."""
        self.model.eval()
        total, correct = 0.0, 0
        for images, labels in zip(
            x.split(self.evaluation.batch_size), y.split(self.evaluation.batch_size), strict=True
        ):
            logits = self.model(self.data.normalize(images))
            total += loss(logits, labels, reduction="sum").item()
            correct += int((logits.argmax(1) == labels).sum())
        self.model.train()
        return total / len(y), correct / len(y)
