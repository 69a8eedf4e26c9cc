"""Ranges of values, and one sentence for a value that lies outside."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Annotated, Any, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

__all__ = ["Count", "Finite", "Natural", "Positive", "Strict", "fit", "sentence"]

_MOST = 2**31  # of anything that is counted
Count = Annotated[int, Field(ge=1, lt=_MOST)]
Natural = Annotated[int, Field(ge=0, lt=_MOST)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_RULES = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)

_PHRASES = {
    "missing": "is missing",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text",
    "finite_number": "must be a finite number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a list",
    "dict_type": "must hold settings of its own",
    "model_type": "must hold settings of its own",
    "is_instance_of": "must be a {class}",
    "too_short": "must hold at least {min_length} of them",
}


class Strict(BaseModel):
    """Settings of which none is unknown and none is converted."""

    model_config = ConfigDict(_RULES, extra="forbid")


def fit(hint: Any, value: Any) -> None:
    """Checks a value against an annotation.

    Raises:
        ValueError: What must be otherwise, to be read after the value's name.
    """
    if is_dataclass(hint):
        if not isinstance(value, hint):  # nor is it made of what stands there
            raise ValueError(f"must be a {hint.__name__}, got {reprlib.repr(value)}")
        return
    if get_origin(hint) is tuple and isinstance(value, list):
        value = tuple(value)  # YAML has no tuples
    try:
        TypeAdapter(hint, config=_RULES).validate_python(value)
    except ValidationError as error:
        raise ValueError(sentence(error)) from error


def sentence(error: ValidationError, known: Sequence[str] = ()) -> str:
    """The first thing that is wrong, by its name, with what is allowed and what was given.

    Args:
        error: Of a value or of a model.
        known: Settings that there are, for one that is misspelt.
    """
    first = error.errors(include_url=False)[0]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).removeprefix(".")
    given = reprlib.repr(first["input"])
    match first["type"]:
        case "missing":
            return f"{name} is missing"
        case "extra_forbidden":
            near = difflib.get_close_matches(name, known, n=1) if "." not in name else []
            return f"{name} is no setting here" + (f"; did you mean {near[0]}?" if near else "; --cfg job lists them")
        case "value_error":  # of our own: it follows the name
            text = str(first["ctx"]["error"])
            return f"{name}{text}" if text.startswith((".", "[")) else f"{name} {text}".strip()
    phrase = _PHRASES.get(first["type"], first["msg"].replace("Input should be", "must be"))
    limits = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in first.get("ctx", {}).items()}
    return f"{name} {phrase.format(**limits)}, got {given}".strip()
