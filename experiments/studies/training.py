"""The study of training: a model, a data set and a method, with losses and accuracy over iterations."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from experiments.budgets import said, size
from experiments.data import Dataset
from experiments.errors import UserError
from experiments.methods import Batch, Exact, Method, measured, peak
from experiments.runs import distributed
from experiments.runs.directory import RunDir
from experiments.runs.parts import make
from experiments.runs.records import load_runs
from experiments.runs.resources import device, generator
from experiments.runs.study import Record, Study
from experiments.show.figures import convergence_figure, save
from experiments.studies.settings import TrainingSettings
from experiments.studies.trainer import Evaluation, Trainer
from rad.nn import Seeds

__all__ = ["Training"]


class Training(Study):
    """Trains one model by one method."""

    settings = TrainingSettings
    distributed = True

    def build(self, config: DictConfig, data: Dataset | None = None) -> tuple[Trainer, Record]:
        """The trainer and its meta data; ``data`` where it has been loaded already."""
        where = device(config.device)
        method: Method = make(config.method)
        data = (data or make(config.data)).hold_out(config.held_out)
        if config.batch_size > len(data.x_train):
            raise UserError(
                f"batch_size is {config.batch_size}, but {data.name} has {len(data.x_train)} training examples"
            )
        if (config.evaluate.train_examples or 0) > len(data.x_train):
            raise UserError(
                f"evaluate.train_examples is {config.evaluate.train_examples}, but {data.name} has only "
                f"{len(data.x_train)} training examples; null takes all"
            )
        if config.bootstrap:
            data = data.bootstrap(generator(config.seed, "bootstrap"))
        data = data.to(where)

        torch.manual_seed(generator(config.seed, "initial weights").initial_seed())
        model: nn.Module = make(config.model).to(where)
        batch = _head(data, config.batch_size)
        try:
            exact_saved_bytes = measured(Exact("exact"), model, batch, data.loss)
            exact_peak_bytes = peak(Exact("exact"), model, batch, data.loss)
            highest = torch.full_like(data.y_train[:1], data.y_train.max())  # label; the first batch may lack it
            data.loss(copy.deepcopy(model).eval()(data.inputs(data.x_train[:1])), highest)
        except (RuntimeError, IndexError, ValueError) as error:
            reason = str(error).splitlines()[0]
            shape = list(batch[0].shape[1:])
            raise UserError(
                f"the model cannot train on {data.name}, examples {shape}: {reason}; change model or data"
            ) from error
        method = method.settled(size(config.budget), model, batch, data.loss)
        batch_size = method.batch_size(model, batch, data.loss)
        if batch_size < distributed.processes():
            raise UserError(
                f"a batch of {batch_size} cannot be shared by {distributed.processes()} processes; raise batch_size or "
                "start fewer"
            )
        at_once = method.at_once(model, _head(data, batch_size), data.loss)
        part = _head(data, at_once)
        meta = {
            "model": type(model).__name__.lower(),
            "data": data.name,
            "examples": len(data.x_train),
            "batch_size": batch_size,
            "at_once": at_once,
            "saved_bytes": measured(method, model, part, data.loss),
            "exact_saved_bytes": exact_saved_bytes,
            "peak_bytes": peak(method, model, part, data.loss),
            "exact_peak_bytes": exact_peak_bytes,
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        own = "" if distributed.leads() else f" of process {distributed.rank()}"
        sketches = Seeds(generator(config.seed, f"sketches{own}"))
        model = method.prepare(model, sketches)
        torch.manual_seed(generator(config.seed, f"forward pass{own}").initial_seed())  # of models with dropout
        optimizer = make(config.optimizer, model.parameters())
        allocator = method.allocator(model, sketches)
        trainer = Trainer(
            model=model,
            data=data,
            optimizer=optimizer,
            schedule=make(config.schedule, optimizer),
            iterations=config.iterations,
            full_batch=config.batch_size,
            batch_size=batch_size,
            at_once=at_once,
            clip_norm=config.clip_norm,
            evaluation=Evaluation(**config.evaluate),
            allocator=allocator,
            generators={
                "batches": generator(config.seed, "batches"),
                "augmentation": generator(config.seed, "augmentation"),
                "sketches": sketches,
            },
        )
        return trainer, meta

    def headline(self, meta: Record) -> str:
        parts = f" in parts of {meta['at_once']}" if meta["at_once"] < meta["batch_size"] else ""
        return f"{meta['method']} on {meta['data']}: batch {meta['batch_size']}{parts}, {_bytes(meta)}"

    def summarize(self, run: RunDir, into: Path) -> str:
        figure = save(convergence_figure(load_runs([run.path]).curves), into / "convergence", ("png",))[0]
        meta, last = run.meta(), run.records()[-1]
        highest = meta["peak_bytes"]
        return (
            f"{meta['method']}, budget {said(meta['budget'])}, after {last['iteration']:,} iterations "
            f"on {meta['data']}:\n"
            f"  training loss {last['train_loss']:.4f}, test loss {last['test_loss']:.4f}, "
            f"test accuracy {100 * last['test_accuracy']:.2f} %\n"
            f"  {_bytes(meta)}; {meta['step_ms']:.2f} ms a step\n"
            f"  {highest:,} bytes at the peak of a step, {highest / meta['exact_peak_bytes']:.3f} of exact\n"
            f"figure: {figure}"
        )


def _head(data: Dataset, size: int) -> Batch:
    """The first training examples, copied: autograd would hold the whole set through a view of it."""
    return data.inputs(data.x_train[:size]), data.y_train[:size].clone()


def _bytes(meta: Record) -> str:
    ratio = meta["saved_bytes"] / meta["exact_saved_bytes"]
    return f"{meta['saved_bytes']:,} bytes saved for backward, {ratio:.3f} of exact"
