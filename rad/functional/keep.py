"""What an operation keeps for its backward pass, and how it finds it there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rad.functional.assignment import Assignment
from rad.functional.sharing import Sharing
from rad.functional.summary import Summary
from rad.sketch import Compressed, Exact, Sketch, normalized, tracing

__all__ = ["Call", "Handle", "Keep", "Kept", "Summary"]

# What is not larger than this is kept as it is: a summary with its seed and ranges would hardly be smaller.
_SMALL = 256
_EXACT = Exact()

# Called with how something is kept, "exact", "1 bit" or a sketch, its tensors, its place or ""; see ``rad.measure``.
listeners: list[Callable[[str, list[Tensor], str], None]] = []


class Call:
    """One call of a torch function inside a converted module.

    Attributes:
        sketch: The summary to keep; of an assignment, the one by which rules decide what they keep at all.
        seed: Returns a seed that no other summary uses, int64 scalar on the CPU.
        sharing: Summaries made by earlier calls of the same forward pass, if they may be used again.
        held: Ids of tensors that are held whatever is kept, besides those that are leaves.
        serves_factors: Whether the sketch serves factors inside a path, and not only its end.
        differentiable: Whether gradients are formed so that they can be differentiated by the estimates.
    """

    def __init__(
        self,
        sketch: Sketch | Assignment,
        seed: Callable[[], Tensor],
        sharing: Sharing | None = None,
        held: frozenset[int] = frozenset(),
        place: str = "",
    ) -> None:
        self._assigned = assigned = sketch if isinstance(sketch, Assignment) else None
        self.sketch: Sketch = sketch if assigned is None else assigned.sketch  # pyright: ignore
        self.seed, self.sharing, self.held, self._place = seed, sharing, held, place
        self.serves_factors = self.sketch.serves_factors and not self.sketch.exact
        self.differentiable = assigned is not None and assigned.differentiable
        self.cast: Callable[[Tensor], Tensor] = _same  # what autocast does to the operands before they are kept
        self._unnamed = 0

    def place(self, role: str | None) -> str:
        """By which an assignment knows what is kept next.

        Args:
            role: What it is, for tensors that are kept in like manner and in varying number; by default one of its own.
        """
        if self._assigned is None:
            return ""
        if role is None:
            role, self._unnamed = str(self._unnamed), self._unnamed + 1
        return f"{self._place} / {role}"

    def at(self, place: str, last: bool = False) -> Sketch:
        """The sketch of a place; see ``Assignment``."""
        return self.sketch if self._assigned is None else self._assigned.at(place, last)


def _same(tensor: Tensor) -> Tensor:
    return tensor


class Handle(int):
    """A place among what an operation keeps."""


class Keep:
    """What an operation keeps for its backward pass; given to it as its first argument."""

    def __init__(self, call: Call, tensors: Sequence[Tensor], wanted: Sequence[bool], leaves: Sequence[bool]) -> None:
        self._call, self._wanted, self._leaves = call, wanted, leaves
        self._places = {id(t): i for i, t in enumerate(tensors)}  # whoever calls holds them
        self.fresh: list[Tensor] = []  # kept tensors that are not inputs
        self.items: list[tuple[Any, list[int]]] = []  # how to read each handle; places: ≥ 0 inputs, < 0 fresh
        self.saved: list[int] = []  # these places, each once
        self.dirty: list[Tensor] = []
        self._casts: dict[int, Tensor] = {}  # of arguments, by place

    @property
    def sketch(self) -> Sketch:
        """The sketch of this call."""
        return self._call.sketch

    @property
    def serves_factors(self) -> bool:
        """Whether it serves factors inside a path; see ``Call``."""
        return self._call.serves_factors

    def cast(self, tensor: Tensor) -> Tensor:
        """What autocast makes of a tensor, of an argument once for all that ask."""
        place = self._places.get(id(tensor))
        if place is None:
            return self._call.cast(tensor)
        if place not in self._casts:
            self._casts[place] = self._call.cast(tensor)
        return self._casts[place]

    def wants(self, tensor: Tensor | None) -> bool:
        """Whether a gradient of this argument is asked for."""
        return tensor is not None and (place := self._places.get(id(tensor))) is not None and self._wanted[place]

    def is_leaf(self, tensor: Tensor) -> bool:
        """Whether this argument is a parameter or a leaf like one, which is held whatever we keep."""
        return (place := self._places.get(id(tensor))) is not None and self._leaves[place]

    def overwrites(self, tensor: Tensor) -> None:
        """Says that this argument is changed in place."""
        self.dirty.append(tensor)

    def exact(self, tensor: Tensor | None, wanted: bool = True) -> Handle | None:
        """Keeps a tensor as it is, if it is wanted; an argument costs nothing that is held anyway."""
        return None if tensor is None or not wanted else self._add(None, [tensor])

    def bits(self, mask: Tensor, bits: int = 1) -> Handle:
        """Keeps small non-negative integers, or whether values are not zero, in so many bits each; exactly."""
        return self.packed(tracing.pack(mask, bits), mask.shape, bits)

    def packed(self, packed: Tensor, shape: torch.Size, bits: int = 1) -> Handle:
        """Keeps integers that were packed already."""
        return self._add((bits, shape), [packed])

    def end(
        self,
        tensor: Tensor,
        weight: Tensor,
        features: int | None = None,
        stack: bool = False,
        role: str | None = None,
    ) -> Handle | None:
        """Keeps a summary of what multiplies the gradient into that of ``weight``, if there is one to come.

        A parameter's gradient is the end of its paths, so all operations that are given this tensor share one draw.

        Args:
            tensor: What to summarize.
            weight: The operand whose gradient it forms.
            features: Columns of the matrix to summarize, by default the size of the last dimension.
            stack: Whether ``tensor`` is a stack ``[m, n, d]`` of matrices with a draw each.
            role: See ``factor``.
        """
        if not self.wants(weight):
            return None
        return self._sketch(tensor, features, stack, role, last=self.is_leaf(weight))

    def factor(
        self, tensor: Tensor, wanted: bool = True, features: int | None = None, role: str | None = None
    ) -> Handle | None:
        """Keeps a summary, with a draw of its own, of a factor that paths go through: of a derivative, say.

        The tensor itself is kept where it is a parameter or another leaf, which is held anyway, where the sketch does
        not serve factors, and where nothing would be saved.

        Args:
            tensor: What to summarize.
            wanted: Whether to keep it at all.
            features: Columns of the matrix to summarize, by default the size of the last dimension.
            role: What it is, where an operation keeps several alike: these have one sketch, with a draw each.
        """
        if not wanted:
            return None
        if self.is_leaf(tensor) or not self.serves_factors:
            return self.exact(tensor)
        if tensor.nbytes <= _SMALL:
            self._call.place(role)  # of others the names are those of any size
            return self.exact(tensor)
        return self._sketch(tensor, features, False, role, last=False)

    def normalized(
        self, tensor: Tensor, norm: tuple[Tensor | None, Tensor, int], features: int, dense: Callable[[], Tensor]
    ) -> Handle | None:
        """Keeps ``factor(dense())``, which is ``(tensor − mean) · scale``, without forming it where there are loops."""
        call, role = self._call, "normalized"  # by whichever way it is kept
        if self.serves_factors and tensor.numel() * norm[1].element_size() > _SMALL:
            sketch = call.at(place := call.place(role))
            compressed = normalized.compress(sketch, tensor, norm, features, call.seed)
            if compressed is not None:
                tensors, layout = compressed.split()
                return self._add((sketch, layout, tensor.shape), list(tensors), place)
        return self.factor(dense(), features=features, role=role)

    def _sketch(self, tensor: Tensor, features: int | None, stack: bool, role: str | None, last: bool) -> Handle:
        if features is None:
            features = tensor.shape[-1] if tensor.dim() else 1
        matrix = tuple(tensor.shape) if stack else (tensor.numel() // max(features, 1), features)
        call, own = self._call, self._call.place(role)

        given = self.cast(tensor)

        # A sketch of the paper's that is asked for has its budget kept to, however small a tensor is.
        small = self.serves_factors and tensor.nbytes <= _SMALL

        def make() -> tuple[Sketch, str, Compressed]:
            sketch, place = (_EXACT, "") if small else (call.at(own, last), own)
            return sketch, place, tracing.compress(sketch, given.reshape(matrix), call.seed)

        sharing = call.sharing if last else None  # who shares a summary takes it as the first one made it
        made = make() if sharing is None else sharing.summary(tensor, (call.sketch, matrix, given.dtype), make)
        sketch, place, compressed = made
        tensors, layout = compressed.split()
        return self._add((sketch, layout, tensor.shape), list(tensors), place)

    def _add(self, how: Any, tensors: list[Tensor], place: str = "") -> Handle:
        for listener in listeners:
            listener(_described(how), tensors, place)
        numbers = []
        for tensor in tensors:
            number = self._places.get(id(tensor))
            if number is None:
                self.fresh.append(tensor)
                number = -len(self.fresh)
            if number not in self.saved:
                self.saved.append(number)
            numbers.append(number)
        self.items.append((how, numbers))
        return Handle(len(self.items) - 1)


def _described(how: Any) -> str:
    if how is None or (len(how) == 3 and how[0].exact):
        return "exact"
    return str(how[0]) if len(how) == 3 else f"{how[0]} bit{'s' if how[0] > 1 else ''}"


class Kept:
    """What ``Keep`` kept, by handle."""

    def __init__(self, items: list[tuple[Any, list[int]]], tensors: dict[int, Tensor]) -> None:
        self._items, self._tensors = items, tensors

    def __getitem__(self, handle: Handle | None) -> Any:
        """The tensor of ``exact``, the integers of ``bits`` (uint8), or the ``Summary`` of a sketch; else ``None``."""
        if handle is None:
            return None
        how, places = self._items[handle]
        tensors = [self._tensors[place] for place in places]
        if how is None:
            return tensors[0]
        if len(how) == 2:
            bits, shape = how
            return tracing.unpack(tensors[0], bits, shape.numel()).view(shape)
        sketch, layout, shape = how
        return Summary(sketch, Compressed.join(tensors, layout), shape)

    def packed(self, handle: Handle) -> Tensor:
        """The bits of ``bits`` as they are kept."""
        return self._tensors[self._items[handle][1][0]]

    def dense(self, handle: Handle | None) -> Any:
        """The tensor, or the estimate of it."""
        item = self[handle]
        return item.dense() if isinstance(item, Summary) else item

    def times(self, handle: Handle, grad: Tensor, out: Tensor | None = None) -> Tensor:
        """``grad`` times the tensor or its estimate; see ``Summary.times``."""
        item = self[handle]
        return torch.mul(grad, item, out=out) if isinstance(item, Tensor) else item.times(grad, out)
