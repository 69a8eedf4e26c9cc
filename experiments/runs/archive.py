"""Records of finished runs in a few small files: what a report is made of, without what only a rerun needs."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from experiments.errors import UserError, reading, writing
from experiments.runs.directory import RunDir, find_runs

__all__ = ["pack", "unpack"]

# What a run keeps for good, and what scripts leave beside runs for a report; checkpoints and figures can be made again.
_OF_RUNS = ("config.yaml", "meta.json", "metrics.jsonl")
_BESIDE = ("table1.csv", "table1.md", "gradients.csv")
# Settings that say where things lay on the machine of the run, nothing of what it computed; packed as in a fresh clone.
_PLACES = {b"runs": b"runs", b"run_dir": b"null", b"root": b"data"}
_PLACE = re.compile(rb"^([ -]*)(runs|run_dir|root): .*(?:\n\1 +.*)*$", re.MULTILINE)
_SUFFIX = ".tar.gz"
_LARGEST = 2**28  # bytes of a file: a damaged or hostile archive may promise any number


def pack(runs: Path, into: Path) -> dict[Path, int]:
    """Packs the records of all finished runs, an archive for each folder of ``runs``.

    Runs that an archive holds already and ``runs`` does not stay in it, and the same runs always make the same bytes,
    wherever they and their data lay.

    Args:
        runs: Folder of run directories, ``runs/<experiment>/<what differs>``.
        into: Folder of the archives ``<experiment>.tar.gz``.

    Returns:
        The archives written, each with the number of runs that it now holds.

    Raises:
        UserError: If there is no finished run, an archive there is damaged, or nothing can be written.
    """
    found: dict[str, dict[str, bytes]] = {}
    for path in find_runs([runs]):
        run = path.relative_to(runs)
        if len(run.parts) < 2:
            raise UserError(f"{path} lies in no folder of an experiment; name a folder of such folders, got {runs}")
        if RunDir(path).finished():
            kept = {f"{run.as_posix()}/{name}": (path / name).read_bytes() for name in _OF_RUNS}
            found.setdefault(run.parts[0], {}).update(kept)
    for path in sorted(p for name in _BESIDE for p in runs.glob(f"*/{name}")):
        name = path.relative_to(runs)
        found.setdefault(name.parts[0], {})[name.as_posix()] = path.read_bytes()
    if not found:
        raise UserError(f"no run below {runs} has finished; make status shows how far they are")
    written: dict[Path, int] = {}
    for experiment, files in sorted(found.items()):
        archive = into / f"{experiment}{_SUFFIX}"
        files = {**(dict(_members(archive)) if archive.exists() else {}), **files}
        with writing(archive):
            into.mkdir(parents=True, exist_ok=True)
            partial = archive.with_suffix(".partial")
            partial.write_bytes(_archive({name: _placeless(name, content) for name, content in files.items()}))
            partial.replace(archive)
        written[archive] = sum(name.endswith("/meta.json") for name in files)
    return written


def unpack(archives: Path, runs: Path) -> list[Path]:
    """Unpacks records as run directories, from which figures and reports are made and that a sweep need not run again.

    Args:
        archives: Folder of what ``pack`` wrote.
        runs: Folder to put them in. A run that is there already, finished or not, is left as it is.

    Returns:
        The directories made.

    Raises:
        UserError: If there are no archives, one is damaged or holds something else, or nothing can be written.
    """
    found = sorted(archives.glob(f"*{_SUFFIX}"))
    if not found:
        raise UserError(f"{archives} holds no *{_SUFFIX}; scripts/records.py pack makes them")
    made: list[Path] = []
    for archive in found:
        folders: dict[Path, dict[str, bytes]] = {}
        for name, content in _members(archive):  # all of it, before any is written
            path = runs / name
            folders.setdefault(path.parent if path.name in _OF_RUNS else path, {})[path.name] = content
        for place, files in folders.items():
            if not place.exists():
                _put(place, files)
                made.append(place)
    return made


def _put(place: Path, files: dict[str, bytes]) -> None:
    """A run directory, or a single file, which is there whole or not at all."""
    partial = place.with_name(f"{place.name}.partial")
    with writing(place):
        if place.name in files:
            place.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(files[place.name])
        else:
            partial.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                (partial / name).write_bytes(content)
        partial.replace(place)


def _placeless(name: str, content: bytes) -> bytes:
    """A config without the folders of whoever ran it, all else to the bit."""
    if not name.endswith("/config.yaml"):
        return content
    return _PLACE.sub(lambda found: b"%s%s: %s" % (found[1], found[2], _PLACES[found[2]]), content)


def _archive(files: dict[str, bytes]) -> bytes:
    """Without times and owners."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of an archive, of which nothing can lead out of the folder that it is unpacked into."""
    with reading(archive, "fetch or pack it again"), tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if member.isdir():
                continue
            name = PurePosixPath(member.name)
            wanted = _OF_RUNS if len(name.parts) > 2 else _BESIDE
            if not member.isfile() or name.is_absolute() or ".." in name.parts or name.name not in wanted:
                raise ValueError(f"it holds {member.name!r:.80}, no record of a run")
            if member.size > _LARGEST:
                raise ValueError(f"{member.name!r:.80} has {member.size:,} bytes, more than {_LARGEST:,}")
            content = tar.extractfile(member)
            yield member.name, content.read() if content else b""
