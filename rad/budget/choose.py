"""One option for each of many places, such that the sum of losses is least and that of costs within a limit.

The multiple-choice knapsack, solved in two steps. With a price ``λ`` for each unit of cost every place chooses for
itself what minimizes ``loss + λ cost``; the least price at which the limit holds gives a choice and a lower bound on
the loss of all others. What then can still be better differs from it in few places: any choice loses at least the bound
plus the *excess* of its options, what each loses at that price beyond the best one of its place. A search over all
combinations whose excess is no more than the gap between choice and bound is short, and exact.
"""

from __future__ import annotations

import numpy as np

__all__ = ["cheapest", "least_loss"]

_STATES = 20_000  # combinations that are followed at a time; among more of them only the best of each cost are


def least_loss(costs: np.ndarray, losses: np.ndarray, limit: float) -> np.ndarray:
    """The option of each place with the least sum of losses within a limit of the sum of costs.

    Args:
        costs: ``[places, options]``; infinite where there is no such option.
        losses: ``[places, options]``, not negative.
        limit: At least the sum of the least costs.

    Returns:
        Indices of options ``[places]``.
    """
    if len(costs) == 0:
        return np.zeros(0, dtype=np.int64)
    rows = np.arange(len(costs))
    with np.errstate(invalid="ignore"):

        def at(price: float) -> np.ndarray:
            return np.where(np.isfinite(costs), losses + price * costs, np.inf).argmin(1)

        best = at(0.0)
        if costs[rows, best].sum() <= limit:
            return _cheapest_of_equal(costs, losses)
        low, high = 0.0, 1.0
        while costs[rows, at(high)].sum() > limit and high < 1e300:
            high *= 16
        for _ in range(100):
            middle = (low + high) / 2 if low else high / 16
            low, high = (middle, high) if costs[rows, at(middle)].sum() > limit else (low, middle)
            if high <= low * (1 + 1e-12) or high < 1e-300:
                break
        priced = np.where(np.isfinite(costs), losses + high * costs, np.inf)
    first = at(high)
    if costs[rows, first].sum() > limit:
        first = costs.argmin(1)
    first = _filled(costs, losses, limit, first)
    bound = priced.min(1).sum() - high * limit
    excess = priced - priced.min(1, keepdims=True)
    return _search(costs, losses, excess, limit, losses[rows, first].sum() - bound, first)


def cheapest(costs: np.ndarray, losses: np.ndarray, limit: float) -> np.ndarray:
    """The option of each place with the least sum of costs within a limit of the sum of losses; see ``least_loss``."""
    return least_loss(np.where(np.isfinite(costs), losses, np.inf), costs, limit)


def _cheapest_of_equal(costs: np.ndarray, losses: np.ndarray) -> np.ndarray:
    least = np.where(np.isfinite(costs), losses, np.inf).min(1, keepdims=True)
    return np.where(np.isfinite(costs) & (losses <= least), costs, np.inf).argmin(1)


def _filled(costs: np.ndarray, losses: np.ndarray, limit: float, chosen: np.ndarray) -> np.ndarray:
    """What is left of the limit spent on whichever change gains most for its cost, again and again."""
    rows, chosen = np.arange(len(costs)), chosen.copy()
    while True:
        more = costs - costs[rows, chosen][:, None]
        gain = losses[rows, chosen][:, None] - losses
        left = limit - costs[rows, chosen].sum()
        possible = (more <= left) & (gain > 0)
        if not possible.any():
            return chosen
        worth = np.where(possible, np.where(possible, gain, 0.0) / np.maximum(more, 1e-300), -1.0)
        place, option = np.unravel_index(worth.argmax(), worth.shape)
        chosen[place] = option


def _search(
    costs: np.ndarray, losses: np.ndarray, excess: np.ndarray, limit: float, gap: float, known: np.ndarray
) -> np.ndarray:
    """The best choice, ``known`` or one whose excess is less than ``gap``."""
    order = np.argsort(-costs.min(1))  # what is left over in the end goes to small ones
    behind = np.append(costs[order].min(1)[::-1].cumsum()[::-1][1:], 0)  # least cost of the places still to come
    cost, loss, more = np.zeros(1), np.zeros(1), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for place, rest in zip(order, behind, strict=True):
        options = np.flatnonzero(np.isfinite(costs[place]) & (excess[place] <= gap))
        new = [(a[:, None] + b[place, options]).ravel() for a, b in ((cost, costs), (loss, losses), (more, excess))]
        good = np.flatnonzero((new[0] + rest <= limit) & (new[2] <= gap * (1 + 1e-9)))
        good = good[np.lexsort((new[1][good], new[0][good]))]
        least = np.minimum.accumulate(new[1][good])
        good = good[np.append(True, new[1][good][1:] < least[:-1])] if len(good) else good  # dearer ones must be better
        if len(good) > _STATES:
            good = good[np.linspace(0, len(good) - 1, _STATES).astype(np.int64)]
        if len(good) == 0:
            return known
        cost, loss, more = (part[good] for part in new)
        steps.append((good // len(options), options[good % len(options)]))
    state = int(loss.argmin())
    if loss[state] >= losses[np.arange(len(costs)), known].sum():
        return known
    chosen = known.copy()
    for place, (parents, options) in zip(order[::-1], reversed(steps), strict=True):
        chosen[place], state = options[state], parents[state]
    return chosen
