"""Every verdict on every claim, reached from records: by the right net, the right limit and the right end."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from trained import training

from experiments.reproduction import claims
from experiments.reproduction.claims import findings
from experiments.reproduction.evidence import Evidence, Finding
from experiments.show.verdicts import FAILS, HOLDS, IN_PART, UNDECIDED, UNKNOWN
from experiments.studies.noise_report import at_equal_bytes

NETS = {"mnist_mlp": "MLP", "cifar_cnn": "CNN", "smnist_irnn": "IRNN"}
PAPER = ("rad_same", "rad_diff", "rad_proj")


def judged(**evidence) -> dict[str, Finding]:
    targets = dict.fromkeys([*NETS, "reactor"], (1.0,))
    return {finding.claim: finding for finding in findings(Evidence(targets, **evidence))}


# Iterations of two seeds that lie, relative to a 100, clearly below, clearly above, and on both sides.
LESS, MORE, BOTH, SAME = (50, 60), (200, 210), (80, 130), (100, 110)
BASE = (100, 100)

# Methods with their iterations, and the verdict on the claims that they belong to.
FASTER = [
    ((LESS, LESS, LESS), HOLDS),
    ((LESS, MORE, LESS), IN_PART),
    ((LESS, BOTH, LESS), IN_PART),
    ((MORE, MORE, MORE), FAILS),
    ((BASE, BASE, BASE), FAILS),
    ((BOTH, MORE, BOTH), UNDECIDED),
]


@pytest.mark.parametrize("experiment", ["mnist_mlp", "cifar_cnn"])
@pytest.mark.parametrize(("iterations", "expected"), FASTER)
def test_faster_than_a_smaller_batch(experiment, iterations, expected):
    runs = training(small_batch=BASE, **dict(zip(PAPER, iterations, strict=True)))
    found = judged(training={experiment: runs})
    for name, net in NETS.items():
        if net != "IRNN":
            assert found[f"Fig. 5 (a), {net}"].verdict == (expected if name == experiment else UNKNOWN)


def test_a_smaller_batch_that_never_gets_there_is_slower():
    runs = training(small_batch=(None, None), rad_same=BASE, rad_diff=LESS, rad_proj=(600, 600))
    found = judged(training={"cifar_cnn": runs})["Fig. 5 (a), CNN"]
    assert found.verdict == HOLDS
    assert found.measured.startswith("iterations to 1 ÷ smaller batch: same sample < 0.17")
    assert found.n == "2"


DIFFERENT = [  # same sample and projection against a different one; the MLP's verdict and the CNN's
    ((MORE, MORE), HOLDS, FAILS),
    ((MORE, LESS), IN_PART, IN_PART),
    ((LESS, LESS), FAILS, HOLDS),
    (((110, 120), (110, 120)), HOLDS, HOLDS),  # more, but similar
    (((110, 140), MORE), HOLDS, UNDECIDED),  # 1.1 to 1.4 is on both sides of similar
    ((BOTH, BOTH), UNDECIDED, UNDECIDED),
]


@pytest.mark.parametrize(("iterations", "mlp", "cnn"), DIFFERENT)
def test_the_mlp_needs_different_samples_the_cnn_does_not(iterations, mlp, cnn):
    runs = training(rad_diff=BASE, **dict(zip(("rad_same", "rad_proj"), iterations, strict=True)))
    found = judged(training={"mnist_mlp": runs, "cifar_cnn": runs})
    assert found["Fig. 5 (b), MLP"].verdict == mlp
    assert found["Fig. 5 (b), CNN"].verdict == cnn
    assert found["Fig. 5 (a), MLP"].verdict == UNKNOWN  # without a smaller batch


FASTEST = [
    ((MORE, MORE, MORE, MORE), HOLDS),
    ((MORE, MORE, BOTH, MORE), IN_PART),
    ((LESS, MORE, LESS, LESS), IN_PART),
    ((LESS, BASE, LESS, LESS), FAILS),
    (((100, 120), BASE, LESS, LESS), UNDECIDED),  # 1 to 1.2
]


@pytest.mark.parametrize(("iterations", "expected"), FASTEST)
def test_exact_gradients_are_fastest(iterations, expected):
    methods = dict(zip(("small_batch", *PAPER), iterations, strict=True))
    runs = training(exact=BASE, **methods, rad_round=LESS)  # rounding is not the paper's
    found = judged(training={"cifar_cnn": runs})
    assert found["Fig. 5 (c), CNN"].verdict == expected
    assert found["Fig. 5 (c), MLP"].verdict == UNKNOWN


SIMILAR = [
    ((BASE, SAME, (80, 90)), HOLDS),
    ((BASE, MORE, LESS), IN_PART),
    ((MORE, LESS, (None, None)), FAILS),
    ((MORE, LESS, (70, 90)), UNDECIDED),
    ((MORE, LESS, (120, 130)), UNDECIDED),
    ((BASE, (120, 130), SAME), IN_PART),
]


@pytest.mark.parametrize(("iterations", "expected"), SIMILAR)
def test_the_irnn_is_as_fast_as_with_a_smaller_batch(iterations, expected):
    runs = training(small_batch=BASE, **dict(zip(PAPER, iterations, strict=True)))
    found = judged(training={"smnist_irnn": runs})
    assert found["Fig. 5 (d), IRNN"].verdict == expected
    assert judged(training={"mnist_mlp": runs})["Fig. 5 (d), IRNN"].verdict == UNKNOWN


def test_each_experiment_has_a_target_of_its_own():
    half = training(small_batch=BASE, **dict.fromkeys(PAPER, LESS))
    half.curves["train_loss"] /= 2
    evidence = Evidence({"cifar_cnn": (0.5,), "mnist_mlp": (1.0,)}, {"cifar_cnn": half, "mnist_mlp": half})
    found = {finding.claim: finding for finding in findings(evidence)}
    assert "iterations to 0.5 ÷ smaller batch: same sample 0.55" in found["Fig. 5 (a), CNN"].measured
    assert "iterations to 1 ÷" in found["Fig. 5 (a), MLP"].measured


def test_a_claim_speaks_of_every_target():
    """Halfway there the smaller batch is ahead, at the end it is behind."""
    runs = training(small_batch=BASE, **dict.fromkeys(PAPER, LESS))
    early = runs.curves["method"].eq("small_batch") & runs.curves["iteration"].eq(10)
    runs.curves.loc[early, "train_loss"] = 1.5
    found = {}
    for targets in ((1.0,), (1.5,), (1.0, 1.5), (0.5,), (1.0, 0.5)):
        evidence = Evidence({"mnist_mlp": targets}, {"mnist_mlp": runs})
        found[targets] = {finding.claim: finding for finding in findings(evidence)}["Fig. 5 (a), MLP"]
    assert [f.verdict for f in found.values()] == [HOLDS, FAILS, IN_PART, UNDECIDED, IN_PART]
    assert found[1.0, 1.5].measured.count("same sample") == 2
    assert "; iterations to 1.5 ÷ smaller batch: same sample 5.50" in found[1.0, 1.5].measured


def test_a_set_on_which_nothing_was_tuned_has_a_claim_where_it_is_planned():
    runs = training(small_batch=BASE, **dict.fromkeys(PAPER, MORE))
    evidence = Evidence({"fashion_mlp": (1.0,)}, {"fashion_mlp": runs})
    found = {finding.claim: finding for finding in findings(evidence)}
    assert found["Fig. 5 (a), MLP on Fashion-MNIST"].verdict == FAILS
    assert found["Fig. 5 (a), MLP"].verdict == UNKNOWN
    assert not any("Fashion" in claim for claim in judged())


def test_seeds_are_counted():
    runs = training(small_batch=(100,) * 3, rad_same=(50,) * 3, rad_diff=(50,) * 2, rad_proj=(50,) * 3)
    assert judged(training={"mnist_mlp": runs})["Fig. 5 (a), MLP"].n == "2 to 3"


@pytest.mark.parametrize(
    ("left", "expected"),
    [([0.01, -0.03], HOLDS), ([0.01, -0.04], IN_PART), ([0.04, -0.04], FAILS), ([0.02, math.nan], HOLDS)],
)
def test_table_one(left, expected):
    found = judged(table1=pd.DataFrame({"left": left}))["Table 1"]
    assert found.verdict == expected
    assert found.n == f"{np.isfinite(left).sum()} cells"
    assert f"within {np.nanmax(np.abs(left)):.1%}" in found.measured


def reactor(of_exact: float, half: float, share: float = 0.0094, method: str = "rad_same", **more) -> dict:
    row = {"method": method, "of_exact": of_exact, "bytes_ratio": share, "final": 2.0, "n": 3, "finished": True}
    return {**row, "final_half": half * 2.0 / of_exact, **more}


@pytest.mark.parametrize(
    ("of_exact", "half", "expected"),
    [
        (1.0, 0.02, HOLDS),
        (1.2, 0.02, FAILS),
        (1.06, 0.188, UNDECIDED),
        (1.003, 0.241, UNDECIDED),
        (1.0, math.nan, UNDECIDED),
    ],
)
def test_reactor(of_exact, half, expected):
    found = judged(reactor=pd.DataFrame([reactor(of_exact, half)]))
    assert found["Fig. 6"].verdict == expected
    assert found["Fig. 6, evenly spaced sample (ours)"].verdict == UNKNOWN
    spread = "" if math.isnan(half) else f" ± {half:.3f}"
    assert found["Fig. 6"].measured == f"final loss with 0.94% of the bytes ÷ exact: {of_exact:.3f}{spread}"


def test_the_reactor_is_judged_at_one_percent_by_finished_runs():
    rows = [
        reactor(1.2, 0.01),
        reactor(1.0, 0.01, share=0.002),  # fewer bytes than the claim allows
        reactor(1.0, 0.01, share=0.1),  # more
        reactor(1.0, 0.01, share=0.0108, finished=False),
        reactor(1.0, 0.01, method="rad_even"),
    ]
    found = judged(reactor=pd.DataFrame(rows))
    assert found["Fig. 6"].verdict == FAILS
    assert found["Fig. 6, evenly spaced sample (ours)"].verdict == HOLDS
    assert judged(reactor=pd.DataFrame(rows[3:4]))["Fig. 6"].verdict == UNKNOWN


def graphs(grows: float, stays: float, error: float = 1e-4) -> pd.DataFrame:
    """Variances that grow by ``exp(grows)`` and ``exp(stays)`` a layer where ``exp(1)`` and 1 are predicted."""
    depth = np.array([1.0, 2, 3, 4])
    parts = []
    for family, rate, predicted in (("a", grows, np.expm1(depth)), ("b", stays, np.full(4, 1.9))):
        second = np.exp(rate * depth) * (2.9 if family == "b" else 1)
        parts.append(pd.DataFrame({"family": family, "depth": depth, "variance": second - 1, "predicted": predicted}))
        parts[-1]["variance_error"] = error * second
    return pd.concat(parts)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (graphs(1.05, 0.0), HOLDS),
        (graphs(0.95, 0.01), HOLDS),
        (graphs(1.2, 0.0), IN_PART),
        (graphs(0.8, 0.0), IN_PART),
        (graphs(1.0, 0.1), IN_PART),
        (graphs(1.2, 0.1), FAILS),
        (graphs(0.8, -0.1), FAILS),
        (graphs(1.0, 0.0, error=0.3), UNDECIDED),
    ],
)
def test_variance_against_depth(frame, expected):
    found = judged(graphs=frame)["§3.3, Fig. 2"]
    assert found.verdict == expected


@pytest.mark.parametrize(("relative", "expected"), [(0.01, HOLDS), (0.08, UNDECIDED)])
@pytest.mark.parametrize("predicted", [1.0, 0.1])
def test_an_exponent_is_judged_relative_to_the_one_predicted(monkeypatch, predicted, relative, expected):
    row = {"family": "a", "fitted": 1.05 * predicted, "error": relative / 1.96 * predicted, "predicted": predicted}
    monkeypatch.setattr(claims, "exponents", lambda _: pd.DataFrame([{**row, "ratio": 1.05}]))
    assert judged(graphs=pd.DataFrame())["§3.3, Fig. 2"].verdict == expected


def noise(mlp: float, cnn: float, rounding: float = 0.01, error: float = 0.01) -> pd.DataFrame:
    """Added variance of the paper's best relative to a smaller batch's on two nets, and rounding's relative to it."""
    rows = []
    for net, best, draws in (("mlp", mlp, 30), ("cnn", cnn, 8)):
        added = {"small_batch": 1.0, "rad_same": 2 * best, "rad_diff": best, "rad_round": rounding * best}
        rows += [
            {
                **{"net": net, "phase": "trained", "estimator": name, "budget": 0.1, "added": value},
                **{"added_error": error * value, "saved_bytes": 104, "bytes_ratio": 0.104},
                "draws": draws * (4 if name == "small_batch" else 1),
            }
            for name, value in added.items()
        ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("frame", "batch", "rounding"),
    [
        (noise(0.5, 0.5), HOLDS, HOLDS),
        (noise(2, 0.5), IN_PART, HOLDS),
        (noise(2, 2), FAILS, HOLDS),
        (noise(1.01, 1.01), UNDECIDED, HOLDS),
        (noise(0.5, 0.5, rounding=0.1), HOLDS, FAILS),
        (noise(0.5, 0.5, rounding=0.0202), HOLDS, UNDECIDED),
    ],
)
def test_noise(frame, batch, rounding):
    found = judged(noise=frame)
    assert found["Appendix, gradient noise"].verdict == batch
    assert found["§7, rounding (ours)"].verdict == rounding
    assert found["§7, rounding (ours)"].n == "mlp 30, cnn 8; of smaller batches mlp 120, cnn 32"


def test_noise_is_compared_at_the_same_bytes_with_its_interval():
    frame = noise(0.5, 0.5)
    larger = frame["estimator"] == "rad_round"
    found = judged(noise=frame.assign(saved_bytes=frame["saved_bytes"].where(~larger, 120)))
    assert found["§7, rounding (ours)"].verdict == FAILS  # 120 bytes are no longer equal to 104
    said = judged(noise=frame)["Appendix, gradient noise"].measured
    assert said.endswith("mlp trained 0.5 ± 0.01; cnn trained 0.5 ± 0.01")  # 1.96 √2 % of 0.5
    assert "paper's best ÷ best: mlp trained 100 ± 3;" in judged(noise=frame)["§7, rounding (ours)"].measured


def test_the_papers_best_is_the_least_noisy_of_all_that_it_has_whatever_they_hold():
    frame = noise(0.5, 0.5)
    for name in ("rad_same", "rad_diff"):  # the better one is rad_diff
        held = frame["saved_bytes"].where(frame["estimator"] != name, 103)
        assert {str(best["estimator"]) for _, _, best, _ in at_equal_bytes(frame.assign(saved_bytes=held))} == {
            "rad_diff"
        }


def steps(mlp: float, cnn: float, error: float = 0.02, after: tuple[int, ...] = (0, 200, 1000)) -> pd.DataFrame:
    """What a smaller batch adds in tr HΣ over what sketches do: that of two nets in training, 1 before."""
    rows = []
    for net, value, draws in (("mlp", mlp, 30), ("cnn", cnn, 8)):
        for n in after:
            added = {"full_batch": 1.0, "small_batch": 1.0 + (value if n else 1.0), "rad_same": 1.0, "rad_diff": 0.9}
            added |= {"rad_proj": 0.8, "rad_round": 100.0}  # rounding is not the paper's
            for name, curved in added.items():
                numbers = {"curved": curved, "curved_error": error * curved, "variance": 1e-3, "variance_error": 0.0}
                count = draws * (4 if name.endswith("batch") else 1)
                rows.append({"net": net, "steps": n, "estimator": name, "draws": count, **numbers})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (steps(8, 8), HOLDS),
        (steps(8, 2), IN_PART),
        (steps(2, 2), FAILS),
        (steps(0.5, 0.5), FAILS),
        (steps(5.01, 5.01), IN_PART),  # 6.3 times what projection adds, 5.01 times what same sample does
        (steps(4, 4, error=0.2), UNDECIDED),
        (steps(8, 8, error=0.3), UNDECIDED),
        (steps(8, 8, after=(0, 1)), UNKNOWN),
        (steps(8, 8, after=(1000, 3000)), HOLDS),
        (steps(8, 8).assign(curved=lambda f: f["curved"].where(f["estimator"] != "rad_diff", -1.0)), IN_PART),
    ],
)
def test_why(frame, expected):
    found = judged(steps=frame)
    assert found["Why (ours)"].verdict == expected
    assert found["Why, the control (ours)"].verdict == UNKNOWN


def test_why_says_each_net_and_time_with_its_interval():
    found = judged(steps=steps(8, 8))["Why (ours)"]
    assert found.n == "mlp 30, cnn 8; of smaller batches mlp 120, cnn 32"
    assert found.measured.count("after") == 4
    # 1.96 of √((0.02 √(9² + 1)) / 8)² + 0.02²) of 8 times what same sample adds
    assert "mlp after 200 steps same sample 8 ± 0.5, different sample 8.89 ± 0.5, projection 10 ± 0.6" in found.measured


def rates(adam: tuple, sgd: tuple) -> pd.DataFrame:
    rows = []
    for optimizer, losses in (("Adam", adam), ("SGD", sgd)):
        for method, values in {"exact": (9.0, 9.0), "small_batch": BASE, "rad_diff": losses}.items():
            named = {"optimizer": optimizer, "rate": 0.1, "method": method, "iterations": 60, "met": True}
            rows += [{**named, "seed": seed, "train_loss": loss / 1000} for seed, loss in enumerate(values)]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (rates(LESS, LESS), HOLDS),
        (rates(LESS, MORE), IN_PART),
        (rates(LESS, BOTH), IN_PART),
        (rates(MORE, MORE), FAILS),
        (rates(BOTH, BOTH), UNDECIDED),
        (rates((50,), (50,)), UNDECIDED),  # a single seed
        (rates(LESS, LESS)[lambda f: f["method"] != "small_batch"], UNKNOWN),
    ],
)
def test_the_control(frame, expected):
    found = judged(rates=frame)["Why, the control (ours)"]
    assert found.verdict == expected
    if expected == HOLDS:
        assert found.n == "2"
        said = "Adam 0.1: different sample 0.55 (0.50 to 0.60); SGD 0.1: different sample 0.55 (0.50 to 0.60)"
        assert found.measured == f"final training loss ÷ smaller batch: {said}"


FEW_BITS = [  # losses ÷ 100 of exact gradients with the same seeds
    ({"rad_round": (101, 103)}, HOLDS),
    ({"rad_round": (104, 107)}, UNDECIDED),
    ({"rad_round": (90, 95)}, HOLDS),
    ({"rad_round": (110, 120)}, FAILS),
    ({"rad_round": (101, 103), "rad_auto": (110, 120)}, IN_PART),
    ({"small_batch": (101, 103)}, UNKNOWN),  # whose bits nobody doubts
]


@pytest.mark.parametrize("experiment", ["source_gpt", "source_lstm", "cifar_resnet"])
@pytest.mark.parametrize(("losses", "expected"), FEW_BITS)
def test_real_nets_train_with_few_bits_as_with_exact_gradients(experiment, losses, expected):
    runs = training(**dict.fromkeys(["exact", *losses], BASE))
    ends = {"exact": (100, 100), **losses}
    for (method, seed), part in runs.curves.groupby(["method", "seed"]):
        runs.curves.loc[part.index[-1], "train_loss"] = ends[method][seed] / 100
    evidence = Evidence({experiment: (1.0,)}, training={experiment: runs})
    (found,) = [f for f in findings(evidence) if f.claim.startswith("Beyond the paper") and "exact" in f.claim]
    assert (found.experiment, found.verdict, str(found.rule)) == (experiment, expected, "≤ 1.05")
    if "rad_auto" in losses:
        said = "RAD, rounding 0.1 1.02 (1.01 to 1.03); RAD, bits allocated 0.1 1.15 (1.10 to 1.20)"
        assert found.measured == f"final training loss ÷ exact: {said}"
        assert found.n == "2"


@pytest.mark.parametrize("experiment", ["source_gpt", "source_lstm", "cifar_resnet"])
@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ({"rad_round": LESS, "small_batch": BASE}, HOLDS),
        ({"rad_round": MORE, "small_batch": BASE}, FAILS),
        ({"rad_round": BOTH, "small_batch": BASE}, UNDECIDED),
        ({"rad_round": BASE, "small_batch": (None, None)}, HOLDS),
        ({"rad_round": LESS, "exact": BASE}, UNKNOWN),
        # Bits that are allocated hold another number of bytes than the smaller batch does.
        ({"rad_auto": LESS, "small_batch": BASE}, UNKNOWN),
    ],
)
def test_real_nets_train_faster_with_few_bits_than_with_a_smaller_batch(experiment, runs, expected):
    evidence = Evidence({experiment: (1.0,)}, training={experiment: training(**runs)})
    (found,) = [f for f in findings(evidence) if f.claim.startswith("Beyond the paper") and "smaller batch" in f.claim]
    assert (found.experiment, found.verdict, str(found.rule)) == (experiment, expected, "< 1")
    if expected == HOLDS and None not in runs["small_batch"]:
        assert found.measured == "iterations to 1 ÷ smaller batch: rounding 0.55 (0.50 to 0.60)"


def test_without_records_nothing_is_measured():
    found = judged()
    assert {finding.verdict for finding in found.values()} == {UNKNOWN}
    assert len(found) == 15
