"""What Triton's loops compute, against plain PyTorch, bit for bit: on a GPU, or in Triton's interpreter on a CPU.

TRITON_INTERPRET=1 PYTHONPATH=. python tests/parity.py                # everything
TRITON_INTERPRET=1 PYTHONPATH=. python tests/parity.py float32 int32  # of these types, and what has none
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from calls import by_rules
from torch import Tensor

import rad
from rad.sketch import bits, gpu, kernels
from rad.sketch.levels import compute_dtype
from rad.sketch.random import Stream, counters
from rad.sketch.replay import shifting

REAL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
COUNTS = (1, 5, 8, 63, 300, 2048, 5000)
SEEDS = (0, 5, 2**62 + 12345, -(2**63) + 7)


def normal(*shape: int, dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)


def special(count: int, dtype: torch.dtype, device: str) -> Tensor:
    values = [1.0, -1.0, 0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, -1e-45, 3e38, -3.4e38, 0.5]
    return torch.tensor(values, dtype=torch.float64).repeat(-(-count // len(values)))[:count].to(dtype).to(device)


def rounded(x: Tensor, width: int, group: int, seed: int) -> list[Tensor]:
    sketch = rad.Rounding(bits=width, group=group)
    compressed = sketch.compress(x, seed=torch.tensor(seed))
    grad = normal(*x.shape[:-1], 3, dtype=x.dtype, device=str(x.device), seed=9)
    by = normal(*x.shape, dtype=x.dtype, device=str(x.device), seed=8)
    rows, wide = by[:, :1].contiguous(), by.to(compute_dtype(by.dtype))
    products = [sketch.times(compressed, t) for t in (by, rows, wide)]
    return [*compressed.kept, sketch.expand(compressed), *products, sketch.grad_weight(compressed, grad)]


def checks(device: str) -> Iterator[tuple[str, Callable[[], list[Tensor]]]]:
    """Names, and what is computed either way."""
    numbers = {
        "normal": lambda n, dtype: normal(n, dtype=dtype, device=device),
        "relu": lambda n, dtype: normal(n, dtype=dtype, device=device).relu(),
        "equal": lambda n, dtype: torch.full((n,), 0.1, dtype=dtype, device=device),
        "zeros": lambda n, dtype: torch.zeros(n, dtype=dtype, device=device),
        "tiny": lambda n, dtype: normal(n, dtype=dtype, device=device) * 1e-38,
        "huge": lambda n, dtype: (normal(n, dtype=torch.float64, device=device) * 1.5e38).to(dtype),
        "far": lambda n, dtype: 1000 + normal(n, dtype=dtype, device=device),
        "special": lambda n, dtype: special(n, dtype, device),
        "one nan": lambda n, dtype: normal(n, dtype=dtype, device=device).index_fill(
            0, torch.tensor([n // 2], device=device), math.nan
        ),
    }
    for dtype in REAL:
        for what, make in numbers.items():
            count = 2048 if what == "normal" else 2056  # groups of 256, whose last has 8: groups of whole bytes
            yield f"round {what} {dtype}", lambda m=make, d=dtype, n=count: rounded(m(n, d).view(8, -1), 3, 256, 5)
        for count, group in ((1, 8), (5, 8), (63, 64), (300, 256), (640, 40), (1000, 256), (3000, 1024), (37, 7)):
            x = normal(count, dtype=dtype, device=device)
            yield (
                f"round {count} in groups of {group} {dtype}",
                lambda x=x, g=group: rounded(x.view(1, -1), 2, g, SEEDS[x.numel() % 4]),
            )
        x = normal(4, 96, dtype=dtype, device=device)
        for width in (1, 2, 5, 8, 9, 16):
            yield f"round in {width} bits {dtype}", lambda x=x, w=width: rounded(x, w, 64, w)
        yield f"round transposed {dtype}", lambda x=x: rounded(x.t(), 3, 64, 1)
        for count in COUNTS:
            y = special(count, dtype, device) if count < 100 else normal(count, dtype=dtype, device=device)
            flags = normal(count, dtype=torch.float32, device=device, seed=2) > 0
            yield f"positive {count} {dtype}", lambda y=y: [bits.pack_positive(y)]
            yield f"masked {count} {dtype}", lambda y=y, f=flags: [bits.masked(y, bits.pack_mask(f))]
        empty = torch.empty(0, 4, dtype=dtype, device=device)
        yield f"empty {dtype}", lambda e=empty: [bits.pack_positive(e), bits.masked(e, bits.pack_positive(e))]
        yield (
            f"transposed {dtype}",
            lambda x=x: [bits.pack_positive(x.t()), bits.masked(x.t(), bits.pack_positive(x.t()))],
        )
        for seed in SEEDS:
            yield f"signs {seed} {dtype}", lambda s=seed, d=dtype: [draws(s, device).signs((7, 391), d)]
            if dtype in (torch.float32, torch.float64):
                yield f"uniform {seed} {dtype}", lambda s=seed, d=dtype: [draws(s, device).uniform((2, 1300), d)]
    for seed in SEEDS:
        yield f"words {seed}", lambda s=seed: [draws(s, device).words(1), draws(s, device).words(1300)]
        yield f"integers {seed}", lambda s=seed: [draws(s, device).integers(b, (3, 500)) for b in (1, 7, 2**31 - 1)]
    for dtype in INTEGERS:
        for count in COUNTS:
            for width in (1,) if dtype == torch.bool else (1, 3, 7):
                values = torch.randint(2**width, (count,), generator=torch.Generator().manual_seed(0))
                v = values.to(dtype).to(device)
                yield f"pack {count} in {width} {dtype}", lambda v=v, w=width: packed_and_back(v, w)
        matrix = (torch.arange(60).view(6, 10) % 2).to(dtype).to(device)
        yield f"pack transposed {dtype}", lambda m=matrix: packed_and_back(m.t(), 1)
    wide = torch.randint(2**16, (777,), generator=torch.Generator().manual_seed(1), dtype=torch.int32).to(device)
    yield "pack in 16", lambda: packed_and_back(wide, 16)
    for dtype in REAL:
        for shape in ((4, 3, 7, 7), (5, 24, 4, 4), (2, 1, 16, 64), (3, 8, 100), (64, 9)):
            yield f"batch norm {list(shape)} {dtype}", lambda s=shape, d=dtype: normed(s, d, device, channels=True)
        for shape in ((16, 40), (3, 5, 96), (2, 768), (1, 8), (37, 16)):
            yield f"layer norm {list(shape)} {dtype}", lambda s=shape, d=dtype: normed(s, d, device, channels=False)
        yield f"rms norm {dtype}", lambda d=dtype: normed((12, 72), d, device, channels=False, centered=False)
        yield f"layer norm without weights {dtype}", lambda d=dtype: normed((12, 72), d, device, False, weights=False)
    by, w = torch.tensor([counters(7)], device=device), normal(16, 64, dtype=torch.float32, device=device)
    yield "shifted", lambda: shifted(w, by)
    for make in (rad.RoundedSample, rad.Project, rad.Sample):
        z = normal(24, 64, dtype=torch.float32, device=device)
        yield f"{make.__name__}", lambda z=z, m=make: whole(m(0.3), z)


def normed(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    channels: bool,
    centered: bool = True,
    weights: bool = True,
) -> list[Tensor]:
    """What is kept of normalized values, a copy of each, and gradients."""
    x = (3 + 2 * normal(*shape, dtype=dtype, device=device)).requires_grad_()
    real = torch.promote_types(dtype, torch.float32) if channels else dtype  # as stock takes them on a GPU
    size = shape[1] if channels else shape[-1]
    given = [(1 + normal(size, dtype=real, device=device, seed=i)).requires_grad_() for i in range(2)]
    weight, bias = given if weights else (None, None)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.detach().clone()), t)[1], lambda t: t):
        if channels:
            out = by_rules(F.batch_norm)(x * 1, None, None, weight, bias, True)
        elif centered:
            out = by_rules(F.layer_norm)(x * 1, shape[-1:], weight, bias)
        else:
            out = by_rules(F.rms_norm)(x * 1, shape[-1:], weight)
    leaves = [x, *(t for t in (weight, bias if centered else None) if t is not None)]
    grads = torch.autograd.grad(out, leaves, normal(*out.shape, dtype=out.dtype, device=device, seed=4))
    return [*kept, *grads]


def shifted(x: Tensor, by: Tensor) -> list[Tensor]:
    """As in a replay of a CUDA graph."""
    device = str(x.device)
    with shifting(by):
        numbers = draws(5, device).words(9), draws(5, device).signs((70,), x.dtype)
        return [*numbers, *rounded(x, 3, 256, 5), *normed((4, 8, 5, 5), x.dtype, device, channels=True)[:3]]


def draws(seed: int, device: str) -> Stream:
    return Stream(seed, torch.device(device))


def packed_and_back(values: Tensor, width: int) -> list[Tensor]:
    packed = bits.pack(values, width)
    return [packed, bits.unpack(packed, width, values.numel())]


def whole(sketch: rad.Sketch, x: Tensor) -> list[Tensor]:
    compressed = sketch.compress(x, seed=torch.tensor(3))
    return [*compressed.kept, sketch.expand(compressed)]


def same(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, but for which NaN it is and the sign of zero."""
    if a.dtype != b.dtype or a.shape != b.shape or (a.numel() and a.stride() != b.stride()):
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(7), b.nan_to_num(7))


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for the order of sums: to a few units of the last place of the largest number."""
    if not b.is_floating_point() or not b.numel():
        return same(a, b)
    few = b.dtype not in (torch.float32, torch.float64)
    most = float(b.abs().max()) if few else max(float(b.abs().max()), 64)  # what adds up to little is itself larger
    return (
        a.dtype == b.dtype and a.shape == b.shape and bool(((a - b).abs() <= 8 * torch.finfo(b.dtype).eps * most).all())
    )


def differing(device: str, chosen: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Names of the checks in which the loops do not compute what plain PyTorch does."""
    wrong = []
    found = {}
    before = kernels.enabled
    try:
        for loops in (True, False):
            gpu.enabled = kernels.enabled = loops
            kernels.enabled = False
            for name, run in checks(device):
                if chosen(name):
                    found[loops, name] = run()
    finally:
        gpu.enabled, kernels.enabled = True, before
    for (loops, name), tensors in found.items():
        alike = close if "norm " in name else same
        if loops and not all(map(alike, tensors, found[False, name])):
            wrong.append(name)
    return wrong


def main(*dtypes: str) -> None:
    gpu.devices.add("cpu")
    assert gpu.usable(torch.zeros(1)), "Triton's interpreter does not run"
    kinds = tuple(f"torch.{dtype}" for dtype in dtypes)
    wrong = differing("cpu", lambda name: not kinds or "torch." not in name or name.endswith(kinds))
    sys.exit(f"{len(wrong)} differ:\n" + "\n".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
