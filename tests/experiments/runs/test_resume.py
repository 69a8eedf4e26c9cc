"""A run that is killed, at whatever moment, and started again ends like one that was not."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
from outcomes import equal, outcome
from processes import Started

_LONGEST = 300  # seconds that a loaded machine may need for one run


STUDIES = {
    "mlp": ["data=mnist", "batch_size=30", "method=rad_diff", "iterations=400", "evaluate.test_every=10"],
    "cnn": [
        *("experiment=cifar_cnn", "scale=smoke", "batch_size=30", "method=rad_proj", "data.crop=2", "data.flip=true"),
        *("iterations=30", "evaluate.test_every=2", "evaluate.train_examples=null"),
    ],
    "reactor": ["experiment=reactor", "scale=smoke", "method=rad_even", "iterations=300"],
    "irnn": [
        *("experiment=smnist_irnn", "scale=smoke", "batch_size=30", "method=rad_same", "data.permuted=true"),
        *("iterations=100", "evaluate.test_every=5", "evaluate.train_examples=null"),
    ],
}


def start(path: Path, digits: Path, settings: list[str]) -> Started:
    settings = [f"run_dir={path}", "threads=1", *settings]
    return Started(settings, path.with_suffix(".log"), RAD_DATA=str(digits))


@pytest.mark.slow
@pytest.mark.parametrize("settings", STUDIES.values(), ids=STUDIES.keys())
def test_killed_runs_end_bit_for_bit_like_whole_ones(tmp_path, digits, settings):
    assert start(tmp_path / "whole", digits, settings).wait(_LONGEST) == 0
    moments, deadline = random.Random(0), time.monotonic() + _LONGEST
    killed = 0
    while True:
        process = start(tmp_path / "killed", digits, settings)
        records = tmp_path / "killed" / "metrics.jsonl"
        size = records.stat().st_size if records.exists() else 0
        while process.poll() is None and (not records.exists() or records.stat().st_size <= size):
            assert time.monotonic() < deadline
            time.sleep(0.005)  # until this process, too, has recorded something
        time.sleep(moments.uniform(0, 0.3))
        if process.poll() is None and killed < 3:
            process.kill()
            killed += 1
        if (status := process.wait(_LONGEST)) == 0:
            break
        assert status == -signal.SIGKILL, process.log.read_text()
    assert killed >= 2, "the run ended before it could be killed; make it longer"
    meta = json.loads((tmp_path / "killed" / "meta.json").read_text())
    assert len(meta["sessions"]) == killed + 1
    whole, resumed = outcome(tmp_path / "whole"), outcome(tmp_path / "killed")
    assert equal(whole[0], resumed[0])
    assert whole[1] == resumed[1]
