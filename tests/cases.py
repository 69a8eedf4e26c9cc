"""Calls of torch functions, one line for each that has a rule and for each option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases_elementwise
import cases_others
import cases_products
import torch
import torch.nn.functional as F
from calls import Case

from rad.functional import RULES
from rad.functional.registry import name_of

CASES = cases_elementwise.CASES + cases_products.CASES + cases_others.CASES

# Other names under which a function is known.
_SAME = {
    "__mul__": "mul", "__rmul__": "mul", "multiply": "mul", "__truediv__": "div", "divide": "div", "true_divide": "div",
    "__matmul__": "matmul", "absolute": "abs", "__abs__": "abs", "clip": "clamp", "expit": "sigmoid", "__pow__": "pow",
    "log_sigmoid": "logsigmoid",
}  # fmt: skip


def kin(function: Callable[..., Any]) -> str:
    """What aliases have in common: their name, but for namespaces."""
    name = name_of(function).rpartition(".")[2]
    return _SAME.get(name, name)


# Where functions are found.
_OWNERS = {"torch": torch, "F": F, "Tensor": torch.Tensor, "special": torch.special}
_WITHOUT = {"torch.binary_cross_entropy_with_logits"}  # which nobody calls: its reduction is a number


def named() -> dict[str, Callable[..., Any]]:
    """All functions by any of the names that have a rule, whether or not it has one there."""
    kinds = {kin(case.function) for case in CASES}
    names = {*kinds, *(name for name, same in _SAME.items() if same in kinds)}
    found = {
        f"{owner}.{name}": getattr(space, name)
        for name in sorted(names)
        for owner, space in _OWNERS.items()
        if callable(getattr(space, name, None))
    }
    return {name: function for name, function in found.items() if name not in _WITHOUT}


NAMES = named()


def aliases() -> list[Case]:
    """The first case of each function again, for each other function with a rule that does the same."""
    covered, first = {case.function for case in CASES}, {}
    for case in CASES:
        first.setdefault(kin(case.function), case)
    return [
        Case(name_of(f), f, first[kin(f)].inputs, first[kin(f)].options)
        for f in RULES
        if f not in covered and kin(f) in first
    ]


def uncovered() -> list[str]:
    """Functions with a rule that no case calls; recurrent ones have tests of their own."""
    called = {case.function for case in CASES + aliases()}
    return [
        name_of(f)
        for f, answer in RULES.items()
        if f not in called and not answer.__module__.endswith(("rnn", "recurrent"))
    ]
