"""Sweeps through submitit, whose local executor starts the same kind of job as SLURM's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from digits import CONFIGS
from hydra import compose, initialize_config_dir
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

from experiments.runs import launch as study
from experiments.runs.configs import composed
from scripts import slurm

ROOT = Path(__file__).parent.parent.parent
SWEEP = ["method=exact,rad_diff", "data=mnist", "batch_size=30", "evaluate.test_every=20", "threads=1"]
CLOCKS = {"train_seconds"}


LOCAL = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]


def launch(runs: Path, digits: Path, *more: str, how: list[str] = LOCAL, **variables: str) -> subprocess.Popen:
    command = [sys.executable, "run.py", "-m", *how, f"runs={runs}", *SWEEP, *more]
    environment = os.environ | {"RAD_DATA": str(digits), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | variables
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=-2, text=True)


def undisturbed(runs: Path, *more: str) -> None:
    """The same runs in this process."""
    threads = torch.get_num_threads()
    try:
        for method in ("exact", "rad_diff"):
            study.launch(composed([f"method={method}", *SWEEP[1:], f"runs={runs}", *more]))
    finally:
        torch.set_num_threads(threads)


def records(runs: Path) -> dict[str, list[dict]]:
    """Of each run by the method in its name, but for clocks."""
    found = {}
    for file in runs.rglob("metrics.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        method = next(part for part in file.parent.name.split(",") if part.startswith("method="))
        found[method] = [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines]
    return found


def kill_jobs(runs: Path) -> int:
    """Kills every job of a sweep at once, as a node that fails does; returns how many processes there were."""
    killed = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode()
        except OSError:
            continue
        if "submitit" in command and str(runs / ".submitit") in command:
            os.kill(int(process.name), signal.SIGKILL)
            killed += 1
    return killed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_sweep_killed_midway_goes_on_and_finished_runs_are_skipped(tmp_path, digits):
    runs, whole = tmp_path / "runs", tmp_path / "whole"
    sweep = launch(runs, digits, "iterations=1500")
    deadline = time.monotonic() + 120
    while sum(map(len, records(runs).values())) < 10:
        assert sweep.poll() is None, sweep.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    sweep.kill()
    assert kill_jobs(runs) > 0
    sweep.communicate()
    assert not all(lines and lines[-1]["iteration"] == 1500 for lines in records(runs).values())

    again = launch(runs, digits, "iterations=1500")
    undisturbed(whole, "iterations=1500")
    said = again.communicate(timeout=240)[0]
    assert again.returncode == 0, said
    assert records(runs) == records(whole)
    assert set(records(runs)) == {"method=exact", "method=rad_diff"}

    before = {file: file.stat().st_mtime_ns for file in runs.rglob("checkpoint.pt")}
    process = launch(runs, digits, "iterations=1500")
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert {file: file.stat().st_mtime_ns for file in runs.rglob("checkpoint.pt")} == before


@pytest.mark.slow
def test_two_launches_at_once_do_no_harm(tmp_path, digits):
    both = [launch(tmp_path / "runs", digits, "iterations=300") for _ in range(2)]
    undisturbed(tmp_path / "alone", "iterations=300")
    said = [process.communicate(timeout=240)[0] for process in both]
    assert records(tmp_path / "runs") == records(tmp_path / "alone")
    outputs = "".join(file.read_text() for file in (tmp_path / "runs").rglob("*_log.out"))
    assert any(text in outputs + said[0] + said[1] for text in ("another process works in", "is finished already"))


@pytest.fixture
def cluster():
    if absent := slurm.missing():
        pytest.skip(f"no SLURM here, for want of {', '.join(absent)}")
    with slurm.Cluster() as cluster:
        yield cluster


@pytest.mark.slow
def test_on_a_real_slurm_jobs_are_requeued_and_outlive_who_launched_them(tmp_path, digits, cluster):
    runs, whole = tmp_path / "runs", tmp_path / "whole"
    how = ["hydra/launcher=slurm", "hydra.launcher.partition=all", "hydra.launcher.mem_gb=2"]
    how += ["hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=10"]

    def sweep() -> subprocess.Popen:
        return launch(runs, digits, "iterations=1500", how=how, **cluster.environment)

    def wait(until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not until():
            assert time.monotonic() < deadline, cluster.call("squeue")
            time.sleep(0.2)

    def begun() -> bool:
        assert first.poll() is None, first.communicate()[0]
        return len(records(runs)) == 2 and all(len(lines) > 2 for lines in records(runs).values())

    first = sweep()
    wait(begun)
    jobs = cluster.call("squeue", "--noheader", "--array", "--format=%i").split()
    assert len(jobs) == 2
    assert cluster.call("scontrol", "requeue", jobs[0]) == ""
    first.kill()
    first.communicate()
    wait(lambda: cluster.call("squeue", "--noheader", "--array", f"--job={jobs[0]}", "--format=%t").strip() == "PD")
    cluster.call("scontrol", "update", f"JobId={jobs[0]}", "StartTime=now")  # in place of two minutes later
    wait(lambda: not cluster.call("squeue", "--noheader").strip())
    assert "Restarts=1" in cluster.call("scontrol", "show", "job", jobs[0])
    undisturbed(whole, "iterations=1500")
    assert records(runs) == records(whole)

    before = {file: file.stat().st_mtime_ns for file in runs.rglob("checkpoint.pt")}
    again = sweep()
    said = again.communicate(timeout=240)[0]
    assert again.returncode == 0, said
    assert "Call #1 - Bypassing sacct error" in said  # there is no accounting
    assert "Call #2" not in said
    assert {file: file.stat().st_mtime_ns for file in runs.rglob("checkpoint.pt")} == before


def test_slurm_takes_our_settings():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        overrides = ["hydra/launcher=slurm", "hydra.launcher.partition=short"]
        launcher = compose("config", overrides, return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.partition, launcher.max_num_timeout) == ("short", 20)
    # Every setting must be one that the plugin hands on: an unknown one would be refused only on the cluster.
    assert set(launcher) - {"_target_"} <= set(SlurmQueueConf.__dataclass_fields__)
