"""Which deliberate faults the tests notice: applies each of a list to a copy of the project and runs its tests.

python scripts/faults.py                       # all of tests/faults, an hour and a half on two cores
python scripts/faults.py --only rad/pde --jobs 1
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

from experiments.errors import UserError
from experiments.options import THREADS

ROOT = Path(__file__).parents[1]
DEADLINE = 300  # seconds after which a test counts as caught in an endless loop
_NOT_RUN = (3, 4, 5)  # exit statuses of pytest: an error of its own, of its command line, or no test at all


@dataclass(frozen=True)
class Fault:
    """A change that no code should survive.

    Attributes:
        what: A few words for the report.
        file: Where, relative to the project.
        old: Text that occurs once in it.
        new: What takes its place.
        tests: What should notice: files or single tests, of which slow ones are left out.
    """

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


@dataclass(frozen=True)
class Outcome:
    """What became of a fault; ``by`` names the first test that failed, or says what else happened."""

    fault: Fault
    found: bool
    by: str
    seconds: float


def read(path: Path, root: Path = ROOT) -> list[Fault]:
    """The faults of a list, each of them applicable.

    Args:
        path: A YAML list of groups, or a folder of such lists: a ``file``, the ``tests`` that should notice, and
            ``faults``, each with ``what``, ``old``, which occurs once in the file, and ``new``, which takes its place.
        root: The project.

    Raises:
        UserError: If the list is no such list, or does not fit the project as it is.
    """
    if path.is_dir():
        return [fault for part in sorted(path.glob("*.yaml")) for fault in read(part, root)]
    try:
        groups = yaml.safe_load(path.read_text(encoding="utf-8"))
        faults = [
            Fault(file=group["file"], tests=tuple(group["tests"]), **fault)
            for group in groups
            for fault in group["faults"]
        ]
    except (OSError, yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no list of faults ({error!r}); those in tests/faults are") from error
    for fault in faults:
        _check(fault, root)
    return faults


def _check(fault: Fault, root: Path) -> None:
    for name in (fault.file, *(test.split("::")[0] for test in fault.tests)):
        if not (root / name).exists():
            raise UserError(f"{fault}: there is no {name}; correct the list")
    count = (root / fault.file).read_text(encoding="utf-8").count(fault.old)
    if count != 1:
        raise UserError(f"{fault}: {fault.old!r} must occur once in that file, but does {count} times; give more text")
    if fault.old == fault.new:
        raise UserError(f"{fault}: nothing is changed; correct the list")


def tried(faults: Sequence[Fault], jobs: int, root: Path = ROOT, deadline: float = DEADLINE) -> Iterator[Outcome]:
    """Tries faults, some at a time, each in a copy of its own; yields what becomes of them, in order.

    Raises:
        UserError: If the tests fail without any fault.
    """
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, ThreadPoolExecutor(jobs) as pool:
        sound = Path(folder) / "sound"
        _copy(root, sound)
        # Also compiles what is compiled, for the copies: they keep the times of files.
        status, said = _pytest(sound, sorted({test for fault in faults for test in fault.tests}))
        if status != 0:
            raise UserError(f"the tests fail without any fault; mend them first:\n{said}")
        futures = [pool.submit(_try, fault, sound, Path(folder) / str(i), deadline) for i, fault in enumerate(faults)]
        try:
            for future in futures:
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)  # those at hand are brought to an end


def _copy(root: Path, to: Path) -> None:
    """Copies what belongs to the project: all that git tracks, or would if it were added."""
    listed = ["git", "-C", root, "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in names:
        if (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)


def _try(fault: Fault, sound: Path, copy: Path, deadline: float) -> Outcome:
    shutil.copytree(sound, copy)
    file = copy / fault.file
    file.write_text(file.read_text(encoding="utf-8").replace(fault.old, fault.new), encoding="utf-8")
    # Bytecode of a file of the same size that was written in the same second would pass for its own.
    Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)
    start = time.perf_counter()
    status, said = _pytest(copy, fault.tests, deadline)
    seconds = time.perf_counter() - start
    shutil.rmtree(copy)
    if status in _NOT_RUN:
        raise UserError(f"{fault}: its tests cannot be run; correct the list:\n{said}")
    failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", said, re.MULTILINE)
    by = failed.group(1) if failed else "" if status == 0 else "no end" if status is None else f"exit status {status}"
    return Outcome(fault, status != 0, by, seconds)


def _pytest(where: Path, tests: Sequence[str], deadline: float | None = None) -> tuple[int | None, str]:
    """Exit status, ``None`` if the deadline was passed, and the last lines of what was said.

    Of files and folders the slow tests are left out, but not those that are named themselves.
    """
    named = [test for test in tests if "::" in test]
    status, said = 0, ""
    for some, options in ((named, []), ([t for t in tests if t not in named], ["-m", "not slow"])):
        if some and status == 0:
            status, said = _run(where, [*options, *some], deadline)
    return status, said


def _run(where: Path, arguments: Sequence[str], deadline: float | None) -> tuple[int | None, str]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider", *arguments]
    path = os.pathsep.join([str(where), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        command,
        cwd=where,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with whatever it has started
        process.communicate()
        return None, ""
    return process.returncode, "\n".join(said.splitlines()[-30:])


def main() -> None:
    """Parses the command line, tries the faults and reports; the exit status is 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "list", type=Path, nargs="?", default=ROOT / "tests" / "faults", help="a YAML list, or a folder of them"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="those whose file or description holds the text")
    parser.add_argument("--jobs", type=THREADS, default=2, help="how many at a time (default %(default)s)")
    args = parser.parse_args()
    try:
        faults = [fault for fault in read(args.list) if args.only in str(fault)]
        if not faults:
            raise UserError(f"no fault of {args.list} holds {args.only!r}; leave --only out to try all")
        survivors = []
        for outcome in tried(faults, args.jobs):
            word = "found" if outcome.found else "SURVIVED"
            print(
                f"{word:8} {outcome.seconds:5.1f} s  {outcome.fault}{'  ← ' * bool(outcome.by)}{outcome.by}", flush=True
            )
            survivors += [] if outcome.found else [outcome.fault]
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"\n{len(faults) - len(survivors)} of {len(faults)} faults found")
    for fault in survivors:
        print(f"  survived: {fault}\n    - {fault.old}\n    + {fault.new}")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
