"""Attention by PyTorch's fused kernels, which a CPU has as well: exact queries and keys, rounded values and outputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from calls import answered, by_rules
from sketches import assert_unbiased, normal
from torch.nn.attention import SDPBackend

import rad
from rad.functional import fused as module
from rad.measure import saved_bytes
from rad.nn import Seeds


@pytest.fixture(autouse=True)
def _fused_on_a_cpu(monkeypatch):
    monkeypatch.setattr(module, "_FUSED_ON", {"cpu"})
    monkeypatch.setattr(module, "_WORTH", float("inf"))


@pytest.fixture
def calls(monkeypatch):
    """Forward and backward passes of the fused kernels."""
    found, stock = [], module._stock

    def watched(function, operands):
        out, saved, gradients = stock(function, operands)
        found.append("forward")
        return out, saved, lambda *args: (found.append("backward"), gradients(*args))[1]

    monkeypatch.setattr(module, "_stock", watched)
    return found


def operands(*wanted, queries=9, keys=9):
    shapes = (2, 2, queries, 8), (2, 2, keys, 8), (2, 2, keys, 8)
    tensors = [normal(*shape, seed=i, dtype=torch.float64) for i, shape in enumerate(shapes)]
    return [t.requires_grad_(i in wanted) for i, t in enumerate(tensors)]


def attend(sketch, tensors, seeds=0, **options):
    inner = {id(t): t * 1 for t in tensors}
    with answered(sketch, seeds):
        return F.scaled_dot_product_attention(*(inner[id(t)] for t in tensors), **options)


SEEN = torch.ones(9, 9, dtype=torch.bool).tril()
MASKS = {
    "bools": SEEN,
    "of each": SEEN.expand(2, 2, 9, 9),
    "numbers": torch.zeros(9, 9).masked_fill(~SEEN, -9).double(),
}
OPTIONS = [{}, {"is_causal": True}, {"scale": 0.3}, *({"attn_mask": mask} for mask in MASKS.values())]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "causal", "scale", *MASKS])
@pytest.mark.parametrize("wanted", [(0, 1, 2), (0,), (1,), (2,), (0, 2)])
def test_as_stock_where_hardly_anything_is_rounded(options, wanted, calls):
    tensors = operands(*wanted)
    leaves = [tensors[i] for i in wanted]
    stock = F.scaled_dot_product_attention(*tensors, **options)
    upstream = normal(*stock.shape, seed=7, dtype=torch.float64)
    ours = attend(rad.Rounding(bits=16), tensors, **options)
    assert torch.equal(ours, stock)
    exact = torch.autograd.grad(stock, leaves, upstream)
    torch.testing.assert_close(torch.autograd.grad(ours, leaves, upstream), exact, rtol=1e-3, atol=1e-3)
    assert calls == ["forward", "backward"]


def test_outputs_lie_as_those_of_stock(calls):
    """Where queries are views in another order, so are the outputs, and what stands in for them."""
    leaves = [normal(2, 9, 3, 8, seed=i, dtype=torch.float64).requires_grad_() for i in range(3)]

    def views():
        return [t.transpose(1, 2) for t in leaves]

    stock = F.scaled_dot_product_attention(*views())
    with answered(rad.Rounding(bits=16), 0):
        ours = F.scaled_dot_product_attention(*views())
    assert ours.stride() == stock.stride()
    assert not ours.is_contiguous()
    upstream = normal(*stock.shape, seed=7, dtype=torch.float64)
    exact = torch.autograd.grad(stock, leaves, upstream)
    torch.testing.assert_close(torch.autograd.grad(ours, leaves, upstream), exact, rtol=1e-3, atol=1e-3)
    assert calls == ["forward", "backward"]


@pytest.mark.parametrize("causal", [False, True])
def test_right_on_average(causal):
    tensors = operands(0, 1, 2)
    exact = torch.autograd.grad(F.scaled_dot_product_attention(*tensors, is_causal=causal).square().sum(), tensors)
    seeds, draws = Seeds(1), []
    for _ in range(600):
        out = attend(rad.Rounding(bits=2), tensors, seeds, is_causal=causal)
        draws.append(torch.autograd.grad(out.square().sum(), tensors))
    for found, right in zip(zip(*draws, strict=True), exact, strict=True):
        assert_unbiased(torch.stack(found), right)


@pytest.mark.parametrize("change", ["learned", "dropout", "groups", "features", "shared", "off"])
def test_blocks_of_rows_where_the_kernels_do_not_serve(change, calls, monkeypatch):
    q, k, v = operands(0, 1, 2)
    learned = torch.zeros(9, 9, dtype=torch.float64, requires_grad=True)
    options = {"learned": {"attn_mask": learned}, "dropout": {"dropout_p": 0.2}}.get(change, {})
    if change == "groups":
        k, v, options = k[:, :1], v[:, :1], {"enable_gqa": True}
    if change == "features":
        v = v[..., :4]
    if change == "shared":
        k = q
    if change == "learned":  # which kernels of a GPU take
        monkeypatch.setattr(module, "_choice", lambda *_, **__: SDPBackend.EFFICIENT_ATTENTION.value)
    if change == "off":
        monkeypatch.setattr(module, "_FUSED_ON", set())
    attend(rad.Rounding(bits=3), [q, k, v], **options).sum().backward()
    assert calls == []


def test_what_is_kept(monkeypatch):
    tensors = [t.bfloat16().requires_grad_() for t in operands(queries=64, keys=64)]
    few = by_rules(F.scaled_dot_product_attention)
    held = saved_bytes(lambda: few(*(t * 1 for t in tensors)).float().sum()).total
    count = tensors[0].numel()
    ours = 2 * 2 * count + 2 * 3 * count // 8  # queries and keys; values and outputs in three bits
    assert ours < held < 1.15 * ours
    monkeypatch.setattr(module, "_WORTH", 0.5)
    assert saved_bytes(lambda: few(*(t * 1 for t in tensors)).float().sum()).total != held


@pytest.mark.parametrize("wanted", [(0, 1, 2), (0,), (1,), (2,)])
def test_what_is_kept_for_each_gradient(wanted):
    tensors = [normal(2, 2, 64, 8, seed=i).requires_grad_(i in wanted) for i in range(3)]
    few = by_rules(F.scaled_dot_product_attention)
    count, rows = 2 * 2 * 64 * 8, 2 * 2 * 64
    summary = count * 3 // 8 + count // 256 * 4 + 8
    # Queries, keys and logarithms of sums exactly; values and outputs for the gradients of queries and keys alone.
    expected = 4 * (2 * count + rows) + (2 * summary if wanted != (2,) else 0)
    assert saved_bytes(lambda: few(*(t * 1 for t in tensors))).total == expected


def test_the_kernels_serve_where_they_keep_little_more(monkeypatch, calls):
    monkeypatch.setattr(module, "_WORTH", 2.0)
    sketch = rad.Rounding(bits=3)
    fraction = sketch.fraction(8)
    for keys in (8, 64, 128, 256, 512, 1024):
        mask = torch.ones(keys, keys, dtype=torch.bool)
        for options in ({}, {"is_causal": True}, {"attn_mask": mask}):
            calls.clear()
            tensors = operands(0, 1, 2, queries=keys, keys=keys)
            attend(sketch, tensors, **options)
            count, seen = tensors[0].numel(), 4 * keys * keys / (2 if "is_causal" in options else 1)
            fused, blocks = 2 * count + fraction * 2 * count, fraction * (3 * count + seen)
            fused += mask.numel() if "attn_mask" in options else 0
            assert (calls == ["forward"]) == (fused <= 2 * blocks), (keys, *options)
