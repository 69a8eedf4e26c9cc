"""How the calls of a converted module are seen.

Each module of a converted model runs with a ``TorchFunctionMode`` of its own, which knows the module's name and sketch
and answers what the module itself calls; modules inside it answer for themselves. Whatever a call does inside is not
seen again, except for Python functions of ``torch.nn.functional`` without a rule of their own: these are opened.
"""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch._dynamo.eval_frame import skip_code
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from rad.functional import RULES, Assignment, Call, Sharing
from rad.functional.registry import dispatch, name_of
from rad.nn.seeds import Seeds, Split
from rad.sketch import Sketch

__all__ = ["Recipe", "Rules", "watchers"]

# Called with module and function names around every call that a converted module makes; see ``rad.measure``.
watchers: list[Callable[[str, str], None]] = []


@dataclass(frozen=True)
class Recipe:
    """How a converted module forms its gradients.

    Attributes:
        name: The module's name in the model that was converted.
        sketch: The summary that is kept, or which where; ``None`` where everything is left to PyTorch.
        seeds: Of the summaries, shared by all modules of one conversion.
        sharing: Of summaries within one forward pass, likewise.
        held: Ids of tensors that are parameters, where a graph in the making does not show that.
    """

    name: str
    sketch: Sketch | Assignment | None
    seeds: Seeds | Split
    sharing: Sharing
    held: frozenset[int] = frozenset()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.sketch is not None:  # of a model that was converted in another process
            known(self.sketch)

    def call(self, place: str = "") -> Call:
        """A new call, at a place of an assignment."""
        assert self.sketch is not None
        return Call(self.sketch, self.seeds.next, self.sharing, self.held, f"{self.name or '.'} / {place}")


class Rules(TorchFunctionMode):
    """While it is entered, torch functions are answered by the rules of ``rad.functional``.

    Args:
        recipe: Which summaries are kept and whose draws they take.
        within: Place of the call inside which these are answered, if they are.
        whole: Place of the call that the module is as a whole, if it is; see ``rad.nn.elementwise``.
    """

    def __init__(self, recipe: Recipe, within: str = "", whole: str = "") -> None:
        super().__init__()
        self.recipe, self.whole, self._assigned = recipe, whole, isinstance(recipe.sketch, Assignment)
        self._within = f"{whole} / " if whole else within
        self._counts: dict[str, int] = {}

    def begin(self) -> None:
        """Counts the calls from the first, as in each forward pass of the module."""
        self._counts.clear()

    def place(self, function: str) -> str:
        """Which call of a function comes next, for assignments."""
        name = function.rpartition(".")[2]
        count = self._counts.get(name, 0)
        self._counts[name] = count + 1
        return f"{self._within}{name} {count}"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answers a call; see ``TorchFunctionMode``."""
        kwargs, recipe = kwargs or {}, self.recipe
        if torch.compiler.is_dynamo_compiling():
            with torch._C.DisableTorchFunction():
                token = None if recipe.sketch is None else _token(func)
                if token is None:
                    return func(*args, **kwargs)
                # In the graph a parameter is a tensor like others; that it is held anyway has to be said.
                held = [isinstance(t, nn.Parameter) for t in (*args, *kwargs.values())]
                place = self.place(token.partition(" ")[0]) if isinstance(recipe.sketch, Assignment) else ""
                assert recipe.sketch is not None
                where = token, recipe.name, place, key_of(recipe.sketch)
                return traced(*where, held, recipe.seeds.next(), *args, **kwargs)
        if _thread.passing:
            return func(*args, **kwargs)
        if recipe.sketch is None:
            return _unanswered(func, types, args, kwargs)
        # Where the graph breaks the call runs as without compilation, which nothing inside shall be traced for.
        answer = self.answer if get_eval_frame_callback() is None else torch._dynamo.disable(self.answer)
        assigned = self._assigned and (func in RULES or _opens(func))
        place = self.place(name_of(func)) if assigned else ""
        return answer(func, args, kwargs, types, place)  # pyright: ignore

    skip_code(__torch_function__.__code__)  # as the outermost frame; it is traced inside others

    def answer(self, func: Any, args: Any, kwargs: Any, types: Any = (), place: str = "") -> Any:
        """Answers a call by a rule, by those of the functions that it calls, or by itself."""
        recipe = self.recipe
        if func not in RULES and _opens(func) and func not in _thread.opened:
            with _thread.opening(func), Rules(recipe, f"{place} / ") if place else self:
                return opened(func)(*args, **kwargs)
        for watcher in watchers:
            watcher(recipe.name, name_of(func))
        if func not in RULES:
            return _unanswered(func, types, args, kwargs)
        with torch._C.DisableTorchFunction():
            return dispatch(functools.partial(recipe.call, place), func, args, kwargs)


class _Thread(threading.local):
    passing = False  # whether a call is on its way outwards, which no other module is to answer
    # Which functions are being opened: helpers of theirs ask in their name, and are left to PyTorch.
    opened: tuple[Any, ...] = ()

    @contextmanager
    def opening(self, func: Any) -> Iterator[None]:
        before, self.opened = self.opened, (*self.opened, func)
        try:
            yield
        finally:
            self.opened = before


_thread = _Thread()


def _unanswered(func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """A call without a rule: past the modules around, but seen by other modes, ``torch.device`` say, and classes."""
    if not types and all(isinstance(mode, Rules) for mode in _get_current_function_mode_stack()):
        with torch._C.DisableTorchFunction():
            return func(*args, **kwargs)
    _thread.passing = True
    try:
        return func(*args, **kwargs)
    finally:
        _thread.passing = False


_OPENED = {"torch.nn.functional", "torch.functional"}


@functools.cache
def _opens(func: Any) -> bool:
    return isinstance(func, types.FunctionType) and func.__module__ in _OPENED


@functools.cache
def opened(func: types.FunctionType) -> Callable[..., Any]:
    """A Python function of PyTorch's that does not ask whether it is overridden, for it was asked already.

    The functions that it calls ask for themselves.
    """
    blind = {name: _no for name in func.__globals__ if name.startswith("has_torch_function")}
    copy = types.FunctionType(
        func.__code__, {**func.__globals__, **blind}, func.__name__, func.__defaults__, func.__closure__
    )
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _no(*_: Any) -> bool:
    return False


_SKETCHES: dict[str, Sketch | Assignment] = {}
_FUNCTIONS: dict[str, Any] = {}
_SHARING = Sharing()  # of graphs in the making, which forget it as their tensors go
_SHARING.depth = 1


def known(sketch: Sketch | Assignment) -> None:
    """Lets traced calls find the sketch by its description."""
    _SKETCHES.setdefault(key_of(sketch), sketch)


def key_of(sketch: Sketch | Assignment) -> str:
    """All that a sketch is configured by, in one line."""
    return sketch.key if isinstance(sketch, Assignment) else repr(sketch)


@torch._dynamo.assume_constant_result
def _token(func: Any) -> str | None:
    """What a traced graph calls a function that is not left to PyTorch."""
    if func not in RULES and not _opens(func):
        return None
    token = f"{name_of(func)} {id(func):x}"
    _FUNCTIONS[token] = func
    return token


@torch._dynamo.allow_in_graph
def traced(
    function: str, module: str, place: str, sketch: str, held: list[bool], seed: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """A call as one node of a traced graph, whose arguments can be written down; no frame inside is traced."""
    parameters = frozenset(id(t) for t, yes in zip((*args, *kwargs.values()), held, strict=True) if yes)
    recipe = Recipe(module, _SKETCHES[sketch], Split(seed), _SHARING, parameters)
    return Rules(recipe).answer(_FUNCTIONS[function], args, kwargs, place=place)
