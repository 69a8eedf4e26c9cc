"""Tables as Markdown."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.runs.provenance import commit_name

__all__ = ["command", "last", "markdown", "prepare", "provenance_lines", "publish"]

_PASSING = ("runs=", "run_dir=", "threads=", "device=", "data.root=")


def command() -> str:
    """The command that makes the present run, but for where it is kept."""
    from hydra.core.hydra_config import HydraConfig  # whose tables others print without it

    overrides = [o for o in HydraConfig.get().overrides.task if not o.startswith(_PASSING)]
    return shlex.join(["python", "run.py", *overrides])


def markdown(rows: Sequence[dict[str, str]], right: bool = False) -> str:
    """Rows with the same columns as a table; with ``right``, all columns but the first are set to the right."""
    rule = ["---", *["--:" if right else "---"] * (len(rows[0]) - 1)]
    lines = [list(rows[0]), rule, *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def prepare(path: Path | None) -> None:
    """Makes sure that a script's file can be written, before it starts to work.

    Raises:
        OSError: If it cannot.
        UserError: If it is a folder.
    """
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"--out must name a file, but {path} is a folder; name a file in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    path.open("ab").close()
    if new:
        path.unlink()  # nothing is found yet


def publish(text: str, path: Path | None) -> None:
    """Prints what a script has found; writes it with the command to a file, if one is given."""
    print(text)
    if path is not None:
        with last(path):
            path.write_text(f"`{' '.join(['python', *sys.argv])}`\n\n{text}", encoding="utf-8")


@contextmanager
def last(path: Path) -> Iterator[None]:
    """Writes what has been printed already; if that fails, a script ends with a sentence."""
    try:
        yield
    except OSError as error:
        sys.exit(f"error: {path} cannot be written ({error.strerror or error}); what was found stands above")


def provenance_lines(meta: dict[str, Any]) -> list[str]:
    """Data, seed, commits and hardware of a run, as a list."""
    sessions = meta["sessions"]
    commits = "; ".join(dict.fromkeys(map(commit_name, sessions)))
    hardware = "; ".join(dict.fromkeys(f"{s['cpu']}, {s['device']}, {s['threads']} thread(s)" for s in sessions))
    return [
        f"- Data: {meta['data']}; seed {meta['seed']}",
        f"- Commit: {commits}",
        f"- Hardware: {hardware}; torch {sessions[-1]['torch']}",
        f"- Command: `{meta['command']}`",
    ]
