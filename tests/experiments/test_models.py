"""The models: what they compute, and from which weights they start."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sketches import normal
from torch import nn

from experiments.models import CNN, GPT, IRNN, LSTM, MLP, ResNet


def test_mlp_is_relu_between_linear_layers():
    model, x = MLP([12, 7, 5, 3]), normal(4, 1, 3, 4)
    (a, b, c) = [layer for layer in model if isinstance(layer, nn.Linear)]
    torch.testing.assert_close(model(x), c(F.relu(b(F.relu(a(x.reshape(4, 12)))))))
    assert (model(x) < 0).any()


def test_cnn_is_blocks_of_convolutions_and_mean_pooling():
    model, x = CNN(3, [[4, 5], [6]], 5, 8, 10), normal(2, 3, 8, 8)
    expected = x
    convolutions = iter([layer for layer in model if isinstance(layer, nn.Conv2d)])
    for block in ((4, 5), (6,)):
        for width in block:
            layer = next(convolutions)
            assert layer.out_channels == width
            expected = F.relu(F.conv2d(expected, layer.weight, layer.bias, padding=2))
        expected = F.avg_pool2d(expected, 2)
    torch.testing.assert_close(model(x), model[-1](expected.flatten(1)))


def test_irnn_starts_from_the_identity_and_adds_up():
    model = IRNN(2, 50, 3)
    weights = dict(model[0].named_parameters())
    assert torch.equal(weights["weight_hh_l0"], torch.eye(50))
    for name, p in model.named_parameters():
        if "bias" in name:
            assert not p.any()
        elif "hh" not in name:
            assert p.std().item() == pytest.approx(1e-3, rel=0.3)
    x = normal(4, 9, 2)
    state = torch.zeros(4, 50)
    for t in range(9):
        state = F.relu(x[:, t] @ weights["weight_ih_l0"].T + state)
    torch.testing.assert_close(model(x), model[1](state))


def test_resnet_is_that_of_torchvision_but_for_its_beginning():
    torchvision = pytest.importorskip("torchvision")
    ours, theirs = ResNet(3, 64, [2, 2, 2, 2], 10), torchvision.models.resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    blocks = [ours[0], ours[1], *list(ours)[3:11], ours[13]]
    stock = [theirs.conv1, theirs.bn1, *(b for i in range(1, 5) for b in getattr(theirs, f"layer{i}")), theirs.fc]
    for own, other in zip(blocks, stock, strict=True):
        if hasattr(other, "bn1"):
            pairs = ((own.first, other.conv1), (own.second, other.conv2), (own.norm_first, other.bn1))
            pairs += ((own.norm_second, other.bn2),)
            pairs += () if other.downsample is None else tuple(zip(own.around, other.downsample, strict=True))
        else:
            pairs = ((own, other),)
        for a, b in pairs:
            a.load_state_dict(b.state_dict())
    x = normal(2, 3, 16, 16)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("made", [lambda: GPT(20, 9, 8, 2, 2), lambda: LSTM(20, 8, 2)], ids=["gpt", "lstm"])
def test_a_model_of_text_looks_back_alone(made):
    model, x = made(), torch.randint(20, (3, 9))
    logs = model(x)
    assert logs.shape == (3, 9, 20)
    changed = x.clone()
    changed[:, 5] = (x[:, 5] + 1) % 20
    other = model(changed)
    assert torch.equal(logs[:, :5], other[:, :5])
    assert ((logs - other)[:, 5:].abs().amax(-1) > 1e-6).all()


def test_gpt_is_attention_and_two_layers_added():
    model, x = GPT(20, 9, 8, 2, 1), torch.randint(20, (3, 7))
    embedding, block, norm, head, _ = model
    h = embedding.symbols.weight[x] + embedding.places[:7]
    q, k, v = block.mix(F.layer_norm(h, (8,))).split(8, -1)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 2
        scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ v[..., part])
    h = h + block.out(torch.cat(heads, -1))
    h = h + block.down(F.gelu(block.up(F.layer_norm(h, (8,)))))
    torch.testing.assert_close(model(x), head(F.layer_norm(h, (8,))).log_softmax(-1))
    with pytest.raises(ValueError, match="heads must divide width, 8, got 3"):
        GPT(20, 9, 8, 3, 1)


@pytest.mark.parametrize("layers", [1, 8])
def test_weights_of_gpt_are_small_and_smaller_where_they_are_added(layers):
    torch.manual_seed(0)
    found = dict(GPT(symbols=50, length=64, width=64, heads=2, layers=layers).named_parameters())
    added = {name for name in found if name.endswith(("out.weight", "down.weight"))}
    assert len(added) == 2 * layers
    for name, p in found.items():
        if p.dim() > 1:
            assert p.std().item() == pytest.approx(0.02 / math.sqrt(2 * layers) if name in added else 0.02, rel=0.1)
        else:
            assert (p == (0 if name.endswith("bias") else 1)).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"kernel_size": 4}, "must be odd, got 4"), ({"size": 6}, "divisible by 4 for 2 blocks, got 6")],
)
def test_a_cnn_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CNN(**{"channels": 3, "blocks": [[4], [4]], "kernel_size": 3, "size": 8, "outputs": 10} | wrong)
