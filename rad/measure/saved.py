"""A ledger of the bytes that autograd holds for the backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from rad.nn import Converted

__all__ = ["Entry", "Ledger", "saved_bytes"]

OUTSIDE = "(outside any layer)"


@dataclass(frozen=True)
class Entry:
    """One storage that autograd holds.

    Attributes:
        layer: Name of the innermost module whose forward pass first saved it.
        keeps: How it keeps what its gradient needs: a sketch, bits, or exactly; ``""`` outside any module.
        nbytes: Size of the storage in bytes.
        parameter: Whether it is a parameter's, and so would be held anyway.
    """

    layer: str
    keeps: str
    nbytes: int
    parameter: bool


@dataclass(frozen=True)
class Ledger:
    """What autograd holds for a backward pass, each storage once, in the order it was first saved.

    ``str(ledger)`` is a table by layer.
    """

    entries: tuple[Entry, ...]

    @property
    def total(self) -> int:
        """Bytes held besides parameters."""
        return sum(e.nbytes for e in self.entries if not e.parameter)

    @property
    def parameters(self) -> int:
        """Bytes of parameters held; they exist anyway."""
        return sum(e.nbytes for e in self.entries if e.parameter)

    def by_layer(self) -> dict[str, int]:
        """Bytes besides parameters that each layer was the first to save, layers with none included."""
        layers: dict[str, int] = {}
        for e in self.entries:
            layers[e.layer] = layers.get(e.layer, 0) + (0 if e.parameter else e.nbytes)
        return layers

    def __str__(self) -> str:
        keeps = {e.layer: e.keeps for e in self.entries}
        rows = [(layer, keeps[layer], f"{nbytes:,}") for layer, nbytes in self.by_layer().items()]
        rows += [("total", "", f"{self.total:,}"), ("parameters, apart", "", f"{self.parameters:,}")]
        rows.insert(0, ("layer", "keeps", "saved bytes"))
        name, how, size = (max(len(row[i]) for row in rows) for i in range(3))
        lines = [f"{a:<{name}}  {b:<{how}}  {c:>{size}}" for a, b, c in rows]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-2], rule, *lines[-2:]])


def saved_bytes(fn: Callable[[], Tensor]) -> Ledger:
    """Measures what autograd holds for backward after ``fn`` has run.

    Every tensor saved for backward passes through a saved-tensor hook; those still held when ``fn`` has returned are
    counted, each storage once and with all of its bytes (a view holds its whole base). Inside a
    ``torch.utils.checkpoint`` region that is the region's input; what its recomputation holds for a while during the
    backward pass is not included.

    Args:
        fn: Runs a forward pass and returns a tensor that requires grad, such as
            ``lambda: loss_fn(model(x), y)``. No backward pass is run.

    Returns:
        The ledger, by layer: names are relative to the outermost module called.

    Raises:
        ValueError: If ``fn`` does not return a tensor that requires grad.
    """
    watch = _Watch()
    hooks = [
        register_module_forward_pre_hook(watch.enter),
        register_module_forward_hook(watch.leave, always_call=True),
    ]
    try:
        with torch.autograd.graph.saved_tensors_hooks(watch.pack, lambda held: held.tensor):
            out = fn()  # kept until the entries are made: without it the graph would be freed
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(out, Tensor) or not out.requires_grad:
        raise ValueError(f"fn must return the loss, a tensor that requires grad, got {type(out).__name__}")
    return Ledger(watch.entries())


class _Held:
    """Stands in autograd's graph for one saved tensor and lives exactly as long as the graph needs it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _Watch:
    """Collects what is saved, with the module that was running."""

    def __init__(self) -> None:
        self.held: list[tuple[weakref.ref[_Held], nn.Module | None]] = []
        self.running: list[nn.Module] = []
        self.names: dict[nn.Module, str] = {}
        self.parameters: set[int] = set()

    def enter(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():  # a compiled graph saves all at its end
            return
        if module not in self.names:
            self.names.update({m: name or type(m).__name__ for name, m in module.named_modules()})
            self.parameters.update(_storage_id(p) for p in module.parameters())
        self.running.append(module)

    def leave(self, module: nn.Module, args: Any, out: Any) -> None:
        if not torch.compiler.is_compiling():
            self.running.pop()

    def pack(self, tensor: Tensor) -> _Held:
        # An output that is saved comes with its graph; to hold on to that would keep freed parts of it alive.
        held = _Held(tensor if tensor.is_leaf else tensor.detach())
        self.held.append((weakref.ref(held), self.running[-1] if self.running else None))
        return held

    def entries(self) -> tuple[Entry, ...]:
        found: dict[int, Entry] = {}
        for ref, module in self.held:
            held = ref()
            if held is None:  # its part of the graph is gone
                continue
            storage = _storage_id(held.tensor)
            parameter = storage in self.parameters or isinstance(held.tensor, nn.Parameter)
            layer, keeps = (OUTSIDE, "") if module is None else (self.names[module], _keeps(module))
            nbytes = held.tensor.untyped_storage().nbytes()
            found.setdefault(storage, Entry(layer, keeps, nbytes, parameter))
        return tuple(found.values())


def _storage_id(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _keeps(module: nn.Module) -> str:
    return str(module.recipe.sketch) if isinstance(module, Converted) else f"exact ({type(module).__name__})"
