"""The report: from a plan to verdicts, and what becomes of a run that fails, is missing or is interrupted."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from experiments.errors import UserError
from experiments.reproduction import plan as planning
from experiments.reproduction import runner
from experiments.reproduction.plan import Planned, make_plan
from experiments.reproduction.runner import Clock, duration, run_all
from experiments.runs.archive import pack
from experiments.runs.configs import composed, resolved
from experiments.runs.study import validate
from scripts.reproduce import main

ROOT = Path(__file__).parents[3]
PLAN = """
step_ms: 5
tiny:
  targets: {mnist_mlp: 2.2, cifar_cnn: 1, smnist_irnn: 1, reactor: 1}
  sweeps:
    - sweep: >-
        experiment=mnist_mlp scale=smoke batch_size=30 iterations=4 evaluate.train_every=2
        seed=0,1 method=METHODS
      seconds: 5
      needs: {mnist: data=mnist5k}
    - {sweep: "experiment=cifar_cnn scale=smoke method=exact", seconds: 5, needs: {cifar10: null}}
"""


@pytest.fixture
def arguments(tmp_path, digits, monkeypatch):
    """Of scripts/reproduce.py for a tiny plan, CIFAR-10 out of reach."""
    (digits / "cifar10.npz").unlink()
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=_NoNetwork()))

    def made(methods: str, *more: str) -> list[str]:
        plan = tmp_path / "plan.yaml"
        plan.write_text(PLAN.replace("METHODS", methods))
        places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
        return ["--scale", "tiny", "--plan", str(plan), *places, *more]

    return made


class _NoNetwork:
    def __getattr__(self, name):
        def fails(*args, **kwargs):
            raise RuntimeError("no network")

        return fails


@pytest.fixture
def reproduce(arguments, capsys):
    """Calls it; returns what it printed and why it stopped."""

    def call(methods: str, *more: str) -> tuple[str, object]:
        try:
            main(arguments(methods, *more))
            code = 0
        except SystemExit as stopped:
            code = stopped.code
        return capsys.readouterr().out, code

    return call


@pytest.mark.slow
def test_what_is_missing_is_run_and_what_fails_is_named(reproduce, tmp_path):
    assert "nonsense" in reproduce("exact,small_batch,nonsense")[1]  # a method that there is not
    assert not (tmp_path / "out").exists()

    dry, _ = reproduce("exact,small_batch", "--dry-run")
    assert "4 of 4 are missing" in dry
    assert "0 of   4 finished: mnist_mlp: exact, small_batch; seed 0, 1" in dry
    assert "`cifar_cnn` is left out, for want of cifar10" in dry
    assert re.search(r"About \d+ (seconds|minutes), 2 at a time", dry)
    names = "method=METHOD,seed=1,batch_size=30,scale=smoke"
    foreign, damaged = (tmp_path / "runs" / "mnist_mlp" / names.replace("METHOD", m) for m in ("exact", "small_batch"))
    foreign.mkdir(parents=True)
    (foreign / "thesis.tex").write_text("of somebody else")
    damaged.mkdir()
    (damaged / "config.yaml").write_text("half: [wri")
    (damaged / "meta.json").write_text("{")

    _, code = reproduce("exact,small_batch")
    assert "2 of 4 runs failed" in code
    assert (foreign / "thesis.tex").read_text() == "of somebody else"
    report = (tmp_path / "out" / "report.md").read_text()
    assert "mnist_mlp exact seed 1 failed" in report
    assert "no run directory" in report
    assert "mnist_mlp small_batch 0.1 seed 1 failed" in report
    assert "`cifar_cnn` is left out, for want of cifar10" in report
    assert "## Fully connected net on mnist" in report
    assert "| Fig. 5 (a), MLP |" in report
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing that it needs lies elsewhere

    (foreign / "thesis.tex").unlink()
    shutil.rmtree(damaged)
    said, code = reproduce("exact,small_batch")
    assert code == 0
    assert "2 of 4 are missing" in said
    report = (tmp_path / "out" / "report.md").read_text()
    assert "failed" not in report
    assert re.search(r"method=exact,small_batch` \| 4 \| 4 \|", report)


def test_a_report_of_packed_records_needs_neither_runs_nor_data(arguments, tmp_path, monkeypatch, capsys, write_run):
    """And is drawn from them alone: what is run meanwhile in the folder of runs does not count."""
    main(arguments("exact,small_batch", "--dry-run"))
    for planned in make_plan(tmp_path / "plan.yaml", "tiny", tmp_path / "runs").sweeps[0].runs[:3]:
        about = {"experiment": "mnist_mlp", "settings": planned.name}
        run = write_run(planned.path.relative_to(tmp_path / "runs"), losses=(9, 2), **about)
        (run / "config.yaml").write_text("{}")
    pack(tmp_path / "runs", tmp_path / "records")
    shutil.rmtree(tmp_path / "runs")
    monkeypatch.setenv("RAD_DATA", str(tmp_path / "nowhere"))
    capsys.readouterr()
    main(arguments("exact,small_batch", "--records", str(tmp_path / "records")))
    said = capsys.readouterr().out
    assert "3 of   4 finished: mnist_mlp" in said
    assert "0 of   1 finished: cifar_cnn: exact" in said  # which is not left out: nobody looks for its data
    assert "About" not in said
    assert not (tmp_path / "runs").exists()
    report = (tmp_path / "out" / "report.md").read_text()
    assert re.search(r"method=exact,small_batch` \| 4 \| 3 \|", report)
    assert "is left out, for want of" not in report
    with pytest.raises(SystemExit, match="holds no"):
        main(arguments("exact,small_batch", "--records", str(tmp_path / "out")))


@pytest.mark.slow
def test_an_interrupted_reproduction_goes_on(arguments, reproduce, tmp_path):
    command = [sys.executable, "scripts/reproduce.py", *arguments("exact,small_batch")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "https_proxy": "http://127.0.0.1:9"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=-2, text=True)
    logs, deadline = tmp_path / "runs" / "logs", time.monotonic() + 120
    while process.poll() is None and not any(logs.glob("*.log")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # a shell's background jobs ignore SIGINT
    said = process.communicate(timeout=60)[0]
    assert "interrupted; the same command goes on where it was" in said
    assert not (tmp_path / "out").exists()
    assert "report:" in reproduce("exact,small_batch")[0]


def job(name: str, seconds: float, command: tuple[str, ...] = ()) -> Planned:
    return Planned(name, command, Path(name), seconds)


def test_the_time_left_follows_the_plan_first_and_then_what_runs_take():
    jobs = [job(str(i), 60.0) for i in range(10)]
    clock = Clock(jobs, workers=2, pace=2.0)
    assert clock.left(0.0) == 600
    clock.start(jobs[0], 0.0)
    assert clock.left(30.0) == 585  # two at a time
    for i in range(9):  # eight times as slow as the plan says, four times as slow as it was thought to be
        clock.start(jobs[i], 480.0 * i)
        clock.end(jobs[i], 480.0 * (i + 1))
    assert 480 / 1.15 < clock.left(0.0) < 480  # of the last one, by one process: the others have nothing left to do


def test_the_time_left_of_jobs_of_which_nothing_is_known_is_that_of_the_first_ones():
    jobs = [job(str(i), 0) for i in range(9)]
    clock = Clock(jobs, workers=4)
    clock.start(jobs[0], 0.0)
    clock.end(jobs[0], 42.0)
    assert clock.left(42.0) == pytest.approx(8 * 42 / 4)


@pytest.mark.parametrize(
    ("seconds", "said"), [(8.2, "8 seconds"), (89, "89 seconds"), (700, "12 minutes"), (9000, "2.5 hours")]
)
def test_times_are_said_as_one_says_them(seconds, said):
    assert duration(seconds) == said


def test_a_process_sees_the_users_python_path_behind_the_projects(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/users/own")
    code = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(os.environ['PYTHONPATH'])"
    assert run_all([job("a", 1, ("-c", code, str(tmp_path / "seen")))], 1, tmp_path) == []
    assert (tmp_path / "seen").read_text() == f"{ROOT}{os.pathsep}/users/own"


@pytest.mark.skipif(sys.platform == "win32", reason="looks at a terminal")
def test_progress_on_a_terminal_shows_a_bar_and_what_runs(tmp_path, monkeypatch):
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    names = [f"smnist_irnn small_batch 0.0035 seed {i}" for i in range(4)]
    jobs = [job(name, 1, ("-c", "import time; time.sleep(0.3)")) for name in names]
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(runner, "tqdm", partial(tqdm, file=terminal, mininterval=0))
        assert run_all(jobs, 3, tmp_path) == []
        said = os.read(ours, 100_000).decode()
    os.close(ours)
    lines = [line for line in re.split(r"[\r\n]|\x1b\[A", said) if "runs, about" in line]
    assert lines
    for line in lines:
        assert len(line) <= 100
        assert re.match(r" *\d+% .{16} \d of 4 runs, about \d+ seconds left", line), line
    assert any(name in line for line in lines for name in names)


def test_plans_are_refused_with_a_reason(tmp_path, digits):
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN.replace("METHODS", "exact"))
    with pytest.raises(UserError, match="scale must be one of tiny, got 'huge'"):
        make_plan(plan, "huge", tmp_path)
    plan.write_text(PLAN.replace("METHODS", "exact,").replace("seed=0,1", "seed=[0"))
    with pytest.raises(UserError, match="is not valid"):
        make_plan(plan, "tiny", tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("seconds: 5\n", "seconds: 5\n      part: fraction\n"),
            r"tiny\.sweeps\[0\]\.part must be 'main', .* got 'fraction'",
        ),
        (("seconds: 5\n", "seconds: soon\n"), r"tiny\.sweeps\[0\]\.seconds must be a number, got 'soon'"),
        (("seconds: 5\n", "seconds: -5\n"), r"tiny\.sweeps\[0\]\.seconds must be greater than 0, got -5"),
        (("needs: {mnist: data=mnist5k}", "needs: 3"), r"tiny\.sweeps\[0\]\.needs must hold settings of its own"),
        (("experiment=mnist_mlp", "data=mnist"), r"tiny\.sweeps\[0\]\.sweep .*experiment="),
        (("sweeps:", "sweep:"), r"tiny\.sweeps is missing"),
        (("reactor: 1", "reactor: abc"), r"tiny\.targets\.reactor"),
        (("step_ms: 5", "step_ms: 0"), "step_ms must be greater than 0, got 0"),
        ((PLAN, "- 1\n"), "must hold settings of its own"),
        ((PLAN, "3"), "must hold settings of its own"),
    ],
)
def test_a_plan_of_another_kind_is_refused_by_the_name_of_what_is_wrong(tmp_path, change, said):
    (tmp_path / "plan.yaml").write_text(PLAN.replace(*change))
    with pytest.raises(UserError, match=f"is no plan: .*{said}"):
        make_plan(tmp_path / "plan.yaml", "tiny", tmp_path)


def test_every_run_has_one_thread_and_its_own_settings(tmp_path):
    sweep = planning.make_sweep("experiment=mnist_mlp data=mnist5k method=exact,rad_diff seed=0,1", tmp_path)
    assert [run.command[1:] for run in sweep.runs] == [
        ("experiment=mnist_mlp", "data=mnist5k", f"method={method}", f"seed={seed}", f"runs={tmp_path}", "threads=1")
        for method in ("exact", "rad_diff")
        for seed in (0, 1)
    ]
    assert len({run.path for run in sweep.runs}) == 4


@pytest.mark.slow
def test_the_projects_own_plan(tmp_path, digits):
    file = ROOT / "experiments" / "reproduction" / "plan.yaml"
    plans = {scale: make_plan(file, scale, tmp_path) for scale in ("smoke", "laptop", "paper")}
    for plan in plans.values():
        paths = [job.path for job in plan.jobs()]
        assert len(set(paths)) == len(paths)
        assert {s.experiment for s in plan.sweeps} >= set(plan.targets)
    hours = {scale: Clock(plan.jobs(), 2).left(0.0) / 3600 for scale, plan in plans.items()}
    assert hours["smoke"] < 1 / 6
    assert hours["laptop"] < 3


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["smoke", "laptop", "desk", "paper"])
def test_every_part_of_the_plan_can_be_composed_without_files(tmp_path, monkeypatch, scale):
    monkeypatch.setattr(planning, "_missing", lambda name: "not there")
    made = make_plan(ROOT / "experiments" / "reproduction" / "plan.yaml", scale, tmp_path)
    left_out = {"cifar_cnn", "fashion_mlp", "cifar_resnet"} if scale != "smoke" else set()
    without_targets = {"graph_depth", "gradient_noise", "source_noise"}
    assert {s.experiment for s in made.sweeps} == {*made.targets, *without_targets} - left_out
    for sweep in made.sweeps:
        for planned in sweep.runs:
            config = resolved(composed([o for o in planned.command[1:]]))
            sets = [config, *config.get("nets", {}).values()]
            data = [part["data"].get("images", part["data"]) for part in sets if part.get("data")]
            within = {"experiments.data.mnist5k", "experiments.data.sources"}  # with the project, with Python
            assert {part["_target_"] for part in data} <= within
            monkeypatch.setenv("RAD_DATA", "/nowhere")
            if scale == "smoke" and sweep.experiment != "reactor":
                validate(composed(list(planned.command[1:])))
