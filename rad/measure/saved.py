"""A ledger of the bytes that autograd holds for the backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from rad.functional.keep import listeners
from rad.nn import Converted
from rad.nn.intercept import watchers

__all__ = ["Entry", "Ledger", "saved_bytes", "storage_id"]

OUTSIDE = "(outside any layer)"
_WIDTHS = (38, 24, 20)  # of a table's columns but the last, at most


@dataclass(frozen=True)
class Entry:
    """One storage that autograd holds.

    Attributes:
        layer: Name of the innermost module whose forward pass first saved it.
        operation: The torch function that it called to do so; ``""`` where the module is not converted.
        keeps: How it is kept: by a sketch, in so many bits, or ``"exact"``.
        nbytes: Size of the storage in bytes.
        parameter: Whether it is a parameter's, and so would be held anyway.
        place: Where a plan assigns a sketch to it, else ``""``.
        dtype: Of the tensor first saved of it.
        storage: What tells it from others while it is held.
    """

    layer: str
    operation: str
    keeps: str
    nbytes: int
    parameter: bool
    place: str = ""
    dtype: torch.dtype | None = None
    storage: int = 0


@dataclass(frozen=True)
class Ledger:
    """What autograd holds for a backward pass, each storage once, in the order it was first saved.

    ``str(ledger)`` is a table by module and operation.
    """

    entries: tuple[Entry, ...]

    @property
    def total(self) -> int:
        """Bytes held besides parameters."""
        return sum(e.nbytes for e in self.entries if not e.parameter)

    @property
    def exact(self) -> int:
        """Those among ``total`` that are kept as they are."""
        return sum(e.nbytes for e in self.entries if not e.parameter and e.keeps == "exact")

    @property
    def parameters(self) -> int:
        """Bytes of parameters held; they exist anyway."""
        return sum(e.nbytes for e in self.entries if e.parameter)

    def by_layer(self) -> dict[str, int]:
        """Bytes besides parameters that each layer was the first to save, layers with none included."""
        return {key[0]: nbytes for key, nbytes in self._sums(lambda e: (e.layer,)).items()}

    def summary(self) -> str:
        """One line: the bytes, how many of them are exact, and which operations keep most of those."""
        share = f"{self.total:,} bytes held for the backward pass, {self.exact / max(self.total, 1):.0%} of them exact"
        exact = Ledger(tuple(e for e in self.entries if e.keeps == "exact"))._sums(lambda e: (_short(e),))
        most = sorted(((n, name) for (name,), n in exact.items() if n), reverse=True)[:3]
        return share + (f", most by {', '.join(name for _, name in most)}" if most else "")

    def __str__(self) -> str:
        sums = self._sums(lambda e: (e.layer, _short(e) if e.operation else "", e.keeps))
        rows = [("module", "operation", "keeps", "saved bytes")]
        rows += [(*key, f"{nbytes:,}") for key, nbytes in sums.items() if nbytes]
        share = f"{self.exact / max(self.total, 1):.1%}"
        rows += [
            ("total", "", "", f"{self.total:,}"),
            ("exact", "", share, f"{self.exact:,}"),
            ("parameters, apart", "", "", f"{self.parameters:,}"),
        ]
        rows = [(*(_cut(cell, width) for cell, width in zip(row, _WIDTHS, strict=False)), row[-1]) for row in rows]
        name, operation, keeps, size = (max(len(row[i]) for row in rows) for i in range(4))
        lines = [f"{a:<{name}}  {b:<{operation}}  {c:<{keeps}}  {d:>{size}}" for a, b, c, d in rows]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-3], rule, *lines[-3:]])

    def _sums(self, key: Callable[[Entry], tuple[str, ...]]) -> dict[tuple[str, ...], int]:
        sums: dict[tuple[str, ...], int] = {}
        for e in self.entries:
            sums[key(e)] = sums.get(key(e), 0) + (0 if e.parameter else e.nbytes)
        return sums


def _short(entry: Entry) -> str:
    """The operation's own name, or that of the module where it is not known."""
    return entry.operation.rpartition(".")[2] or entry.layer


def _cut(text: str, width: int) -> str:
    """The end of a text that is too long, which tells names apart."""
    return text if len(text) <= width else "…" + text[1 - width :]


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
    watchers.append(watch.called)
    listeners.append(watch.keeps)
    try:
        with torch.autograd.graph.saved_tensors_hooks(watch.pack, lambda held: held.tensor):
            out = fn()  # kept until the entries are made: without it the graph would be freed
    finally:
        watchers.remove(watch.called)
        listeners.remove(watch.keeps)
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
        self.held: list[tuple[weakref.ref[_Held], nn.Module | None, str]] = []
        self.operation = ""
        self.kept: dict[int, tuple[str, str]] = {}  # how and in which place of a plan, by storage
        self.running: list[nn.Module] = []
        self.names: dict[nn.Module, str] = {}
        self.parameters: set[int] = set()

    def enter(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():  # a compiled graph saves all at its end
            return
        if module not in self.names:
            self.names.update({m: name or type(m).__name__ for name, m in module.named_modules()})
            self.parameters.update(storage_id(p) for p in module.parameters())
        self.running.append(module)

    def leave(self, module: nn.Module, args: Any, out: Any) -> None:
        if not torch.compiler.is_compiling():
            self.running.pop()

    def called(self, module: str, operation: str) -> None:
        self.operation = operation

    def keeps(self, how: str, tensors: list[Tensor], place: str) -> None:
        self.kept.update({storage_id(t): (how, place) for t in tensors})

    def pack(self, tensor: Tensor) -> _Held:
        # An output that is saved comes with its graph; to hold on to that would keep freed parts of it alive.
        held = _Held(tensor if tensor.is_leaf else tensor.detach())
        module = self.running[-1] if self.running else None
        self.held.append((weakref.ref(held), module, self.operation if isinstance(module, Converted) else ""))
        return held

    def entries(self) -> tuple[Entry, ...]:
        found: dict[int, Entry] = {}
        for ref, module, operation in self.held:
            held = ref()
            if held is None:  # its part of the graph is gone
                continue
            storage = storage_id(held.tensor)
            parameter = storage in self.parameters or isinstance(held.tensor, nn.Parameter)
            layer = OUTSIDE if module is None else self.names[module]
            keeps, place = self.kept.get(storage, ("exact", ""))
            nbytes = held.tensor.untyped_storage().nbytes()
            dtype = held.tensor.dtype
            found.setdefault(storage, Entry(layer, operation, keeps, nbytes, parameter, place, dtype, storage))
        return tuple(found.values())


def storage_id(tensor: Tensor) -> int:
    """What tells the storage of a tensor from all others that exist."""
    return tensor.untyped_storage()._cdata
