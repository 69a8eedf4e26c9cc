"""What the config of every run holds; each kind of study adds its own settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, PlainValidator, ValidationError

import rad
from experiments.budgets import size
from experiments.errors import UserError
from experiments.runs.parts import part
from experiments.schema import Count, Strict, sentence

__all__ = ["Budget", "BudgetOrSize", "Settings", "check_settings"]


def _budget(value: Any) -> Any:
    try:
        rad.sketch.check_budget(value)
    except (TypeError, ValueError) as error:
        raise ValueError(str(error).removeprefix("budget ")) from error
    return value


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return _budget(value)
    if size(value) is None:
        raise ValueError(
            f"must be a number in (0, 1], got {value!r}; for example 0.1 keeps a tenth, and 50MB or 1.5GiB is a size"
        )
    return value


Budget = Annotated[Any, PlainValidator(_budget)]  # whatever the library takes for one
BudgetOrSize = Annotated[Any, PlainValidator(_size)]
Part = part(object)


class Settings(Strict):
    """Of every run. Groups that a kind of study does not read may stand there all the same."""

    budget: Budget
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    device: str
    threads: Annotated[int, Field(ge=1, le=1024)] | None
    iterations: Count
    scale: str | None
    scales: dict[str, dict[str, Any]] = {}
    tuned: dict[str, dict[str, Any]] = {}
    runs: str | int
    study: Part
    tracker: Part
    method: Part
    model: Part | None = None
    data: Part | None = None
    optimizer: Part | None = None


def check_settings(schema: type[Settings], settings: Mapping[str, Any]) -> None:
    """Refuses the first setting that is unknown, missing, of another kind or out of range.

    Raises:
        UserError: Names it, its value and what is allowed.
    """
    for name, number in _numbers(settings):
        if not math.isfinite(number):
            raise UserError(f"{name} must be a finite number, got {number}")
        if isinstance(number, int) and abs(number) >= 2**63:
            raise UserError(f"{name} must be a whole number of at most 18 digits, got one of {len(str(abs(number)))}")
    try:
        schema.model_validate(settings)
    except ValidationError as error:
        raise UserError(sentence(error, [*schema.model_fields])) from error


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int | float]]:
    """All numbers in settings, by dotted name: none is so large or so little of a number that no rule could hold it."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}".removeprefix("."))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _numbers(inner, f"{name}[{index}]")
