"""Peaks of memory, against allocations of known size."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from rad.measure import peak_bytes

MEGABYTE = 2**20


def zeros(megabytes: int) -> torch.Tensor:
    return torch.zeros(megabytes * MEGABYTE, dtype=torch.uint8)


def test_peak_counts_what_is_held_at_the_same_time():
    def one_after_the_other():
        a = zeros(3)
        del a
        b = zeros(2)
        return b

    def both():
        return zeros(3), zeros(2)

    assert peak_bytes(one_after_the_other) == 3 * MEGABYTE
    assert peak_bytes(both) == 5 * MEGABYTE


def test_what_was_there_before_counts_neither_while_held_nor_when_freed():
    held = [zeros(4)]

    def free_and_allocate():
        held.clear()
        return zeros(1)

    assert peak_bytes(free_and_allocate) == MEGABYTE
    assert peak_bytes(lambda: None) == 0


def test_what_an_earlier_measurement_left_is_not_taken_off():
    held = []
    assert peak_bytes(lambda: held.append(zeros(4))) == 4 * MEGABYTE

    def swap():
        held.clear()
        return zeros(1), zeros(2)

    assert peak_bytes(swap) == 3 * MEGABYTE


def test_a_block_that_is_freed_and_allocated_again_counts_once():
    small, places = 2**14, []  # small blocks come back at the place of the one before

    def again_and_again():
        for _ in range(20):
            block = torch.zeros(small, dtype=torch.uint8)
            places.append(block.data_ptr())
            del block
        return [torch.zeros(small, dtype=torch.uint8) for _ in range(3)]

    assert peak_bytes(again_and_again) == 3 * small
    assert len(set(places)) < len(places)


def test_what_operations_need_for_a_while_counts():
    x = torch.ones(MEGABYTE)[::2]
    # A copy of the view and its double, of which only the sum is left.
    assert peak_bytes(lambda: x.contiguous().mul(2).sum()) == pytest.approx(4 * MEGABYTE, abs=64)


def test_unknown_device_is_refused():
    for name in ("meta", "cuda:99"):
        with pytest.raises(ValueError, match=f"cpu, and on cuda where there is such a device, got {name}"):
            peak_bytes(lambda: None, name)
    with pytest.raises(ValueError, match="device must be a torch.device or its name"):
        peak_bytes(lambda: None, "tpu")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a mark that can be reset")
def test_resident_memory_counts_numpy_too():
    program = (
        "import numpy, torch; from rad.measure import peak_resident\n"
        "def fn():\n    a = numpy.ones(40 * 2**20, numpy.uint8); del a\n    b = numpy.ones(10 * 2**20, numpy.uint8)\n"
        "high = numpy.ones(100 * 2**20, numpy.uint8); del high\n"
        "print(peak_resident(fn))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert 39 < int(out) / MEGABYTE < 44  # the first page or two may be there already


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_on_cuda():
    assert peak_bytes(lambda: torch.zeros(3 * MEGABYTE, dtype=torch.uint8, device="cuda"), "cuda") == 3 * MEGABYTE
