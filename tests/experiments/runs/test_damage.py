"""What is damaged is called so, nothing of it is used, and no other run suffers."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from outcomes import equal

from experiments.errors import StoppedError, UserError
from experiments.runs.directory import RunDir, digest
from experiments.runs.progress import find, progress
from experiments.runs.records import load_runs
from experiments.studies.reactor import control
from scripts import plot

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def noise(size: int = 200) -> bytes:
    return np.random.default_rng(0).bytes(size)


META = {
    "random bytes": noise(),
    "nothing": b"",
    "half of it": b'{"status": "fini',
    "a list": b"[1, 2]",
    "a number": b"3",
    "deep": b"[" * 100_000,
    "another status": b'{"status": "done"}',
    "a status of another kind": b'{"status": ["finished"]}',
}
RECORDS = {
    "random bytes": noise() + b"\n",
    "a number in a line": b"3\n",
    "no iteration": b'{"train_loss": 1}\n',
    "an iteration of another kind": b'{"iteration": "0"}\n',
    "half a line amid": b'{"iteration": 0\n{"iteration": 2}\n',
    "lost records": b'{"iteration": 0}\n',
    "another digit": b'{"iteration": 0}\n{"iteration": 2}\n{"iteration": 4, "train_loss": 2.7}\n',
    "no records": b"",
}
CONFIGS = {"random bytes": noise(), "a list": b"- 1\n", "nothing": b"", "aliases": b"&a [*a]", "no yaml": b"{a: [}"}
DAMAGE = [
    *(pytest.param("meta.json", content, id=f"meta: {name}") for name, content in META.items()),
    *(pytest.param("metrics.jsonl", content, id=f"records: {name}") for name, content in RECORDS.items()),
    *(pytest.param("config.yaml", content, id=f"config: {name}") for name, content in CONFIGS.items()),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "content"), DAMAGE)
def test_a_damaged_run_is_not_gone_on_with_and_hides_no_other(finished, again, tmp_path, capsys, name, content):
    shutil.copytree(finished, tmp_path / "other")
    (finished / name).write_bytes(content)
    before = files(finished)
    with pytest.raises(UserError, match=rf"{name} is damaged .*; delete"):
        again()
    assert files(finished) == before
    if name != "config.yaml":  # of which no state is read
        states = {p.name.rpartition("/")[2]: (p.state, p.problem) for p in find(tmp_path, NOW)}
        assert states["other"] == ("finished", "")
        assert states["mine"][0] == "damaged"
        assert f"{name} is damaged" in states["mine"][1]
    assert plot.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "table.md").exists()


def test_a_digit_of_a_record_that_changes_is_noticed_by_all(finished, tmp_path, again):
    shutil.copytree(finished, tmp_path / "other")
    text = (finished / "metrics.jsonl").read_text()
    place = text.rindex('"train_loss": ') + len('"train_loss": 2.')
    digit = (int(text[place]) + 1) % 10
    (finished / "metrics.jsonl").write_text(f"{text[:place]}{digit}{text[place + 1 :]}")
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged .*not those that the run ended with.*; delete"):
        again()
    assert progress(finished, NOW).state == "damaged"
    with pytest.warns(UserWarning, match="mine is left out: .*is damaged"):
        assert list(load_runs([tmp_path]).runs["run"]) == [str(tmp_path / "other")]


def test_a_loss_that_is_no_number_is_not_taken_for_none(finished):
    meta, records = json.loads((finished / "meta.json").read_text()), RunDir(finished).records()
    (finished / "meta.json").write_text(json.dumps(meta | {"status": "running"}))
    records[1]["train_loss"] = "inf"
    (finished / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    with pytest.warns(UserWarning, match="read without one line: line 2 holds no number as train_loss"):
        load_runs([finished])


@pytest.mark.parametrize(
    "key", ["sessions", "iterations", "method", "seed", "budget", "experiment", "data", "saved_bytes"]
)
@pytest.mark.parametrize("value", [..., None, [], {}, "x", [3], float("nan"), -1])
def test_meta_data_of_another_kind_harm_no_reader(finished, key, value):
    meta = json.loads((finished / "meta.json").read_text())
    meta = {k: v for k, v in meta.items() if k != key} if value is ... else meta | {key: value}
    (finished / "meta.json").write_text(json.dumps(meta))
    progress(finished, NOW)
    try:
        load_runs([finished])
    except UserError:
        pass


def test_a_flipped_bit_of_a_checkpoint_is_noticed_or_changes_nothing(finished):
    run, file = RunDir(finished), finished / "checkpoint.pt"
    whole, content, numbers = run.load_checkpoint(), file.read_bytes(), random.Random(0)
    noticed = 0
    for _ in range(60):
        place = numbers.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << numbers.randrange(8)
        file.write_bytes(changed)
        try:
            found = run.load_checkpoint()
        except UserError:
            noticed += 1
        else:
            assert equal(found, whole)
    assert noticed > 50  # the rest met what fills the file up


def test_a_checkpoint_of_something_else_is_refused(stopped, again):
    state = RunDir(stopped).load_checkpoint()
    for changed in ([1, 2], {}, state | {"iteration": 5}, state | {"iteration": "4"}, state | {"random": []}, {"a": 1}):
        torch.save(changed, stopped / "checkpoint.pt")
        with pytest.raises(UserError, match=r"checkpoint\.pt (is damaged|does not fit this run)"):
            again()


class _Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_no_file_of_a_run_runs_code(stopped, again, digits, tmp_path):
    sprung = tmp_path / "sprung"
    checkpoint = (stopped / "checkpoint.pt").read_bytes()
    torch.save({"model": _Trap(sprung)}, stopped / "checkpoint.pt")
    with pytest.raises(UserError, match=r"checkpoint\.pt is damaged"):
        again()
    (stopped / "checkpoint.pt").write_bytes(checkpoint)
    data = dict(np.load(digits / "mnist.npz"))
    np.savez(digits / "mnist.npz", **data | {"x_train": np.array([_Trap(sprung)] * 300)})
    with pytest.raises(UserError, match=r"mnist\.npz is damaged"):
        again()
    config = (stopped / "config.yaml").read_text()
    (stopped / "config.yaml").write_text(config + f"trap: !!python/object/apply:os.mkdir ['{sprung}']\n")
    with pytest.raises(UserError, match=r"config\.yaml is damaged"):
        again()
    assert not sprung.exists()


@pytest.mark.parametrize(
    "target", ["os.mkdir", "pandas.read_pickle", "experiments.errors.writing", "rad.sketch.os.mkdir"]
)
def test_a_config_read_back_chooses_no_class(finished, tmp_path, target):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    config["problem"] = {"_target_": target, "path": str(tmp_path / "sprung")}
    (finished / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="is not the one that it was made with"):
        control.found(RunDir(finished))
    meta = json.loads((finished / "meta.json").read_text())
    (finished / "meta.json").write_text(json.dumps(meta | {"settings": digest(config)}))
    with pytest.raises(UserError, match=f"cannot be made from '{target}'"):
        control.found(RunDir(finished))
    assert not (tmp_path / "sprung").exists()


def test_a_directory_deleted_meanwhile_gets_no_more_records(tmp_path):
    old, new = RunDir(tmp_path / "run"), RunDir(tmp_path / "run")
    with old.claimed({"seed": 0}):
        old.append({"iteration": 0})
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(StoppedError, match="was deleted while"):
            old.append({"iteration": 1})
        assert not (tmp_path / "run").exists()
        with new.claimed({"seed": 1}):
            new.append({"iteration": 0})
            before = files(tmp_path)
            for write in (old.append, old.save_checkpoint, old.write_meta):
                with pytest.raises(StoppedError, match="was deleted while"):
                    write({"iteration": 1})
            assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoint.partial", "meta.json.partial", "config.yaml.partial"])
def test_a_full_disk_is_said_and_nothing_is_lost(stopped, again, monkeypatch, name):
    (stopped / "checkpoint.pt").unlink()  # all is to be done again
    opened = Path.open

    def full(self, mode="r", *args, **kwargs):
        if self.name == name and "r" not in mode:
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return opened(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); make room .* goes on"):
        again()
    monkeypatch.undo()
    assert progress(stopped, NOW).state == "stopped"


def test_a_run_without_a_checkpoint_begins_anew(stopped, again):
    before = RunDir(stopped).records()
    (stopped / "checkpoint.pt").unlink()
    again()
    after = RunDir(stopped).records()
    assert [r["iteration"] for r in after] == [r["iteration"] for r in before]
    assert [r.get("train_loss") for r in after] == [r.get("train_loss") for r in before]


def test_a_step_takes_its_share_of_the_seconds_recorded(finished):
    run = RunDir(finished)
    milliseconds = 1000 * run.records()[-1]["train_seconds"] / run.meta()["iterations"]
    assert run.meta()["step_ms"] == pytest.approx(milliseconds, abs=0.2)
    assert milliseconds > 0.4  # else the first would say nothing


def test_a_disk_that_is_full_amid_a_checkpoint_is_said(tmp_path):
    run = RunDir(tmp_path)
    with Path("/dev/full").open("wb") as _:
        (tmp_path / "checkpoint.partial").symlink_to("/dev/full")
        with pytest.raises(StoppedError, match=r"cannot be written \(.*\); make room"):
            run.save_checkpoint({"weights": torch.zeros(100_000)})
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_finished_run_on_a_read_only_disk_can_be_looked_at(finished, again, monkeypatch, capsys):
    (finished / "summary.txt").unlink()
    opened = open

    def refuse(self, mode="r", *args, **kwargs):
        if str(finished) in str(self) and "r" not in mode:
            raise OSError(errno.EROFS, "Read-only file system", str(self))
        return opened(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    before = files(finished)
    again()
    said = capsys.readouterr().out
    assert "test accuracy" in said
    assert Path(said.partition("figure: ")[2].strip()).stat().st_size > 10_000
    assert files(finished) == before
