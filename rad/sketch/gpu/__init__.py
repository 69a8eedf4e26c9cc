"""Triton loops for GPUs in place of a dozen passes of PyTorch each, and with the same bits.

Triton comes with PyTorch's Linux wheels. Where it is missing, does not know the device or cannot compile, the plain
PyTorch versions run.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from rad.sketch.replay import shift

__all__ = [
    "bits_where_positive",
    "channels_backward",
    "draw",
    "groups_of",
    "masked",
    "real",
    "pack",
    "rebuild",
    "round_to_levels",
    "rows_backward",
    "signs",
    "unpack",
    "usable",
]

enabled = True
devices = {"cuda"}  # a CPU can run the loops too, in Triton's interpreter, to test them

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_REAL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_OLDEST = (7, 0)  # compute capability that Triton compiles for
_LARGEST = 4096  # elements of a group that one program holds
_ELEMENTS = 2048  # of a program, about


def usable(x: Tensor) -> bool:
    """Whether loops can take a tensor: it has memory on a device that Triton compiles for."""
    return enabled and x.device.type in devices and type(x) in _PLAIN and _loops(x.device) is not None


def real(x: Tensor) -> bool:
    """Whether loops can take a tensor of floating point."""
    return x.device.type in devices and x.dtype in _REAL and usable(x)


def groups_of(x: Tensor, size: int, run: int = 1) -> bool:
    """Whether loops can take groups of ``size`` elements of ``x``: they fill whole bytes and fit into one program.

    Numbers that ``run`` elements in turn share are counted in 32 bits.
    """
    return x.device.type in devices and size % 8 == 0 and size <= _LARGEST and run <= 2**30 and real(x)


@functools.cache
def _loops(device: torch.device) -> dict[str, Any] | None:
    """The loops by name, ``None`` where they do not run."""
    try:
        from rad.sketch.gpu import levels, normalize, numbers, planes
    except ImportError:
        return None
    if device.type == "cuda" and torch.version.cuda and torch.cuda.get_device_capability(device) < _OLDEST:
        return None
    loops = {**vars(numbers), **vars(planes), **vars(levels), **vars(normalize)}
    try:
        with _on(device):
            words = torch.zeros(2, dtype=torch.int64, device=device)
            loops["draw_words"][(1,)](words, 2, 1, None, 0, "words", 16, **_EXACT)
    except Exception as error:  # no driver or no compiler for C, perhaps
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(
            f"Triton does not work on {device} ({reason}); plain PyTorch does the same, more slowly",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return loops


_EXACT = {"enable_fp_fusion": False, "num_warps": 4}  # a product and a sum are rounded one after the other


def _on(device: torch.device) -> Any:
    """Makes a device the one that loops are launched on."""
    return torch.cuda.device(device if device.type == "cuda" else -1)


def _launch(x: Tensor, name: str, programs: int, *args: Any) -> None:
    if programs == 0:
        return
    loops = _loops(x.device)
    assert loops is not None
    loop = functools.partial(loops[name].run, grid=(programs,), warmup=False, **_EXACT)
    if x.device.type == "cuda" and x.device.index != torch.cuda.current_device():
        with _on(x.device):
            loop(*args)
    else:
        loop(*args)


def round_to_levels(
    x: Tensor, size: int, width: int, start: int, norm: tuple[Tensor | None, Tensor, int] | None = None
) -> tuple[Tensor, Tensor]:
    """See ``rad.sketch.levels``; the dither is that of counters from ``start``."""
    count = len(x)
    groups, row_bytes, eighths, rows = _shape(count, size)
    packed = torch.empty(width, row_bytes, dtype=torch.uint8, device=x.device)
    ranges = torch.empty(2, groups, dtype=torch.bfloat16, device=x.device)
    mean, scale, inner = (None, None, 1) if norm is None else norm
    stats = 1 if scale is None else scale.numel()
    tensors = (x, packed, ranges, x if mean is None else mean, x if scale is None else scale)
    numbers = (start, shift(x.device))
    shape = (size, eighths, width, rows, count % size == 0, inner < 8, scale is not None, mean is not None)
    _launch(x, "round_groups", -(-groups // rows), *tensors, count, groups, row_bytes, *numbers, inner, stats, *shape)
    return packed, ranges


def rebuild(packed: Tensor, ranges: Tensor, size: int, start: int, out: Tensor, grad: Tensor | None = None) -> Tensor:
    """See ``rad.sketch.levels``; times ``grad`` if there is one."""
    count = len(out)
    groups, row_bytes, eighths, rows = _shape(count, size)
    other = out if grad is None else grad
    runs = 0 if grad is None else count // len(grad)  # elements in turn that are multiplied by the same
    kind = "" if grad is None else "each" if runs == 1 else "narrow" if runs < 8 else "runs"
    numbers = (count, groups, row_bytes, start, shift(out.device), runs, len(other))
    shape = (size, eighths, len(packed), rows, count % size == 0, kind)
    _launch(out, "rebuild_groups", -(-groups // rows), packed, ranges, other, out, *numbers, *shape)
    return out


@functools.cache
def _shape(count: int, size: int) -> tuple[int, int, int, int]:
    """Groups, bytes of a row of bits, eights of a group as a power of two, and groups of a program."""
    eighths = 1 << (size // 8 - 1).bit_length()
    return -(-count // size), -(-count // 8), eighths, max(1, _ELEMENTS // (8 * eighths))


def rows_backward(
    grad: Tensor,
    packed: Tensor,
    ranges: Tensor,
    size: int,
    stream: Any,
    scale: Tensor,
    gain: Tensor | None,
    centered: bool,
) -> tuple[Tensor, Tensor]:
    """See ``rad.sketch.normalized``, for statistics of rows: gradients of the input, and sums over rows ``[2, d]``."""
    rows, d = scale.numel(), grad.numel() // scale.numel()
    dither = stream.uniform((ranges.shape[1] + size,), scale.dtype)
    programs = min(rows, _PERSISTENT)
    out = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
    sums = torch.empty(programs, 2, d, dtype=scale.dtype, device=grad.device)
    tensors = (grad, packed, ranges, dither, scale, scale if gain is None else gain, out, sums)
    numbers = (rows, d, packed.shape[1], ranges.shape[1])
    shape = (size, len(packed), 1 << (d - 1).bit_length(), centered, gain is not None)
    _launch(grad, "rows_backward", programs, *tensors, *numbers, *shape)
    return out, sums.sum(0)


def channels_backward(
    grad: Tensor,
    packed: Tensor,
    ranges: Tensor,
    size: int,
    stream: Any,
    scale: Tensor,
    gain: Tensor | None,
    centered: bool,
) -> tuple[Tensor, Tensor]:
    """See ``rad.sketch.normalized``, for channels: gradients ``[n, channels, space]``, and sums ``[2, channels]``."""
    n, channels, space = grad.shape
    count, groups, width, row_bytes = grad.numel(), ranges.shape[1], *packed.shape
    real, device = scale.dtype, grad.device
    start, dither = stream.counter, stream.uniform((groups + size,), real)
    aligned = space % 8 == 0
    touched = space // 8 if aligned else (space + 14) // 8  # bytes of bits
    eights = min(1 << (touched - 1).bit_length(), _ELEMENTS // 8)
    planes = _ELEMENTS // 8 // eights
    parts = max(1, min(-(-n // planes), 8 * _PERSISTENT // channels))
    chunk = -(-n // (planes * parts)) * planes
    parts = -(-n // chunk)
    sums = torch.empty(parts, 2, channels, dtype=real, device=device)
    numbers = (n, space, touched, channels, chunk, row_bytes, groups, size, width, planes, eights, aligned)
    _launch(grad, "channel_sums", channels * parts, grad, packed, ranges, dither, sums, *numbers)
    total, terms = torch.empty(5, channels, dtype=real, device=device).split((2, 3))
    tensors = (sums, scale, scale if gain is None else gain, total, terms)
    numbers = (parts, n * space, channels, centered, gain is not None, 32, 32)
    _launch(grad, "channel_terms", -(-channels // 32), *tensors, *numbers)
    out = torch.empty(grad.shape, dtype=grad.dtype, device=device)
    _, _, eights, rows = _shape(count, size)
    numbers = (count, groups, row_bytes, start, shift(device), n * space, space, channels, size, eights, width, rows)
    flags = (count % size == 0, space < 8, centered)
    _launch(grad, "channels_backward", -(-groups // rows), grad, packed, ranges, terms, out, *numbers, *flags)
    return out, total


def pack(values: Tensor, width: int) -> Tensor:
    """``rad.sketch.bits.pack``."""
    values = values.contiguous()
    return _packed(values.view(torch.uint8) if values.dtype == torch.bool else values, width, False)


def bits_where_positive(x: Tensor) -> Tensor:
    """``rad.sketch.bits.pack_positive``."""
    return _packed(x.contiguous(), 1, True)


def _packed(x: Tensor, width: int, positive: bool) -> Tensor:
    count = x.numel()
    row_bytes = -(-count // 8)
    packed = torch.empty(width, row_bytes, dtype=torch.uint8, device=x.device)
    args = (x, packed, count, row_bytes, width, positive, _ELEMENTS // 8)
    _launch(x, "pack_values", -(-count // _ELEMENTS), *args)
    return packed


def unpack(packed: Tensor, width: int, count: int) -> Tensor:
    """``rad.sketch.bits.unpack``."""
    out = torch.empty(count, dtype=torch.uint8 if width <= 8 else torch.int32, device=packed.device)
    args = (packed.contiguous(), out, count, -(-count // 8), width, _ELEMENTS // 8)
    _launch(packed, "unpack_values", -(-count // _ELEMENTS), *args)
    return out


def masked(x: Tensor, packed: Tensor) -> Tensor:
    """``rad.sketch.bits.masked``."""
    out, count, words = torch.empty(x.shape, dtype=x.dtype, device=x.device), x.numel(), _WORDS[x.element_size()]
    args = (x.contiguous().view(words), packed, out.view(words), count, -(-count // 8), _ELEMENTS // 8)
    _launch(x, "mask_values", -(-count // _ELEMENTS), *args)
    return out


def draw(out: Tensor, start: int, kind: str, bound: int = 0) -> Tensor:
    """Fills ``out`` with the numbers of counters from ``start``: words, integers below a bound, or uniform ones."""
    count = out.numel()
    _launch(out, "draw_words", -(-count // _BLOCK), out, count, start, shift(out.device), bound, kind, _BLOCK)
    return out


def signs(out: Tensor, start: int) -> Tensor:
    """Fills ``out`` with ±1."""
    count = out.numel()
    _launch(out, "draw_signs", -(-count // (64 * 32)), out, count, start, shift(out.device), 32)
    return out


_BLOCK = 1024  # numbers that a program draws
_PERSISTENT = 528  # programs, four for each multiprocessor of an H100, that share a reduction
