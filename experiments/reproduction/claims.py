"""The paper's claims, and what the records say of each: the rules of all verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pandas as pd

from experiments.labels import look
from experiments.reproduction.headline import Ratio, ratio_of_means, reached
from experiments.runs.records import Runs
from experiments.show.verdicts import UNKNOWN, Interval, verdict
from experiments.studies.gradient_noise import PAPER, at_equal_bytes, draw_counts, ratio
from experiments.studies.graph_depth import exponents
from experiments.studies.reactor.results import SHARE, loss_ratio, one_percent
from experiments.studies.step_noise import around, ratios

__all__ = ["Evidence", "Finding", "findings"]

SIMILAR = 1.25  # a number of iterations within this factor of another is similar
_TABLE1 = 0.03
_EXPONENT = 0.1  # relative, of one that is predicted
_UNTUNED = "fashion_mlp"  # on whose data nothing was tuned
_STAYS = 0.02  # an exponent as small as this is none
_BETTER = 50
_FLATTER, _WHEN = 5, (200, 1000)  # times as much of the noise that counts, after so many steps of training


@dataclass
class Evidence:
    """What there is to judge by; ``None`` and missing keys are what there is not.

    Attributes:
        targets: Training losses to count iterations to, by experiment.
        training: Runs at one budget, by experiment.
        reactor: As from ``reactor_table``.
        graphs: Records of ``experiment=graph_depth`` on graphs.
        nets: Its records on nets.
        noise: ``noise.csv`` of ``experiment=gradient_noise``.
        steps: Its ``steps.csv``.
        rates: Final training losses of methods that share a learning rate, as from ``final_losses``.
        table1: ``table1.csv``.
    """

    targets: dict[str, tuple[float, ...]]
    training: dict[str, Runs] = field(default_factory=dict)
    reactor: pd.DataFrame | None = None
    graphs: pd.DataFrame | None = None
    nets: pd.DataFrame | None = None
    noise: pd.DataFrame | None = None
    steps: pd.DataFrame | None = None
    rates: pd.DataFrame | None = None
    table1: pd.DataFrame | None = None


@dataclass(frozen=True)
class Finding:
    """A claim and what became of it.

    Attributes:
        claim: Where in the paper it stands.
        statement: What it says, in our words.
        measured: Our number with its interval.
        n: Seeds, or draws.
        verdict: One of `experiments.show.verdicts`.
        experiment: Whose commands made the number.
    """

    claim: str
    statement: str
    measured: str
    n: str
    verdict: str
    experiment: str


def findings(evidence: Evidence) -> list[Finding]:
    """All claims in the order of the paper."""
    return [
        _depth(evidence),
        _faster(evidence, "mnist_mlp", "MLP"),
        _faster(evidence, "cifar_cnn", "CNN"),
        *([_faster(evidence, _UNTUNED, "MLP on Fashion-MNIST")] if _UNTUNED in evidence.targets else []),
        _different(evidence, "mnist_mlp", "MLP", needed=True),
        _different(evidence, "cifar_cnn", "CNN", needed=False),
        _exact_fastest(evidence, "mnist_mlp", "MLP"),
        _exact_fastest(evidence, "cifar_cnn", "CNN"),
        _similar(evidence),
        _table_one(evidence),
        *_reactor(evidence),
        _batch(evidence),
        _why(evidence),
        _rates(evidence),
        _rounding(evidence),
    ]


def _absent(claim: str, statement: str, experiment: str) -> Finding:
    return Finding(claim, statement, "–", "0", UNKNOWN, experiment)


def _ratios(table: pd.DataFrame, baseline: str, methods: Iterable[str], measure: str) -> dict[str, Ratio]:
    """Relative to a baseline, of those methods that there are."""
    there = set(table["method"])
    return {m: ratio_of_means(table, m, baseline, measure) for m in methods if m in there and baseline in there}


def _said(ratios: dict[str, Ratio]) -> str:
    return "; ".join(f"{look(m).label.removeprefix('RAD, ')} {r}" for m, r in ratios.items())


def _seeds(ratios: Iterable[Ratio]) -> str:
    counts = [r.n for r in ratios]
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _training(
    evidence: Evidence,
    experiment: str,
    claim: str,
    statement: str,
    baseline: str,
    methods: Iterable[str],
    part: Callable[[Interval], bool | None],
) -> Finding:
    """A claim about the iterations of some methods relative to those of another, to each of the targets."""
    by_target = {
        target: _ratios(reached(evidence.training[experiment], target), baseline, methods, "iterations")
        for target in (evidence.targets[experiment] if experiment in evidence.training else ())
    }
    found = [r for ratios in by_target.values() for r in ratios.values()]
    if not any(r.n for r in found):
        return _absent(claim, statement, experiment)
    against = look(baseline).label.removeprefix("RAD, ")
    said = "; ".join(f"iterations to {target:g} ÷ {against}: {_said(ratios)}" for target, ratios in by_target.items())
    return Finding(claim, statement, said, _seeds(found), verdict(part(r.interval()) for r in found), experiment)


def _faster(evidence: Evidence, experiment: str, net: str) -> Finding:
    statement = "at the same memory the training loss falls faster with RAD than with a smaller batch"
    claim = f"Fig. 5 (a), {net}"
    return _training(evidence, experiment, claim, statement, "small_batch", PAPER, lambda r: r.below(1))


def _different(evidence: Evidence, experiment: str, net: str, needed: bool) -> Finding:
    statement = (
        "the MLP needs a different sample for each example"
        if needed
        else "the CNN does not need different samples, thanks to weight sharing"
    )

    def part(r: Interval) -> bool | None:
        return r.above(1) if needed else r.within(high=SIMILAR)

    claim = f"Fig. 5 (b), {net}"
    return _training(evidence, experiment, claim, statement, "rad_diff", ("rad_same", "rad_proj"), part)


def _exact_fastest(evidence: Evidence, experiment: str, net: str) -> Finding:
    claim, statement = f"Fig. 5 (c), {net}", "the full-memory baseline is fastest"
    methods = ("small_batch", *PAPER)
    return _training(evidence, experiment, claim, statement, "exact", methods, lambda r: r.above(1))


def _similar(evidence: Evidence) -> Finding:
    statement = "with a fresh draw for each time step RAD takes about as many iterations as a smaller batch"

    def part(r: Interval) -> bool | None:
        return r.within(1 / SIMILAR, SIMILAR)

    return _training(evidence, "smnist_irnn", "Fig. 5 (d), IRNN", statement, "small_batch", PAPER, part)


def _table_one(evidence: Evidence) -> Finding:
    claim, statement = "Table 1", "peak memory of the three nets by the fraction kept"
    if evidence.table1 is None:
        return _absent(claim, statement, "table1")
    left = evidence.table1["left"].dropna().abs()
    said = f"measured bytes within {left.max():.1%} of the formula behind the table, explained real costs apart"
    return Finding(claim, statement, said, f"{len(left)} cells", verdict(left <= _TABLE1), "table1")


def _reactor(evidence: Evidence) -> list[Finding]:
    statement = "99 % of the memory is saved without a significant slowdown"
    found = []
    for method, claim in (("rad_same", "Fig. 6"), ("rad_even", "Fig. 6, evenly spaced sample (ours)")):
        kept = pd.DataFrame() if evidence.reactor is None else one_percent(evidence.reactor)
        kept = kept if kept.empty else kept[kept["method"] == method]
        if kept.empty:
            found.append(_absent(claim, statement, "reactor"))
            continue
        row = kept.loc[kept["bytes_ratio"].idxmax()]
        said, interval = loss_ratio(row)
        said = f"final loss with {row['bytes_ratio']:.2%} of the bytes ÷ exact: {said}"
        found.append(Finding(claim, statement, said, f"{row['n']}", verdict([interval.within(high=SHARE)]), "reactor"))
    return found


def _depth(evidence: Evidence) -> Finding:
    claim, experiment = "§3.3, Fig. 2", "graph_depth"
    statement = "variance grows exponentially with depth on interleaved graphs, not on independent paths"
    if evidence.graphs is None:
        return _absent(claim, statement, experiment)
    table = exponents(evidence.graphs)
    parts = []
    for row in table.itertuples():
        half = 1.96 * row.error
        if math.isnan(row.ratio):
            parts.append(Interval.around(row.fitted, half).within(-_STAYS, _STAYS))
        else:
            parts.append(Interval.around(row.ratio, half / row.predicted).within(1 - _EXPONENT, 1 + _EXPONENT))
    said = "; ".join(f"{row.family}: exponent {row.fitted:.3f} ± {1.96 * row.error:.3f}" for row in table.itertuples())
    rates = ", ".join(f"{value:.3f}" for value in table["ratio"].dropna())
    return Finding(claim, statement, f"{said} (fitted ÷ predicted {rates})", "1", verdict(parts), experiment)


def _batch(evidence: Evidence) -> Finding:
    claim, experiment = "Appendix, gradient noise", "gradient_noise"
    statement = "at the same memory RAD's gradient has less variance than a smaller batch's"
    if evidence.noise is None:
        return _absent(claim, statement, experiment)
    said, parts = [], []
    for net, phase, best, _ in at_equal_bytes(evidence.noise):
        part = evidence.noise[(evidence.noise["net"] == net) & (evidence.noise["phase"] == phase)]
        batch = part[(part["estimator"] == "small_batch") & (part["budget"] == best["budget"])].iloc[0]
        value, half = ratio(best, batch)
        said.append(f"{net} {phase} {value:.2g} ± {half:.1g}")
        parts.append(Interval.around(value, half).below(1))
    measured = "added variance, the paper's best estimator ÷ smaller batch: " + "; ".join(said)
    return Finding(claim, statement, measured, draw_counts(evidence.noise), verdict(parts), experiment)


def _rounding(evidence: Evidence) -> Finding:
    claim, experiment = "§7, rounding (ours)", "gradient_noise"
    statement = f"some estimator has 1/{_BETTER} of the variance of the paper's best at the same bytes"
    if evidence.noise is None:
        return _absent(claim, statement, experiment)
    said, parts = [], []
    for net, phase, best, winner in at_equal_bytes(evidence.noise):
        value, half = ratio(best, winner)
        said.append(f"{net} {phase} {value:.0f} ± {half:.0f}")
        parts.append(Interval.around(value, half).within(low=_BETTER))
    measured = "paper's best ÷ best: " + "; ".join(said)
    return Finding(claim, statement, measured, draw_counts(evidence.noise), verdict(parts), experiment)


def _why(evidence: Evidence) -> Finding:
    claim, experiment = "Why (ours)", "gradient_noise"
    statement = (
        "a smaller batch's noise lies where the loss is curved, a sketch's where it is flat: at the same memory the "
        f"batch adds {_FLATTER} times as much tr HΣ or more"
    )
    steps = pd.DataFrame(columns=["steps"]) if evidence.steps is None else evidence.steps
    steps = steps[steps["steps"].isin(_WHEN)]
    if steps.empty:
        return _absent(claim, statement, experiment)
    found = ratios(steps, "curved")
    found = found[found["estimator"].isin(PAPER)]
    said = [
        f"{net} after {after:,} steps "
        + ", ".join(
            f"{look(r.estimator).label.removeprefix('RAD, ')} {around(r.value, r.half)}" for r in part.itertuples()
        )
        for (net, after), part in found.groupby(["net", "steps"], sort=False)
    ]
    parts = [Interval.around(row.value, row.half).within(low=_FLATTER) for row in found.itertuples()]
    draws = draw_counts(steps[steps["estimator"] != "full_batch"])
    return Finding(claim, statement, f"smaller batch ÷ sketch: {'; '.join(said)}", draws, verdict(parts), experiment)


def _rates(evidence: Evidence) -> Finding:
    claim, experiment = "Why, the control (ours)", "mnist_mlp"
    statement = (
        "it is neither Adam nor the learning rate: with both shared RAD's training loss ends below the smaller batch's"
    )
    if evidence.rates is None:
        return _absent(claim, statement, experiment)
    by_rate = {
        f"{name} {rate:g}": _ratios(part, "small_batch", PAPER, "train_loss")
        for (name, rate), part in evidence.rates.groupby(["optimizer", "rate"], sort=False)
    }
    found = [r for each in by_rate.values() for r in each.values()]
    if not found:
        return _absent(claim, statement, experiment)
    said = "; ".join(f"{name}: {_said(each)}" for name, each in by_rate.items())
    parts = [r.interval().below(1) for r in found]
    return Finding(
        claim, statement, f"final training loss ÷ smaller batch: {said}", _seeds(found), verdict(parts), experiment
    )
