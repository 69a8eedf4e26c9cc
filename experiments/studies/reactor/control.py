"""The study of the fission reactor: a control found by stochastic gradients of a simulation."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

import rad
from experiments.errors import UserError, reading
from experiments.methods import Exact, Method, Rad
from experiments.rivals import Checkpoint
from experiments.runs.directory import RunDir, digest
from experiments.runs.parts import make
from experiments.runs.records import load_runs
from experiments.runs.resources import device, generator
from experiments.runs.study import Record, Study
from experiments.show.figures import save
from experiments.studies.reactor.figures import run_figure
from experiments.studies.settings import ReactorSettings
from rad.pde import Problem, simulate, simulate_checkpointed

__all__ = ["Control", "Reactor", "Simulation", "found", "simulation"]

Simulation = Callable[[Tensor], Tensor]


class Reactor(Study):
    """Looks for a control by one method."""

    settings = ReactorSettings

    def validate(self, config: DictConfig) -> None:
        simulation(make(config.method), make(config.problem), config.snapshots)

    def build(self, config: DictConfig) -> tuple[Control, Record]:
        method, problem = make(config.method), make(config.problem)
        draws = generator(config.seed, "initial weights")
        theta = torch.rand(problem.source.size, generator=draws) * 0.2 - 0.1
        theta[0] = config.steady
        theta = theta.to(device(config.device)).requires_grad_()
        sketches = generator(config.seed, "sketches")
        exact = partial(simulate, problem=problem, sketch=rad.Exact())
        measured = simulation(method, problem, config.snapshots, torch.Generator().manual_seed(0))
        try:
            saved, exact_saved = (rad.measure.saved_bytes(partial(run, theta)).total for run in (measured, exact))
        except (FloatingPointError, ValueError) as error:
            raise UserError(f"at the start, steady={config.steady}: {error}") from error
        meta = {
            "model": type(problem.source).__name__.lower(),
            "data": f"reactor-{problem.nx}x{problem.ny}",
            "batch_size": 1,
            "saved_bytes": saved,
            "exact_saved_bytes": exact_saved,
            "parameters": problem.source.size,
        }
        run = simulation(method, problem, config.snapshots, sketches)
        return Control(theta, run, make(config.optimizer, [theta]), config.iterations, sketches, meta["data"]), meta

    def headline(self, meta: Record) -> str:
        return f"{meta['method']} on {meta['data']}: {_bytes(meta)}"

    def summarize(self, run: RunDir, into: Path) -> str:
        meta, last = run.meta(), run.records()[-1]
        theta, problem = found(run)
        figure = save(run_figure(load_runs([run.path]).curves, theta, problem), into / "reactor", ("png",))[0]
        return (
            f"{meta['method']}, budget {meta['budget']}, after {last['iteration']:,} iterations on {meta['data']}:\n"
            f"  loss {last['train_loss']:.6f} with theta {', '.join(f'{value:.4f}' for value in theta.tolist())}\n"
            f"  {_bytes(meta)}; {meta['step_ms']:.1f} ms a step\n"
            f"figure: {figure}"
        )


class Control:
    """One control on its way.

    Args:
        theta: Its parameters, a leaf that requires grad.
        loss: The simulation, with a gradient by some method.
        optimizer: Of ``theta``.
        iterations: Steps in all.
        sketches: The generator that ``loss`` draws from.
        name: Of what is simulated, for the records.
    """

    def __init__(
        self,
        theta: Tensor,
        loss: Simulation,
        optimizer: torch.optim.Optimizer,
        iterations: int,
        sketches: torch.Generator,
        name: str,
    ) -> None:
        self.theta, self.loss, self.optimizer, self.iterations = theta, loss, optimizer, iterations
        self.sketches, self.name, self.device = sketches, name, theta.device
        self.iteration = 0
        self.seconds = 0.0
        self.restored = False

    def run(self, record: Callable[[Record], None], save: Callable[[Record], None]) -> None:
        """Goes on to the last iteration; every forward pass gives the exact loss and hence a record."""
        with tqdm(total=self.iterations, initial=self.iteration, disable=None, unit="it") as progress:
            while True:
                state, last = self.state(), self.iteration == self.iterations
                start = time.perf_counter()
                loss = self._simulate(not last)
                self.seconds += 0.0 if last else time.perf_counter() - start
                if not self.restored:
                    record(self._entry(loss.item()))
                    # As of before the draws of this iteration, which a resumed run draws again.
                    save(state)
                self.restored = False
                if last:
                    return
                start = time.perf_counter()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.iteration += 1
                self.seconds += time.perf_counter() - start
                progress.update()
                progress.set_postfix(loss=f"{loss.item():.6f}")

    def state(self) -> Record:
        """Everything that the rest of the run depends on."""
        return {
            "iteration": self.iteration,
            "seconds": self.seconds,
            "theta": self.theta.detach().clone(),
            "optimizer": self.optimizer.state_dict(),
            "sketches": self.sketches.get_state(),
        }

    def restore(self, state: Record) -> None:
        """Goes back to a state.

        Raises:
            KeyError: If something is missing in it.
            RuntimeError: If it belongs to another source.
        """
        with torch.no_grad():
            self.theta.copy_(state["theta"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sketches.set_state(state["sketches"])
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.restored = True

    def _simulate(self, with_gradient: bool) -> Tensor:
        try:
            with torch.set_grad_enabled(with_gradient):
                return self.loss(self.theta)
        except (FloatingPointError, ValueError) as error:
            raise UserError(
                f"iteration {self.iteration}: {error}; lower optimizer.lr "
                f"({self.optimizer.param_groups[0]['lr']:.3g} now), the records before it are kept"
            ) from error

    def _entry(self, loss: float) -> Record:
        return {
            "iteration": self.iteration,
            "data": self.name,
            "train_loss": loss,
            **{f"theta_{j}": value for j, value in enumerate(self.theta.tolist())},
            "train_seconds": round(self.seconds, 3),
        }


def simulation(method: Method, problem: Problem, snapshots: int, draws: torch.Generator | None = None) -> Simulation:
    """The loss of a control whose gradient is formed by a method.

    Raises:
        UserError: If the method has no meaning here.
    """
    match method:
        case Exact():
            return partial(simulate, problem=problem, sketch=rad.Exact())
        case Rad():
            return partial(simulate, problem=problem, sketch=method.sketch, generator=draws)
        case Checkpoint():
            return partial(simulate_checkpointed, problem=problem, snapshots=snapshots)
    raise UserError(f"method={method.name} has no meaning for the reactor, which has no batch; choose another method")


def found(run: RunDir) -> tuple[Tensor, Problem]:
    """The last control of a run and its problem.

    Raises:
        UserError: If the run is damaged, or of another study.
    """
    with reading(run.path, "delete it to begin this run anew"):
        last, config = run.records()[-1], run.config()
        if digest(config) != run.meta().get("settings"):
            raise ValueError("its config.yaml is not the one that it was made with")
        problem = make(DictConfig(config["problem"]))
        return torch.tensor([last[f"theta_{j}"] for j in range(problem.source.size)]), problem


def _bytes(meta: Record) -> str:
    ratio = meta["saved_bytes"] / meta["exact_saved_bytes"]
    return f"{meta['saved_bytes']:,} bytes saved for backward, {ratio:.5f} of all fields"
