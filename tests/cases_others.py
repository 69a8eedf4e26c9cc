"""Calls of normalizations, softmax, losses, attention and pools."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from calls import HEADS, IMAGES, SHAPE, buffer, constant, flags, integers, last, leaf, like, lines, path, within

WEIGHTS = torch.linspace(0.1, 0.9, 128).double().view(8, 16)

CASES = [
    *lines(
        F.layer_norm,
        ("", [path(*SHAPE), [16], leaf(16), leaf(16)]),
        ("no weights", [path(2, 3, 4, 5), (4, 5)], {"eps": 0.1}),
        ("no bias", [path(2, 3, 4, 5), (4, 5), leaf(4, 5)]),
        ("transposed", [like(lambda t: t.mT, 16, 6), [16], leaf(16), leaf(16)]),
        ("no rows", [path(0, 16), [16], leaf(16), leaf(16)]),
    ),
    *lines(
        F.rms_norm,
        ("", [path(*SHAPE), [16], leaf(16)]),
        ("no weights", [path(2, 3, 4, 5), (4, 5)], {"eps": 0.1}),
        ("no rows", [path(0, 16), [16], leaf(16)]),
    ),
    *lines(
        F.group_norm,
        ("", [path(*IMAGES), 2, leaf(4), leaf(4)]),
        ("no weights", [path(3, 8), 2], {"eps": 0.1}),
        ("one group", [path(*IMAGES), 1, leaf(4), leaf(4)]),
        ("a group each", [path(*IMAGES), 4, leaf(4), leaf(4)]),
        ("channels last", [like(last, *IMAGES), 2, leaf(4), leaf(4)]),
    ),
    *lines(
        F.instance_norm,
        ("", [path(*IMAGES)]),
        ("weights, statistics", [path(*IMAGES), buffer(0.5, 4), buffer(2, 4), leaf(4), leaf(4), True, 0.3, 0.1]),
        ("by statistics", [path(*IMAGES), constant(4), within(0.5, 2, 4, role="constant"), leaf(4), leaf(4), False]),
        ("sequences", [path(3, 4, 7), None, None, leaf(4), leaf(4)]),
    ),
    *lines(torch.layer_norm, ("", [path(*SHAPE), [16], leaf(16), leaf(16), 1e-3, False])),
    *lines(torch.rms_norm, ("", [path(*SHAPE), [16], leaf(16)])),
    *lines(torch.group_norm, ("", [path(*IMAGES), 2, leaf(4), leaf(4), 1e-3, False])),
    *lines(
        torch.instance_norm,
        ("", [path(*IMAGES), leaf(4), leaf(4), buffer(0.5, 4), buffer(2, 4), True, 0.3, 0.1, False]),
    ),
    *lines(
        F.batch_norm,
        ("", [path(*IMAGES), buffer(0.5, 4), buffer(2, 4), leaf(4), leaf(4), True]),
        ("momentum, eps", [path(6, 16), buffer(0.5, 16), buffer(2, 16), leaf(16), leaf(16), True, 0.3, 0.1]),
        ("no statistics", [path(3, 4, 7), None, None, None, None, True]),
        ("not training", [path(*IMAGES), constant(4), within(0.5, 2, 4, role="constant"), leaf(4), leaf(4)]),
        ("volumes", [path(3, 4, 2, 3, 2), buffer(0.5, 4), buffer(2, 4), leaf(4), leaf(4), True]),
        ("channels last", [like(last, *IMAGES), buffer(0.5, 4), buffer(2, 4), leaf(4), leaf(4), True]),
    ),
    *lines(
        torch.batch_norm, ("", [path(*IMAGES), leaf(4), leaf(4), buffer(0.5, 4), buffer(2, 4), True, 0.1, 1e-5, False])
    ),
    *lines(
        F.softmax,
        ("", [path(*SHAPE), -1]),
        ("along another dimension", [path(*SHAPE)], {"dim": 0}),
        ("dtype", [path(*SHAPE)], {"dim": 1, "dtype": torch.float64}),
        ("empty", [path(0, 4), -1]),
        ("0-d", [path(), 0]),
    ),
    *lines(torch.softmax, ("", [path(*SHAPE), -1])),
    *lines(
        F.log_softmax,
        ("", [path(*SHAPE), -1]),
        ("along another dimension", [path(*SHAPE)], {"dim": 0, "dtype": torch.float64}),
    ),
    *lines(torch.log_softmax, ("", [path(*SHAPE), -1])),
    *lines(
        F.nll_loss,
        ("", [path(8, 10), integers(10, 8)]),
        ("images", [path(2, 5, 3, 4), integers(5, 2, 3, 4)], {"reduction": "sum"}),
        ("one", [path(40), integers(40)]),
        (
            "all of it, none",
            [path(2, 5, 8), integers(5, 2, 8), within(0.5, 2, 5, role="constant")],
            {"ignore_index": 0, "reduction": "none"},
        ),
        (
            "all of it",
            [path(2, 5, 8), integers(5, 2, 8), within(0.5, 2, 5, role="constant")],
            {"ignore_index": 0},
        ),
    ),
    *lines(
        F.binary_cross_entropy,
        ("", [within(0.1, 0.9, 8, 16), within(0, 1, 8, 16, role="constant")]),
        (
            "weights",
            [within(0.1, 0.9, 8, 16), within(0, 1, 8, 16, role="constant")],
            {"weight": torch.linspace(0.5, 2, 16).double(), "reduction": "sum"},
        ),
    ),
    *lines(
        F.mse_loss,
        ("", [path(8, 16), constant(8, 16)]),
        ("both, broadcast", [path(8, 16), path(16)], {"reduction": "sum"}),
        ("predictions broadcast", [path(8, 1), path(8, 16)]),
        ("none", [path(8, 16), constant(8, 16)], {"reduction": "none"}),
        ("weights", [path(8, 16), constant(8, 16)], {"weight": WEIGHTS}),
        ("weights, broadcast", [path(8, 16), path(2, 8, 16)], {"weight": WEIGHTS}),
        ("weights, sum", [path(8, 16), path(8, 16)], {"weight": WEIGHTS, "reduction": "sum"}),
        ("weights, none", [path(8, 16), constant(8, 16)], {"weight": WEIGHTS, "reduction": "none"}),
    ),
    *lines(F.l1_loss, ("", [path(8, 16), constant(8, 16)])),
    *lines(F.smooth_l1_loss, ("beta", [path(8, 16), constant(8, 16)], {"beta": 0.5})),
    *lines(
        F.huber_loss,
        ("delta", [path(8, 16), constant(8, 16)], {"delta": 0.7}),
        *(
            (f"weights, {how}", [path(8, 16), constant(8, 16)], {"weight": WEIGHTS, "reduction": how})
            for how in ("mean", "sum", "none")
        ),
    ),
    *lines(
        F.binary_cross_entropy_with_logits,
        ("", [path(8, 16), within(0, 1, 8, 16, role="constant")]),
        ("weights", [path(8, 16), within(0, 1, 8, 16, role="constant")], {"reduction": "sum"}),
    ),
    *lines(
        F.cross_entropy,
        ("", [path(8, 10), integers(10, 8)]),
        ("images", [path(2, 5, 3, 4), integers(5, 2, 3, 4)], {"reduction": "sum"}),
        ("one", [path(40), integers(40)]),
        ("none", [path(8, 10), integers(10, 8)], {"reduction": "none"}),
        ("ignored", [path(16, 4), integers(4, 16)], {"ignore_index": 1}),
        ("weights", [path(16, 4), integers(4, 16), within(0.5, 2, 4, role="constant")]),
        ("smoothed", [path(16, 4), integers(4, 16)], {"label_smoothing": 0.2}),
        (
            "all of it",
            [path(2, 5, 8), integers(5, 2, 8), within(0.5, 2, 5, role="constant")],
            {"ignore_index": 0, "label_smoothing": 0.2},
        ),
        (
            "all of it, none",
            [path(2, 5, 8), integers(5, 2, 8), within(0.5, 2, 5, role="constant")],
            {"ignore_index": 0, "label_smoothing": 0.2, "reduction": "none"},
        ),
        (
            "probabilities",
            [path(2, 5, 8), within(0, 1, 2, 5, 8, role="constant"), within(0.5, 2, 5, role="constant")],
            {"label_smoothing": 0.2},
        ),
        ("probabilities, one", [path(40), within(0, 1, 40, role="constant")]),
        ("probabilities with a gradient", [path(8, 10), within(0, 1, 8, 10)]),
        ("old arguments", [path(8, 10), integers(10, 8)], {"size_average": False}),
    ),
    *lines(
        F.scaled_dot_product_attention,
        ("", [path(*HEADS), path(*HEADS), path(*HEADS)]),
        ("causal", [path(*HEADS), path(*HEADS), path(*HEADS)], {"is_causal": True}),
        ("causal, fewer keys", [path(2, 2, 6, 8), path(2, 2, 4, 8), path(2, 2, 4, 8)], {"is_causal": True}),
        ("scale", [path(*HEADS), path(2, 2, 9, 8), path(2, 2, 9, 5)], {"scale": 0.7}),
        ("hidden", [path(*HEADS), path(*HEADS), path(*HEADS), flags(2, 1, 6, 6)]),
        ("added", [path(*HEADS), path(*HEADS), path(*HEADS), constant(6, 6)]),
        ("added, learned", [path(*HEADS), path(*HEADS), path(*HEADS), leaf(1, 2, 6, 6)]),
        ("dropout", [path(*HEADS), path(*HEADS), path(*HEADS)], {"dropout_p": 0.3}),
        ("dropout, causal", [path(*HEADS), path(*HEADS), path(*HEADS)], {"dropout_p": 0.3, "is_causal": True}),
        ("groups", [path(2, 4, 6, 8), path(2, 2, 6, 8), path(2, 2, 6, 8)], {"enable_gqa": True}),
        (
            "groups, causal, dropout",
            [path(2, 4, 6, 8), path(2, 2, 6, 8), path(2, 2, 6, 8)],
            {"enable_gqa": True, "is_causal": True, "dropout_p": 0.3},
        ),
        ("no heads", [path(4, 6, 8), path(4, 6, 8), path(4, 6, 8)]),
        ("no heads, hidden", [path(4, 6, 8), path(4, 6, 8), path(4, 6, 8), flags(4, 6, 6)]),
        ("one", [path(6, 8), path(6, 8), path(6, 8)]),
        ("shared heads", [path(2, 4, 6, 8), path(2, 1, 6, 8), path(2, 1, 6, 8)]),
        ("transposed", [like(lambda t: t.transpose(1, 2), 2, 6, 2, 8) for _ in range(3)]),
        ("queries for all examples", [path(1, 2, 6, 8), path(3, 2, 6, 8), path(3, 2, 6, 8)]),
        (
            "queries for all examples, dropout",
            [path(1, 2, 6, 8), path(3, 2, 6, 8), path(3, 2, 6, 8)],
            {"dropout_p": 0.3},
        ),
        ("queries for all heads", [path(3, 1, 6, 8), path(3, 2, 6, 8), path(3, 2, 6, 8)]),
        ("keys for all examples", [path(3, 2, 6, 8), path(1, 2, 6, 8), path(1, 2, 6, 8)]),
        ("keys for all examples, causal", [path(3, 2, 6, 8), path(1, 2, 6, 8), path(3, 2, 6, 8)], {"is_causal": True}),
        ("keys for all examples, long", [path(3, 1, 30, 2), path(1, 1, 30, 2), path(1, 1, 30, 2)]),
        ("values for all heads", [path(*HEADS), path(*HEADS), path(2, 1, 6, 8)]),
        ("values of more examples and heads", [path(1, 1, 6, 8), path(1, 1, 6, 8), path(*HEADS)]),
        ("values of more examples, dropout", [path(1, 2, 6, 8), path(1, 2, 6, 8), path(*HEADS)], {"dropout_p": 0.3}),
        ("groups of keys alone", [path(2, 4, 6, 8), path(2, 2, 6, 8), path(2, 4, 6, 8)], {"enable_gqa": True}),
        ("no heads, queries for all", [path(1, 6, 8), path(4, 6, 8), path(4, 6, 8)]),
        ("empty", [path(0, 2, 6, 8), path(0, 2, 6, 8), path(0, 2, 6, 8)]),
        ("long", [path(1, 1, 6, 4), path(1, 1, 40, 4), path(1, 1, 40, 4)]),
        ("narrow", [path(1, 1, 24, 2), path(1, 1, 24, 2), path(1, 1, 24, 2)]),  # queries and keys are kept exactly
    ),
    *lines(F.avg_pool1d, ("", [path(2, 4, 9), 3]), ("options", [path(2, 4, 9), 3, 2, 1, True, False])),
    *lines(
        F.avg_pool2d,
        ("", [path(*IMAGES), 2]),
        (
            "options",
            [path(*IMAGES), (3, 2)],
            {"stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False},
        ),
        ("divisor", [path(*IMAGES), 2], {"divisor_override": 3}),
        ("single", [path(4, 6, 5), 2]),
    ),
    *lines(F.avg_pool3d, ("", [path(2, 2, 4, 5, 4), 2]), ("options", [path(2, 2, 4, 5, 4), 2, 1, 1, True, False, 3])),
    *lines(F.adaptive_avg_pool1d, ("", [path(2, 4, 9), 4])),
    *lines(F.adaptive_avg_pool2d, ("", [path(*IMAGES), (4, None)]), ("one", [path(*IMAGES), 1])),
    *lines(F.adaptive_avg_pool3d, ("", [path(2, 2, 4, 5, 4), (2, 3, 2)])),
    *lines(
        F.pad,
        ("", [path(*IMAGES), (1, 2)]),
        *((mode, [path(*IMAGES), (1, 2, 2, 1)], {"mode": mode}) for mode in ("reflect", "replicate", "circular")),
    ),
    *lines(
        F.max_pool1d,
        ("", [path(2, 4, 9), 3]),
        ("options", [path(2, 4, 9), 3, 2, 1, 2, True]),
        ("single", [path(4, 9), [2]]),
    ),
    *lines(
        F.max_pool3d,
        ("", [path(2, 2, 4, 5, 4), 2]),
        (
            "options",
            [path(2, 2, 6, 9, 7), (3, 2, 1)],
            {"stride": (2, 1, 2), "padding": (1, 1, 0), "dilation": (1, 2, 1), "ceil_mode": True},
        ),
        ("single", [path(2, 4, 5, 4), 2]),
        ("indices", [path(2, 2, 4, 5, 4), 2], {"return_indices": True}),
    ),
    *lines(
        F.max_pool2d,
        ("", [path(*IMAGES), 2]),
        (
            "options",
            [path(2, 3, 9, 9), (3, 2)],
            {"stride": (2, 1), "padding": 1, "dilation": (1, 2), "ceil_mode": True},
        ),
        ("single", [path(4, 6, 5), 2]),
        ("ties", [like(torch.round, *IMAGES), 3, 1]),
        ("indices", [path(*IMAGES), 2], {"return_indices": True}),
        ("channels last", [like(last, *IMAGES), 2]),
    ),
]
