"""What models write by hand out of torch functions, and functions of PyTorch's that are made of others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sketches import Whole, assert_unbiased, normal
from torch import Tensor, nn

import rad

FEW, WHOLE = rad.Rounding(bits=3), Whole()


class Written(nn.Module):
    """A forward pass written by hand, with a weight."""

    def __init__(self, function: Callable[..., Tensor], *shape: int) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(normal(*shape, seed=7, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def gpt_gelu(x: Tensor, weight: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def llama_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotary(x: Tensor, weight: Tensor) -> Tensor:
    angle = torch.outer(torch.arange(x.shape[1], dtype=x.dtype), weight[:8])
    cos, sin = (torch.cat([f(angle), f(angle)], -1) for f in (torch.cos, torch.sin))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


WRITTEN = {
    "GELU of GPT-2": gpt_gelu,
    "RMSNorm of Llama": llama_norm,
    "rotary embedding": rotary,
    "gated layer": lambda x, w: F.silu(x) * torch.sigmoid(x * w),
    "normalized rows": lambda x, w: F.normalize(x, dim=-1) @ w.view(1, 16, 1),
    "cosine": lambda x, w: F.cosine_similarity(x, w, dim=-1),
    "local response": lambda x, w: F.local_response_norm(x, 3),
    "attention by hand": lambda x, w: (x @ x.mT / 4).masked_fill(_causal(x), -torch.inf).softmax(-1) @ (x * w),
    "smallest of": lambda x, w: F.softmin(x * w, dim=-1),
    "losses": lambda x, w: (
        F.gaussian_nll_loss(x, x * w, F.softplus(x)) + F.mse_loss(x, x * w) + F.smooth_l1_loss(x, w * x)
    ),
    "log of softmax": lambda x, w: F.nll_loss(F.log_softmax(x * w, -1).view(-1, 16), torch.arange(30) % 16),
    "multi-margin": lambda x, w: F.multi_margin_loss((x * w).view(-1, 16), torch.arange(30) % 16),
    "gumbel": lambda x, w: F.gumbel_softmax(x * w, tau=2.0, dim=-1),
    "whitened": lambda x, w: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt() * w,
}


def _causal(x: Tensor) -> Tensor:
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)


def outcome(model: nn.Module, x: Any) -> tuple[Tensor, list[Tensor]]:
    torch.default_generator.manual_seed(3)
    out = model(x)
    leaves = [t for t in (x, *model.parameters()) if t.requires_grad]
    grads = torch.autograd.grad(out, leaves, normal(*out.shape, seed=9, dtype=out.dtype), allow_unused=True)
    return out.detach(), [g for g in grads if g is not None]


@pytest.mark.parametrize("function", WRITTEN.values(), ids=WRITTEN)
def test_written_by_hand(function):
    x = normal(5, 6, 16, dtype=torch.float64).requires_grad_()
    model = Written(function, 16)
    out, exact = outcome(model, x)
    held = rad.measure.saved_bytes(lambda: model(x * 1).sum()).total
    for sketch in (FEW, WHOLE, rad.Project(0.5)):
        ours, grads = outcome(rad.convert(model, sketch), x)
        assert torch.equal(ours, out)
        if sketch is WHOLE:
            torch.testing.assert_close(grads, exact, rtol=1e-8, atol=1e-10)
    rad.convert(model, FEW)
    assert rad.measure.saved_bytes(lambda: model(x * 1).sum()).total <= held
    draws = [outcome(model, x)[1] for _ in range(120)]
    for some, right in zip(zip(*draws, strict=True), exact, strict=True):
        assert_unbiased(torch.stack(some), right)


@pytest.mark.parametrize("name", ["GELU of GPT-2", "RMSNorm of Llama", "attention by hand", "gated layer"])
def test_what_is_written_by_hand_is_kept_in_few_bits(name):
    x = normal(8, 64, 16).requires_grad_()
    model = Written(WRITTEN[name], 16).float()
    stock = rad.measure.saved_bytes(lambda: model(x * 1).sum()).total
    rad.convert(model, FEW)
    assert rad.measure.saved_bytes(lambda: model(x * 1).sum()).total < 0.25 * stock


def test_a_function_is_opened_every_time():
    x, model = normal(64, 64).requires_grad_(), Written(lambda x, _: F.normalize(F.normalize(x) * x), 1)
    stock = rad.measure.saved_bytes(lambda: model(x * 1).sum()).total
    rad.convert(model, FEW)
    first, second = (rad.measure.saved_bytes(lambda: model(x * 1).sum()).total for _ in range(2))
    assert first == second < 0.9 * stock


# Each asks whether it is overridden, and a helper of its own asks once more in its name.
ASKED_TWICE: dict[str, Callable[[Tensor], Any]] = {
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x.flatten(2), 3),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 3),
    "adaptive_max_pool3d": lambda x: F.adaptive_max_pool3d(x.view(2, 2, 2, 6, 8), 2),
    "adaptive_max_pool2d with indices": lambda x: F.adaptive_max_pool2d(x, 3, return_indices=True)[0],
    "fractional_max_pool2d": lambda x: F.fractional_max_pool2d(x, 2, output_size=3, _random_samples=_half(2)),
    "fractional_max_pool3d": lambda x: F.fractional_max_pool3d(
        x.view(2, 2, 2, 6, 8), 1, output_size=1, _random_samples=_half(3)
    ),
    "meshgrid": lambda x: x * torch.stack(torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")).sum(0),
    "unique": lambda x: x * len(torch.unique(x.detach())),
    "unique_consecutive": lambda x: x * len(torch.unique_consecutive(torch.tensor([1, 1, 2]))),
}


def _half(dims: int) -> Tensor:
    return torch.full((2, 4 if dims == 2 else 2, dims), 0.5)


@pytest.mark.parametrize("function", ASKED_TWICE.values(), ids=ASKED_TWICE)
@pytest.mark.parametrize("sketch", [FEW, rad.Sample(0.5)], ids=str)
def test_what_asks_twice_is_opened_once(function, sketch):
    x = normal(2, 4, 6, 8).requires_grad_()
    model = Written(lambda x, _: function(x), 1)
    out, grads = outcome(model, x)
    ours, found = outcome(rad.convert(model, sketch), x)
    assert torch.equal(ours, out)
    assert torch.equal(found[0], grads[0]) or sketch is FEW
    assert (found[0] - grads[0]).norm() < 0.3 * grads[0].norm()
    with torch.no_grad():
        assert torch.equal(model(x), out)


ATTENTION: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "batch first, dropout": ({"batch_first": True, "dropout": 0.3}, {"need_weights": False}),
    "weights for each head": ({}, {"average_attn_weights": False}),
    "no weights": ({}, {"need_weights": False}),
    "no bias": ({"bias": False}, {"need_weights": False}),
    "biases for keys and values": ({"add_bias_kv": True}, {}),
    "zeros to attend to": ({"add_zero_attn": True}, {"need_weights": False}),
    "other widths": ({"kdim": 10, "vdim": 12}, {}),
    "padding": ({"batch_first": True}, {"key_padding_mask": True, "need_weights": False}),
    "mask": ({}, {"attn_mask": True, "need_weights": False}),
    "causal": ({}, {"attn_mask": True, "is_causal": True, "need_weights": False}),
    "all of it": ({"add_bias_kv": True, "add_zero_attn": True}, {"key_padding_mask": True, "attn_mask": True}),
}


class Attending(nn.Module):
    def __init__(self, options: dict[str, Any], call: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.attention = nn.MultiheadAttention(16, 2, dtype=torch.float64, **options)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        call, batch_first = dict(self.call), self.attention.batch_first
        length, examples = x.shape[:2][:: -1 if batch_first else 1]
        key, value = (x if size == 16 else x[..., :size] for size in (self.attention.kdim, self.attention.vdim))
        if call.get("key_padding_mask"):
            call["key_padding_mask"] = torch.arange(length).expand(examples, length) >= length - 2
        if call.get("attn_mask"):
            call["attn_mask"] = torch.ones(length, length, dtype=torch.bool).triu(1)
        out, weights = self.attention(x, key, value, **call)
        return out if weights is None else torch.cat([out.flatten(), weights.flatten()])


@pytest.mark.parametrize(("options", "call"), ATTENTION.values(), ids=ATTENTION)
def test_multi_head_attention(options, call):
    x = normal(5, 4, 16, dtype=torch.float64).requires_grad_()
    model = Attending(options, call)
    out, exact = outcome(model, x)
    ours, grads = outcome(rad.convert(model, WHOLE), x)
    assert torch.equal(ours, out)
    torch.testing.assert_close(grads, exact, rtol=1e-8, atol=1e-10)
    ours, _ = outcome(rad.convert(model, FEW), x)
    assert torch.equal(ours, out)
    draws = [outcome(model, x)[1] for _ in range(60)]
    for some, right in zip(zip(*draws, strict=True), exact, strict=True):
        assert_unbiased(torch.stack(some), right)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_a_block_of_a_transformer(training, norm_first):
    torch.manual_seed(1)
    model = nn.TransformerEncoderLayer(
        16, 2, 32, 0.2, F.gelu, batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    model.train(training)
    x = normal(3, 6, 16, dtype=torch.float64).requires_grad_()
    out, exact = outcome(model, x)
    ours, grads = outcome(rad.convert(model, WHOLE), x)
    assert torch.equal(ours, out)
    torch.testing.assert_close(grads, exact, rtol=1e-8, atol=1e-10)
    with torch.no_grad():  # the fast path of stock, which no function is seen of
        torch.testing.assert_close(model.eval()(x), rad.revert(model)(x))
