"""How many bytes each kind of rule keeps, counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from calls import answered
from sketches import held, normal
from torch import Tensor, nn

import rad

BITS, SEED = 3, 8
COUNT = 64 * 64


def rounded(count: int, tensors: int = 1) -> int:
    """Bytes of so many tensors: packed bits, two bfloat16 for each 256 elements, and a seed."""
    return tensors * (count * BITS // 8 + count // 256 * 4 + SEED)


def x(*shape: int) -> Tensor:
    """Computed before, and held by nobody else."""
    return normal(*shape, seed=1).requires_grad_() * 1


def weight(*shape: int) -> Tensor:
    return nn.Parameter(normal(*shape, seed=2))


W, V = weight(64, 64), weight(64)
PLACES, MASK = torch.arange(64), normal(64, 64) > 0

KEPT: dict[str, tuple[Callable[[], Tensor], int]] = {
    "relu": (lambda: F.relu(x(64, 64)), COUNT // 8),
    "leaky_relu": (lambda: F.leaky_relu(x(64, 64)), COUNT // 8),
    "clamp": (lambda: x(64, 64).clamp(0, 1), COUNT // 8),
    "abs": (lambda: x(64, 64).abs(), COUNT // 4),
    "maximum": (lambda: torch.maximum(x(64, 64), x(64, 64)), COUNT // 4),
    "dropout": (lambda: F.dropout(x(64, 64)), COUNT // 8),
    "dropout2d": (lambda: F.dropout2d(x(8, 8, 8, 8)), 8 * 8 // 8),
    "max_pool2d": (lambda: F.max_pool2d(x(4, 16, 8, 8), 2), 4 * 16 * 4 * 4 * 2 // 8),
    "avg_pool2d": (lambda: F.avg_pool2d(x(4, 16, 8, 8), 2), 0),
    "adaptive_avg_pool2d": (lambda: F.adaptive_avg_pool2d(x(4, 16, 8, 8), 2), 0),
    "reflection": (lambda: F.pad(x(4, 16, 8, 8), (1, 1, 1, 1), "reflect"), 0),
    "gelu": (lambda: F.gelu(x(64, 64)), rounded(COUNT)),
    "glu": (lambda: F.glu(x(64, 64)), rounded(COUNT)),
    "linear": (lambda: F.linear(x(64, 64), W, V), rounded(COUNT) + W.nbytes),
    "linear, frozen": (lambda: F.linear(x(64, 64), nn.Parameter(W.detach(), False)), W.nbytes),
    "linear of data": (lambda: F.linear(normal(64, 64), W), rounded(COUNT)),
    "conv2d": (
        lambda: F.conv2d(x(4, 16, 8, 8), W.view(64, 16, 2, 2).detach().requires_grad_()),
        rounded(COUNT) + W.nbytes,
    ),
    "product with a mask": (lambda: x(64, 64) * MASK, COUNT // 8),
    "where": (lambda: torch.where(MASK, x(64, 64), x(64, 64)), COUNT // 8),
    "masked_fill": (lambda: x(64, 64).masked_fill(MASK, 0.0), COUNT // 8),
    "product": (lambda: x(64, 64) * x(64, 64).exp().detach(), rounded(COUNT)),
    "product of two": (lambda: torch.mul(x(64, 64), x(64, 64)), rounded(COUNT, 2)),
    "scale": (lambda: x(64, 64) * V, rounded(COUNT) + V.nbytes),
    "matmul": (lambda: x(2, 32, 64) @ x(2, 64, 32), rounded(COUNT, 2)),
    "layer_norm": (lambda: F.layer_norm(x(64, 64), [64], V, V), rounded(COUNT) + 64 * 4 + V.nbytes),
    "batch_norm": (lambda: F.batch_norm(x(64, 64), None, None, V, V, True), rounded(COUNT) + 64 * 4 + V.nbytes),
    "softmax": (lambda: F.softmax(x(64, 64), 1), rounded(COUNT)),
    "log_softmax": (lambda: F.log_softmax(x(64, 64), 1), rounded(COUNT)),
    "cross_entropy": (lambda: F.cross_entropy(x(64, 64), PLACES), rounded(COUNT) + PLACES.nbytes),
}  # fmt: skip


@pytest.mark.parametrize(("call", "nbytes"), KEPT.values(), ids=KEPT)
def test_bytes(call, nbytes):
    def run() -> Tensor:
        with answered(rad.Rounding(bits=BITS)):
            return call()

    assert held(run) == nbytes


@pytest.mark.parametrize("budget", [0.1, 0.3])
@pytest.mark.parametrize("name", [name for name, (_, nbytes) in KEPT.items() if nbytes >= rounded(COUNT)])
def test_a_budget_is_kept_to(name, budget):
    tensors = {"product of two": 2, "matmul": 2}.get(name, 1)

    def run() -> Tensor:
        with answered(rad.Rounding(budget)):
            return KEPT[name][0]()

    exact = KEPT[name][1] - rounded(COUNT, tensors)
    assert exact < held(run) <= exact + tensors * (budget * COUNT * 4 + SEED)


def test_keys_that_no_row_sees_are_not_kept():
    operands = [x(1, 2, 64, 32) for _ in range(3)]

    def run(causal: bool) -> Tensor:
        with answered(rad.Rounding(bits=16)):
            return F.scaled_dot_product_attention(*operands, is_causal=causal)

    # Rows are kept in eight spans: all keys of the last, an eighth of them of the first.
    spared = 2 * 64 * 64 * (1 - sum(range(1, 9)) / 64)
    less = held(lambda: run(False)) - held(lambda: run(True))
    assert less == pytest.approx(2 * spared, rel=0.05)
