"""One run or a sweep of runs: python run.py method=rad_proj budget=0.1. All settings: configs/, or --help."""

import signal
from pathlib import Path

import hydra
from omegaconf import DictConfig

from experiments.runs.launch import one_run, spoken  # know no torch: --help, completion and finished runs need none


@hydra.main(version_base="1.3", config_path=str(Path(__file__).parent.absolute() / "configs"), config_name="config")
def command(config: DictConfig) -> None:
    one_run(config)


def main() -> None:
    spoken(command)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C
    main()
