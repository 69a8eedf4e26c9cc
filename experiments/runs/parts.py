"""The parts that a config names are made here, by one function, of the project's own classes and no others.

A run's ``config.yaml`` is read back by scripts, and may come from anywhere: it must not choose what is called.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pkgutil import resolve_name
from typing import Annotated, Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from pydantic import AfterValidator

from experiments.errors import UserError, first_line
from experiments.runs.configs import CONFIGS
from experiments.schema import fit

__all__ = ["make", "part"]

_TARGET, _PARTIAL = "_target_", "_partial_"
_OPTIMIZATION = re.compile(r"torch\.optim(\.lr_scheduler)?\.[A-Z]\w+")


def make(config: DictConfig | Mapping[str, Any], *args: Any) -> Any:
    """The object that a config node names; of a partial one, with the arguments that are still missing.

    Raises:
        UserError: If the node names something that is not the project's, or arguments that it does not take.
    """
    name = ""
    if isinstance(config, DictConfig):
        name, config = config._get_full_key(None), OmegaConf.to_container(config, resolve=True)
    try:
        return _made(config, args)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{name}{'' if str(error).startswith('.') else ' '}{error}".strip()) from error


def part(kind: type, **ranges: Any) -> Any:
    """The type of a config node from which an object can be made.

    Args:
        kind: Of the object.
        **ranges: Of its arguments, where they are narrower than its signature says.
    """

    def check(node: dict[str, Any]) -> dict[str, Any]:
        _checked(node, kind, ranges)
        return node

    return Annotated[dict[str, Any], AfterValidator(check)]


@lru_cache(maxsize=1)
def _known() -> frozenset[str]:
    """Whatever the project's own configs name."""
    texts = (file.read_text(encoding="utf-8") for file in CONFIGS.rglob("*.yaml"))
    return frozenset(name for text in texts for name in re.findall(r"^\s*_target_:\s*([\w.]+)", text, re.MULTILINE))


def _found(target: Any) -> Callable[..., Any]:
    """What a name stands for, if configs may name it.

    Raises:
        ValueError: If they may not.
    """
    if isinstance(target, str) and (target in _known() or _OPTIMIZATION.fullmatch(target)):
        with suppress(AttributeError):
            return resolve_name(target)
    raise ValueError(
        f"cannot be made from {target!r:.80}: only what a file below configs/ names is made, and what torch.optim has"
    )


def _checked(
    node: Any, kind: type = object, ranges: Mapping[str, Any] | None = None
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What a node names, and its arguments, those that are nodes themselves not yet made.

    Raises:
        ValueError: What must be otherwise, to be read after the node's name.
    """
    if not isinstance(node, Mapping) or _TARGET not in node:
        raise ValueError(f"must name what is made of it (_target_), got {node!r:.60}")
    target = _found(node[_TARGET])
    signature = inspect.signature(target)
    arguments = {key: value for key, value in node.items() if key not in (_TARGET, _PARTIAL)}
    for key in arguments:
        if key not in signature.parameters:
            raise ValueError(
                f".{key} is no setting of {target.__name__}, which takes {', '.join(signature.parameters)}"
            )
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    made = target if inspect.isclass(target) else hints.get("return", object)
    if not (inspect.isclass(made) and issubclass(made, kind)):
        raise ValueError(f"must make a {kind.__name__}, but {target.__name__} does not")
    for key, value in arguments.items():
        try:
            if _is_node(value):
                _checked(value, hints[key] if inspect.isclass(hints.get(key)) else object)
            else:
                fit((ranges or {}).get(key, hints.get(key, Any)), value)
        except ValueError as error:
            raise ValueError(f".{key}{'' if str(error).startswith(('.', '[')) else ' '}{error}") from error
    missing = [p.name for p in signature.parameters.values() if p.default is p.empty and p.name not in arguments]
    if missing and not node.get(_PARTIAL):
        raise ValueError(f".{missing[0]} is missing")
    return target, arguments


def _made(node: Any, args: tuple[Any, ...] = ()) -> Any:
    target, arguments = _checked(node)
    arguments = {key: _made(value) if _is_node(value) else value for key, value in arguments.items()}
    try:
        return target(*args, **arguments)
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise UserError(f"{node[_TARGET]} cannot be made as configured: {first_line(error)}") from error


def _is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and _TARGET in value
