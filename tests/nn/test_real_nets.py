"""Nets of torchvision, transformers and timm, random weights: the same outputs bit for bit, gradients, few bytes."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from blocks import distance
from sketches import normal
from torch import Tensor, nn

import rad
from rad.measure import saved_bytes

# No padding, whose zeros a composite RMSNorm divides by almost nothing: a range that drowns the others.
TOKENS = torch.arange(96).view(2, 48) * 7 % 49 + 1
TEXT = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}


def vision(name: str, **options: Any) -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    return getattr(models, name)(num_classes=10, **options)


def text(name: str, **options: Any) -> nn.Module:
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = pytest.importorskip("transformers")
    family = name.partition("For")[0].removesuffix("LMHeadModel")
    return getattr(transformers, name)(getattr(transformers, f"{family}Config")(**TEXT, **options))


def timm(name: str, **options: Any) -> nn.Module:
    return pytest.importorskip("timm").create_model(name, num_classes=10, **options)


BERT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}

# How it is made, what it is given and which share of the stock bytes it may keep with Rounding(0.1). BatchNorm of two
# values, as of two images of 32 × 32 in the last layers of some, has gradients that an error of a bit multiplies.
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...] | Tensor, float]] = {
    "resnet18": (lambda: vision("resnet18"), (2, 3, 32, 32), 0.12),
    "mobilenet_v3_small": (lambda: vision("mobilenet_v3_small"), (2, 3, 64, 64), 0.15),
    "efficientnet_b0": (lambda: vision("efficientnet_b0"), (2, 3, 64, 64), 0.15),
    "convnext_tiny": (lambda: vision("convnext_tiny"), (1, 3, 32, 32), 0.15),
    "swin_t": (lambda: vision("swin_t"), (1, 3, 64, 64), 0.15),
    "vit": (
        lambda: vision(
            "VisionTransformer",
            **{"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 256},
        ),
        (4, 3, 32, 32),
        0.17,
    ),
    "gpt2": (lambda: text("GPT2LMHeadModel", n_layer=2, n_head=4, n_embd=64), TOKENS, 0.15),
    "bert": (lambda: text("BertForMaskedLM", **BERT), TOKENS, 0.15),
    "llama": (lambda: text("LlamaForCausalLM", **BERT, num_key_value_heads=2), TOKENS, 0.17),
    "t5": (
        lambda: text(
            "T5ForConditionalGeneration",
            **{"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
        ),
        TOKENS,
        0.2,
    ),
    "timm vit": (lambda: timm("vit_tiny_patch16_224", img_size=64, depth=2), (2, 3, 64, 64), 0.17),
    "timm resnet": (lambda: timm("resnet18"), (2, 3, 32, 32), 0.12),
}


def run(model: nn.Module, given: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and outputs, from a fixed state of the global generator: dropout stays on."""
    torch.manual_seed(1)
    if not given.is_floating_point():
        out = model(input_ids=given, labels=given)
        return out.loss, out.logits
    out = model(given)
    return F.cross_entropy(out, torch.arange(len(given))), out


def gradients(model: nn.Module, given: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    loss, out = run(model, given)
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return out.detach(), {name: g for name, g in zip(named, grads, strict=True) if g is not None}


@pytest.mark.filterwarnings("ignore::rad.BudgetFloorWarning")
@pytest.mark.parametrize(("make", "given", "bound"), NETS.values(), ids=NETS)
def test_net(make, given, bound):
    torch.manual_seed(0)
    stock = make().train()
    x = given if isinstance(given, Tensor) else normal(*given)
    model = rad.convert(copy.deepcopy(stock), rad.Rounding(bits=12))
    (out, exact), (same, many) = gradients(stock, x), gradients(model, x)
    assert torch.equal(same, out)
    assert many.keys() == exact.keys()
    assert distance(many, exact) < 0.01
    rad.convert(model, rad.Rounding(0.1))
    few, plain = (saved_bytes(lambda m=m: run(m, x)[0]).total for m in (model, stock))
    assert few < bound * plain
