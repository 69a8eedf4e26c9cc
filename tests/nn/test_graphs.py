"""What cannot be captured; tests/gpu captures and replays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rad
from rad.nn import CUDAGraph


def converted():
    return rad.convert(nn.Linear(4, 4), rad.Rounding(bits=3))


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        (3, TypeError, "must be a torch.nn.Module, got int"),
        (nn.Linear(4, 4), ValueError, r"not converted; rad\.convert"),
        (nn.Sequential(converted(), converted()), ValueError, r"2 different seeds.*generator=rad\.nn\.Seeds\(\)"),
    ],
    ids=["no module", "plain", "two seeds"],
)
def test_what_is_refused(model, error, says):
    with pytest.raises(error, match=says):
        CUDAGraph(model)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device():
    seeds = rad.nn.Seeds(0)
    parts = nn.Sequential(*(rad.convert(nn.Linear(4, 4), rad.Rounding(bits=3), generator=seeds) for _ in range(2)))
    with pytest.raises(RuntimeError, match="needs a CUDA device"):
        CUDAGraph(parts)
