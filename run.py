"""One run or a sweep of runs: python run.py method=rad_proj budget=0.1. All settings: configs/, or --help."""

import os
import signal
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.errors import UserError
from experiments.runs.launch import launch  # knows no torch: --help, completion and finished runs need none


@hydra.main(version_base="1.3", config_path=str(Path(__file__).parent.absolute() / "configs"), config_name="config")
def main(config: DictConfig) -> None:
    try:
        launch(config)
    except KeyboardInterrupt:
        sys.exit(_said("interrupted; the same command goes on from the last checkpoint"))
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # the other runs of the sweep go on
            raise CompactHydraException(f"error: {error}") from None
        sys.exit(_said(f"error: {error}"))


def _said(sentence: str) -> str | int:
    from experiments.runs.distributed import leads

    return sentence if leads() else 1  # once, of several processes


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C
    main()
