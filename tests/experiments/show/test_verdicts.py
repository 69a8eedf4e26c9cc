"""Intervals against limits, and what several of them make of a claim."""

from __future__ import annotations

import math

import pytest

from experiments.show.verdicts import FAILS, HOLDS, IN_PART, UNDECIDED, UNKNOWN, Interval, Rule, verdict


@pytest.mark.parametrize(
    ("ends", "below", "above", "within"),
    [
        ((0.6, 0.9), True, False, True),
        ((0.3, 0.4), True, False, False),
        ((1.1, 1.4), False, True, True),
        ((1.6, 1.9), False, True, False),
        ((0.9, 1.1), None, None, True),
        ((0.4, 0.9), True, False, None),
        ((1.1, 1.6), False, True, None),
        ((0.4, 1.6), None, None, None),
        ((1.0, 1.0), False, False, True),  # exactly as many is neither fewer nor more
        ((0.9, 1.0), None, False, True),
        ((1.0, 1.1), False, None, True),
        ((0.5, 1.5), None, None, True),
        ((math.nan, math.nan), None, None, None),
    ],
)
def test_an_interval_decides_unless_it_straddles(ends, below, above, within):
    interval = Interval(*ends)
    assert (interval.below(1), interval.above(1), interval.within(0.5, 1.5)) == (below, above, within)


def test_around_a_value():
    assert Interval.around(3, 0.5) == Interval(2.5, 3.5)
    assert Interval.around(3, math.nan).within(high=9) is None


@pytest.mark.parametrize(
    ("rule", "said", "met"),  # by what lies below, at, above and on both sides of 1
    [
        (Rule(high=1, strict=True), "< 1", (True, False, False, None)),
        (Rule(low=1, strict=True), "> 1", (False, False, True, None)),
        (Rule(high=1), "≤ 1", (True, True, False, None)),
        (Rule(low=1), "≥ 1", (False, True, True, None)),
        (Rule(0.8, 1.25), "0.8 to 1.25", (False, True, False, True)),
    ],
)
def test_a_rule_is_applied_as_it_is_said(rule, said, met):
    intervals = [Interval(*ends) for ends in ((0.5, 0.7), (1, 1), (1.3, 1.4), (0.9, 1.1))]
    assert str(rule) == said
    assert tuple(map(rule.met, intervals)) == met


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([True, True], HOLDS),
        ([True, False], IN_PART),
        ([True, None], IN_PART),
        ([None, True, False], IN_PART),
        ([False, False], FAILS),
        ([False, None], UNDECIDED),
        ([None], UNDECIDED),
        ([], UNKNOWN),
    ],
)
def test_verdict_of_parts(parts, expected):
    assert verdict(parts) == expected
