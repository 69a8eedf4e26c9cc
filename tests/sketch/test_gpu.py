"""Triton's loops in its interpreter, which has to be chosen before Triton is imported: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from rad.sketch import gpu

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_loops_compute_what_plain_pytorch_does():
    pytest.importorskip("triton")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", ROOT / "tests/parity.py"],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_without_a_gpu_plain_pytorch_runs():
    x = torch.ones(8)
    assert not gpu.usable(x)
    assert not gpu.groups_of(x, 8)


def test_a_device_that_triton_cannot_compile_for_is_warned_of_once(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(gpu, "devices", {"cpu"})
    gpu._loops.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="Triton does not work on cpu"):
            assert not gpu.usable(torch.ones(8))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not gpu.usable(torch.ones(8))
    finally:
        gpu._loops.cache_clear()


def test_without_triton_plain_pytorch_runs(monkeypatch):
    monkeypatch.setattr(gpu, "devices", {"cpu"})
    for name in ("levels", "numbers", "planes"):
        monkeypatch.delattr(gpu, name, raising=False)
        monkeypatch.setitem(sys.modules, f"rad.sketch.gpu.{name}", None)
    gpu._loops.cache_clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not gpu.usable(torch.ones(8))
    finally:
        gpu._loops.cache_clear()
