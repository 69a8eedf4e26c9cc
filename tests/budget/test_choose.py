"""The knapsack against all combinations, and against a bound where there are too many."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rad.budget.choose import cheapest, least_loss


def problem(seed: int, places: int, options: int) -> tuple[np.ndarray, np.ndarray]:
    """Costs that grow with the option and losses that fall as those of bits do, of very different sizes."""
    rng = np.random.default_rng(seed)
    bits = np.arange(1, options + 1)
    costs = rng.integers(1, 10_000, (places, 1)) * bits + rng.integers(0, 50, (places, 1))
    losses = 10 ** rng.uniform(-6, 2, (places, 1)) / (2.0**bits - 1) ** 2
    return costs.astype(float), losses


def by_trying_all(costs: np.ndarray, losses: np.ndarray, limit: float) -> float:
    rows = np.arange(len(costs))
    every = np.array(list(itertools.product(range(costs.shape[1]), repeat=len(costs))))
    cost, loss = costs[rows, every].sum(1), losses[rows, every].sum(1)
    return loss[cost <= limit].min()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.7, 1.0])
def test_as_good_as_the_best_of_all(seed, share):
    costs, losses = problem(seed, 5, 6)
    low, high = costs.min(1).sum(), costs.max(1).sum()
    limit = low + share * (high - low)
    chosen = least_loss(costs, losses, limit)
    rows = np.arange(len(costs))
    assert costs[rows, chosen].sum() <= limit
    assert losses[rows, chosen].sum() == pytest.approx(by_trying_all(costs, losses, limit), rel=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_fewest_bytes_for_a_loss(seed):
    costs, losses = problem(seed, 5, 6)
    limit = losses.min(1).sum() * 40
    chosen = cheapest(costs, losses, limit)
    rows = np.arange(len(costs))
    assert losses[rows, chosen].sum() <= limit
    assert costs[rows, chosen].sum() == by_trying_all(losses, costs, limit)


@pytest.mark.parametrize("seed", range(30))
def test_of_options_in_no_order(seed):
    """Small whole numbers, so that many are alike, and some options that there are not."""
    rng = np.random.default_rng(seed)
    costs, losses = rng.integers(0, 5, (4, 4)).astype(float), rng.integers(0, 5, (4, 4)).astype(float)
    costs[:, 1:][rng.random((4, 3)) < 0.3] = np.inf
    rows = np.arange(4)
    for limit in range(int(costs.min(1).sum()), 17, 2):
        chosen = least_loss(costs, losses, limit)
        best = by_trying_all(costs, losses, limit)
        assert costs[rows, chosen].sum() <= limit
        assert losses[rows, chosen].sum() == best
        if best == losses[np.isfinite(costs)].min(initial=0) * 4 or limit == 16:  # whatever is wanted may be had
            assert costs[rows, chosen].sum() == by_trying_all(losses, costs, best)
        fewest = cheapest(costs, losses, best)
        assert losses[rows, fewest].sum() <= best
        assert costs[rows, fewest].sum() == by_trying_all(losses, costs, best)


@pytest.mark.parametrize("seed", range(4))
def test_close_to_the_bound_where_there_are_many_places(seed):
    costs, losses = problem(seed, 300, 17)
    limit = costs[:, 2].sum()
    chosen = least_loss(costs, losses, limit)
    rows = np.arange(len(costs))
    # No choice loses less than what each place would choose at a price for cost, less that price times the limit.
    prices = 10 ** np.linspace(-14, 2, 2000)
    bound = max((losses + price * costs).min(1).sum() - price * limit for price in prices)
    assert limit * 0.999 <= costs[rows, chosen].sum() <= limit
    assert losses[rows, chosen].sum() <= 1.01 * bound


def test_options_that_do_not_exist_are_not_chosen():
    costs, losses = np.array([[1.0, 2.0, np.inf], [1.0, 2.0, 4.0]]), np.array([[4.0, 1.0, 0.0], [4.0, 1.0, 0.0]])
    assert least_loss(costs, losses, 100.0).tolist() == [1, 2]
    assert least_loss(costs, losses, 2.0).tolist() == [0, 0]
    assert cheapest(costs, losses, 1.0).tolist() == [1, 2]


def test_a_limit_that_nothing_keeps_to_is_come_as_close_to_as_can_be():
    costs, losses = np.array([[1.0, 2.0, np.inf], [1.0, 2.0, 4.0]]), np.array([[4.0, 1.0, 0.0], [4.0, 1.0, 0.0]])
    assert cheapest(costs, losses, 0.5).tolist() == [1, 2]
    assert least_loss(costs, losses, 1.5).tolist() == [0, 0]


def test_what_loses_nothing_costs_as_little_as_possible():
    costs, losses = np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([[0.0, 0.0], [1.0, 0.5]])
    assert least_loss(costs, losses, 100.0).tolist() == [0, 1]


def test_no_places():
    assert least_loss(np.zeros((0, 3)), np.zeros((0, 3)), 1.0).tolist() == []
