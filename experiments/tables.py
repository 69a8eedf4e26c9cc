"""Tables as Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig

__all__ = ["command", "markdown", "provenance_lines"]

_PASSING = ("runs=", "run_dir=", "threads=", "device=", "data.root=")


def command() -> str:
    """The command that makes the present run, but for where it is kept."""
    overrides = [o for o in HydraConfig.get().overrides.task if not o.startswith(_PASSING)]
    return shlex.join(["python", "run.py", *overrides])


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """Rows with the same columns as a table, its header from the first."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def provenance_lines(meta: dict[str, Any]) -> list[str]:
    """Data, seed, commits and hardware of a run, as a list."""
    sessions = meta["sessions"]
    commits = "; ".join(
        dict.fromkeys((s["commit"] or "unknown")[:10] + (" with changes" if s["dirty"] else "") for s in sessions)
    )
    hardware = "; ".join(dict.fromkeys(f"{s['cpu']}, {s['device']}, {s['threads']} thread(s)" for s in sessions))
    return [
        f"- Data: {meta['data']}; seed {meta['seed']}",
        f"- Commit: {commits}",
        f"- Hardware: {hardware}; torch {sessions[-1]['torch']}",
        f"- Command: `{meta['command']}`",
    ]
