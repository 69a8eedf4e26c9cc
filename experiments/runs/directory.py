"""The files of one run, written such that a kill at any moment is harmless."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from experiments.errors import StoppedError, UserError, reading, writing
from experiments.runs.naming import passes

__all__ = ["RunDir", "digest", "find_runs"]

_OWN = (".lock", "config.yaml.partial")  # what a directory may hold before it holds a config


class RunDir:
    """The files of one run.

    Attributes:
        path: The directory: ``config.yaml``, ``meta.json``, ``metrics.jsonl``, ``checkpoint.pt``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: tuple[int, int] | None = None  # the file that was locked, by device and inode

    @contextmanager
    def claimed(self, config: dict[str, Any]) -> Iterator[None]:
        """Makes the directory, or goes on in one that holds the same config, and locks it meanwhile.

        Raises:
            UserError: If it cannot be written, belongs to another config, or another process works in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=1)  # whoever asks `busy` holds it for a moment
            held = lock.acquire()
        except Timeout as error:
            raise UserError(f"another process works in {self.path}; wait for it, or set another run_dir") from error
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"{self.path} cannot be written ({reason}); set runs or run_dir to another place"
            ) from error
        with held:
            self.refuse_foreign(config)
            self._lock = _identity(self.path / ".lock")
            try:
                self._replace("config.yaml", yaml.safe_dump(config, sort_keys=False).encode())
                yield
            finally:
                self._lock = None

    def refuse_foreign(self, config: dict[str, Any]) -> None:
        """Refuses a directory that holds something else than a run of this config.

        Raises:
            UserError: Names the directory and where the configs differ.
        """
        file = self.path / "config.yaml"
        try:
            begun, strange = file.exists(), self.path.is_dir() and any(p.name not in _OWN for p in self.path.iterdir())
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be read ({error.strerror}); set runs or run_dir to another place"
            ) from error
        if begun:
            with reading(file, f"delete {self.path} to begin this run anew"):
                changed = sorted(_differences(_lasting(self.config()), _lasting(config)))
            if changed:
                raise UserError(
                    f"{self.path} belongs to a run with another config (it differs in {', '.join(changed)}); "
                    "set another run_dir, or delete that directory"
                )
        elif strange:
            raise UserError(f"{self.path} holds files but no config.yaml, so is no run directory; set another run_dir")

    def meta(self) -> dict[str, Any]:
        """The meta data written so far.

        Raises:
            UserError: If it is damaged.
        """
        file = self.path / "meta.json"
        with reading(file, f"delete {self.path} to begin this run anew"):
            if not file.exists():
                return {}
            found = _mapping(json.loads(file.read_text(encoding="utf-8")))
            if found.get("status") not in ("running", "failed", "finished"):
                raise ValueError(f"its status is {found.get('status')!r:.40}")
            return found

    def config(self) -> dict[str, Any]:
        """The resolved config.

        Raises:
            UserError: If it is damaged.
        """
        file = self.path / "config.yaml"
        with reading(file, f"delete {self.path} to begin this run anew"):
            return _mapping(yaml.safe_load(file.read_text(encoding="utf-8")))

    def finished(self) -> bool:
        """Whether nothing of the run is missing.

        Raises:
            UserError: If it had finished, but its records are no longer those that it ended with.
        """
        meta = self.meta()
        if meta.get("status") != "finished":
            return False
        count, file = len(self.records()), self.path / "metrics.jsonl"
        with reading(file, f"delete {self.path} to run it again"):
            if meta.get("recorded", found := self.recorded()) != found:
                raise ValueError(f"its {count} records are not those that the run ended with")
        return True

    def recorded(self) -> str:
        """A short name of the records, to the bit: a digit that is another one is a number all the same."""
        file = self.path / "metrics.jsonl"
        return hashlib.sha256(file.read_bytes() if file.exists() else b"").hexdigest()[:16]

    def busy(self) -> bool:
        """Whether a process works in it now; where that cannot be asked, whether one began to."""
        if not (self.path / ".lock").exists():
            return False
        try:
            with FileLock(self.path / ".lock", timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # of another user
            return self.meta().get("status") == "running"

    def write_meta(self, meta: dict[str, Any]) -> None:
        """Replaces the meta data."""
        self._replace("meta.json", json.dumps(meta, indent=2).encode())

    def summary(self) -> str | None:
        """What was said of the run when it had finished; ``None`` if that has not been written."""
        file = self.path / "summary.txt"
        with reading(file, "delete it"):
            return file.read_text(encoding="utf-8") if file.exists() else None

    def write_summary(self, text: str) -> None:
        """Keeps what is said of the finished run, so that nothing need be loaded or drawn to say it again."""
        self._replace("summary.txt", text.encode())

    def append(self, record: dict[str, Any]) -> None:
        """Adds one line to the records."""
        with self._writing(), (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())  # never behind the checkpoint that follows

    def records(self) -> list[dict[str, Any]]:
        """All records; a last line that was cut off does not count.

        Raises:
            UserError: If they are damaged.
        """
        file = self.path / "metrics.jsonl"
        with reading(file, f"delete {self.path} to begin this run anew"):
            lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
            records = [_mapping(json.loads(line)) for line in lines]
            for number, record in enumerate(records, start=1):
                if not isinstance(record.get("iteration"), int):
                    raise ValueError(f"line {number} names no iteration")
            return records

    def rewind(self, iteration: int) -> None:
        """Drops the records after an iteration: those that a killed run wrote after its last checkpoint."""
        kept = [record for record in self.records() if record["iteration"] <= iteration]
        if iteration >= 0 and not (kept and kept[-1]["iteration"] == iteration):
            raise UserError(
                f"{self.path} has a checkpoint of iteration {iteration} but no record of it; delete that directory to "
                "begin this run anew"
            )
        lines = "".join(json.dumps(record) + "\n" for record in kept)
        self._replace("metrics.jsonl", lines.encode())

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replaces the checkpoint."""
        import torch  # here, for what is finished is looked at without

        partial = self.path / "checkpoint.partial"
        with self._writing():
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path / "checkpoint.pt")

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint, on the CPU, or ``None`` if there is none yet.

        Raises:
            UserError: If it is damaged.
        """
        import torch

        file = self.path / "checkpoint.pt"
        with reading(file, "delete it to begin this run anew, its records included"):
            if not file.exists():
                return None
            with zipfile.ZipFile(file) as members:
                changed = members.testzip()  # torch.load compares no checksums
            if changed is not None:
                raise ValueError(f"{changed} is not what was saved")
            return _mapping(torch.load(file, map_location="cpu", weights_only=True))

    def _replace(self, name: str, content: bytes) -> None:
        with self._writing():
            partial = self.path / f"{name}.partial"
            with partial.open("wb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
            partial.replace(self.path / name)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Writes to this run alone: a directory deleted meanwhile may have been made again by another process."""
        if self._lock is not None and _identity(self.path / ".lock") != self._lock:
            raise StoppedError(
                f"{self.path} was deleted while this process worked in it; nothing more is written, start it again"
            )
        with writing(self.path):
            yield


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Every directory at or below some folders that holds a meta.json or a metrics.jsonl; links are followed.

    Raises:
        UserError: If one of the folders is none, or leads to no run.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"{path} is not a directory; give run directories or a folder above them")
        files = [
            f
            for name in ("meta.json", "metrics.jsonl")
            for f in glob.iglob(f"{glob.escape(str(path))}/**/{name}", recursive=True)
        ]
        if not files:
            raise UserError(
                f"{path} holds no run, which is a directory with meta.json and metrics.jsonl; python run.py starts one"
            )
        found |= {file.parent.resolve(): file.parent for file in map(Path, files)}
    return sorted(found.values())


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"it holds {value!r:.40}, no names and values")
    return value


def _lasting(config: Any) -> dict[str, Any]:
    """All settings by dotted name, but for those that a run may be resumed without."""

    def flatten(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        else:
            yield prefix, value

    return {name: value for name, value in flatten(config, "") if not passes(name)}


def digest(config: dict[str, Any]) -> str:
    """A short name of everything in a config that says what is computed, but for the seed."""
    settings = {k: v for k, v in sorted(_lasting(config).items()) if k != "seed"}
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]


def _differences(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
    return {key for key in a.keys() | b.keys() if a.get(key, ...) != b.get(key, ...)}
