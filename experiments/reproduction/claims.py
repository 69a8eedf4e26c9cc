"""The paper's claims, and what the records say of each: the rules of all verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from experiments.budgets import said
from experiments.labels import look
from experiments.reproduction.evidence import Evidence, Finding
from experiments.reproduction.headline import Ratio, final_losses, ratio_of_means, reached
from experiments.show.verdicts import Interval, Rule
from experiments.studies.graph_depth import exponents
from experiments.studies.noise_report import PAPER, at_equal_bytes, draw_counts, ratio
from experiments.studies.reactor.results import SHARE, loss_ratio, one_percent
from experiments.studies.step_noise import around, ratios

__all__ = ["findings"]

SIMILAR = 1.25  # a number of iterations within this factor of another is similar
_TABLE1 = 0.03
_EXPONENT = 0.1  # relative, of one that is predicted
_UNTUNED = "fashion_mlp"  # on whose data nothing was tuned
_REAL_NETS = {"source_gpt": "transformer", "source_lstm": "LSTM", "cifar_resnet": "ResNet"}
_STAYS = 0.02  # an exponent as small as this is none
_BETTER = 50
_LESS, _MORE = Rule(high=1, strict=True), Rule(low=1, strict=True)  # than the baseline
_AS_EXACT = 1.05
_FEW_BITS = ("rad_round", "rad_auto")
_FLATTER, _WHEN = 5, (200, 1000)  # times as much of the noise that counts, after so many steps of training


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
        *[
            claim(evidence, name, net)
            for name, net in _REAL_NETS.items()
            for claim in (_faster_with_few_bits, _as_exact)
            if name in evidence.targets
        ],
        _batch(evidence),
        _why(evidence),
        _rates(evidence),
        _rounding(evidence),
    ]


def _ratios(table: pd.DataFrame, baseline: str, methods: Iterable[str], measure: str) -> dict[str, Ratio]:
    """Relative to a baseline, of those methods that there are."""
    there = set(table["method"])
    return {m: ratio_of_means(table, m, baseline, measure) for m in methods if m in there and baseline in there}


def _said(ratios: dict[str, Ratio]) -> str:
    return "; ".join(f"{look(m).short} {r}" for m, r in ratios.items())


def _seeds(ratios: Iterable[Ratio]) -> str:
    counts = [r.n for r in ratios]
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _training(evidence: Evidence, claim: Finding, baseline: str, methods: Iterable[str]) -> Finding:
    """A claim about the iterations of some methods relative to those of another, to each of the targets."""
    experiment = claim.experiment
    by_target = {
        target: _ratios(reached(evidence.training[experiment], target), baseline, methods, "iterations")
        for target in (evidence.targets[experiment] if experiment in evidence.training else ())
    }
    found = [r for ratios in by_target.values() for r in ratios.values()]
    if not any(r.n for r in found):
        return claim
    against = look(baseline).short
    said = "; ".join(f"iterations to {target:g} ÷ {against}: {_said(ratios)}" for target, ratios in by_target.items())
    return claim.judged(said, _seeds(found), _met(claim.rule, found))


def _met(rule: Rule, ratios: Iterable[Ratio]) -> list[bool | None]:
    return [rule.met(r.interval()) for r in ratios]


def _faster(evidence: Evidence, experiment: str, net: str) -> Finding:
    statement = "at the same memory the training loss falls faster with RAD than with a smaller batch"
    claim = Finding(f"Fig. 5 (a), {net}", statement, experiment, _LESS)
    return _training(evidence, claim, "small_batch", PAPER)


def _different(evidence: Evidence, experiment: str, net: str, needed: bool) -> Finding:
    statement, rule = (
        ("the MLP needs a different sample for each example", _MORE)
        if needed
        else ("the CNN does not need different samples, thanks to weight sharing", Rule(high=SIMILAR))
    )
    claim = Finding(f"Fig. 5 (b), {net}", statement, experiment, rule)
    return _training(evidence, claim, "rad_diff", ("rad_same", "rad_proj"))


def _exact_fastest(evidence: Evidence, experiment: str, net: str) -> Finding:
    claim = Finding(f"Fig. 5 (c), {net}", "the full-memory baseline is fastest", experiment, _MORE)
    return _training(evidence, claim, "exact", ("small_batch", *PAPER))


def _similar(evidence: Evidence) -> Finding:
    statement = "with a fresh draw for each time step RAD takes about as many iterations as a smaller batch"
    claim = Finding("Fig. 5 (d), IRNN", statement, "smnist_irnn", Rule(1 / SIMILAR, SIMILAR))
    return _training(evidence, claim, "small_batch", PAPER)


def _faster_with_few_bits(evidence: Evidence, experiment: str, net: str) -> Finding:
    statement = "at the same memory the training loss falls faster with a few bits a value than with a smaller batch"
    claim = Finding(f"Beyond the paper, {net}: smaller batch (ours)", statement, experiment, _LESS)
    return _training(evidence, claim, "small_batch", ("rad_round",))  # whose bytes are those of the smaller batch


def _as_exact(evidence: Evidence, experiment: str, net: str) -> Finding:
    statement = f"with a few bits a value the training loss ends within {_AS_EXACT - 1:.0%} of exact gradients'"
    claim = Finding(f"Beyond the paper, {net}: exact (ours)", statement, experiment, Rule(high=_AS_EXACT))
    if experiment not in evidence.training:
        return claim
    table = final_losses(evidence.training[experiment])
    found = {
        f"{look(method).label} {said(budget)}": ratio_of_means(
            pd.concat([part, table[table["method"] == "exact"]]), str(method), "exact", "train_loss"
        )
        for (method, budget), part in table[table["method"].isin(_FEW_BITS)].groupby(["method", "budget"], sort=False)
    }
    if not any(r.n for r in found.values()):
        return claim
    measured = "final training loss ÷ exact: " + "; ".join(f"{name} {r}" for name, r in found.items())
    return claim.judged(measured, _seeds(found.values()), _met(claim.rule, found.values()))


def _table_one(evidence: Evidence) -> Finding:
    statement = "peak memory of the three nets by the fraction kept"
    claim = Finding("Table 1", statement, "table1", Rule(high=_TABLE1))
    if evidence.table1 is None:
        return claim
    left = evidence.table1["left"].dropna().abs()
    measured = f"measured bytes within {left.max():.1%} of the formula behind the table, explained real costs apart"
    return claim.judged(measured, f"{len(left)} cells", left <= _TABLE1)


def _reactor(evidence: Evidence) -> list[Finding]:
    statement = "99 % of the memory is saved without a significant slowdown"
    found = []
    for method, where in (("rad_same", "Fig. 6"), ("rad_even", "Fig. 6, evenly spaced sample (ours)")):
        claim = Finding(where, statement, "reactor", Rule(high=SHARE))
        kept = pd.DataFrame() if evidence.reactor is None else one_percent(evidence.reactor)
        kept = kept if kept.empty else kept[kept["method"] == method]
        if not kept.empty:
            row = kept.loc[kept["bytes_ratio"].idxmax()]
            ratio, interval = loss_ratio(row)
            measured = f"final loss with {row['bytes_ratio']:.2%} of the bytes ÷ exact: {ratio}"
            claim = claim.judged(measured, f"{row['n']}", [claim.rule.met(interval)])
        found.append(claim)
    return found


def _depth(evidence: Evidence) -> Finding:
    statement = "variance grows exponentially with depth on interleaved graphs, not on independent paths"
    predicted, none = Rule(1 - _EXPONENT, 1 + _EXPONENT), Rule(-_STAYS, _STAYS)
    rule = f"÷ predicted {predicted}; {none} where none is predicted"
    claim = Finding("§3.3, Fig. 2", statement, "graph_depth", rule)
    if evidence.graphs is None:
        return claim
    table = exponents(evidence.graphs)
    parts = []
    for row in table.itertuples():
        half = 1.96 * row.error
        if math.isnan(row.ratio):
            parts.append(none.met(Interval.around(row.fitted, half)))
        else:
            parts.append(predicted.met(Interval.around(row.ratio, half / row.predicted)))
    grown = [f"{row.family}: exponent {row.fitted:.3f} ± {1.96 * row.error:.3f}" for row in table.itertuples()]
    rates = ", ".join(f"{value:.3f}" for value in table["ratio"].dropna())
    return claim.judged(f"{'; '.join(grown)} (fitted ÷ predicted {rates})", "1", parts)


def _batch(evidence: Evidence) -> Finding:
    statement = "at the same memory RAD's gradient has less variance than a smaller batch's"
    claim = Finding("Appendix, gradient noise", statement, "gradient_noise", _LESS)
    if evidence.noise is None:
        return claim
    found, parts = [], []
    for net, phase, best, _ in at_equal_bytes(evidence.noise):
        part = evidence.noise[(evidence.noise["net"] == net) & (evidence.noise["phase"] == phase)]
        batch = part[(part["estimator"] == "small_batch") & (part["budget"] == best["budget"])].iloc[0]
        value, half = ratio(best, batch)
        found.append(f"{net} {phase} {value:.2g} ± {half:.1g}")
        parts.append(claim.rule.met(Interval.around(value, half)))
    measured = "added variance, the paper's best estimator ÷ smaller batch: " + "; ".join(found)
    return claim.judged(measured, draw_counts(evidence.noise), parts)


def _rounding(evidence: Evidence) -> Finding:
    statement = f"some estimator has 1/{_BETTER} of the variance of the paper's best at the same bytes"
    claim = Finding("§7, rounding (ours)", statement, "gradient_noise", Rule(low=_BETTER))
    if evidence.noise is None:
        return claim
    found, parts = [], []
    for net, phase, best, winner in at_equal_bytes(evidence.noise):
        value, half = ratio(best, winner)
        found.append(f"{net} {phase} {value:.0f} ± {half:.0f}")
        parts.append(claim.rule.met(Interval.around(value, half)))
    return claim.judged("paper's best ÷ best: " + "; ".join(found), draw_counts(evidence.noise), parts)


def _why(evidence: Evidence) -> Finding:
    statement = (
        "a smaller batch's noise lies where the loss is curved, a sketch's where it is flat: at the same memory the "
        f"batch adds {_FLATTER} times as much tr HΣ or more"
    )
    claim = Finding("Why (ours)", statement, "gradient_noise", Rule(low=_FLATTER))
    steps = pd.DataFrame(columns=["steps"]) if evidence.steps is None else evidence.steps
    steps = steps[steps["steps"].isin(_WHEN)]
    if steps.empty:
        return claim
    found = ratios(steps, "curved")
    found = found[found["estimator"].isin(PAPER)]
    measured = [
        f"{net} after {after:,} steps "
        + ", ".join(f"{look(r.estimator).short} {around(r.value, r.half)}" for r in part.itertuples())
        for (net, after), part in found.groupby(["net", "steps"], sort=False)
    ]
    parts = [claim.rule.met(Interval.around(row.value, row.half)) for row in found.itertuples()]
    draws = draw_counts(steps[steps["estimator"] != "full_batch"])
    return claim.judged(f"smaller batch ÷ sketch: {'; '.join(measured)}", draws, parts)


def _rates(evidence: Evidence) -> Finding:
    statement = (
        "it is neither Adam nor the learning rate: with both shared RAD's training loss ends below the smaller batch's"
    )
    claim = Finding("Why, the control (ours)", statement, "mnist_mlp", _LESS)
    if evidence.rates is None:
        return claim
    by_rate = {
        f"{name} {rate:g}": _ratios(part, "small_batch", PAPER, "train_loss")
        for (name, rate), part in evidence.rates.groupby(["optimizer", "rate"], sort=False)
    }
    found = [r for each in by_rate.values() for r in each.values()]
    if not found:
        return claim
    measured = "; ".join(f"{name}: {_said(each)}" for name, each in by_rate.items())
    return claim.judged(f"final training loss ÷ smaller batch: {measured}", _seeds(found), _met(claim.rule, found))
