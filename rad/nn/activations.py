"""Modules whose whole forward pass is one elementwise function: answered as one operation, with one summary.

An activation that is written as a chain of products, powers and ``tanh`` would keep a summary for each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback

from rad.functional.operation import differentiable
from rad.functional.slopes import in_one_pass
from rad.functional.whole import at_once
from rad.nn.intercept import Rules, watchers

__all__ = ["answered", "elementwise", "place_of"]

M = TypeVar("M", bound=nn.Module)

_DECLARED: set[type[nn.Module]] = set()

# By name, so that nothing has to be imported; those that are, or can be told to be, several operations.
_TRANSFORMERS = (
    "AccurateGELUActivation ClippedGELUActivation FastGELUActivation GELUActivation GELUTanh LaplaceActivation "
    "MishActivation NewGELUActivation QuickGELUActivation ReLUSquaredActivation SqrtSoftplusActivation"
)
_KNOWN = {f"transformers.activations.{name}" for name in _TRANSFORMERS.split()}
_KNOWN |= {"timm.layers.activations.Mish", "timm.layers.activations.QuickGELU"}
# Forward passes without a choice, and the derivative where that is one for which PyTorch has a kernel.
_SLOPES = {
    f"transformers.activations.{name}Activation.forward": in_one_pass(F.gelu, approximate="tanh")
    for name in ("FastGELU", "NewGELU")
}


def elementwise(*classes: type[M]) -> type[M]:
    """Declares classes of modules to be elementwise, for models that are converted afterwards; a decorator as well.

    The forward pass of such a module applies one function of numbers to each element of its one argument. Converted, it
    keeps one summary of that function's derivative, however many operations it is made of::

        @rad.nn.elementwise
        class Swish(nn.Module):
            def forward(self, x):
                return x * torch.sigmoid(x)

    That it is so cannot be seen from outside: who declares it promises it, and that it draws no random numbers, leaves
    its argument as it is and depends on no other tensor that needs a gradient. It runs a second time, on pieces, for
    the derivative. The activations of ``transformers`` are known. Subclasses are elementwise as long as they leave
    ``forward`` as it is.

    Each operation is answered for itself, as without a declaration, where a module has parameters, is given anything
    but one plain tensor, or returns no real tensor of that shape; and under ``torch.compile``, where a plan gives to
    each what it has for the whole.

    Args:
        classes: Subclasses of ``nn.Module`` with a forward pass.

    Returns:
        The first of them.

    Raises:
        TypeError: If one is anything else, or there is none.
    """
    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)) or cls.forward is nn.Module.forward:
            raise TypeError(
                f"classes must be subclasses of torch.nn.Module with a forward pass, got {cls!r}; "
                "a function gets a rule by rad.rule"
            )
    if not classes:
        raise TypeError("classes must name at least one module class; as a decorator write @rad.nn.elementwise alone")
    _DECLARED.update(classes)
    return classes[0]


def place_of(module: nn.Module) -> str:
    """The place of the one call that a module is as a whole; ``""`` where it is several."""
    cls = type(module)
    said = [b for b in cls.__mro__ if b in _DECLARED or f"{b.__module__}.{b.__qualname__}" in _KNOWN]
    whole = any(cls.forward is base.forward for base in said) and next(module.parameters(), None) is None
    return f"{cls.__name__} 0" if whole else ""


def answered(rules: Rules, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The forward pass of such a module as one operation; ``NotImplemented`` where each is answered for itself."""
    x = args[0] if len(args) == 1 and not kwargs else None
    if not isinstance(x, Tensor) or type(x) not in (Tensor, nn.Parameter) or not differentiable(x):
        return NotImplemented
    # Where graphs are compiled around it, and inside of another module that is answered as a whole.
    if get_eval_frame_callback() is not None or torch._C._is_torch_function_all_disabled():
        return NotImplemented
    for watcher in watchers:
        watcher(rules.recipe.name, rules.whole.partition(" ")[0])
    with torch._C.DisableTorchFunction():
        slope = _SLOPES.get(f"{forward.__module__}.{forward.__qualname__}")
        return at_once(rules.recipe.call(rules.whole), forward, x, slope)
