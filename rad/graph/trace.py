"""The linearized graph of an ordinary function, found by running it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rad.graph.graph import Graph
from rad.graph.rules import CONSTANT, Node, Tape, run, unsupported

__all__ = ["Traced", "linearize"]

_NUMPY = {
    "power": "pow",
    "multiply": "mul",
    "subtract": "sub",
    "divide": "div",
    "negative": "neg",
    "absolute": "abs",
    "fabs": "abs",
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "arctan2": "atan2",
    "arcsinh": "asinh",
    "arccosh": "acosh",
    "arctanh": "atanh",
}
_OF_ARRAYS = {"concatenate": "cat", "dot": "matmul"}


def linearize(fn: Callable[..., Any], *inputs: float | Tensor) -> Graph:
    """Runs a function and records the derivative of each elementary operation at the point (§2 of the paper).

    The function may use Python's operators, indexing, control flow, and functions of PyTorch or numpy: elementwise
    ones, sums, products and extremes over axes, products of matrices, and whatever only moves entries. A vertex is one
    scalar; constants have none. Branches are those taken at the point.

    Args:
        fn: Function of scalars and tensors that returns a scalar, a tensor or a tuple of them.
        *inputs: The point: floats or floating-point tensors; computed with in float64.

    Returns:
        The graph. Its inputs are the entries of ``inputs``, its outputs those of the result, in order.

    Raises:
        TypeError: If an input is not of floating point, an operation is not supported or leaves the graph.
        ValueError: If the function is not differentiable at the point, or no path leads from an input to its result.
    """
    tape = Tape()
    traced = [Traced(*tape.enter(x, name), tape) for x, name in zip(inputs, _names(fn, len(inputs)), strict=True)]
    results = fn(*traced)
    found = [r for r in (results if isinstance(results, (tuple, list)) else [results]) if isinstance(r, Traced)]
    if not found:
        raise ValueError(f"the result of {_name(fn)} does not depend on its inputs: no path leads to an output")
    flat = [torch.cat([t.ids[t.ids != CONSTANT] for t in group]).tolist() for group in (traced, found)]
    edges = [np.concatenate([e[i] for e in tape.edges]) if tape.edges else np.empty(0) for i in range(3)]
    return Graph.build(*edges, *flat, labels=tape.labels)


class Traced(Node):
    """What a traced function computes with: behaves as a tensor as far as it can be differentiated."""

    @property
    def shape(self) -> torch.Size:
        """As of a tensor."""
        return self.value.shape

    @property
    def ndim(self) -> int:
        """As of a tensor."""
        return self.value.ndim

    @property
    def dtype(self) -> torch.dtype:
        """As of a tensor."""
        return self.value.dtype

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator[Traced]:
        return iter(run("unbind", torch.unbind, (self,), {}))

    def __repr__(self) -> str:
        return f"Traced({self.value})"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(f"a traced tensor has no attribute {name!r}")
        if name in ("T", "mT"):
            return run(name, lambda t: getattr(t, name), (self,), {})
        return lambda *args, **kwargs: run(name, getattr(Tensor, name), (self, *args), kwargs)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        return run(name.strip("_") if name.startswith("__") else name, func, args, kwargs or {})

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *args: Any, **kwargs: Any) -> Any:
        name = _NUMPY.get(ufunc.__name__, ufunc.__name__)
        func = getattr(torch, name, None) if method == "__call__" else None
        if func is None:
            raise unsupported(f"numpy.{ufunc.__name__}" + ("" if method == "__call__" else f".{method}"))
        # PyTorch's take numbers in most places, but not as one of two to choose from.
        arrays = (np.ndarray, np.generic, float, int) if name in ("maximum", "minimum") else (np.ndarray, np.generic)
        return run(name, func, _constants(args, arrays), kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        name = _OF_ARRAYS.get(own := str(func.__name__), own)
        if (stock := getattr(torch, name, None)) is None:
            raise unsupported(f"numpy.{own}")
        return run(name, stock, _constants(args, np.ndarray), kwargs)

    def _leave(self, *_: Any) -> Any:
        raise TypeError(
            "a traced value cannot become a Python number or an array, which would leave the graph; use functions of "
            "torch or numpy in place of those of math"
        )

    __float__ = __int__ = __index__ = __complex__ = __array__ = __bool__ = _leave


def _constants(args: tuple[Any, ...], kinds: Any) -> tuple[Any, ...]:
    """Arguments with tensors in place of those of some kinds."""
    return tuple(
        torch.as_tensor(a, dtype=torch.float64 if isinstance(a, float) else None) if isinstance(a, kinds) else a
        for a in args
    )


def _operator(name: str, func: Callable[..., Any], swapped: bool = False) -> Callable[..., Any]:
    def method(self: Traced, *others: Any) -> Any:
        others = _constants(others, np.ndarray)
        return run(name, func, (*others, self) if swapped else (self, *others), {})

    return method


for _name_, _func in {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "truediv": torch.div,
    "pow": torch.pow,
    "matmul": torch.matmul,
}.items():
    setattr(Traced, f"__{_name_}__", _operator(_func.__name__, _func))
    setattr(Traced, f"__r{_name_}__", _operator(_func.__name__, _func, swapped=True))
Traced.__neg__ = _operator("neg", torch.neg)  # type: ignore[attr-defined]
Traced.__abs__ = _operator("abs", torch.abs)  # type: ignore[attr-defined]
Traced.__getitem__ = _operator("getitem", lambda t, i: t[i])  # type: ignore[attr-defined]
for _name_ in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Traced, f"__{_name_}__", _operator(_name_, getattr(torch, _name_)))


def _name(fn: Any) -> str:
    return getattr(fn, "__name__", repr(fn))


def _names(fn: Callable[..., Any], count: int) -> list[str]:
    """Names of the first ``count`` positional parameters."""
    try:
        names = [p.name for p in inspect.signature(fn).parameters.values() if p.kind is not p.VAR_POSITIONAL]
    except (TypeError, ValueError):
        names = []
    return (names + [f"x{i + 1}" for i in range(len(names), count)])[:count]
