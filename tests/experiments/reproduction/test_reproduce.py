"""The report: from a plan to verdicts, and what becomes of a run that fails, is missing or is interrupted."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.errors import UserError
from experiments.reproduction.plan import make_plan

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
      needs: [mnist]
      otherwise: data=mnist5k
    - {sweep: "experiment=cifar_cnn scale=smoke method=exact", seconds: 5, needs: [cifar10]}
"""


@pytest.fixture
def reproduce(tmp_path, digits, monkeypatch):
    """Starts scripts/reproduce.py on a tiny plan, in a process of its own."""
    (digits / "cifar10.npz").unlink()
    # As without a network: nothing can be downloaded from there.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")

    def start(methods: str, *more: str) -> subprocess.Popen:
        plan = tmp_path / "plan.yaml"
        plan.write_text(PLAN.replace("METHODS", methods))
        places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
        command = [sys.executable, "scripts/reproduce.py", "--scale", "tiny", "--plan", str(plan), *places, *more]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=-2, text=True)

    return start


@pytest.mark.slow
def test_what_is_missing_is_run_and_what_fails_is_named(reproduce, tmp_path):
    process = reproduce("exact,small_batch,nonsense")
    said = process.communicate()[0]
    assert process.returncode != 0  # the plan names a method that there is not
    assert "nonsense" in said
    assert not (tmp_path / "out").exists()

    foreign = tmp_path / "runs" / "mnist_mlp"
    dry = reproduce("exact,small_batch", "--dry-run").communicate()[0]
    assert "5 of 5" not in dry
    assert "4 of 4 are missing" in dry
    assert "is left out, for want of cifar10" in dry
    assert re.search(r"About \d+ minutes", dry)
    name = re.sub(r"\s+", "", "batch_size=30,evaluate.train_every=2,iterations=4,method=exact,scale=smoke,seed=1")
    (foreign / name).mkdir(parents=True)
    (foreign / name / "thesis.tex").write_text("of somebody else")
    damaged = foreign / name.replace("method=exact", "method=small_batch")
    damaged.mkdir()
    (damaged / "config.yaml").write_text("half: [wri")
    (damaged / "meta.json").write_text("{")

    process = reproduce("exact,small_batch")
    said = process.communicate()[0]
    assert process.returncode != 0
    assert "2 of 4 runs failed" in said
    assert (foreign / name / "thesis.tex").read_text() == "of somebody else"
    report = (tmp_path / "out" / "report.md").read_text()
    assert "method=exact,scale=smoke,seed=1 failed" in report
    assert "no run directory" in report
    assert "method=small_batch,scale=smoke,seed=1 failed" in report
    assert "is left out, for want of cifar10" in report
    assert "| Fig. 5 (a), MLP |" in report
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing that it needs lies elsewhere

    (foreign / name / "thesis.tex").unlink()
    shutil.rmtree(damaged)
    said = reproduce("exact,small_batch").communicate()[0]
    assert "2 of 4 are missing" in said
    report = (tmp_path / "out" / "report.md").read_text()
    assert "failed" not in report
    assert re.search(r"method=exact,small_batch` \| 4 \| 4 \|", report)


@pytest.mark.slow
def test_an_interrupted_reproduction_goes_on(reproduce, tmp_path):
    process = reproduce("exact,small_batch")
    logs = tmp_path / "runs" / "logs"
    while process.poll() is None and not any(logs.glob("*.log")):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # a shell's background jobs ignore SIGINT
    said = process.communicate(timeout=60)[0]
    assert "interrupted; the same command goes on where it was" in said
    assert not (tmp_path / "out").exists()
    assert "report:" in reproduce("exact,small_batch").communicate()[0]


def test_plans_are_refused_with_a_reason(tmp_path, digits):
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN.replace("METHODS", "exact"))
    with pytest.raises(UserError, match="scale must be one of tiny, got 'huge'"):
        make_plan(plan, "huge", tmp_path)
    plan.write_text(PLAN.replace("METHODS", "exact,").replace("seed=0,1", "seed=[0"))
    with pytest.raises(UserError, match="is not valid"):
        make_plan(plan, "tiny", tmp_path)


def test_the_projects_own_plan(tmp_path, digits):
    file = ROOT / "experiments" / "reproduction" / "plan.yaml"
    plans = {scale: make_plan(file, scale, tmp_path) for scale in ("smoke", "laptop", "paper")}
    for plan in plans.values():
        paths = [job.path for job in plan.jobs()]
        assert len(set(paths)) == len(paths)
        assert {s.experiment for s in plan.sweeps} >= set(plan.targets)
    hours = {scale: plan.seconds(plan.jobs(), plan.step_ms, 2) / 3600 for scale, plan in plans.items()}
    assert hours["smoke"] < 1 / 6
    assert hours["laptop"] < 3
