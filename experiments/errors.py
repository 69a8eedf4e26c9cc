"""The one kind of error that is shown without a traceback."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(Exception):
    """Something the user can mend: one sentence that names the value, what is allowed and the way out."""
