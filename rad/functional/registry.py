"""The table "torch function → our rule", and what happens when a converted module calls a torch function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch.overrides import resolve_name

from rad.functional.operation import Call, differentiable

__all__ = ["RULES", "dispatch", "rule"]

R = TypeVar("R", bound=Callable[..., Any])

RULES: dict[Callable[..., Any], Callable[..., Any]] = {}


def rule(*functions: Callable[..., Any]) -> Callable[[R], R]:
    """Decorator: calls of ``functions`` inside converted modules are answered by the decorated function.

    A rule takes a ``Call`` and then the arguments of the torch function, and returns what that function returns, bit
    for bit. It is asked only where a gradient is to come. It may answer ``NotImplemented``: the call then stays exact.
    Most rules are an ``operation`` or put several together::

        @rad.rule(my_module.swish)
        def swish(call, x):
            return multiply(call, x, sigmoid(call, x))

    Functions of one's own are seen if they begin as PyTorch's do, with ``torch.overrides.handle_torch_function``.

    Args:
        functions: Functions or methods, such as ``torch.nn.functional.linear`` or ``torch.Tensor.add``; later rules
            take the place of earlier ones.
    """

    def register(answer: R) -> R:
        for function in functions:
            RULES[function] = answer
        return answer

    return register


def named(owners: tuple[Any, ...], *names: str) -> list[Callable[..., Any]]:
    """The functions of these names, from whichever of ``owners`` has them."""
    return [getattr(owner, name) for name in names for owner in owners if hasattr(owner, name)]


def name_of(function: Callable[..., Any]) -> str:
    """How a torch function is called in ledgers and traces."""
    name, own = resolve_name(function), getattr(function, "__name__", "")
    owner, _, last = (name or "").rpartition(".")
    if name and own and last != own and not own.endswith(f"_{last}"):  # it was found under another of its names
        name = f"{owner}.{own}"
    return name or getattr(function, "__qualname__", repr(function))


def dispatch(call: Callable[[], Call], function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Answers a call of a torch function by its rule, or by itself where there is none or no gradient is to come."""
    answer = RULES.get(function)
    if answer is not None and differentiable(*args, *kwargs.values()):
        out = answer(call(), *args, **kwargs)
        if out is not NotImplemented:
            return out
    return function(*args, **kwargs)
