"""Converting a model in place to memory-cheap gradients, and back."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from rad.functional import Assignment, Sharing
from rad.nn.activations import answered, place_of
from rad.nn.intercept import Recipe, Rules, known
from rad.nn.seeds import Seeds
from rad.sketch import Sketch

__all__ = ["Converted", "convert", "revert", "seeds"]

_RULES = "_rad_rules"  # in the __dict__ of a converted module


class Converted(nn.Module):
    """What a converted module is besides the stock one; a mixin before the stock class."""

    @property
    def recipe(self) -> Recipe:
        """Name, sketch and seeds given by ``convert``."""
        return self.__dict__[_RULES].recipe

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The stock forward pass, whose calls are answered by ``rad.functional``."""
        if not torch.is_grad_enabled():  # PyTorch's fast paths, whose values are others, ask whether anybody looks on
            return super().forward(*args, **kwargs)
        rules = self.__dict__[_RULES]
        rules.begin()
        if torch.compiler.is_compiling():
            with rules:
                return super().forward(*args, **kwargs)
        if rules.whole:
            out = answered(rules, super().forward, args, kwargs)
            if out is not NotImplemented:
                return out
        with rules.recipe.sharing, rules:
            return super().forward(*args, **kwargs)

    def extra_repr(self) -> str:
        """The stock description and, for a module without others inside, what is kept."""
        described = super().extra_repr()
        if any(True for _ in self.children()):
            return described
        sketch = self.recipe.sketch
        keeps = "as planned" if isinstance(sketch, Assignment) else sketch
        return ", ".join(filter(None, (described, "exact" if sketch is None else f"keeps {keeps}")))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made as needed, so a copy or a pickle names the stock one.
        _, args, *rest = super().__reduce_ex__(2)
        return (_new, (_stock(type(self)), *args[1:]), *rest)


def _new(stock: type[nn.Module], *args: Any) -> nn.Module:
    cls = converted_class(stock)
    return cls.__new__(cls, *args)


@functools.cache
def converted_class(stock: type[nn.Module]) -> type[nn.Module]:
    """The class of converted modules of the type ``stock``: a subclass by the same name, called in the same way."""
    names = {"__module__": stock.__module__, "__qualname__": stock.__qualname__, "__doc__": stock.__doc__}
    named: dict[str, Any] = {**names, "forward": _described(stock.forward)}
    if any(getattr(stock, how, None) is not getattr(object, how, None) for how in _COPYING):
        named |= {"__deepcopy__": _deepcopied, "__reduce_ex__": _reduced}
    return type(stock.__name__, (Converted, stock), named)


def _described(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward pass of a converted module, with the signature and documentation of the stock one."""
    own = Converted.forward
    copied = FunctionType(own.__code__, own.__globals__, closure=own.__closure__)
    return functools.update_wrapper(copied, forward, updated=())  # without the marks that compilers leave on it


_COPYING = ("__deepcopy__", "__reduce_ex__", "__reduce__")


@contextmanager
def _as_stock(module: nn.Module) -> Iterator[None]:
    """Within it a converted module is of its stock class, which knows how it is copied."""
    cls = type(module)
    module.__class__ = _stock(cls)
    try:
        yield
    finally:
        module.__class__ = cls


def _deepcopied(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
    with _as_stock(self):
        copied = copy.deepcopy(self, memo)
    return _again(copy.deepcopy(self.__dict__[_RULES], memo), lambda: copied)


def _reduced(self: nn.Module, protocol: Any) -> Any:
    with _as_stock(self):
        make, args, *rest = self.__reduce_ex__(protocol)
    return (_again, (self.__dict__[_RULES], make, *args), *rest)


def _again(rules: Rules, make: Callable[..., nn.Module], *args: Any) -> nn.Module:
    module = make(*args)
    module.__dict__[_RULES] = rules
    module.__class__ = converted_class(type(module))
    return module


def _stock(cls: type[nn.Module]) -> type[nn.Module]:
    """The type of a module before it was converted, with what has been put before that since."""
    if not issubclass(cls, Converted):
        return cls
    if cls.__bases__[0] is Converted:
        return cls.__bases__[1]
    # Parametrizations and FSDP derive a class from whatever a module's is.
    names = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(cls.__name__, tuple(_stock(base) for base in cls.__bases__), names)


def convert(
    model: nn.Module,
    sketch: Sketch | Assignment | Mapping[str, Sketch],
    skip: Iterable[str] = (),
    generator: torch.Generator | Seeds | None = None,
) -> nn.Module:
    """Makes a model keep random summaries of what its gradients need in place of the tensors themselves.

    The model is changed in place: parameters, ``state_dict`` keys, hooks, forward values and what is drawn from the
    global generator stay what they were, only the gradients become random, unbiased estimates. Every torch function
    that a module calls in its forward pass is seen, as a module of its own (``nn.GELU``), by name (``F.gelu(x)``) or as
    an operator (``x * y``). Those without a rule stay exact; ``rad.measure.saved_bytes`` names them. Modules that are
    declared by ``rad.nn.elementwise`` are one operation each. A model converted before is converted anew.

    Args:
        model: Any module; a loss such as ``nn.CrossEntropyLoss()`` as well.
        sketch: The summary to keep; ``Exact()`` gives exact gradients. Or a mapping from names, as in
            ``model.named_modules()``, to sketches: a module has that of the longest name which it or a module around it
            bears, and is left alone where there is none.
        skip: Names of modules to leave as they are with all they contain.
        generator: Where the seeds of the summaries come from: ``rad.nn.Seeds``, whose state is checkpointed to resume
            a run, or a generator from which they start. By default they start from the seed of the global generator,
            which is not touched, each conversion elsewhere; see ``rad.nn.Seeds``. ``rad.nn.seeds(model)`` returns them.

    Returns:
        ``model`` itself.

    Raises:
        TypeError: If ``model`` is not a module or ``sketch`` neither a ``Sketch`` nor a mapping to sketches.
        ValueError: If a name is unknown, nothing is left to convert, a plan is for another model or a module is lazy
            and has seen no batch yet. Whatever is raised, the model is as it was.
    """
    check_module(model)
    names = dict(model.named_modules(remove_duplicate=False))
    for name, module in names.items():
        if isinstance(module, LazyModuleMixin) and module.cls_to_become is not None:
            raise ValueError(
                f"{name or 'the model'} is a {type(module).__name__}, which is of another class after its first call; "
                "run one batch through the model, then convert it"
            )
    if isinstance(sketch, Assignment):
        sketch.check(model)
    chosen = _plan(names, sketch, skip)
    if not any(chosen.values()):
        raise ValueError(f"nothing to convert: skip={tuple(_names(skip))} and the names of sketch leave no module")
    plain = {m: _stock(type(m)) for m in names.values() if not isinstance(m, torch.jit.ScriptModule)}
    kinds = {module: converted_class(cls) for module, cls in plain.items()}
    numbers, sharing = generator if isinstance(generator, Seeds) else Seeds(generator), Sharing()
    for name, module in names.items():  # nothing is refused from here on
        if module not in plain:
            continue
        module.__class__, few = plain.pop(module), chosen[name]
        if few is not None:
            known(few)
        whole = "" if few is None else place_of(module)
        module.__dict__[_RULES] = Rules(Recipe(name, few, numbers, sharing), whole=whole)
        module.__class__ = kinds[module]
    return model


def revert(model: nn.Module) -> nn.Module:
    """Undoes ``convert`` in place.

    Args:
        model: A converted module; anything not converted in it is left alone.

    Returns:
        ``model`` itself.

    Raises:
        TypeError: If ``model`` is not a module.
    """
    check_module(model)
    for module in model.modules():
        module.__dict__.pop(_RULES, None)
        module.__class__ = _stock(type(module))
    return model


@contextmanager
def for_a_while(
    model: nn.Module, sketch: Sketch | Assignment, skip: Iterable[str] = (), generator: Seeds | None = None
) -> Iterator[None]:
    """Within it the model is converted; afterwards it is what it was, be that plain or converted."""
    before = [(module, type(module), module.__dict__.get(_RULES)) for module in model.modules()]
    try:
        convert(model, sketch, skip, generator)
        yield
    finally:
        for module, cls, rules in before:
            module.__dict__.pop(_RULES, None)
            module.__class__ = cls
            if rules is not None:
                module.__dict__[_RULES] = rules


def seeds(model: nn.Module) -> Seeds:
    """The seeds that the modules of a converted model take.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If no module of it is converted.
    """
    check_module(model)
    for module in model.modules():
        if isinstance(module, Converted):
            return module.recipe.seeds  # pyright: ignore
    raise ValueError(f"this {type(model).__name__} is not converted; rad.convert(model, sketch) does so")


def check_module(model: Any) -> None:
    """Refuses a model that is no module.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}; wrap a function in a module")


def _plan(names: dict[str, nn.Module], sketch: Any, skip: Iterable[str]) -> dict[str, Sketch | Assignment | None]:
    """The sketch of each module, by name."""
    given = dict(sketch) if isinstance(sketch, Mapping) else {"": sketch}
    for few in given.values():
        if not isinstance(few, Sketch) and not isinstance(sketch, Assignment):
            raise TypeError(
                "sketch must be a Sketch such as rad.Rounding(budget=0.1), or a mapping from names to sketches, "
                f"got {few!r}"
            )
    left = _names(skip)
    for what, some in (("skip", left), ("sketch", given)):
        for name in some:
            if name not in names:
                raise ValueError(f"{what} names {name!r}, but the model has only {', '.join(filter(None, names))}")
    plan = {**given, **dict.fromkeys(left)}
    found: dict[str, Sketch | Assignment | None] = {}
    for name in names:
        around = name
        while around not in plan and around:
            around = around.rpartition(".")[0]
        found[name] = plan.get(around)
    # A module known by several names is left alone if one of them says so.
    skipped = {names[name] for name, few in found.items() if few is None}
    return {name: None if names[name] in skipped else few for name, few in found.items()}


def _names(skip: Iterable[str]) -> tuple[str, ...]:
    return (skip,) if isinstance(skip, str) else tuple(skip)
