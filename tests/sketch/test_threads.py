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
    team, used = loop_threads._team(), []
    monkeypatch.setattr(loop_threads, "_team", lambda: team and (lambda *args: used.append(team(*args))))
    assert all(map(torch.equal, summary(0), expected))
    assert len(used) == (4 if team else 0)  # loops
    monkeypatch.setattr(loop_threads, "_team", lambda: None)
    assert all(map(torch.equal, summary(0), expected))
    assert len(used) <= 4


@kernels.compiled
def mark(done, begun, by, first, last):
    """Counts what is done, and where parts begin."""
    begun[first] += 1
    for i in range(first, last):
        done[i] += by


@pytest.mark.parametrize("by", ["team", "pool"])
@pytest.mark.parametrize("step", [1, 8])
@pytest.mark.parametrize("count", [0, 1, 8, 15, 17, 1000, 1024])
def test_all_parts_are_run_once_and_begin_at_multiples_of_the_step(threads, monkeypatch, count, step, by):
    monkeypatch.setattr(loop_threads, "_SHARE", 64)
    if by == "pool":
        monkeypatch.setattr(loop_threads, "_team", lambda: None)
    threads(3)
    done, begun = torch.zeros(count + 1), torch.zeros(count + 1, dtype=torch.int64)
    loop_threads.shared(mark, count, 16, done, begun, 2.0, step=step)
    assert done.tolist() == [2.0] * count + [0.0]
    assert begun.max() == 1
    assert all(place % step == 0 for place in begun.nonzero().flatten().tolist())
    assert (begun.sum() > 1) == (count > 16)


@kernels.compiled
def tell(whole, real, half, bits, number, share, yes, out, first, last):
    """What has arrived, as float64."""
    out[0], out[1], out[2], out[3] = whole[1], real[1, 2], half[0], bits[1, 0, 2]
    out[4], out[5], out[6] = number, share, yes
    out[7], out[8], out[9] = real.shape[0], bits.shape[1], bits.size


def test_loops_find_their_arguments_as_they_were_given():
    args = (
        torch.tensor([5, -(2**62)]),
        torch.arange(12, dtype=torch.float32).view(3, 4),
        torch.tensor([1.0], dtype=torch.bfloat16),
        torch.arange(12, dtype=torch.uint8).view(2, 2, 3),
        -(2**63),
        0.1,
        True,
    )
    out = torch.zeros(10, dtype=torch.float64)
    loop_threads.shared(tell, 1, 1, *args, out)
    assert out.tolist() == [-(2.0**62), 6, 0x3F80, 8, -(2.0**63), 0.1, 1, 3, 2, 12]
    with pytest.raises(ValueError, match="one piece"):  # a loop would read what lies between
        loop_threads.shared(mark, 2, 1, torch.zeros(8)[::2], torch.zeros(3, dtype=torch.int64), 1.0)


def test_loops_run_where_nothing_can_be_cached(monkeypatch):
    from numba.core.caching import CacheImpl

    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="cache"):
        kernels.numba.njit(lambda: None, cache=True)

    def count(done, first, last):
        for i in range(first, last):
            done[i] += 1

    done = torch.zeros(5)
    loop_threads.shared(kernels.compiled(count), 5, 1, done)
    assert done.tolist() == [1.0] * 5


def test_tensors_that_are_not_in_one_piece_are_rounded_alike():
    x = normal(40, 64)[:, ::2]
    whole = x.contiguous()
    positive = rad.sketch.bits.pack_positive(x)
    assert torch.equal(positive, rad.sketch.bits.pack_positive(whole))
    assert torch.equal(rad.sketch.bits.masked(x, positive), rad.sketch.bits.masked(whole, positive))
    odd = x.reshape(-1)[::3]
    found, expected = (SKETCH.compress(t[None], seed=torch.tensor(1)).kept for t in (odd, odd.clone()))
    assert all(map(torch.equal, found, expected))
    turned = torch._neg_view(normal(100))  # minus what lies in memory, as of the conjugate of complex numbers
    assert torch.equal(rad.sketch.bits.pack_positive(turned), rad.sketch.bits.pack_positive(turned.clone()))


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

    monkeypatch.setattr(loop_threads, "_team", nobody)
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
        [sys.executable, "-W", "ignore", "-c", FORKED], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
