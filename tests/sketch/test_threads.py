"""Threads and processes that use the compiled loops at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from sketches import normal

import rad
from rad.sketch import kernels
from rad.sketch import threads as loop_threads

ROOT = Path(__file__).parents[2]
SKETCH = rad.Rounding(bits=3)

pytestmark = pytest.mark.skipif(kernels.numba is None, reason="numba is not installed")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def summary(seed: int) -> list[torch.Tensor]:
    x = normal(64, 4096, seed=seed)
    compressed = SKETCH.compress(x, seed=torch.tensor(seed))
    positive = rad.sketch.bits.pack_positive(x)
    return [*compressed.kept, SKETCH.expand(compressed), positive, rad.sketch.bits.masked(x, positive)]


def test_two_threads_at_the_same_time_get_the_bits_that_they_get_one_after_the_other(threads):
    threads(2)
    expected = [summary(seed) for seed in range(12)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(summary, range(12)))
    for a, b in zip(found, expected, strict=True):
        assert all(map(torch.equal, a, b))


def test_pytorchs_own_threads_and_a_pool_give_the_bits_of_one_thread(threads, monkeypatch):
    threads(1)
    expected = summary(0)
    threads(2)
    team, used = loop_threads._by_team, []
    monkeypatch.setattr(loop_threads, "_by_team", lambda *args: used.append(team(*args)))
    assert all(map(torch.equal, summary(0), expected))
    assert len(used) == (4 if loop_threads._openmp() else 0)  # loops
    monkeypatch.setattr(loop_threads, "_openmp", lambda: None)
    assert all(map(torch.equal, summary(0), expected))
    assert len(used) <= 4


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000, 1024])
def test_all_parts_are_run_once_and_begin_at_whole_bytes(threads, monkeypatch, count):
    monkeypatch.setattr(loop_threads, "_SHARE", 64)
    threads(3)
    done = []
    loop_threads.shared(lambda what, first, last: done.append((what, first, last)), count, 16, "this")
    spans = sorted(span for _, *span in done)
    assert {what for what, *_ in done} == {"this"}
    assert all(first % 8 == 0 for first, _ in spans)
    assert [i for first, last in spans for i in range(first, last)] == list(range(count))
    assert (len(spans) > 1) == (count > 9)


@pytest.mark.parametrize("by", ["team", "pool"])
def test_what_a_loop_raises_is_raised(threads, monkeypatch, by):
    if by == "pool":
        monkeypatch.setattr(loop_threads, "_openmp", lambda: None)
    monkeypatch.setattr(loop_threads, "_SHARE", 64)
    threads(2)

    def loop(first, last):
        raise ZeroDivisionError(first)

    with pytest.raises(ZeroDivisionError):
        loop_threads.shared(loop, 1024, 16)
    assert not loop_threads._jobs


@pytest.mark.parametrize("size", [7, 12, 100, 256])
def test_shares_of_threads_meet_at_whole_bytes(threads, size):
    x = normal(1201, size, seed=size).repeat(1, 1 + 300 // size)
    found = []
    for count in (1, 2, 3):
        threads(count)
        sketch = rad.Rounding(bits=3, group=size)
        compressed = sketch.compress(x, seed=torch.tensor(1))
        found.append([*compressed.kept, sketch.expand(compressed)])
    assert x.numel() > 3 * loop_threads._SHARE
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_one_thread_means_one(threads, monkeypatch):
    def nobody():
        raise AssertionError("a second thread was asked for")

    monkeypatch.setattr(loop_threads, "_openmp", nobody)
    threads(1)
    summary(0)
    threads(2)
    with pytest.raises(AssertionError, match="second thread"):
        summary(0)


FORKED = """
import os, sys, torch, rad
torch.set_num_threads(2)
x, seed, sketch = torch.randn(64, 4096), torch.tensor(3), rad.Rounding(bits=3)
expected = sketch.compress(x, seed=seed).kept  # by two threads, which a child does not have
child = os.fork()
if child == 0:
    torch.set_num_threads(2)
    kept = sketch.compress(x, seed=seed).kept
    torch.set_num_threads(1)  # more would make PyTorch's own comparison wait for ever
    os._exit(0 if all(map(torch.equal, kept, expected)) else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_has_threads_of_its_own():
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
