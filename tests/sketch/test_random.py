"""Counter-based random numbers against an oracle of unbounded integers, and their distribution at stated levels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rad.sketch.random import Stream

CPU = torch.device("cpu")
LEVEL = 1e-4  # of each chi-square test; the seeds are fixed
SPREAD = 0x2545F4914F6CDD1D

pytestmark = pytest.mark.usefixtures("kernels")


def splitmix(n: int) -> int:
    """Output ``n``, from 1, of SplitMix64 seeded with 0."""
    z = n * 0x9E3779B97F4A7C15 % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def outputs(seed: int, count: int, start: int = 0) -> list[int]:
    return [splitmix((seed * SPREAD + start + i) % 2**64) for i in range(count)]


def p_value(counts: torch.Tensor) -> float:
    """Of the chi-square test for equal frequencies."""
    expected = counts.double().mean()
    statistic = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((counts.numel() - 1) / 2, dtype=torch.float64), statistic / 2).item()


def test_known_answers():
    # The published first outputs of the generator seeded with 0; ours begins one step earlier.
    words = [w % 2**64 for w in Stream(0, CPU).words(4).tolist()]
    assert words == [0, 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(seed=st.integers(0, 2**63 - 2), count=st.integers(0, 130), bound=st.integers(1, 5000))
def test_numbers_follow_the_oracle(seed, count, bound):
    stream = Stream(seed, CPU)
    assert [w % 2**64 for w in stream.words(count).tolist()] == outputs(seed, count)
    # Each call goes on where the one before ended.
    expected = [(w >> 32) * bound >> 32 for w in outputs(seed, count, count)]
    assert stream.integers(bound, (count, 1)).tolist() == [[i] for i in expected]
    for i, dtype in enumerate((torch.float32, torch.float64), start=2):
        numbers = stream.uniform((count,), dtype)
        assert numbers.dtype == dtype
        assert numbers.tolist() == [(w >> 41) / 2**23 for w in outputs(seed, count, i * count)]
    signs = stream.signs((1, count), torch.float32)
    words = outputs(seed, -(-count // 64), 4 * count)
    assert signs.tolist() == [[2.0 * (words[i // 64] >> i % 64 & 1) - 1 for i in range(count)]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_signs_in_half_precision(dtype):
    assert torch.equal(Stream(5, CPU).signs((3, 50), dtype).float(), Stream(5, CPU).signs((3, 50), torch.float32))


@pytest.mark.parametrize("seed", [0, 1, 2**62])
def test_uniformity(seed):
    stream = Stream(seed, CPU)
    assert p_value(stream.integers(7, (70, 100)).flatten().bincount(minlength=7)) > LEVEL
    assert p_value((stream.uniform((20_000,), torch.float32) * 32).long().bincount(minlength=32)) > LEVEL
    pairs = stream.integers(8, (20_000, 2))
    assert p_value((8 * pairs[:, 0] + pairs[:, 1]).bincount(minlength=64)) > LEVEL
    signs = stream.signs((20_000,), torch.float32)
    assert p_value(torch.stack([(signs < 0).sum(), (signs > 0).sum()])) > LEVEL
    # Every bit of the words; five standard deviations of a count for each of 64 bits.
    bits = stream.words(10_000)[:, None] >> torch.arange(64) & 1
    assert (bits.sum(0) - 5000).abs().max() < 5 * 50


def test_neighbouring_seeds_are_unrelated():
    words = [Stream(seed, CPU).words(2000) for seed in (41, 42)]
    assert len(torch.cat(words).unique()) == 4000
    differing = ((words[0] ^ words[1])[:, None] >> torch.arange(64) & 1).sum(1).double()
    assert abs(differing.mean() - 32) < 5 * 4 / 2000**0.5
