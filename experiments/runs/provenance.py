"""Where and with what a run was made."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

__all__ = ["commit", "commit_name", "describe", "now", "session"]


def session(device: torch.device) -> dict[str, Any]:
    """Commit, time, versions and hardware of this process."""
    return {
        **commit(),
        "started": now(),
        "cpu": _cpu(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commit_name(session: dict[str, Any]) -> str:
    """The commit of a session, in short, and whether the tree was changed."""
    return (session["commit"] or "unknown")[:10] + (" with changes" if session["dirty"] else "")


def describe(session: dict[str, Any]) -> str:
    """A session in a line for the head of a table."""
    return (
        f"{session['cpu']}, device {session['device']}, {session['threads']} thread(s), torch {session['torch']}, "
        f"commit {commit_name(session)}, {session['started'][:10]}"
    )


def now() -> str:
    """The time, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def commit() -> dict[str, Any]:
    """Commit of the project's checkout, and whether tracked files differ from it; ``None`` outside a checkout."""
    root = Path(__file__).parents[2]

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", root, *args], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.processor() or platform.machine()
