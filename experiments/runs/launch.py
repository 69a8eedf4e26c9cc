"""From a command line to a run: what is finished is only said, for which nothing heavy is loaded."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from experiments.errors import UserError, first_line
from experiments.runs.configs import resolved
from experiments.runs.directory import RunDir
from experiments.runs.naming import run_directory

__all__ = ["launch", "one_run", "spoken"]

_LAUNCHER = "RAD_LAUNCHER"  # the process that was started from a shell
_SPOKEN = "RAD_SPOKEN"  # set where errors become sentences


def spoken(command: Callable[[], None]) -> None:
    """Does what Hydra makes of a command line; a mistake of the user ends in one sentence.

    Hydra prints the traceback of whatever a launcher raises, and advises to add unknown settings by a ``+``. With
    HYDRA_FULL_ERROR it hands all errors on: to us, or, if the user has set it, to the user.
    """
    os.environ[_LAUNCHER] = str(os.getpid())
    logging.getLogger("submitit").addFilter(_Once("sacct"))
    if os.environ.get("HYDRA_FULL_ERROR"):
        command()
        return
    os.environ |= {"HYDRA_FULL_ERROR": "1", _SPOKEN: "1"}
    try:
        command()
    except KeyboardInterrupt:
        sys.exit(_said("interrupted; the same command goes on from the last checkpoint"))
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        sys.exit(_said(f"error: {sentence}"))
    finally:
        for name in ("HYDRA_FULL_ERROR", _SPOKEN):
            os.environ.pop(name, None)


def one_run(config: DictConfig) -> None:
    """One run of a command line; of a sweep, others go on after one that fails.

    Args:
        config: As composed by Hydra.
    """
    _end_with_launcher()
    try:
        launch(config)
    except (UserError, OmegaConfBaseException) as error:
        if not os.environ.get(_SPOKEN):
            raise
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise CompactHydraException(first_line(error)) from None
        sys.exit(_said(f"error: {first_line(error)}"))


def launch(config: DictConfig) -> None:
    """Runs what a config says, or what is still missing of it.

    Args:
        config: As composed by Hydra.

    Raises:
        UserError: For anything the user can mend.
    """
    _refuse_repeated(HydraConfig.get().overrides.task)
    settings, run = resolved(config), RunDir(run_directory(config))
    try:
        run.refuse_foreign(settings)
        said = run.summary() if run.finished() else None
        if said is not None and "WORLD_SIZE" not in os.environ:  # several processes agree on it first
            print(f"{run.path} is finished already; delete it to run it again\n{said}")
            return
        from experiments.runs.study import study

        study(config, settings, run)
    except OSError as error:
        place = f"{error.filename or run.path} cannot be read or written"
        raise UserError(f"{place} ({error.strerror or first_line(error)}); the same command goes on later") from error


def _refuse_repeated(overrides: list[str]) -> None:
    names = Counter(override.partition("=")[0].lstrip("+~") for override in overrides)
    for name, count in names.items():
        if count > 1:
            raise UserError(f"{name} is given {count} times; give it once")


def _end_with_launcher() -> None:
    """Lets a worker of a sweep end with the process that started it, which may be killed without a word to it."""
    launcher = os.environ.get(_LAUNCHER)
    if launcher is None or not multiprocessing.current_process().name.startswith("Loky"):
        return
    if any(thread.name == _LAUNCHER for thread in threading.enumerate()):
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(1)
        os._exit(1)  # a kill at any moment is harmless

    threading.Thread(target=watch, name=_LAUNCHER, daemon=True).start()


def _sentence(error: Exception) -> str | None:
    """What to say of an error; ``None`` of one that is not the user's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, CompactHydraException | HydraException | OmegaConfBaseException | UserError):
        kept = list(itertools.takewhile(lambda line: line != "Config search path:", lines))
        unknown = any(line.startswith("To append to your config") for line in lines)  # which would be refused, too
        return lines[0].rstrip(".") + "; --cfg job lists the settings there are" if unknown else "; ".join(kept)
    raised = traceback.extract_tb(error.__traceback__)[-1].filename
    if f"{os.sep}hydra{os.sep}_internal{os.sep}" in raised:
        return "; ".join(lines)
    if f"{os.sep}submitit{os.sep}" in raised:
        return f"the cluster does not take the sweep ({'; '.join(lines)}); see hydra.launcher, or leave it out"
    return None


class _Once(logging.Filter):
    """Lets the first message with a word through: a cluster without accounting is complained of every few seconds."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self._word, self._met = word, False

    def filter(self, record: logging.LogRecord) -> bool:
        if self._word not in record.getMessage():
            return True
        first, self._met = not self._met, True
        return first


def _said(sentence: str) -> str | int:
    from experiments.runs.distributed import leads

    return sentence if leads() else 1  # once, of several processes
