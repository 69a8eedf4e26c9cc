"""run.py in processes of their own that need not import it first: all are forked from one that has.

Such a process starts within milliseconds and is otherwise like any other: it can be killed, and shares nothing with
the tests. What starts processes itself, scripts and torchrun, is called as a user would.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["processes", "experiments.studies.training", "torch._dynamo", "experiments.show.figures"]
)


class Started:
    """One process of run.py, whose words go to a file."""

    def __init__(self, arguments: list[str], log: Path, **environment: str) -> None:
        self.log = log
        self._process = _context.Process(
            target=_work, args=(arguments, str(log), {**os.environ, **environment}), daemon=True
        )
        self._process.start()

    def poll(self) -> int | None:
        """Its exit status, negative if a signal ended it; ``None`` while it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """Ends it as a lost machine would."""
        self._process.kill()

    def wait(self, seconds: float) -> int:
        """Its exit status; kills it after so many seconds."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self.kill()
            raise TimeoutError(f"no end after {seconds} s: {self.log.read_text()}")
        return self._process.exitcode

    def said(self, seconds: float = 240) -> str:
        """All that it printed, once it has ended well."""
        status = self.wait(seconds)
        assert status == 0, self.log.read_text()
        return self.log.read_text()


class Together:
    """Processes that work on one run, told of each other as torchrun tells them."""

    def __init__(self, count: int, arguments: list[str], log: Path, **environment: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.ranks = [
            Started(
                arguments,
                log.with_suffix(f".{rank}.log"),
                **environment,
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            )
            for rank in range(count)
        ]

    def wait(self, seconds: float) -> list[int]:
        """The exit status of each."""
        return [rank.wait(seconds) for rank in self.ranks]

    def said(self, seconds: float = 240) -> str:
        """What all printed, once all have ended well."""
        self.wait(seconds)
        return "".join(rank.said() for rank in self.ranks)


def _work(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    import run

    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as run.py does where it is the main program
    words = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(words, stream)
    sys.argv = ["run.py", *arguments]
    run.main()
