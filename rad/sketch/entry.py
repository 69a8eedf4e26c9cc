"""Compiled loops as C functions of one pointer, which threads enter without Python.

A thread that enters Python needs the interpreter's lock, and one that waits for it sleeps: two threads would take as
long for a tenth of a millisecond as one. Here they are told by OpenMP itself which parts of the loop are theirs.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rad.sketch import kernels

__all__ = ["Entry", "openmp", "prepared"]

if kernels.numba is not None:
    import llvmlite.binding
    import llvmlite.ir
    import numba
    from numba.core import cgutils
    from numba.extending import intrinsic
    from numba.np import arrayobj

_BESIDES = {int: "int64", bool: "int64", float: "float64"}  # what numbers arrive as
_SCHEDULE = ("GOMP_parallel_loop_dynamic", "GOMP_loop_dynamic_next", "GOMP_loop_end_nowait")


class Entry(NamedTuple):
    """A loop compiled for arguments of some kinds.

    Attributes:
        address: Of the C function, which takes what ``layout`` packs.
        run: Calls it, without the interpreter's lock.
        layout: Whether the loop is run by a team, which is dealt its parts; else first and last; then the values of the
            arguments.
    """

    address: int
    run: Callable[[bytes], None]
    layout: struct.Struct


def prepared(loop: Any, args: tuple[Any, ...]) -> tuple[Entry, list[Any]]:
    """``loop(*args, first, last)`` as an entry, and the values to pack for it.

    Args:
        loop: Made by ``kernels.compiled``; finds tensors as arrays, bfloat16 as unsigned integers of its bits, and
            numbers as int64 or float64.
        args: Contiguous tensors on the CPU, to be held by whoever calls; pairs of a tensor and a dtype of elements of
            that size, or ``None``, which the loop finds as one row of all elements; and numbers.

    Raises:
        ValueError: If a tensor is not contiguous.
    """
    kinds, values = [], []
    for arg in args:
        tensor, dtype = arg if isinstance(arg, tuple) else (arg, None)
        if not isinstance(tensor, Tensor):
            kinds.append(type(arg))
            values.append(arg)
            continue
        if not tensor.is_contiguous():
            raise ValueError(f"a loop takes tensors in one piece, got strides {tensor.stride()} of {tensor.shape}")
        values.append(tensor.data_ptr())
        if tensor is arg:
            kinds.append((tensor.dtype, tensor.dim()))
            values.extend(tensor.shape)
        else:
            kinds.append((dtype or tensor.dtype, 1))
            values.append(tensor.numel())
    return _compiled(loop, tuple(kinds)), values


@functools.cache
def openmp() -> Callable[..., None] | None:
    """``GOMP_parallel_loop_dynamic`` of the OpenMP library that PyTorch itself is linked to, if it is there."""
    library = _library()
    if library is None:
        return None
    function = getattr(library, _SCHEDULE[0])
    long, unsigned = ctypes.c_long, ctypes.c_uint
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_char_p, unsigned, long, long, long, long, unsigned]
    return function


@functools.cache
def _library() -> Any:
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return library if all(hasattr(library, name) for name in _SCHEDULE) else None
    except OSError:
        return None


@functools.cache
def _compiled(loop: Any, kinds: tuple[Any, ...]) -> Entry:
    arguments = numba.types.Tuple([numba.types.int64] * 3 + [_numba_type(kind) for kind in kinds])
    written = "_".join(f"{t.dtype}{t.ndim}" if isinstance(t, numba.types.Array) else str(t) for t in arguments[3:])
    # As if it stood where the loop does: there it is cached, and outdated if the loop is changed.
    code = _run.__code__.replace(
        co_filename=loop.py_func.__code__.co_filename,
        co_firstlineno=loop.py_func.__code__.co_firstlineno,
        co_qualname=f"{loop.__name__}_{written}_{_version():x}",
    )
    given = {"_read": _read(), "arguments": arguments, "loop": loop, "np": np, **_scheduling()}
    entry = types.FunctionType(code, given, loop.__name__)
    entry.__module__ = loop.py_func.__module__
    signature = numba.types.void(numba.types.voidptr)
    made = kernels.cached(lambda cache: numba.cfunc(signature, cache=cache)(entry))
    assert made.address is not None
    run: Any = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(made.address)
    run.compiled = made  # in whose memory it runs
    return Entry(made.address, run, struct.Struct("@3q" + "".join(_fields(kind) for kind in kinds)))


def _numba_type(kind: Any) -> Any:
    if isinstance(kind, type):
        return getattr(numba.types, _BESIDES[kind])
    dtype, dims = kind
    name = "uint16" if dtype == torch.bfloat16 else str(dtype).removeprefix("torch.")
    return numba.types.Array(getattr(numba.types, name), dims, "C")


def _fields(kind: Any) -> str:
    if isinstance(kind, type):
        return "d" if kind is float else "q"
    return "q" * (1 + kind[1])


@functools.cache
def _version() -> int:
    """Of this file, for what is cached is not outdated by changes of it."""
    return zlib.crc32(Path(__file__).read_bytes())


arguments: Any = None
loop = next_part = end = arguments  # what ``_run`` has in their place is given by ``_compiled``


def _run(data):
    """The entry."""
    given = _read(data, arguments)
    if given[0] == 0:
        loop(*given[3:], given[1], given[2])
        return
    part = np.empty(2, np.int64)
    while next_part(part[:1].ctypes, part[1:].ctypes) != 0:
        loop(*given[3:], part[0], part[1])
    end()


@functools.cache
def _scheduling() -> dict[str, Any]:
    """The functions by which OpenMP deals out parts, for compiled code."""
    library, kinds = _library(), numba.types
    for name in _SCHEDULE[1:]:
        function = getattr(library, name) if library is not None else _nothing
        llvmlite.binding.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)
    _, next_part, end = _SCHEDULE
    return {
        "next_part": kinds.ExternalFunction(next_part, kinds.uint8(kinds.voidptr, kinds.voidptr)),
        "end": kinds.ExternalFunction(end, kinds.void()),
    }


_nothing = ctypes.CFUNCTYPE(None)(lambda: None)  # in place of what is never called


@functools.cache
def _read() -> Any:
    """The arguments that lie behind a pointer, eight bytes each; arrays as their address and sizes."""

    @intrinsic
    def read(context, data, arguments):
        kinds = arguments.instance_type

        def generate(context, builder, signature, given):
            fields = builder.bitcast(given[0], llvmlite.ir.IntType(64).as_pointer())
            places = iter(range(2**10))

            def take():
                return builder.load(cgutils.gep_inbounds(builder, fields, next(places)))

            def array(kind):
                element = context.get_data_type(kind.dtype)
                data, shape = builder.inttoptr(take(), element.as_pointer()), [take() for _ in range(kind.ndim)]
                size = cgutils.intp_t(context.get_abi_sizeof(element))
                strides = [size]
                for extent in reversed(shape[1:]):
                    strides.insert(0, builder.mul(strides[0], extent))
                made = arrayobj.make_array(kind)(context, builder)
                arrayobj.populate_array(
                    made, data=data, shape=shape, strides=strides[: kind.ndim], itemsize=size, meminfo=None
                )
                return made._getvalue()

            def value(kind):
                if isinstance(kind, numba.types.Array):
                    return array(kind)
                return builder.bitcast(take(), llvmlite.ir.DoubleType()) if kind == numba.types.float64 else take()

            return context.make_tuple(builder, kinds, [value(kind) for kind in kinds])

        return kinds(numba.types.voidptr, arguments), generate

    return read
