"""From a config to a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

import rad
from experiments import provenance
from experiments.data import Dataset
from experiments.errors import UserError
from experiments.figures import convergence_figure, save
from experiments.methods import Batch, Exact, Method, measured
from experiments.records import load_runs
from experiments.rundir import RunDir, digest
from experiments.tracking import Tracker
from experiments.train import Evaluation, Trainer, generator, loss

__all__ = ["build", "make", "run_directory", "study", "validate"]


def study(config: DictConfig) -> Path:
    """Runs what a config says, or what is still missing of it, and ends with a summary and a figure.

    Args:
        config: As composed by Hydra.

    Returns:
        The run directory.

    Raises:
        UserError: For anything the user can mend.
    """
    validate(config)
    path, settings = run_directory(config), _resolved(config)
    run = RunDir(path)
    run.refuse_foreign(settings)
    if run.finished():
        print(f"{path} is finished already; delete it to run it again")
    else:
        trainer, meta = build(config)
        tracker = make(config.tracker)
        with run.claimed(settings):
            if not run.finished():  # by another process, meanwhile
                _train(run, trainer, meta, tracker, settings)
    _summarize(run)
    return path


def validate(config: DictConfig) -> None:
    """Refuses settings out of range, before any work starts.

    Raises:
        UserError: Names the setting, its value and what is allowed.
    """
    try:
        rad.sketch.check_budget(config.budget)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    whole = {
        "iterations": config.iterations,
        "batch_size": config.batch_size,
        "evaluate.test_every": config.evaluate.test_every,
        "evaluate.train_every": config.evaluate.train_every,
        "evaluate.batch_size": config.evaluate.batch_size,
    }
    if "step_size" in config.schedule:
        whole["schedule.step_size"] = config.schedule.step_size
    if config.threads is not None:
        whole["threads"] = config.threads
    for name, value in whole.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name} must be a whole number of at least 1, got {value!r}")
    if isinstance(config.seed, bool) or not isinstance(config.seed, int) or config.seed < 0:
        raise UserError(f"seed must be a whole number of at least 0, got {config.seed!r}")
    if not isinstance(config.bootstrap, bool):
        raise UserError(f"bootstrap must be true or false, got {config.bootstrap!r}")


def run_directory(config: DictConfig) -> Path:
    """``run_dir``, or ``<runs>/<experiment, or model-data>/<overrides>``: the same command finds the same run."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    return Path(config.runs) / _experiment() / (HydraConfig.get().job.override_dirname or "default")


def build(config: DictConfig, data: Dataset | None = None) -> tuple[Trainer, dict[str, Any]]:
    """Everything a run is made of, and the meta data that can be said before it starts.

    Args:
        config: As composed by Hydra.
        data: The data set, where it has been loaded already.

    Raises:
        UserError: If a part cannot be made as configured.
    """
    device = _device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    method: Method = make(config.method)
    data = data or make(config.data)
    if config.batch_size > len(data.x_train):
        raise UserError(f"batch_size is {config.batch_size}, but {data.name} has {len(data.x_train)} training examples")
    if config.bootstrap:
        data = data.bootstrap(generator(config.seed, "bootstrap"))
    data = data.to(device)

    torch.manual_seed(generator(config.seed, "initial weights").initial_seed())
    model: nn.Module = make(config.model).to(device)
    batch = _head(data, config.batch_size)
    try:
        exact_saved_bytes = measured(Exact("exact"), model, batch, loss)
    except (RuntimeError, IndexError, ValueError) as error:
        reason = str(error).splitlines()[0]
        shape = list(batch[0].shape[1:])
        raise UserError(
            f"the model cannot train on {data.name}, images {shape}: {reason}; change model or data"
        ) from error
    batch_size = method.batch_size(model, batch, loss)
    meta = {
        "experiment": _experiment(),
        "method": method.name,
        "model": type(model).__name__.lower(),
        "data": data.name,
        "budget": config.budget,
        "seed": config.seed,
        "iterations": config.iterations,
        "batch_size": batch_size,
        "saved_bytes": measured(method, model, _head(data, batch_size), loss),
        "exact_saved_bytes": exact_saved_bytes,
        "settings": digest(_resolved(config)),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    sketches = generator(config.seed, "sketches")
    model = method.prepare(model, sketches)
    torch.manual_seed(generator(config.seed, "forward pass").initial_seed())  # of models with dropout
    optimizer = make(config.optimizer, model.parameters())
    trainer = Trainer(
        model=model,
        data=data,
        optimizer=optimizer,
        schedule=make(config.schedule, optimizer),
        iterations=config.iterations,
        full_batch=config.batch_size,
        batch_size=batch_size,
        evaluation=Evaluation(**config.evaluate),
        batches=generator(config.seed, "batches"),
        sketches=sketches,
    )
    return trainer, meta


def _train(run: RunDir, trainer: Trainer, meta: dict[str, Any], tracker: Tracker, settings: dict[str, Any]) -> None:
    checkpoint = run.load_checkpoint()
    if checkpoint is not None:
        try:
            trainer.restore(checkpoint)
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{run.path}/checkpoint.pt does not fit this run ({reason}); delete it to begin anew"
            ) from error
    run.rewind(trainer.iteration if checkpoint is not None else -1)
    sessions = [*run.meta().get("sessions", []), provenance.session(trainer.data.x_train.device)]
    meta = {"status": "running", **meta, "step_ms": None, "sessions": sessions}
    run.write_meta(meta)
    tracker.start(run.path, meta, settings)
    print(
        f"{meta['method']} on {meta['data']}: batch {meta['batch_size']}, {_bytes(meta)}\n"
        f"iterations {trainer.iteration} to {trainer.iterations} in {run.path}"
    )

    def record(entry: dict[str, Any]) -> None:
        run.append(entry)
        tracker.log(entry)

    try:
        trainer.run(record, run.save_checkpoint)
    except BaseException as error:
        tracker.finish(failed=True)
        if isinstance(error, UserError):  # anything else may be mended by going on from the last checkpoint
            run.write_meta({**meta, "status": "failed"})
        if isinstance(error, OSError):
            raise UserError(
                f"{run.path} cannot be written any more ({error}); the same command goes on later"
            ) from error
        raise
    step_ms = 1000 * trainer.train_seconds / trainer.iterations
    run.write_meta({**meta, "status": "finished", "step_ms": round(step_ms, 4), "finished": provenance.now()})
    tracker.finish()


def _resolved(config: DictConfig) -> dict[str, Any]:
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    return {str(k): v for k, v in resolved.items() if k not in ("run_dir", "hydra")}


def make(config: DictConfig, *args: Any) -> Any:
    """The object that a config node names; of a partial one, with the arguments that are still missing.

    Raises:
        UserError: If it refuses its arguments.
    """
    try:
        made = instantiate(config)
        return made(*args) if args else made
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(f"{config._target_} cannot be made as configured: {cause}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{config._target_} cannot be made as configured: {error}") from error


def _head(data: Dataset, size: int) -> Batch:
    """The first training examples, copied: autograd would hold the whole set through a view of it."""
    return data.normalize(data.x_train[:size]), data.y_train[:size].clone()


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device must be one that is there, or auto, got {name!r} ({reason})") from error
    return device


def _experiment() -> str:
    choices = HydraConfig.get().runtime.choices
    return choices.experiment or f"{choices.model}-{choices.data}"


def _summarize(run: RunDir) -> None:
    """Prints how the run ended and draws its curves."""
    figure = save(convergence_figure(load_runs([run.path]).curves), run.path / "convergence")[1]
    meta, last = run.meta(), run.records()[-1]
    print(
        f"{meta['method']}, budget {meta['budget']}, after {last['iteration']:,} iterations on {meta['data']}:\n"
        f"  training loss {last['train_loss']:.4f}, test loss {last['test_loss']:.4f}, "
        f"test accuracy {100 * last['test_accuracy']:.2f} %\n"
        f"  {_bytes(meta)}; {meta['step_ms']:.2f} ms a step\n"
        f"figure: {figure}"
    )


def _bytes(meta: dict[str, Any]) -> str:
    ratio = meta["saved_bytes"] / meta["exact_saved_bytes"]
    return f"{meta['saved_bytes']:,} bytes saved for backward, {ratio:.3f} of exact"
