"""From a command line to a run: what is finished is only said, for which nothing heavy is loaded."""

from __future__ import annotations

import os

from omegaconf import DictConfig

from experiments.runs.configs import resolved
from experiments.runs.directory import RunDir
from experiments.runs.naming import run_directory

__all__ = ["launch"]


def launch(config: DictConfig) -> None:
    """Runs what a config says, or what is still missing of it.

    Args:
        config: As composed by Hydra.

    Raises:
        UserError: For anything the user can mend.
    """
    settings, run = resolved(config), RunDir(run_directory(config))
    run.refuse_foreign(settings)
    said = run.summary() if run.finished() else None
    if said is not None and "WORLD_SIZE" not in os.environ:  # several processes agree on it first
        print(f"{run.path} is finished already; delete it to run it again\n{said}")
        return
    from experiments.runs.study import study

    study(config, settings, run)
