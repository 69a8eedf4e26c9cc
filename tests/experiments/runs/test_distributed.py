"""One run by two processes, as torchrun starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from outcomes import equal, outcome
from processes import Together

from experiments.runs import distributed

ROOT = Path(__file__).parents[3]
COMMON = ["data=mnist", "threads=1"]


def together(path: Path, digits: Path, *settings: str, processes: int = 2) -> Together:
    settings = [*COMMON, f"run_dir={path}", *settings]
    return Together(processes, settings, path.with_suffix(".log"), RAD_DATA=str(digits))


def torchrun(path: Path, digits: Path, *settings: str) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [sys.executable, *launcher, str(ROOT / "run.py"), *COMMON, f"run_dir={path}", *settings]
    environment = os.environ | {"RAD_DATA": str(digits), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=-1, stderr=-2, text=True, cwd=path.parent)


def finish(process: subprocess.Popen) -> str:
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    return said


def losses(path: Path) -> np.ndarray:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert len({line["iteration"] for line in lines}) == len(lines)  # each is recorded once
    return np.array([[line["batch_loss"], line["train_loss"], line["test_loss"]] for line in lines[1:]])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["exact", "small_batch"])
def test_exact_gradients_of_two_processes_are_those_of_one(tmp_path, digits, method):
    # 31 examples, 3 for the smaller batch: shares differ.
    settings = [
        f"method={method}",
        "batch_size=31",
        "iterations=60",
        "evaluate.test_every=10",
        "evaluate.train_every=10",
    ]
    said = together(tmp_path / "two", digits, *settings).said()
    together(tmp_path / "one", digits, *settings, processes=1).said()
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-3, atol=1e-6)
    assert said.count(f"{method} on mnist: batch") == 1
    assert json.loads((tmp_path / "two" / "meta.json").read_text())["processes"] == 2
    assert "is finished already" in together(tmp_path / "two", digits, *settings).said()


@pytest.mark.slow
def test_two_processes_that_are_stopped_go_on_bit_for_bit_with_draws_of_their_own(tmp_path, digits):
    settings = [
        "method=rad_diff",
        "batch_size=30",
        "iterations=300",
        "evaluate.test_every=10",
        "evaluate.train_every=50",
    ]
    together(tmp_path / "whole", digits, *settings).said()
    process = torchrun(tmp_path / "stopped", digits, *settings)
    records, deadline = tmp_path / "stopped" / "metrics.jsonl", time.monotonic() + 120
    while not records.exists() or records.read_text().count("\n") < 5:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode != 0, said

    state = torch.load(tmp_path / "stopped" / "checkpoint.pt", weights_only=True)
    assert state["iteration"] < 300
    first, second = (part["generators"] for part in state["random"])
    assert torch.equal(first["batches"], second["batches"])
    assert not torch.equal(first["sketches"], second["sketches"])

    alone = together(tmp_path / "stopped", digits, *settings, processes=1)
    assert alone.wait(60) == [1]
    assert "saved by 2 processes, not 1" in alone.ranks[0].log.read_text()
    finish(torchrun(tmp_path / "stopped", digits, *settings))
    assert all(equal(a, b) for a, b in zip(outcome(tmp_path / "whole"), outcome(tmp_path / "stopped"), strict=True))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["experiment=reactor", "scale=smoke"], "a study of Reactor runs in one process, not 2"),
        (["-m", "method=exact,rad_diff", "data=mnist"], "torchrun takes a single run, not a sweep"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(cli, monkeypatch, capsys, args, message):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit) as stopped:
        cli(*args, small="experiment=reactor" not in args)
    assert message in str(stopped.value) + capsys.readouterr().err


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused(tmp_path, digits):
    refused = together(tmp_path / "few", digits, "method=exact", "batch_size=1")
    assert refused.wait(120) == [1, 1]
    said = "".join(rank.log.read_text() for rank in refused.ranks)
    assert said.count("error: a batch of 1 cannot be shared by 2 processes") == 1
    assert not (tmp_path / "few").exists()


def test_shares_part_a_batch(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    parts = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(list(range(10))[distributed.share(8)])
    assert sorted(sum(parts, [])) == list(range(8))
    assert [len(part) for part in parts] == [3, 3, 2]
