"""From the command line: sentences for what launchers and Hydra raise, and workers that end with their launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def shell(*args: str, cwd: Path, **environment: str) -> subprocess.Popen:
    env = os.environ | {"OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, str(ROOT / "run.py"), *args, f"runs={cwd}/runs", "threads=1"]
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=-1, stderr=-2, text=True)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["budgett=0.1"], "Could not override 'budgett'; --cfg job lists the settings there are"),
        (["+budgett=0.1"], "budgett is no setting here; did you mean budget?"),
        (["seed=0", "seed=1"], "seed is given 2 times; give it once"),
        (["optimizer.lr=1", "++optimizer.lr=1"], "optimizer.lr is given 2 times"),
        (["model=null"], "Config group override must be a string or a list"),
        (["seed=${nothing}"], "Interpolation key 'nothing' not found"),
        (["method=magic"], "Could not find 'method/magic'; Available options in 'method':; accumulate"),
        (["run_dir=[1]"], "run_dir must name a folder, got [1]"),
    ],
)
def test_what_is_mistyped_is_one_sentence(cli, capsys, args, said):
    with pytest.raises(SystemExit) as stopped:
        cli(*args)
    message = str(stopped.value)
    assert message.startswith("error: ")
    assert said in message
    assert "\n" not in message
    assert "use +" not in message
    assert "Traceback" not in capsys.readouterr().err


def test_a_folder_may_be_called_3(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli("run_dir=3", "iterations=1")
    assert (tmp_path / "3" / "meta.json").exists()


def test_names_of_runs_stay_below_their_folder(cli, tmp_path):
    cli("method.name=../../../away", "iterations=1")
    (made,) = (tmp_path / "runs").rglob("meta.json")
    assert made.parent.parent.parent == tmp_path / "runs"


def test_traceback_of_a_fault_of_ours_is_kept(cli, monkeypatch):
    monkeypatch.setattr("experiments.runs.launch.resolved", lambda config: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli()


@pytest.mark.slow
def test_what_a_cluster_answers_is_one_sentence(tmp_path):
    pytest.importorskip("submitit")
    sweep = ["-m", "hydra/launcher=slurm", "seed=0,1"]
    none = shell(*sweep, cwd=tmp_path, PATH="/nowhere")
    for name in ("srun", "sbatch"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: nope' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    refused = shell(*sweep, cwd=tmp_path, PATH=f"{tmp_path}:/usr/bin:/bin")
    for process, said in ((none, "srun"), (refused, "invalid partition specified: nope")):
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 1
        assert "Traceback" not in output
        assert "error: the cluster does not take the sweep" in output
        assert said in output.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_workers_end_with_a_launcher_that_is_killed(tmp_path):
    def workers() -> list[int]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if str(tmp_path).encode() in (process / "environ").read_bytes():
                    found.append(int(process.name))
            except OSError:
                continue
        return found

    sweep = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1", "iterations=100000"]
    launcher = shell(*sweep, cwd=tmp_path, RAD_TEST=str(tmp_path))
    try:
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "runs").rglob("metrics.jsonl"))) < 2:
            assert launcher.poll() is None, launcher.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert len(workers()) >= 3
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
        deadline = time.monotonic() + 30
        while workers():
            assert time.monotonic() < deadline, "workers outlive their launcher"
            time.sleep(0.1)
    finally:
        for process in workers():
            os.kill(process, signal.SIGKILL)
