"""Sketches and packed bits as operations of their own under ``torch.compile`` and ``torch.func``, else as plain calls.

A compiled graph then holds one node for each summary, whose seed and packed bits it cannot help but keep; what runs in
it is the same code as without compilation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._python_dispatch import _disable_current_modes

from rad.sketch import bits
from rad.sketch.base import Compressed, Layout, Sketch

__all__ = [
    "columns",
    "compress",
    "eager",
    "expand",
    "grad_weight",
    "masked",
    "noise",
    "pack",
    "pack_positive",
    "transformed",
    "unpack",
]

_SKETCHES: dict[str, Sketch] = {}


def traced(x: Tensor) -> bool:
    """Whether a tensor stands for another, in a graph in the making or inside a transform of ``torch.func``."""
    if type(x) is not Tensor and isinstance(x, (FakeTensor, FunctionalTensor)):
        return True
    return (_modes() and get_proxy_mode() is not None) or transformed()


def eager() -> bool:
    """Whether nothing is traced and nothing transformed: no mode and no transform is at work."""
    return not _modes() and not transformed()


def _modes() -> bool:
    """Whether any mode below the dispatcher is entered, of which ``get_proxy_mode`` takes ten times as long to ask."""
    # Of the stack before dispatch only its key says so in one call.
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._dispatch_tls_is_dispatch_key_included(_PRE_DISPATCH)


_PRE_DISPATCH = torch._C.DispatchKey.PreDispatch  # pyright: ignore[reportAttributeAccessIssue]


def transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work, for which nothing may be overwritten."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore


def compress(sketch: Sketch, x: Tensor, seed: Callable[[], Tensor]) -> Compressed:
    """``sketch.compress(x, seed=seed())``; no seed is taken where the summary is exact."""
    if sketch.exact or x.numel() == 0:
        return Compressed((x,), None, x.shape, x.dtype)
    if not traced(x):
        return sketch.compress(x.detach(), seed=seed())
    number = seed()
    return Compressed(tuple(_compress(x, number, _key(sketch))), number, x.shape, x.dtype)


def expand(sketch: Sketch, compressed: Compressed) -> Tensor:
    """``sketch.expand(compressed)``."""
    if compressed.exact or not traced(compressed.kept[0]):
        return sketch.expand(compressed)
    return _expand(list(compressed.kept), compressed.seed, _key(sketch), list(compressed.shape), compressed.dtype)


def noise(sketch: Sketch, compressed: Compressed) -> Tensor:
    """``sketch.noise(compressed)``."""
    if compressed.exact or not traced(compressed.kept[0]):
        return sketch.noise(compressed)
    return _noise(list(compressed.kept), compressed.seed, _key(sketch), list(compressed.shape), compressed.dtype)


def grad_weight(sketch: Sketch, compressed: Compressed, grad: Tensor) -> Tensor:
    """``sketch.grad_weight(compressed, grad)``."""
    if compressed.exact or not traced(compressed.kept[0]):
        return sketch.grad_weight(compressed, grad)
    kept = list(compressed.kept)
    return _grad_weight(kept, compressed.seed, _key(sketch), list(compressed.shape), compressed.dtype, grad)


def columns(sketch: Sketch, compressed: Compressed) -> tuple[Tensor | None, Tensor]:
    """``sketch.columns(compressed)``; the whole estimate while a graph is traced."""
    if compressed.exact or not traced(compressed.kept[0]):
        return sketch.columns(compressed)
    return None, expand(sketch, compressed)


def pack(values: Tensor, width: int) -> Tensor:
    """``bits.pack``."""
    return _pack(values, width) if traced(values) else bits.pack(values, width)


def pack_positive(x: Tensor) -> Tensor:
    """``bits.pack_positive``."""
    return _pack_positive(x) if traced(x) else bits.pack_positive(x)


def unpack(packed: Tensor, width: int, count: int) -> Tensor:
    """``bits.unpack``."""
    return _unpack(packed, width, count) if traced(packed) else bits.unpack(packed, width, count)


def masked(x: Tensor, packed: Tensor) -> Tensor:
    """``bits.masked``."""
    return _masked(x, packed) if traced(packed) or traced(x) else bits.masked(x, packed)


def _key(sketch: Sketch) -> str:
    """A name under which the operations find the sketch: all that it is configured by."""
    key = repr(sketch)
    _SKETCHES.setdefault(key, sketch)
    return key


def _summary(kept: list[Tensor], seed: Tensor, shape: list[int], dtype: torch.dtype) -> Compressed:
    return Compressed.join([*kept, seed], Layout(len(kept), torch.Size(shape), dtype))


@torch.library.custom_op("rad::compress", mutates_args=())
def _compress(x: Tensor, seed: Tensor, sketch: str) -> list[Tensor]:
    return [t.clone() if t is x else t for t in _SKETCHES[sketch].compress(x, seed=seed).kept]


@torch.library.custom_op("rad::expand", mutates_args=())
def _expand(kept: list[Tensor], seed: Tensor, sketch: str, shape: list[int], dtype: torch.dtype) -> Tensor:
    return _SKETCHES[sketch].expand(_summary(kept, seed, shape, dtype))


@torch.library.custom_op("rad::noise", mutates_args=())
def _noise(kept: list[Tensor], seed: Tensor, sketch: str, shape: list[int], dtype: torch.dtype) -> Tensor:
    return _SKETCHES[sketch].noise(_summary(kept, seed, shape, dtype)).expand(shape).contiguous()


@torch.library.custom_op("rad::grad_weight", mutates_args=())
def _grad_weight(
    kept: list[Tensor], seed: Tensor, sketch: str, shape: list[int], dtype: torch.dtype, grad: Tensor
) -> Tensor:
    return _SKETCHES[sketch].grad_weight(_summary(kept, seed, shape, dtype), grad)


@torch.library.custom_op("rad::pack", mutates_args=())
def _pack(values: Tensor, width: int) -> Tensor:
    return bits.pack(values, width)


@torch.library.custom_op("rad::pack_positive", mutates_args=())
def _pack_positive(x: Tensor) -> Tensor:
    return bits.pack_positive(x)


@torch.library.custom_op("rad::unpack", mutates_args=())
def _unpack(packed: Tensor, width: int, count: int) -> Tensor:
    return bits.unpack(packed, width, count)


@torch.library.custom_op("rad::masked", mutates_args=())
def _masked(x: Tensor, packed: Tensor) -> Tensor:
    return bits.masked(x, packed)


@_compress.register_fake
def _(x: Tensor, seed: Tensor, sketch: str) -> list[Tensor]:
    layout = _kept(sketch, tuple(int(size) for size in x.shape), x.dtype)
    return [x.new_empty(shape, dtype=dtype) for shape, dtype in layout]


@functools.cache
def _kept(sketch: str, shape: tuple[int, ...], dtype: torch.dtype) -> list[tuple[torch.Size, torch.dtype]]:
    """Shapes and dtypes of what a sketch keeps, which depend on those of its input alone: tried out on zeros."""
    with _disable_current_modes():
        kept = _SKETCHES[sketch].compress(torch.zeros(shape, dtype=dtype), seed=torch.zeros((), dtype=torch.int64)).kept
    return [(t.shape, t.dtype) for t in kept]


@_expand.register_fake
@_noise.register_fake
def _(kept: list[Tensor], seed: Tensor, sketch: str, shape: list[int], dtype: torch.dtype) -> Tensor:
    return kept[0].new_empty(shape, dtype=dtype)


@_grad_weight.register_fake
def _(kept: list[Tensor], seed: Tensor, sketch: str, shape: list[int], dtype: torch.dtype, grad: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[-1], shape[-1])


@_pack.register_fake
def _(values: Tensor, width: int) -> Tensor:
    return values.new_empty(width, -(-values.numel() // 8), dtype=torch.uint8)


@_pack_positive.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(1, -(-x.numel() // 8), dtype=torch.uint8)


@_unpack.register_fake
def _(packed: Tensor, width: int, count: int) -> Tensor:
    return packed.new_empty(count, dtype=torch.uint8 if width <= 8 else torch.int32)


@_masked.register_fake
def _(x: Tensor, packed: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
