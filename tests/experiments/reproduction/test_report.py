"""The report of runs that are there already: what counts, what is said of it, and how the page is set."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from digits import write_run

from experiments.reproduction import report as module
from experiments.reproduction.evidence import Evidence
from experiments.reproduction.plan import Plan, Planned, Sweep
from experiments.reproduction.report import write_report


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> tuple[str, str]:
    """Text and page, of two seeds of some methods, two runs that have not finished and one at another budget."""
    folder = tmp_path_factory.mktemp("report")

    def plan(method: str, seed: int, losses: tuple, **meta) -> Planned:
        path = folder / "runs" / f"{method}-{meta.get('budget', '')}-{seed}"
        write_run(path, losses=losses, method=method, seed=seed, experiment="mnist_mlp", examples=3000, **meta)
        return Planned(path.name, ("run.py",), path, 1.0)

    curves = {"exact": (2, 1), "small_batch": (2, 2, 2, 1), "rad_same": (2, 2, 1), "rad_diff": (2, 2, 2, 2, 1)}
    main = [plan(method, seed, losses) for method, losses in curves.items() for seed in (0, 1)]
    main += [plan("rad_same", 2, (1,), status="running"), plan("small_batch", 2, 9 * (2,), status="failed")]
    other = [plan("rad_diff", 0, (2, 1), budget=0.5)]
    equal = []
    for rate in (0.1, 0.5):
        for method, loss in (("small_batch", 0.5), ("rad_diff", rate)):
            equal += [plan(method, seed, (2, loss), budget=0.1 + rate, settings=f"{rate}") for seed in (3, 4)]
            for run in equal[-2:]:
                optimizer = f"{{_target_: torch.optim.SGD, lr: {rate}}}"
                (run.path / "config.yaml").write_text(f"optimizer: {optimizer}\n")
    sweeps = (
        Sweep("mnist_mlp", "methods", "python run.py -m the=sweep", "main", tuple(main)),
        Sweep("mnist_mlp", "budgets", "python run.py -m other=budgets", "fractions", tuple(other)),
        Sweep("mnist_mlp", "rates", "python run.py -m equal=rates", "rates", tuple(equal)),
    )
    page = write_report(Plan("laptop", sweeps, (), {"mnist_mlp": (1.0, 1.5)}, 1.0), [], folder / "out", "me")
    return (folder / "out" / "report.md").read_text(), page.read_text()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows(text: str, start: str) -> list[list[str]]:
    return [cells(line) for line in text.splitlines() if line.startswith(f"| {start} |")]


def test_unfinished_runs_do_not_count(report):
    (claim,) = rows(report[0], "Fig. 5 (a), MLP")
    assert claim[2] == (
        "iterations to 1 ÷ smaller batch: same sample 0.67 (0.67 to 0.67); different sample 1.33 (1.33 to 1.33); "
        "iterations to 1.5 ÷ smaller batch: same sample 0.67 (0.67 to 0.67); different sample 1.33 (1.33 to 1.33)"
    )
    assert claim[3:] == ["< 1", "2", "**holds in part**", "mnist_mlp"]
    assert rows(report[0], "mnist_mlp")[0][1:] == ["`python run.py -m the=sweep`", "10", "8"]


def test_another_budget_is_no_part_of_a_claim(report):
    (claim,) = rows(report[0], "Fig. 5 (c), MLP")
    assert "different sample 4.00 (4.00 to 4.00)" in claim[2]


def test_tables_say_what_the_runs_say(report):
    header, found = rows(report[0], "method | budget")[0], rows(report[0], "RAD, different sample | 0.1")[0]
    found = dict(zip(header, found, strict=True))
    assert (found["bytes"], found["of exact"]) == ("250", "0.250")
    assert found["iterations to 1"] == "40 ± 0"
    # 1/10 and 1/12 of seeds 0 and 1, in per cent; t of one degree of freedom.
    assert found["final test accuracy (%)"] == "9.17 ± 10.59"
    assert "rad_diff" not in report[0]  # one name for each method throughout


def test_fractions_show_the_method_at_all_budgets_beside_exact(report):
    section = report[0].split("## Fully connected net on toy: fractions")[1]
    shown = [cells(line)[:2] for line in section.splitlines() if re.match(r"\| (exact|RAD|smaller)", line)]
    assert shown == [["exact", "–"], ["RAD, different sample", "0.1"], ["RAD, different sample", "0.5"]]


def test_of_several_targets_each_has_a_table_and_all_have_a_figure(report):
    section = report[0].split("## Fully connected net on toy\n")[1].split("\n## ")[0]
    assert [f"to a training loss of {target}, as" in section for target in ("1", "1.5", "2")] == [True, True, False]
    assert "![Fully connected net: iterations over targets](report/mnist_mlp_targets.png)" in section


def test_methods_that_share_a_learning_rate_are_no_part_of_the_comparison_but_of_the_control(report):
    section = report[0].split("## Fully connected net on toy: equal learning rates")[1].split("\n## ")[0]
    assert "Training losses after 10 iterations" in section
    table = [cells(line) for line in section.splitlines() if line.startswith("| SGD")]
    assert table == [
        ["SGD", "0.1", "smaller batch", "2", "0.5 ± 0", "1"],
        ["SGD", "0.1", "RAD, different sample", "2", "0.1 ± 0", "0.20 (0.20 to 0.20)"],
        ["SGD", "0.5", "smaller batch", "2", "0.5 ± 0", "1"],
        ["SGD", "0.5", "RAD, different sample", "2", "0.5 ± 0", "1.00 (1.00 to 1.00)"],
    ]
    (claim,) = rows(report[0], "Why, the control (ours)")
    assert claim[3:] == ["< 1", "2", "**holds in part**", "mnist_mlp"]


def test_between_two_tables_stands_a_sentence(report):
    text, page = report
    assert page.count("<table>") >= 4
    assert not re.search(r"</table></div>\s*<div", page)
    assert not re.search(r"\|\n+\| [^\n]*\|\n\| ---", text)


def test_only_the_claims_become_cards_on_a_phone(report):
    page = report[1]
    assert page.count('class="wide claims"') == 1
    (table,) = re.findall(r'class="wide claims">(.*?)</table>', page, re.DOTALL)
    assert "Fig. 5 (a), MLP" in table
    headings = re.findall(r"<th>(.*?)</th>", table)
    # A narrow screen hides the headings; the style names the cells that do not speak for themselves.
    named = dict(re.findall(r'td:nth-child\((\d)\)::before { content: "(\w+)', page))
    assert {headings[int(place) - 1].split()[0]: word for place, word in named.items()} == {
        **{"n": "n", "made": "made", "holds": "holds"}
    }


def test_records_of_graphs_are_judged_as_such_and_those_of_nets_apart(monkeypatch):
    records = [{"edges": 5, "seconds": 0.1}, {"family": "independent", "depth": 1}, {"how": "every", "depth": 2}]
    monkeypatch.setattr(module, "_study", lambda *args: (SimpleNamespace(records=lambda: records), None))
    evidence = Evidence({})
    module._depth(None, evidence, [])
    assert (evidence.graphs["family"].tolist(), evidence.graphs["depth"].tolist()) == (["independent"], [1])
    assert (evidence.nets["how"].tolist(), evidence.nets["depth"].tolist()) == (["every"], [2])


@pytest.mark.parametrize("name", ["report", "desk/report"])
def test_the_reports_that_are_kept_have_all_their_sections(name):
    text = (Path(__file__).parents[3] / "results" / f"{name}.md").read_text()
    assert "## Claims" in text
    assert "Not made" not in text
