"""Records that are packed come back as they were, whatever else lies there; an archive can bring nothing else."""

from __future__ import annotations

import gzip
import io
import re
import tarfile

import pytest

from experiments.errors import UserError
from experiments.runs.archive import pack, unpack
from experiments.runs.records import load_runs
from scripts.records import main


@pytest.fixture
def runs(tmp_path, write_run):
    """Two finished runs, one on its way, and what scripts keep beside them."""
    for name, more in (
        ("mlp/a=1", {"seed": 3}),
        ("mlp/b", {"settings": "other"}),
        ("mlp/c", {"status": "running"}),
        ("cnn/a", {"experiment": "cnn"}),
    ):
        path = write_run(name, **more)
        (path / "config.yaml").write_text(f"name: {name}\n")
        (path / "checkpoint.pt").write_bytes(b"weights")
        (path / "figure.png").write_bytes(b"drawn")
    (tmp_path / "runs" / "table1").mkdir()
    (tmp_path / "runs" / "table1" / "table1.csv").write_text("a,b\n")
    (tmp_path / "runs" / "mlp" / "notes.csv").write_text("somebody's")
    return tmp_path / "runs"


def contents(folder):
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_records_come_back_to_the_bit_and_nothing_else(runs, tmp_path):
    assert {path.name: count for path, count in pack(runs, tmp_path / "kept").items()} == {
        "cnn.tar.gz": 1, "mlp.tar.gz": 2, "table1.tar.gz": 0
    }  # fmt: skip
    made = unpack(tmp_path / "kept", tmp_path / "again")
    kept = {
        f"{run}/{name}"
        for run in ("mlp/a=1", "mlp/b", "cnn/a")
        for name in ("config.yaml", "meta.json", "metrics.jsonl")
    }
    before, after = contents(runs), contents(tmp_path / "again")
    assert after == {name: before[name] for name in {*kept, "table1/table1.csv"}}
    assert {path.relative_to(tmp_path / "again").as_posix() for path in made} == {
        "mlp/a=1", "mlp/b", "cnn/a", "table1/table1.csv"
    }  # fmt: skip
    assert sorted(load_runs([tmp_path / "again" / "mlp"]).runs["seed"]) == [0, 3]


def test_the_same_runs_make_the_same_bytes_at_any_time(runs, tmp_path, monkeypatch):
    first = contents(pack(runs, tmp_path / "one").popitem()[0].parent)
    monkeypatch.setattr("time.time", lambda: 9e9)
    pack(runs, tmp_path / "two")
    assert contents(tmp_path / "two") == first


def test_nobody_learns_where_runs_and_data_lay(runs, tmp_path, monkeypatch):
    """Neither of what is packed now nor of what was packed before; whatever else a config holds stays to the bit."""
    place, config = "/home/someone/a long name, wrapped", runs / "mlp" / "b" / "config.yaml"
    text = "rate: 1e-05\nruns: {0}\n  {0}\nrun_dir: {0}\ndata:\n  sets:\n  - root: x\n    roots: 2\n  root: {0}\ns: 1"
    config.write_text(text.format(place))
    with monkeypatch.context() as before:
        before.setattr("experiments.runs.archive._placeless", lambda name, content: content)
        pack(runs, tmp_path / "kept")
    (runs / "mlp" / "b").rename(tmp_path / "b")
    (runs / "mlp" / "a=1" / "config.yaml").write_text(text.format(place))
    pack(runs, tmp_path / "kept")
    unpack(tmp_path / "kept", tmp_path / "again")
    for name in ("a=1", "b"):
        assert (tmp_path / "again" / "mlp" / name / "config.yaml").read_text() == (
            "rate: 1e-05\nruns: runs\nrun_dir: null\ndata:\n  sets:\n  - root: data\n    roots: 2\n  root: data\ns: 1"
        )


def test_what_is_packed_stays_packed(runs, tmp_path, write_run):
    """An archive gains runs, and loses none that the folder lacks by now."""
    pack(runs, tmp_path / "kept")
    for name in ("a=1", "b"):
        (runs / "mlp" / name).rename(tmp_path / name)
    path = write_run("mlp/d", seed=9)
    (path / "config.yaml").write_text("{}")
    assert pack(runs, tmp_path / "kept")[tmp_path / "kept" / "mlp.tar.gz"] == 3
    unpack(tmp_path / "kept", tmp_path / "again")
    assert {p.name for p in (tmp_path / "again" / "mlp").iterdir()} == {"a=1", "b", "d"}


def test_a_run_that_is_there_stays_as_it_is(runs, tmp_path):
    pack(runs, tmp_path / "kept")
    mine = runs / "mlp" / "a=1" / "metrics.jsonl"
    mine.write_text("mine")
    (runs / "mlp" / "b" / "config.yaml").unlink()
    before = contents(runs)
    assert unpack(tmp_path / "kept", runs) == []
    assert contents(runs) == before


@pytest.mark.parametrize("name", ["../x/meta.json", "/tmp/x/y/meta.json", "mlp/a/checkpoint.pt", "mlp/meta.json"])
def test_nothing_but_records_leaves_an_archive(tmp_path, name):
    (tmp_path / "kept").mkdir()
    with tarfile.open(tmp_path / "kept" / "bad.tar.gz", "w:gz") as tar:
        for member in ("mlp/a/meta.json", name):
            tar.addfile(tarfile.TarInfo(member), io.BytesIO())
    with pytest.raises(UserError, match=re.escape("no record of a run")):
        unpack(tmp_path / "kept", tmp_path / "deep" / "runs")
    assert not (tmp_path / "deep").exists()  # nor a part of it


def test_links_and_sizes_out_of_all_proportion_are_refused(tmp_path):
    (tmp_path / "kept").mkdir()
    archive = tmp_path / "kept" / "bad.tar.gz"
    link = tarfile.TarInfo("mlp/a/meta.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(link)
    with pytest.raises(UserError, match="no record of a run"):
        unpack(tmp_path / "kept", tmp_path / "runs")
    large = tarfile.TarInfo("mlp/a/meta.json")
    large.size = 2**40
    archive.write_bytes(gzip.compress(large.tobuf()))
    with pytest.raises(UserError, match=r"1,099,511,627,776 bytes, more than"):
        unpack(tmp_path / "kept", tmp_path / "runs")


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"random" + b, lambda b: b[:40] + b"\0" + b[41:]]
)
def test_a_damaged_archive_is_named_and_nothing_written(runs, tmp_path, damage):
    archive = next(iter(pack(runs, tmp_path / "kept")))
    archive.write_bytes(damage(archive.read_bytes()))
    for command in (
        ["unpack", str(tmp_path / "kept"), "--runs", str(tmp_path / "a")],
        ["pack", str(runs), "--out", str(tmp_path / "kept")],
    ):
        with pytest.raises(SystemExit, match=rf"error: .*{archive.name} is damaged .*; fetch or pack it again"):
            main(command)
    assert not (tmp_path / "a" / archive.name.partition(".")[0]).exists()


def test_where_there_is_nothing_one_is_told_what_makes_it(tmp_path, write_run, capsys):
    with pytest.raises(SystemExit, match=r"holds no \*.tar.gz; scripts/records.py pack makes them"):
        main(["unpack", str(tmp_path)])
    run = write_run("mlp/c", status="running")
    with pytest.raises(SystemExit, match="no run below .* has finished; make status"):
        main(["pack", str(tmp_path / "runs"), "--out", str(tmp_path / "kept")])
    (run / "meta.json").write_text((run / "meta.json").read_text().replace("running", "finished"))
    (run / "config.yaml").write_text("{}")
    with pytest.raises(SystemExit, match="lies in no folder of an experiment"):
        main(["pack", str(run.parent), "--out", str(tmp_path / "kept")])
    main(["pack", str(tmp_path / "runs"), "--out", str(tmp_path / "kept")])
    main(["unpack", str(tmp_path / "kept"), "--runs", str(tmp_path / "again")])
    assert re.search(r"mlp.tar.gz: 1 runs, \d+ bytes\n1 unpacked below .*again", capsys.readouterr().out)
