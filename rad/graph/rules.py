"""How each operation of a traced function is linearized."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["CONSTANT", "Node", "Tape", "run", "unsupported"]

# Each entry of the result depends on the entries of the operands at the same place.
ELEMENTWISE = set(
    "add sub rsub mul div true_divide pow neg abs exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal sin "
    "cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh sigmoid relu softplus silu gelu erf maximum minimum "
    "clamp where".split()
)
# Each entry of the operand has part in one entry of the result.
REDUCTIONS = set("sum mean prod amax amin logsumexp".split())
PRODUCTS = set("matmul mm mv dot inner".split())
# Entries change their places, their values do not.
MOVES = set(
    "getitem reshape view flatten ravel squeeze unsqueeze transpose permute t swapaxes movedim stack cat hstack vstack "
    "unbind split chunk flip roll expand expand_as broadcast_to diagonal clone T mT".split()
)
CONSTANT = -1  # in place of the vertex of an entry that depends on no input


class Node:
    """A tensor on its way through a function: values, and the vertex of each entry."""

    def __init__(self, value: Tensor, ids: Tensor, tape: Tape) -> None:
        self.value, self.ids, self.tape = value, ids, tape

    def like(self, value: Tensor, ids: Tensor) -> Node:
        """Another one on the same tape."""
        return type(self)(value, ids, self.tape)


class Tape:
    """Vertices and edges in the order of the computation."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.edges: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def enter(self, x: float | Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Value and vertices of an independent variable."""
        whole = x.dtype if isinstance(x, Tensor) else type(x).__name__
        if not (isinstance(x, (float, np.floating)) or isinstance(x, Tensor) and x.is_floating_point()):
            raise TypeError(f"input {name} must be a float or a floating-point tensor, got {whole} {x!r}")
        value = torch.as_tensor(x, dtype=torch.float64).detach()
        return value, self.vertices(value.shape, name)

    def vertices(self, shape: torch.Size, label: str) -> Tensor:
        """New vertices, int64 of a shape."""
        first, count = len(self.labels), shape.numel()
        self.labels += [label] if shape == () else [f"{label}{list(i)}" for i in np.ndindex(*shape)]
        return torch.arange(first, first + count).view(shape)

    def record(self, name: str, source: Tensor, target: Tensor, derivative: Tensor) -> None:
        """Edges of one operand, all three of a common shape; entries that are constants have none."""
        if not bool(torch.isfinite(derivative).all()):
            raise ValueError(f"{name} is not differentiable at this point: a derivative is not finite")
        source, target, derivative = (t[source != CONSTANT] for t in (source, target, derivative))
        self.edges.append((source.numpy(), target.numpy(), derivative.numpy()))


def run(name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs an operation on values and records its edges.

    Args:
        name: Of the operation, as PyTorch calls it.
        func: Computes it on tensors.
        args: Its arguments, at least one of them a ``Node`` or a list with one.
        kwargs: Further ones, none of them a ``Node``.

    Returns:
        Nodes of the type of those given; of a comparison a plain tensor.
    """
    if name == "max" or name == "min":  # of two tensors, or over all entries
        name = f"{name}imum" if len(args) > 1 and isinstance(args[1], (Node, Tensor)) else f"a{name}"
        func = getattr(torch, name)
    if name == "linear":
        return _linear(*args, **kwargs)
    if name in ("lt", "le", "gt", "ge", "eq", "ne"):
        a, b = (_value(x) for x in args)
        if name not in ("eq", "ne") and bool((torch.as_tensor(a) == b).any()):
            raise ValueError(f"{name} compares equal values: the branch changes at this point, where nothing is smooth")
        return func(a, b)
    first = next(_traced(args), None)
    if first is None or "out" in kwargs:
        raise unsupported(f"{name} with tensors as keywords")
    if name in MOVES:
        values, ids = func(*_values(args), **kwargs), func(*_vertices(args), **kwargs)
        if isinstance(values, Tensor):
            return first.like(values, ids)
        return tuple(first.like(v, i) for v, i in zip(values, ids, strict=True))
    if name in ELEMENTWISE:
        return _elementwise(name, func, args, kwargs)
    if name in REDUCTIONS:
        return _reduction(name, func, args, kwargs)
    if name in PRODUCTS and not kwargs:
        return _product(name, func, *args)
    raise unsupported(name)


def _elementwise(name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
    shape = torch.broadcast_shapes(*(_value(a).shape for a in args if isinstance(a, (Node, Tensor))))
    leaves = [_value(a).expand(shape).clone().requires_grad_() if isinstance(a, Node) else a for a in args]
    _check_kinks(name, [_value(a) for a in args], kwargs)
    value = func(*leaves, **kwargs)
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} is not differentiable at this point: its value is not finite")
    operands = [(a, leaf) for a, leaf in zip(args, leaves, strict=True) if isinstance(a, Node)]
    slopes = torch.autograd.grad(value.sum(), [leaf for _, leaf in operands])
    tape = operands[0][0].tape
    ids = tape.vertices(shape, name)
    for (operand, _), slope in zip(operands, slopes, strict=True):
        tape.record(name, operand.ids.expand(shape), ids, slope)
    return operands[0][0].like(value.detach(), ids)


def _reduction(name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
    x, *rest = args
    leaf = x.value.clone().requires_grad_()
    axes = kwargs.get("dim", kwargs.get("axis", rest[0] if rest else None))
    if axes is None and name in ("amax", "amin", "logsumexp"):
        kwargs = {"dim": tuple(range(leaf.ndim))}
    value = func(leaf, *rest, **kwargs)
    if name in ("amax", "amin") and leaf.numel() and bool(((leaf == _kept(func, leaf, axes)).sum(axes) > 1).any()):
        raise ValueError(f"{name} is not differentiable at this point: the extreme value occurs twice")
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    ids = x.tape.vertices(value.shape, name)
    kept = leaf.detach().sum(axes, keepdim=True).shape if axes is not None else (1,) * leaf.ndim
    x.tape.record(name, x.ids, ids.view(kept).expand(leaf.shape), slope)
    return x.like(value.detach(), ids)


def _kept(func: Callable[..., Any], x: Tensor, axes: Any) -> Tensor:
    return func(x.detach(), dim=tuple(range(x.ndim)) if axes is None else axes, keepdim=True)


def _product(name: str, func: Callable[..., Any], a: Any, b: Any) -> Node:
    """A product of matrices, one vertex for each entry of the result."""
    first = next(_traced((a, b)))
    tape = first.tape
    x, y = (_value(t).to(torch.float64) for t in (a, b))
    value = func(x, y)
    ids = tape.vertices(value.shape, "matmul")
    rows, columns = (x[None] if x.ndim == 1 else x), (y[:, None] if y.ndim == 1 else y)
    if name == "inner" and y.ndim > 1:
        columns = y.mT
    # [..., i, j, k]: entry (i, j) of the result is a sum over k.
    rows, columns = rows[..., :, None, :], columns.mT[..., None, :, :]
    shape = torch.broadcast_shapes(rows.shape, columns.shape)
    target = ids.view(*shape[:-1], 1).expand(shape)
    if isinstance(a, Node):
        source = (a.ids[None] if x.ndim == 1 else a.ids)[..., :, None, :]
        tape.record(name, source.expand(shape), target, columns.expand(shape))
    if isinstance(b, Node):
        source = b.ids[:, None] if y.ndim == 1 else b.ids.mT if name == "inner" else b.ids
        tape.record(name, source.mT[..., None, :, :].expand(shape), target, rows.expand(shape))
    return first.like(value, ids)


def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    product = x @ weight.T
    return product if bias is None else product + bias


def _check_kinks(name: str, values: list[Any], kwargs: dict[str, Any]) -> None:
    """Refuses points where PyTorch would choose one of several slopes."""
    x = values[0]
    if name in ("relu", "abs"):
        kink, where = x == 0, "at 0"
    elif name in ("maximum", "minimum"):
        kink, where = x == values[1], "where both values are equal"
    elif name == "clamp":
        bounds = [*values[1:], kwargs.get("min"), kwargs.get("max")]
        kink, where = sum((x == b for b in bounds if b is not None), torch.zeros(())), "at its bounds"
    else:
        return
    if bool(torch.as_tensor(kink).any()):
        raise ValueError(f"{name} is not differentiable {where}; choose another point")


def _traced(args: Any) -> Iterator[Node]:
    for a in args:
        if isinstance(a, Node):
            yield a
        elif isinstance(a, (tuple, list)):
            yield from _traced(a)


def _values(args: Any) -> Any:
    """Arguments with values in place of what is traced."""
    return type(args)(_values(a) if isinstance(a, (tuple, list)) else _value(a) for a in args)


def _vertices(args: Any, nested: bool = False) -> Any:
    """Arguments with vertices in place of values, also of constants that are joined with what is traced."""
    joined = nested and any(isinstance(a, Node) for a in args)

    def pick(a: Any) -> Any:
        if isinstance(a, (tuple, list)):
            return _vertices(a, nested=True)
        if isinstance(a, Node):
            return a.ids
        return torch.full(a.shape, CONSTANT) if joined else a

    return type(args)(pick(a) for a in args)


def _value(x: Any) -> Any:
    return x.value if isinstance(x, Node) else x


def unsupported(name: str) -> TypeError:
    """The error for an operation without a rule."""
    known = ", ".join(sorted(ELEMENTWISE | REDUCTIONS | PRODUCTS))
    return TypeError(f"{name} is not supported in a traced function; there are {known}, and what only moves entries")
