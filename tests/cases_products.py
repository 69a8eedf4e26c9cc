"""Calls of products and convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from calls import HEADS, IMAGES, METHODS, SHAPE, constant, last, leaf, like, lines, path

CASES = [
    *lines(
        F.linear,
        ("", [path(*SHAPE), leaf(5, 16), leaf(5)]),
        ("no bias", [path(2, 3, 16), leaf(5, 16)]),
        ("one row", [path(16), leaf(5, 16), leaf(5)]),
        ("weight that was computed", [path(*SHAPE), path(5, 16), path(5)]),
        ("transposed", [like(lambda t: t.mT, 16, 6), leaf(5, 16), leaf(5)]),
        ("frozen weight", [path(*SHAPE), constant(5, 16), leaf(5)]),
        ("no rows", [path(0, 16), leaf(5, 16), leaf(5)]),
        ("no features", [path(6, 0), leaf(5, 0), leaf(5)]),
    ),
    *lines(
        torch.matmul,
        ("", [path(6, 8), path(8, 7)]),
        ("weight", [path(2, 6, 8), leaf(8, 7)]),
        ("stacks", [path(2, 3, 6, 8), path(2, 3, 8, 7)]),
        ("broadcast", [path(3, 6, 8), path(2, 1, 8, 7)]),
        ("matrix and stack", [path(6, 8), path(3, 8, 7)]),
        ("vectors", [path(8), path(8)]),
        ("transposed", [like(lambda t: t.mT, 2, 8, 6), like(lambda t: t.mT, 2, 7, 8)]),
        ("no rows", [path(0, 8), leaf(8, 7)]),
        ("nothing between", [path(6, 0), path(0, 7)]),
    ),
    *lines(torch.mm, ("", [path(6, 8), path(8, 7)])),
    *lines(torch.bmm, ("", [path(3, 6, 8), path(3, 8, 7)])),
    *lines(METHODS.__rmatmul__, ("", [path(8, 7), path(6, 8)])),
    *lines(
        torch.addmm,
        ("", [leaf(7), path(6, 8), leaf(8, 7)]),
        ("scaled", [path(6, 7), path(6, 8), path(8, 7)], {"beta": 0.3, "alpha": -2.0}),
    ),
    *lines(
        torch.baddbmm,
        ("", [path(3, 6, 7), path(3, 6, 8), path(3, 8, 7)]),
        ("scaled", [path(6, 7), path(3, 6, 8), path(3, 8, 7)], {"beta": 0.0, "alpha": 0.5}),
    ),
    *lines(
        torch.einsum,
        ("", ["bhqd,bhkd->bhqk", path(*HEADS), path(*HEADS)]),
        ("weight", ["bld,od->blo", path(2, 6, 8), leaf(5, 8)]),
        ("outer", ["i,j->ij", path(40), path(40)]),
        ("one", ["bij->bji", path(2, 6, 8)]),
        ("three", ["ij,jk,kl->il", path(6, 8), path(8, 5), path(5, 6)]),
    ),
    *lines(
        F.bilinear,
        ("", [path(6, 8), path(6, 7), leaf(5, 8, 7), leaf(5)]),
        ("no bias", [path(6, 8), path(6, 7), path(5, 8, 7)]),
    ),
    *lines(
        F.conv1d,
        ("", [path(2, 4, 9), leaf(6, 4, 3), leaf(6)]),
        ("options", [path(2, 4, 9), leaf(6, 2, 3), None, 2, 1, 2, 2]),
        ("single", [path(4, 9), leaf(6, 4, 3), leaf(6)]),
        ("same", [path(2, 4, 9), leaf(6, 4, 4), leaf(6)], {"padding": "same"}),
        ("computed weight", [path(2, 4, 9), path(6, 4, 3), path(6)]),
    ),
    *lines(
        F.conv2d,
        ("", [path(*IMAGES), leaf(6, 4, 3, 2), leaf(6)]),
        (
            "options",
            [path(*IMAGES), leaf(6, 2, 3, 2), leaf(6)],
            {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2},
        ),
        ("depthwise", [path(*IMAGES), leaf(4, 1, 3, 3), None], {"padding": 1, "groups": 4}),
        ("pointwise", [path(*IMAGES), leaf(6, 4, 1, 1), leaf(6)]),
        ("single", [path(4, 6, 5), leaf(6, 4, 3, 2), leaf(6)]),
        ("same", [path(*IMAGES), leaf(6, 4, 2, 4), leaf(6)], {"padding": "same", "dilation": (1, 1)}),
        ("valid", [path(*IMAGES), leaf(6, 4, 3, 2), leaf(6)], {"padding": "valid"}),
        ("computed weight", [path(*IMAGES), path(6, 4, 3, 2), path(6)]),
        (
            "channels last",
            [
                like(last, *IMAGES),
                leaf(6, 4, 3, 2),
                leaf(6),
            ],
        ),
        ("no images", [path(0, 4, 6, 5), leaf(6, 4, 3, 2), leaf(6)]),
        ("wide steps", [path(2, 4, 9, 9), leaf(6, 4, 2, 2), leaf(6)], {"stride": 4}),
    ),
    *lines(
        F.conv3d,
        ("", [path(2, 2, 4, 5, 4), leaf(3, 2, 2, 3, 2), leaf(3)]),
        ("options", [path(2, 2, 4, 5, 4), leaf(4, 1, 2, 3, 2), leaf(4), (1, 2, 1), (0, 1, 1), (1, 1, 2), 2]),
        ("same", [path(2, 2, 4, 5, 4), leaf(3, 2, 2, 3, 2), leaf(3)], {"padding": "same"}),
    ),
    *lines(
        F.conv_transpose1d,
        ("", [path(2, 4, 9), leaf(4, 6, 3), leaf(6)]),
        ("options", [path(2, 4, 9), leaf(4, 3, 3), leaf(6), 3, 1, 2, 2, 2]),
    ),
    *lines(
        F.conv_transpose2d,
        ("", [path(*IMAGES), leaf(4, 6, 3, 2), leaf(6)]),
        (
            "options",
            [path(*IMAGES), leaf(4, 3, 3, 2), None],
            {"stride": (2, 3), "padding": 1, "output_padding": (1, 2), "groups": 2, "dilation": (2, 1)},
        ),
        ("single", [path(4, 6, 5), leaf(4, 6, 3, 2), leaf(6)]),
        ("computed weight", [path(*IMAGES), path(4, 6, 3, 2), path(6)]),
    ),
]
