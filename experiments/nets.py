"""Nets that people use, with random weights, inputs and a loss: for measuring, on any machine, without a download.

A case is a name of ``CASES``; torchvision and transformers are imported where they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.errors import UserError
from experiments.models import CNN, IRNN, MLP

__all__ = ["CASES", "Case", "FunctionalGPT", "build"]


@dataclass(frozen=True)
class Case:
    """A net with all that a training step needs.

    Attributes:
        model: The net; its loss is a part of it, so that it is converted with the rest.
        inputs: Positional arguments, tensors.
        describe: Sizes, in words.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    describe: str

    def loss(self) -> Tensor:
        """The loss of one forward pass."""
        return self.model(*self.inputs)


class _Classified(nn.Module):
    """An image net and its cross-entropy."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.net(x), y)


class _Language(nn.Module):
    """A transformers model that is given its labels and returns its loss."""

    def __init__(self, net: nn.Module, **options: Any) -> None:
        super().__init__()
        self.net, self.options = net, options

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(input_ids=tokens, labels=tokens, **self.options).loss


class _Recurrent(nn.Module):
    """A recurrent net over a sequence of vectors, with a mean squared error of all outputs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(self.net(x)[0], y)


class _LastOutput(nn.Module):
    """The paper's recurrent net of ``nn.RNN``, which returns the outputs of all steps; classes by the last of them."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = nn.RNN(1, 100, nonlinearity="relu", batch_first=True), nn.Linear(100, 10)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.net(x)[0][:, -1]), y)


class _Down(nn.Sequential):
    def __init__(self, c: int, o: int) -> None:
        super().__init__(
            nn.Conv2d(c, o, 3, padding=1),
            nn.GroupNorm(8, o),
            nn.SiLU(),
            nn.Conv2d(o, o, 3, padding=1),
            nn.GroupNorm(8, o),
            nn.SiLU(),
        )


class UNet(nn.Module):
    """Two levels down and up again: GroupNorm, SiLU, transposed convolutions."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first, self.second, self.third = _Down(3, width), _Down(width, 2 * width), _Down(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.back2 = _Down(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.back1 = _Down(2 * width, width)
        self.head = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.second(F.max_pool2d(a, 2))
        c = self.third(F.max_pool2d(b, 2))
        b = self.back2(torch.cat([self.up2(c), b], 1))
        return self.head(self.back1(torch.cat([self.up1(b), a], 1)))


class _Restored(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return F.mse_loss(self.net(x), x)


class FunctionalGPT(nn.Module):
    """A decoder of functional calls and parameters alone, as small research code is written."""

    def __init__(
        self, layers: int = 6, width: int = 192, heads: int = 6, tokens: int = 256, vocabulary: int = 256
    ) -> None:
        super().__init__()
        self.heads = heads
        self.embedding = nn.Parameter(torch.randn(vocabulary, width) * 0.02)
        self.places = nn.Parameter(torch.randn(tokens, width) * 0.02)
        shapes = ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))
        self.matrices = nn.ParameterList(torch.randn(s) * s[1] ** -0.5 for _ in range(layers) for s in shapes)
        self.gains = nn.ParameterList(torch.ones(width) for _ in range(2 * layers + 1))

    def layer(self, x: Tensor, i: int) -> Tensor:
        """The ``i``-th layer."""
        b, t, width = x.shape
        mix, out, up, down = self.matrices[4 * i : 4 * i + 4]
        qkv = F.linear(F.layer_norm(x, (width,), self.gains[2 * i]), mix)
        q, k, v = qkv.view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.linear(mixed.transpose(1, 2).reshape(b, t, width), out)
        return x + F.linear(F.gelu(F.linear(F.layer_norm(x, (width,), self.gains[2 * i + 1]), up)), down)

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.embedding(tokens, self.embedding) + self.places[: tokens.shape[1]]
        for i in range(len(self.matrices) // 4):
            x = self.layer(x, i)
        logits = F.linear(F.layer_norm(x, x.shape[-1:], self.gains[-1]), self.embedding)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def _vision(name: str, **options: Any) -> Callable[[int, int], Case]:
    def make(batch: int, size: int) -> Case:
        import torchvision

        net = torchvision.models.get_model(name, num_classes=10, **options)
        if hasattr(net, "heads"):
            nn.init.normal_(net.heads.head.weight, std=0.02)  # begins as zero: no gradient would get past it
        for module in net.modules():
            if type(module).__name__ == "CNBlock":
                nn.init.ones_(module.layer_scale)  # begins as 1e-6
        data = torch.randn(batch, 3, size, size), torch.randint(10, (batch,))
        return Case(_Classified(net), data, f"{batch} × 3 × {size} × {size}")

    return make


def _transformer(kind: str, **options: Any) -> Callable[[int, int], Case]:
    def make(batch: int, size: int) -> Case:
        import transformers

        attention = {} if kind == "T5" else {"attn_implementation": "sdpa"}
        config = getattr(transformers, f"{kind}Config")(**options, **attention)
        head = {"GPT2": "LMHeadModel", "Bert": "ForMaskedLM", "Llama": "ForCausalLM", "T5": "ForConditionalGeneration"}
        net = getattr(transformers, kind + head[kind])(config)
        passed = {"use_cache": False} if kind in ("GPT2", "Llama") else {}
        tokens = torch.randint(options["vocab_size"], (batch, size))
        return Case(_Language(net, **passed), (tokens,), f"{batch} × {size} tokens")

    return make


def _recurrent(kind: type[nn.Module]) -> Callable[[int, int], Case]:
    def make(batch: int, size: int) -> Case:
        net = kind(64, 256, num_layers=2, batch_first=True)
        return Case(
            _Recurrent(net), (torch.randn(batch, size, 64), torch.randn(batch, size, 256)), f"{batch} × {size} steps"
        )

    return make


def _last_output(batch: int, size: int) -> Case:
    return Case(_LastOutput(), (torch.randn(batch, size, 1), torch.randint(10, (batch,))), f"{batch} × {size} steps")


def _unet(batch: int, size: int) -> Case:
    return Case(_Restored(UNet()), (torch.randn(batch, 3, size, size),), f"{batch} × 3 × {size} × {size}")


def _functional(batch: int, size: int) -> Case:
    return Case(FunctionalGPT(tokens=size), (torch.randint(256, (batch, size)),), f"{batch} × {size} tokens")


_GPT2 = {
    "n_layer": 6,
    "n_embd": 384,
    "n_head": 6,
    "vocab_size": 1000,
    "n_positions": 4096,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_GPT2_SMALL = {**_GPT2, "n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257}
_BERT = {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "vocab_size": 1000,
}
_LLAMA = {
    "num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2,
    "intermediate_size": 688, "vocab_size": 1000,
}  # fmt: skip
_T5 = {
    "num_layers": 4,
    "d_model": 256,
    "d_ff": 1024,
    "num_heads": 4,
    "d_kv": 64,
    "vocab_size": 1000,
    "decoder_start_token_id": 0,
}
_VIT = {"image_size": 64, "patch_size": 8, "num_layers": 6, "num_heads": 6, "hidden_dim": 384, "mlp_dim": 1536}


def _vit(batch: int, size: int) -> Case:
    from torchvision.models.vision_transformer import VisionTransformer

    net = VisionTransformer(**{**_VIT, "image_size": size}, num_classes=10)
    nn.init.normal_(net.heads.head.weight, std=0.02)
    return Case(
        _Classified(net),
        (torch.randn(batch, 3, size, size), torch.randint(10, (batch,))),
        f"{batch} × 3 × {size} × {size}",
    )


def _paper(kind: str) -> Callable[[int, int], Case]:
    """One of the paper's three nets."""

    def make(batch: int, size: int) -> Case:
        y = torch.randint(10, (batch,))
        if kind == "mlp":
            net, x = MLP([size * size, 300, 300, 300, 10]), torch.randn(batch, 1, size, size)
        elif kind == "cnn":
            net, x = CNN(3, [[16, 32], [32, 32]], 5, size, 10), torch.randn(batch, 3, size, size)
        else:
            net, x = IRNN(1, 100, 10), torch.randn(batch, size, 1)
        return Case(_Classified(net), (x, y), f"{batch} × {' × '.join(str(n) for n in x.shape[1:])}")

    return make


# By name: how it is made, batch and size of its usual case.
CASES: dict[str, tuple[Callable[[int, int], Case], int, int]] = {
    "resnet18": (_vision("resnet18"), 16, 64),
    "resnet50": (_vision("resnet50"), 16, 64),
    "mobilenet_v3_small": (_vision("mobilenet_v3_small"), 16, 64),
    "efficientnet_b0": (_vision("efficientnet_b0"), 16, 64),
    "convnext_tiny": (_vision("convnext_tiny"), 16, 64),
    "vit": (_vit, 16, 64),
    "swin_t": (_vision("swin_t"), 16, 64),
    "gpt2": (_transformer("GPT2", **_GPT2), 4, 256),
    "gpt2_small": (_transformer("GPT2", **_GPT2_SMALL), 8, 1024),
    "bert": (_transformer("Bert", **_BERT), 4, 256),
    "llama": (_transformer("Llama", **_LLAMA), 4, 256),
    "t5": (_transformer("T5", **_T5), 4, 256),
    "gpt": (_functional, 8, 256),
    "lstm": (_recurrent(nn.LSTM), 16, 100),
    "gru": (_recurrent(nn.GRU), 16, 100),
    "rnn": (_last_output, 150, 784),
    "unet": (_unet, 4, 64),
    "mlp": (_paper("mlp"), 150, 28),
    "cnn": (_paper("cnn"), 150, 32),
    "irnn": (_paper("irnn"), 150, 49),
}


def build(name: str, batch: int | None = None, size: int | None = None, seed: int = 0) -> Case:
    """A net by name.

    Args:
        name: One of ``CASES``.
        batch: Examples; the usual number if ``None``.
        size: Side of the images or length of the sequences; the usual one if ``None``.
        seed: Of weights and inputs.

    Raises:
        UserError: If there is no such net or a package is missing.
    """
    if name not in CASES:
        raise UserError(f"there is no net {name!r}; choose from {', '.join(CASES)}")
    make, usual_batch, usual_size = CASES[name]
    torch.manual_seed(seed)
    try:
        return make(batch or usual_batch, size or usual_size)
    except ImportError as error:
        raise UserError(f"{name} needs the package {error.name}; pip install -e '.[dev]' installs it") from error
