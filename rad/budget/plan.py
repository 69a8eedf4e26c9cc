"""What every place keeps, as found by ``rad.allocate``."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from rad.budget.stand_in import BASE
from rad.functional import Assignment
from rad.sketch import Exact, MixedRounding, Rounding, Sketch, SparseRounding
from rad.sketch.bits import MAX_BITS

__all__ = ["Item", "Plan", "fingerprint"]

_WIDTH = 64  # of names in a table, at most
_ENTRY = ("bits", "every", "nbytes", "variance")
_HEAD = ("model", "structure", "exact", "other", "norm2", "places")


@dataclass(frozen=True)
class Item:
    """What one place keeps.

    Attributes:
        place: ``module / function n / role``; see ``rad.functional.Assignment``.
        bits: Of each element, or ``None`` where the tensor itself is kept; 2.25 are 3 for a quarter of them and 2 for
            the rest.
        nbytes: Bytes held for it.
        variance: What it adds to the variance of the gradient, summed over all entries.
        every: Of how many elements one is kept.
    """

    place: str
    bits: float | None
    nbytes: int
    variance: float
    every: int = 1

    @property
    def sketch(self) -> Sketch:
        """By which it keeps that."""
        return Exact() if self.bits is None else sketch_of(self.bits, self.every)

    @property
    def amount(self) -> str:
        """How much of each element, in a word."""
        if self.bits is None:
            return "exact"
        return f"{self.bits:.4g}" if self.every == 1 else f"{self.bits} of 1 in {self.every}"


def sketch_of(bits: float, every: int) -> Rounding | MixedRounding | SparseRounding:
    """That keeps one element in so many, in so many bits."""
    whole = math.floor(bits)
    if every > 1:
        return SparseRounding(bits=whole, every=every)
    return Rounding(bits=whole) if bits == whole else MixedRounding(bits=whole, finer=bits - whole)


@dataclass(frozen=True)
class Plan(Assignment):
    """How many bits each kept tensor of a model gets.

    ``str(plan)`` is a table, ``rad.convert(model, plan)`` applies it.

    Attributes:
        items: One for each place; none where everything is exact.
        other: Bytes held besides them: masks, indices, what has no rule, the loss; all of them where it is exact.
        norm2: ``‖g‖²`` of the gradient ``g`` where it was made.
        model: Type of the model.
        structure: What distinguishes its modules and parameters from those of others, hashed.
        exact: Whether everything is kept exactly.
    """

    items: tuple[Item, ...]
    other: int
    norm2: float
    model: str
    structure: str
    exact: bool = False

    @property
    def sketch(self) -> Sketch:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See ``Assignment``."""
        return Exact() if self.exact else BASE

    @cached_property
    def key(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See ``Assignment``."""
        what = [self.structure, str(self.exact), *(f"{item.place} {item.sketch}" for item in self.items)]
        return f"plan {hashlib.sha256(chr(10).join(what).encode()).hexdigest()[:16]}"

    @property
    def nbytes(self) -> int:
        """Bytes held for the backward pass, parameters apart, as ``rad.measure.saved_bytes`` counts them."""
        return self.other + sum(item.nbytes for item in self.items)

    @property
    def variance(self) -> float:
        """Predicted variance that all summaries add together, in units of ``‖g‖²``."""
        return sum(item.variance for item in self.items) / self.norm2 if self.norm2 else 0.0

    def at(self, place: str, last: bool = False) -> Sketch:
        """See ``Assignment``."""
        if self.exact:
            return self.sketch
        found = self._sketches.get(place)
        if found is None:
            found = self._sketches.get(_whole(place))
        if found is None:
            raise ValueError(
                f"the plan says nothing of {place!r}, which the model now keeps: it has changed, or runs otherwise, "
                "since rad.allocate(model, ...) was called; call it anew"
            )
        return found

    @cached_property
    def _sketches(self) -> dict[str, Sketch]:
        return {item.place: item.sketch for item in self.items}

    def check(self, model: nn.Module) -> None:
        """Refuses a model for which it was not made.

        Raises:
            ValueError: If modules, or the shapes of parameters, are others.
        """
        names = {name or "." for name, _ in model.named_modules(remove_duplicate=False)}
        strange = next((name for item in self.items if (name := item.place.partition(" / ")[0]) not in names), None)
        if strange is not None:
            raise ValueError(
                f"the plan is for another model: it names the module {strange!r} of a {self.model}, which this "
                f"{type(model).__name__} does not have; rad.allocate(model, ...) makes one for it"
            )
        if fingerprint(model) != self.structure:
            raise ValueError(
                f"the plan was made for a {self.model} with other modules or shapes of parameters than this "
                f"{type(model).__name__} has now; rad.allocate(model, ...) makes one for it"
            )

    def as_dict(self) -> dict[str, Any]:
        """Numbers, text and mappings alone."""
        return {
            "model": self.model,
            "structure": self.structure,
            "exact": self.exact,
            "other": self.other,
            "norm2": self.norm2,
            "places": {item.place: {name: getattr(item, name) for name in _ENTRY} for item in self.items},
        }

    def save(self, path: str | Path) -> None:
        """Writes it to a YAML file."""
        Path(path).write_text(yaml.safe_dump(self.as_dict(), sort_keys=False, width=1000), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Reads what ``save`` wrote; nothing in the file is executed.

        Raises:
            ValueError: If it holds anything else.
        """
        try:
            return cls.from_dict(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is no plan: {str(error).splitlines()[0]}") from error
        except ValueError as error:
            raise ValueError(f"{path} is {error}") from None

    @classmethod
    def from_dict(cls, whole: Any) -> Plan:
        """Undoes ``as_dict``.

        Raises:
            ValueError: If it is anything else.
        """
        try:
            return cls._read(whole)
        except _Unfit as error:
            raise ValueError(f"no plan: {error}; Plan.save writes them") from None

    @classmethod
    def _read(cls, whole: Any) -> Plan:
        _fields(whole, _HEAD, "it")
        places = whole["places"]
        if not isinstance(places, Mapping):
            raise _Unfit(f"places must be a mapping, got {places!r:.60}")
        items = []
        for place, entry in places.items():
            if not isinstance(place, str) or place.count(" / ") < 2:
                raise _Unfit(f"a place reads 'module / function n / role', got {place!r:.60}")
            _fields(entry, _ENTRY, repr(place))
            bits = entry["bits"]
            if bits is not None:
                _number(bits, f"bits of {place!r}", float, 1, MAX_BITS)
            _number(entry["every"], f"every of {place!r}", int, 1, 2**16)
            if entry["every"] > 1 and not isinstance(bits, int):
                raise _Unfit(
                    f"bits of {place!r}, of which one in {entry['every']} is kept, must be whole, got {bits!r}"
                )
            _number(entry["nbytes"], f"nbytes of {place!r}", int, 0, 2**63)
            _number(entry["variance"], f"variance of {place!r}", float, 0, sys.float_info.max)
            items.append(Item(place, bits, entry["nbytes"], float(entry["variance"]), entry["every"]))
        _number(whole["other"], "other", int, 0, 2**63)
        _number(whole["norm2"], "norm2", float, 0, sys.float_info.max)
        for name, kind in (("model", str), ("structure", str), ("exact", bool)):
            if not isinstance(whole[name], kind):
                raise _Unfit(f"{name} must be a {kind.__name__}, got {whole[name]!r:.60}")
        if whole["exact"] and items:
            raise _Unfit("exact plans have no places")
        return cls(
            tuple(items), whole["other"], float(whole["norm2"]), whole["model"], whole["structure"], whole["exact"]
        )

    def __str__(self) -> str:
        total = sum(item.variance for item in self.items) or 1.0
        rows = [("place", "bits", "bytes", "share of variance")]
        for item in self.items:
            name = item.place if len(item.place) <= _WIDTH else "…" + item.place[1 - _WIDTH :]
            rows.append((name, item.amount, f"{item.nbytes:,}", f"{item.variance / total:.2%}"))
        rows.append(("everything" if self.exact else "besides", "", f"{self.other:,}", ""))
        rows.append(("total", "exact" if self.exact else "", f"{self.nbytes:,}", f"{self.variance:.3g} of ‖g‖²"))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-2], rule, *lines[-2:]])


def _whole(place: str) -> str:
    """Of a call inside another the place of that one, which was no more than one where nothing is compiled."""
    module, call, *within = place.split(" / ")
    return f"{module} / {call} / 0" if len(within) > 1 else place


class _Unfit(Exception):
    """What is wrong with a file."""


def _fields(entry: Any, names: tuple[str, ...], what: str) -> None:
    if not isinstance(entry, Mapping) or set(entry) != set(names):
        raise _Unfit(f"{what} must hold {', '.join(names)}, got {entry!r:.60}")


def _number(value: Any, name: str, kind: type, least: float, most: float) -> None:
    kinds = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        whole = "a whole number" if kind is int else "a finite number"
        raise _Unfit(f"{name} must be {whole} from {least} to {most}, got {value!r:.60}")


def fingerprint(model: nn.Module) -> str:
    """Names and types of a model's modules, and names and shapes of its parameters, hashed."""
    lines = [f"{name} {type(module).__qualname__}" for name, module in model.named_modules(remove_duplicate=False)]
    lines += [f"{name} {list(p.shape)}" for name, p in model.named_parameters(remove_duplicate=False)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]
