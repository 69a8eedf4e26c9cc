"""The paper's claims, and what the records say of each: the rules of all verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import pandas as pd

from experiments.reproduction.headline import Ratio, ratio_of_means, reached
from experiments.runs.records import Runs
from experiments.show.figures import method_style
from experiments.studies.gradient_noise import PAPER, at_equal_bytes, ratio
from experiments.studies.graph_depth import exponents
from experiments.studies.reactor.results import SHARE

__all__ = ["Evidence", "Finding", "findings"]

HOLDS, IN_PART, FAILS, UNKNOWN = "holds", "holds in part", "does not hold", "not measured"
SIMILAR = 1.25  # a number of iterations within this factor of another is similar
_TABLE1 = 0.03
_EXPONENT = 0.1
_BETTER = 50


@dataclass
class Evidence:
    """What there is to judge by; ``None`` and missing keys are what there is not.

    Attributes:
        targets: Training loss to count iterations to, by experiment.
        training: Runs at one budget, by experiment.
        reactor: As from ``reactor_table``.
        graphs: Records of ``experiment=graph_depth`` on graphs.
        nets: Its records on nets.
        noise: ``noise.csv`` of ``experiment=gradient_noise``.
        table1: ``table1.csv``.
        commands: What made them, by experiment.
    """

    targets: dict[str, float]
    training: dict[str, Runs] = field(default_factory=dict)
    reactor: pd.DataFrame | None = None
    graphs: pd.DataFrame | None = None
    nets: pd.DataFrame | None = None
    noise: pd.DataFrame | None = None
    table1: pd.DataFrame | None = None
    commands: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """A claim and what became of it.

    Attributes:
        claim: Where in the paper it stands.
        statement: What it says, in our words.
        measured: Our number with its interval.
        n: Seeds, or draws.
        verdict: Holds, holds in part, does not hold, or not measured.
        experiment: Whose command made the number.
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
        _different(evidence, "mnist_mlp", "MLP", needed=True),
        _different(evidence, "cifar_cnn", "CNN", needed=False),
        _exact_fastest(evidence, "mnist_mlp", "MLP"),
        _exact_fastest(evidence, "cifar_cnn", "CNN"),
        _similar(evidence),
        _table_one(evidence),
        *_reactor(evidence),
        _batch(evidence),
        _rounding(evidence),
    ]


def _verdict(parts: Iterable[bool]) -> str:
    parts = list(parts)
    return HOLDS if all(parts) else IN_PART if any(parts) else FAILS


def _absent(claim: str, statement: str, experiment: str) -> Finding:
    return Finding(claim, statement, "–", "0", UNKNOWN, experiment)


def _ratios(evidence: Evidence, experiment: str, baseline: str, methods: Iterable[str]) -> dict[str, Ratio]:
    """Iterations to the target relative to a baseline, of those methods that there are."""
    if experiment not in evidence.training:
        return {}
    table = reached(evidence.training[experiment], evidence.targets[experiment])
    if baseline not in set(table["method"]):
        return {}
    present = [m for m in methods if m in set(table["method"])]
    return {m: ratio_of_means(table, m, baseline) for m in present}


def _say(ratios: dict[str, Ratio]) -> str:
    return "; ".join(f"{method_style(m)[0].removeprefix('RAD, ')} {r}" for m, r in ratios.items())


def _seeds(ratios: dict[str, Ratio]) -> str:
    counts = {r.n for r in ratios.values()}
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def _faster(evidence: Evidence, experiment: str, net: str) -> Finding:
    claim = f"Fig. 5 (a), {net}"
    statement = "at the same memory the training loss falls faster with RAD than with a smaller batch"
    ratios = _ratios(evidence, experiment, "small_batch", PAPER)
    if not ratios:
        return _absent(claim, statement, experiment)
    said = f"iterations to {evidence.targets[experiment]:g} ÷ smaller batch: {_say(ratios)}"
    verdict = UNKNOWN if _open(ratios) else _verdict(r.below(1) for r in ratios.values())
    return Finding(claim, statement, said, _seeds(ratios), verdict, experiment)


def _different(evidence: Evidence, experiment: str, net: str, needed: bool) -> Finding:
    claim = f"Fig. 5 (b), {net}"
    statement = (
        "the MLP needs a different sample for each example"
        if needed
        else "the CNN does not need different samples, thanks to weight sharing"
    )
    ratios = _ratios(evidence, experiment, "rad_diff", ("rad_same", "rad_proj"))
    if not ratios:
        return _absent(claim, statement, experiment)
    said = f"iterations to {evidence.targets[experiment]:g} ÷ different sample: {_say(ratios)}"
    parts = [r.above(1) if needed else not r.above(SIMILAR) for r in ratios.values()]
    verdict = UNKNOWN if _open(ratios) else _verdict(parts)
    return Finding(claim, statement, said, _seeds(ratios), verdict, experiment)


def _exact_fastest(evidence: Evidence, experiment: str, net: str) -> Finding:
    claim, statement = f"Fig. 5 (c), {net}", "the full-memory baseline is fastest"
    ratios = _ratios(evidence, experiment, "exact", ("small_batch", *PAPER))
    if not ratios:
        return _absent(claim, statement, experiment)
    said = f"iterations to {evidence.targets[experiment]:g} ÷ exact: {_say(ratios)}"
    verdict = UNKNOWN if _open(ratios) else _verdict(r.above(1) for r in ratios.values())
    return Finding(claim, statement, said, _seeds(ratios), verdict, experiment)


def _similar(evidence: Evidence) -> Finding:
    claim, experiment = "Fig. 5 (d), IRNN", "smnist_irnn"
    statement = "with a fresh draw for each time step RAD takes about as many iterations as a smaller batch"
    ratios = _ratios(evidence, experiment, "small_batch", PAPER)
    if not ratios:
        return _absent(claim, statement, experiment)
    said = f"iterations to {evidence.targets[experiment]:g} ÷ smaller batch: {_say(ratios)}"
    similar = [r.bound == "" and 1 / SIMILAR <= r.value <= SIMILAR for r in ratios.values()]
    verdict = UNKNOWN if _open(ratios) else _verdict(similar)
    return Finding(claim, statement, said, _seeds(ratios), verdict, experiment)


def _open(ratios: dict[str, Ratio]) -> bool:
    """Whether none of them says anything."""
    return all(r.bound == "–" for r in ratios.values())


def _table_one(evidence: Evidence) -> Finding:
    claim, statement = "Table 1", "peak memory of the three nets by the fraction kept"
    if evidence.table1 is None:
        return _absent(claim, statement, "table1")
    left = evidence.table1["left"].dropna().abs()
    said = f"measured bytes within {left.max():.1%} of the formula behind the table, explained real costs apart"
    return Finding(claim, statement, said, f"{len(left)} cells", HOLDS if left.max() <= _TABLE1 else IN_PART, "table1")


def _reactor(evidence: Evidence) -> list[Finding]:
    statement = "99 % of the memory is saved without a significant slowdown"
    if evidence.reactor is None:
        return [_absent("Fig. 6", statement, "reactor")]
    found = []
    for method in ("rad_same", "rad_even"):
        kept = evidence.reactor[(evidence.reactor["method"] == method) & (evidence.reactor["bytes_ratio"] <= 0.011)]
        kept = kept[kept["of_exact"].notna() & kept["finished"]]
        claim = "Fig. 6" + ("" if method == "rad_same" else ", evenly spaced sample (ours)")
        if kept.empty:
            found.append(_absent(claim, statement, "reactor"))
            continue
        row = kept.loc[kept["bytes_ratio"].idxmax()]
        half = "" if math.isnan(row["final_half"]) else f" ± {row['final_half'] / row['final'] * row['of_exact']:.3f}"
        said = f"final loss with {row['bytes_ratio']:.2%} of the bytes ÷ exact: {row['of_exact']:.3f}{half}"
        found.append(
            Finding(claim, statement, said, f"{row['n']}", HOLDS if row["of_exact"] <= SHARE else FAILS, "reactor")
        )
    return found


def _depth(evidence: Evidence) -> Finding:
    claim, experiment = "§3.3, Fig. 2", "graph_depth"
    statement = "variance grows exponentially with depth on interleaved graphs, not on independent paths"
    if evidence.graphs is None:
        return _absent(claim, statement, experiment)
    table = exponents(evidence.graphs)
    grows, stays = table[table["ratio"].notna()], table[table["ratio"].isna()]
    parts = [*(abs(grows["ratio"] - 1) <= _EXPONENT), *(stays["fitted"].abs() <= 1.96 * stays["error"] + 0.02)]
    said = "; ".join(f"{row.family}: exponent {row.fitted:.3f} ± {1.96 * row.error:.3f}" for row in table.itertuples())
    rates = ", ".join(f"{value:.3f}" for value in grows["ratio"])
    return Finding(claim, statement, f"{said} (fitted ÷ predicted {rates})", "1", _verdict(parts), experiment)


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
        parts.append(value + half < 1)
    measured = "added variance, the paper's best estimator ÷ smaller batch: " + "; ".join(said)
    return Finding(claim, statement, measured, f"{evidence.noise['draws'].min()} draws", _verdict(parts), experiment)


def _rounding(evidence: Evidence) -> Finding:
    claim, experiment = "§7, rounding (ours)", "gradient_noise"
    statement = f"some estimator has 1/{_BETTER} of the variance of the paper's best at the same bytes"
    if evidence.noise is None:
        return _absent(claim, statement, experiment)
    said, parts = [], []
    for net, phase, best, winner in at_equal_bytes(evidence.noise):
        value, half = ratio(best, winner)
        said.append(f"{net} {phase} {value:.0f} ± {half:.0f}")
        parts.append(value - half >= _BETTER)
    measured = "paper's best ÷ best: " + "; ".join(said)
    return Finding(claim, statement, measured, f"{evidence.noise['draws'].min()} draws", _verdict(parts), experiment)
