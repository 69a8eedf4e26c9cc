"""The kinds of error that are shown without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["StoppedError", "UserError", "first_line", "reading", "writing"]


class UserError(Exception):
    """Something the user can mend: one sentence that names the value, what is allowed and the way out."""


class StoppedError(UserError):
    """A run that cannot go on now, through no fault of its settings: the same command goes on later."""


def first_line(error: BaseException) -> str:
    """What an error says, without what follows; its kind, if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(": ") if lines else type(error).__name__


@contextmanager
def reading(path: Path, way_out: str) -> Iterator[None]:
    """Makes one sentence of whatever a file provokes that is damaged, foreign or out of reach.

    Args:
        path: What is read.
        way_out: What the user can do about damage.

    Raises:
        UserError: In place of any other error.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or first_line(error)}); {way_out}") from error
    except Exception as error:  # random bytes provoke any kind
        raise UserError(f"{path} is damaged ({first_line(error)}); {way_out}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes one sentence of a disk that is full, read-only or gone.

    Raises:
        StoppedError: In place of an error of the disk.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save makes the second kind of the first
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        reason = (cause.strerror if cause is not None else None) or first_line(cause or error)
        raise StoppedError(
            f"{path} cannot be written ({reason}); make room or set runs or run_dir to another place, the same command "
            "goes on"
        ) from error
