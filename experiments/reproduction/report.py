"""The report: claims with verdicts, ratios, figures and tables, as Markdown and as one self-contained page."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from experiments.errors import UserError
from experiments.reproduction.claims import findings
from experiments.reproduction.evidence import Evidence
from experiments.reproduction.headline import final_losses, rates_table, speed_figure, speed_table
from experiments.reproduction.page import self_contained
from experiments.reproduction.plan import PARTS, Plan, Sweep
from experiments.reproduction.runner import Failure
from experiments.runs.directory import RunDir
from experiments.runs.provenance import now
from experiments.runs.records import SEPARATOR, Runs, load_runs, summary_table, union
from experiments.runs.study import Study
from experiments.show.figures import convergence_figure, save, summary_cells
from experiments.show.tables import markdown
from experiments.studies.gradient_noise import GradientNoiseStudy
from experiments.studies.graph_depth import GraphDepth
from experiments.studies.reactor.results import here, publish_reactor, recorded_costs

__all__ = ["write_report"]

_TITLES = {
    "mnist_mlp": "Fully connected net",
    "fashion_mlp": "Fully connected net",
    "cifar_cnn": "Convolutional net",
    "smnist_irnn": "Recurrent net",
    "source_gpt": "Small transformer",
    "source_lstm": "LSTM",
    "cifar_resnet": "Narrow ResNet-18",
}
_RULES = """\
Verdicts follow fixed rules, by 95 % intervals: of training, bootstrap percentiles over seeds of the ratio of mean
iterations, or of its bound where some run did not get there. What the claim says of a number *holds* if all of its
interval lies where the claim puts it, *does not hold* if none of it does, and is *not decided* if it lies on both
sides, or if a single seed has no interval. *Faster* means a ratio below 1, *similar* one between 0.8 and 1.25; Table 1
holds within 3 %, a growth exponent within 10 % (where none is predicted, within 0.02 of none), the reactor's final loss
within 5 %; the smaller batch must add five times as much of the noise that counts after 200 and 1,000 steps, by
standard errors over draws. A claim about several numbers, of methods or at targets, *holds in part* if it holds for
some of them. What would overturn a verdict follows: for *holds*, an interval that reaches beyond the bound; for *does
not hold*, one that reaches within; for *not decided*, narrower ones, from more seeds or draws. Of two or three seeds
few resamples exist, so that intervals are narrow: take them as the spread of what was
seen."""


class _Report:
    """Text and figures as they are made.

    Args:
        out: Folder of ``report.md`` and ``report.html``; all else goes into its folder ``report``.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out / "report"
        self.parts: list[str] = []
        self.folder.mkdir(parents=True, exist_ok=True)

    def say(self, *lines: str) -> None:
        self.parts += [*lines, ""]

    def figure(self, path: Path, title: str) -> None:
        self.say(f"![{title}]({path.relative_to(self.out)})")

    def section(self, title: str, write: Callable[[], None]) -> None:
        """A section that, if it cannot be made, says why; the rest of the report is made all the same."""
        self.say(f"## {title}")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                write()
            except (UserError, OSError, ValueError, KeyError) as error:  # the last two from files that are damaged
                self.say(f"**Not made: {error}.**")
        for text in dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning)):
            self.say(f"*Warning: {text}.*")


def write_report(plan: Plan, failures: Sequence[Failure], out: Path, command: str) -> Path:
    """Writes ``report.md`` and ``report.html`` from whatever runs of the plan there are.

    Args:
        plan: What was to be run.
        failures: What failed this time.
        out: Folder; earlier reports in it are replaced.
        command: That makes the report.

    Returns:
        The path of the page.

    Raises:
        OSError: If the folder cannot be written.
    """
    report = _Report(out)
    evidence = Evidence(plan.targets)
    body = _Report(out)  # the evidence is gathered while the sections are made, and judged at the top
    for experiment, title in _TITLES.items():
        sweeps = [s for s in plan.sweeps if s.experiment == experiment]
        title = f"{title} on {_data(sweeps)}"  # which need not be what the paper took
        parts = {part: [s for s in sweeps if s.part == part] for part in PARTS}
        if parts["main"]:
            body.section(title, lambda e=experiment, s=parts["main"]: _training(body, evidence, e, s))
        if parts["fractions"]:
            both = parts["main"] + parts["fractions"]
            body.section(f"{title}: fractions", lambda e=experiment, s=both: _fractions(body, evidence, e, s))
        if parts["rates"]:
            body.section(f"{title}: equal learning rates", lambda s=parts["rates"]: _rates(body, evidence, s))
    for experiment, title, write in (
        ("reactor", "Control of a reactor", _reactor),
        ("graph_depth", "Variance against depth", _depth),
        ("gradient_noise", "Variance against bytes", _noise),
        ("source_noise", "Variance against bytes: small transformer", _other_noise),
    ):
        sweeps = [s for s in plan.sweeps if s.experiment == experiment]
        if sweeps:
            body.section(title, lambda w=write, s=sweeps: w(body, evidence, s))
    if plan.scripts:
        body.section("Table 1: memory", lambda: _table1(body, evidence, plan))

    report.say(f"# Reproduction of Randomized Automatic Differentiation, scale `{plan.scale}`")
    for note in plan.notes:
        report.say(f"> **{note}**")
    if plan.scale == "smoke":
        report.say("> **A trial of everything at its smallest size: the numbers mean nothing.**")
    report.say(f"Made by `{command}`, {now()[:10]}, on {here()}. Data: {_data(plan.sweeps)}.")
    report.say("## Claims")
    report.say(markdown(_claims(evidence)), "", _RULES)
    report.say("## What was run", "", "Each is made by the commands of its name.")
    report.say(markdown(_what_was_run(plan)), "")
    for failure in failures:
        report.say(f"* **{failure.job.name} failed**: {failure.reason} (all it printed: `{failure.log}`)")
    text = "\n".join(report.parts + body.parts)
    (out / "report.md").write_text(text, encoding="utf-8")
    page = out / "report.html"
    page.write_text(self_contained(text, out), encoding="utf-8")
    return page


def _claims(evidence: Evidence) -> list[dict[str, str]]:
    rows = []
    for finding in findings(evidence):
        rows.append(
            {
                "claim": finding.claim,
                "the paper (or we) say": finding.statement,
                "measured": finding.measured,
                "holds if": f"{finding.rule}",
                "n": finding.n,
                "verdict": f"**{finding.verdict}**",
                "made by": finding.experiment,
            }
        )
    return rows


def _what_was_run(plan: Plan) -> list[dict[str, str]]:
    rows = []
    for sweep in plan.sweeps:
        done = sum(run.finished() for run in sweep.runs)
        first = {"name": sweep.experiment, "command": f"`{sweep.command}`"}
        rows.append({**first, "runs": str(len(sweep.runs)), "finished": str(done)})
    for script in plan.scripts:
        first = {"name": script.name, "command": f"`python {script.command[0]}`"}
        rows.append({**first, "runs": "1", "finished": str(int(script.finished()))})
    return rows


def _data(sweeps: Sequence[Sweep]) -> str:
    runs = [RunDir(run.path) for sweep in sweeps for run in sweep.runs if run.finished()]
    names = {name for run in runs for name in str(run.meta().get("data", "")).split(", ") if name}
    return ", ".join(sorted(names)) or "no data yet"


def _load(sweeps: Sequence[Sweep]) -> Runs:
    """Finished runs of some sweeps.

    Raises:
        UserError: If there are none.
    """
    paths = [run.path for sweep in sweeps for run in sweep.runs if run.finished()]
    if not paths:
        raise UserError(f"no run of `{sweeps[0].command}` has finished")
    return load_runs(paths)


def _training(report: _Report, evidence: Evidence, experiment: str, sweeps: list[Sweep]) -> None:
    runs, targets = _load(sweeps), evidence.targets[experiment]
    evidence.training[experiment] = runs
    report.figure(save(convergence_figure(runs.curves), report.folder / experiment)[1], _TITLES[experiment])
    if len(targets) > 1:
        name = f"{experiment}_targets"
        figure = speed_figure(runs, targets, "small_batch")
        report.figure(save(figure, report.folder / name)[1], f"{_TITLES[experiment]}: iterations over targets")
    for target in targets:
        report.say(
            f"Iterations, seconds of training and epochs to a training loss of {target:g}, as ratios of means with "
            "95 % bootstrap intervals over seeds; `>` and `<` are bounds, where some run did not get there."
        )
        report.say(markdown(speed_table(runs, target, ("small_batch", "exact"))))
    report.say("Bytes, iterations and final values of each method:")
    _summary(report, runs, targets[0])


def _fractions(report: _Report, evidence: Evidence, experiment: str, sweeps: list[Sweep]) -> None:
    runs, target = _load(sweeps), evidence.targets[experiment][0]
    chosen = {path.method for path in _load([s for s in sweeps if s.part == "fractions"]).runs.itertuples()}
    kept = runs.runs[runs.runs["method"].isin(chosen | {"exact"})]
    runs = Runs(kept, runs.curves[runs.curves["run"].isin(kept["run"])])
    name = f"{experiment}_fractions"
    report.figure(save(convergence_figure(runs.curves), report.folder / name)[1], f"{_TITLES[experiment]}: fractions")
    _summary(report, runs, target)


def _rates(report: _Report, evidence: Evidence, sweeps: list[Sweep]) -> None:
    runs = _load(sweeps)
    losses = final_losses(runs)
    configs = [RunDir(Path(run)).config()["optimizer"] for run in losses["run"]]
    names = [config["_target_"].rpartition(".")[2] for config in configs]
    evidence.rates = losses.assign(optimizer=names, rate=[config["lr"] for config in configs])
    steps = union(f"{steps:,.0f}" for steps in evidence.rates["iterations"])
    report.say(
        f"Training losses after {steps} iterations; ± is half of a 95 % t interval over seeds, ratios of means have "
        "95 % bootstrap intervals."
    )
    report.say(markdown(rates_table(evidence.rates)))
    report.say(f"Commit {union(runs.runs['commits'])}; {union(runs.runs['hardware'])}.")


def _summary(report: _Report, runs: Runs, target: float) -> None:
    report.say(markdown(summary_cells(summary_table(runs, target))))
    mixed = " **Not all of them come from the same code.**" if SEPARATOR in union(runs.runs["commits"]) else ""
    report.say(
        f"Commit {union(runs.runs['commits'])}; {union(runs.runs['hardware'])}; {union(runs.runs['software'])}.{mixed} "
        "± is half of a 95 % t interval over seeds."
    )


def _reactor(report: _Report, evidence: Evidence, sweeps: list[Sweep]) -> None:
    runs = _load(sweeps)
    folder = report.folder / "reactor"
    costs = recorded_costs(runs, sweeps[0].runs[0].path.parent / "gradients.csv", rounds=5, draws=20)
    text = publish_reactor(runs, folder, evidence.targets["reactor"][0], costs, "make reproduce")
    evidence.reactor = pd.read_csv(folder / "table.csv")
    report.figure(folder / "curves.png", "Loss over iterations")
    report.figure(folder / "control.png", "Field, target and control found by exact gradients")
    report.say(*text.splitlines()[2:])


def _study(report: _Report, sweeps: list[Sweep], study: Study, names: Sequence[str]) -> tuple[RunDir, Path]:
    """Draws the only run of a study into a folder of its own; returns both."""
    run, folder = sweeps[0].runs[0], report.folder / sweeps[0].experiment
    if not run.finished():
        raise UserError(f"`{sweeps[0].command}` has not finished")
    folder.mkdir(exist_ok=True)
    found = RunDir(run.path)
    study.summarize(found, folder)
    for name in names:
        report.figure(folder / f"{name}.png", name)
    report.say(*(folder / "table.md").read_text(encoding="utf-8").replace("\n## ", "\n### ").splitlines()[2:])
    return found, folder


def _depth(report: _Report, evidence: Evidence, sweeps: list[Sweep]) -> None:
    run, _ = _study(report, sweeps, GraphDepth(), ("depth", "fig1"))
    records = pd.DataFrame(run.records())
    evidence.graphs, evidence.nets = records[records["family"].notna()], records[records["how"].notna()]


def _noise(report: _Report, evidence: Evidence, sweeps: list[Sweep]) -> None:
    folder = _other_noise(report, evidence, sweeps)
    evidence.noise, evidence.steps = pd.read_csv(folder / "noise.csv"), pd.read_csv(folder / "steps.csv")


def _other_noise(report: _Report, _: Evidence, sweeps: list[Sweep]) -> Path:
    """Of nets of which there is no claim."""
    return _study(report, sweeps, GradientNoiseStudy(), ("noise", "steps"))[1]


def _table1(report: _Report, evidence: Evidence, plan: Plan) -> None:
    (script,) = plan.scripts
    if not script.finished():
        raise UserError(f"`python {script.command[0]}` has not finished")
    evidence.table1 = pd.read_csv(script.path)
    report.say(*script.path.with_suffix(".md").read_text(encoding="utf-8").splitlines())
