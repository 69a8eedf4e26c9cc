"""The models: what they compute, and from which weights they start."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sketches import normal
from torch import nn

from experiments.models import CNN, IRNN, MLP


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"kernel_size": 4}, "must be odd, got 4"), ({"size": 6}, "divisible by 4 for 2 blocks, got 6")],
)
def test_a_cnn_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CNN(**{"channels": 3, "blocks": [[4], [4]], "kernel_size": 3, "size": 8, "outputs": 10} | wrong)
