"""Loops of the CPU for normalizations and softmax against plain PyTorch, which they must equal."""

from __future__ import annotations

import copy

import pytest
import torch
from sketches import normal
from torch import nn

import rad
from rad.sketch import kernels, normalized

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CLOSE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 0.0, torch.float16: 0.0}  # halves take no loops

# Rows and channels of all sizes: longer and shorter than a group, a single position, groups that cross both.
CASES = {
    "layer": (nn.LayerNorm(300), (70, 300)),
    "layer, short": (nn.LayerNorm(10, elementwise_affine=False), (7, 43, 10)),
    "layer, two dimensions": (nn.LayerNorm([3, 5]), (90, 3, 5)),
    "root mean square": (nn.RMSNorm(96), (7, 11, 96)),
    "batch, 1d": (nn.BatchNorm1d(100), (150, 100)),
    "batch, 2d": (nn.BatchNorm2d(24), (16, 24, 11, 12)),
    "batch, small images": (nn.BatchNorm2d(130), (9, 130, 2, 2)),
    "batch, no weights": (nn.BatchNorm2d(3, affine=False), (5, 3, 7, 9)),
    "groups": (nn.GroupNorm(4, 16), (5, 16, 7, 9)),
    "instances": (nn.InstanceNorm2d(6, affine=True), (5, 6, 7, 9)),
}
with torch.no_grad():  # gains that are not all one
    for _module, _ in CASES.values():
        for i, parameter in enumerate(_module.parameters()):
            parameter += normal(*parameter.shape, seed=i).to(parameter.dtype) / 4
cases = pytest.mark.parametrize(("module", "shape"), CASES.values(), ids=CASES)

pytestmark = [
    pytest.mark.skipif(kernels.numba is None, reason="numba is not installed"),
    pytest.mark.filterwarnings("ignore::rad.LowBitsWarning"),
]


def step(module: nn.Module, x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What is kept in a forward pass, and the gradients."""
    module = rad.convert(copy.deepcopy(module).to(x.dtype), rad.Rounding(bits=3), generator=rad.nn.Seeds(0))
    x, kept = x.clone().requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.clone()) or t, lambda t: t):
        out = module(x)
    out.backward(normal(*out.shape, seed=1).to(x.dtype))
    assert x.grad is not None
    return kept, [x.grad, *(p.grad for p in module.parameters() if p.grad is not None)]


@cases
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loops_keep_the_bits_of_plain_pytorch_and_form_its_gradients(module, shape, dtype, monkeypatch):
    x = normal(*shape).mul(3).add(1).to(dtype)
    kept, grads = step(module, x)
    monkeypatch.setattr(kernels, "enabled", False)
    plain, expected = step(module, x)
    assert len(kept) == len(plain)
    assert all(torch.equal(a, b) for a, b in zip(kept, plain, strict=True))
    for grad, right in zip(grads, expected, strict=True):
        assert (grad - right).abs().max() <= CLOSE[dtype] * right.abs().max() * shape[0] ** 0.5


@pytest.mark.parametrize(
    ("view", "run", "statistics"), [((70, 300), 300, 70), ((150, 100), 1, 100), ((16, 24, 132), 132, 24)]
)
def test_as_many_threads_as_there_are_form_the_same_bits(view, run, statistics, monkeypatch):
    monkeypatch.setattr("rad.sketch.threads._SHARE", 256)
    monkeypatch.setattr(normalized, "_CHUNK", 512)
    x, mean, scale, before = normal(*view), normal(statistics), normal(statistics, seed=1), torch.get_num_threads()
    sketch, view, found = rad.Rounding(bits=3), view if run > 1 else (*view, 1), []
    rows = statistics if len(view) == 2 else view[1]
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made = normalized.compress(sketch, x, (mean, scale, run), view[-1], lambda: torch.tensor(1))
            assert made is not None
            with torch.no_grad():
                grads = normalized.backward(sketch, made, normal(*x.shape, seed=2), scale[:rows], None, view, True)
            assert grads is not None
            found.append([*made.kept, *grads])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("name", ["layer", "batch, 2d"])
def test_rows_and_channels_take_the_loops_and_never_where_gradients_are_to_be_differentiated(name, monkeypatch):
    module, shape = CASES[name]
    taken = []
    real = normalized.shared
    monkeypatch.setattr(normalized, "shared", lambda loop, *args: taken.append(loop) or real(loop, *args))
    step(module, normal(*shape))
    assert {normalized._rows_backward, normalized._channels_backward} & {*taken}
    taken.clear()
    sketch = rad.Rounding(bits=3)
    compressed = sketch.compress(normal(4, 8), seed=torch.tensor(1))
    args = normal(4, 8), torch.ones(4, 1), None, (4, 8), True
    assert normalized.backward(sketch, compressed, *args) is None  # for gradients are recorded here
    with torch.no_grad():
        assert normalized.backward(sketch, compressed, *args) is not None


@pytest.mark.parametrize("view", [(6, 40), (4, 5, 8)], ids=["rows", "channels"])
def test_without_means_gradients_keep_theirs(view):
    """As of a mean square, whatever is normalized by it."""
    sketch, grad, gain = rad.Rounding(bits=3), normal(*view), 1 + normal(view[1], seed=1).abs()
    compressed = sketch.compress(normal(*view).view(-1, view[-1]), seed=torch.tensor(1))
    h, noise = sketch.expand(compressed).view(view), sketch.noise(compressed).expand(compressed.shape).reshape(view)
    over, shape = ((1,), (1, -1)) if len(view) == 2 else ((0, 2), (1, -1, 1))
    scale, n = normal(view[0] if len(view) == 2 else view[1], seed=2).abs(), grad.numel() // gain.numel()
    n = view[1] if len(view) == 2 else n
    inner = grad * gain.view(shape)
    expected = inner - h * (inner * h).mean(over, keepdim=True) + inner * noise / n
    expected = expected * scale.view((-1, 1) if len(view) == 2 else shape)
    with torch.no_grad():
        found = normalized.backward(sketch, compressed, grad, scale, gain, view, centered=False)
    assert found is not None
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 40), (3, 300), (2, 3, 7), (40, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_of_softmax_are_those_of_plain_pytorch(shape, dtype, monkeypatch):
    x = (3 * normal(*shape)).to(dtype)
    found = []
    for enabled in (True, False):
        monkeypatch.setattr(kernels, "enabled", enabled)
        found.append(step(nn.Softmax(-1), x))
    (kept, grads), (plain, expected) = found
    assert all(torch.equal(a, b) for a, b in zip(kept, plain, strict=True))
    assert (grads[0] - expected[0]).abs().max() <= 4 * CLOSE[dtype] * expected[0].abs().max()
