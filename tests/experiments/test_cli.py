"""run.py as a user meets it: what a run leaves behind, and one sentence for each mistake."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from digits import write_digits
from filelock import FileLock

ROOT = Path(__file__).parent.parent.parent


def only_run(tmp_path: Path) -> Path:
    (found,) = {path.parent for path in (tmp_path / "runs").rglob("config.yaml")}
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_leaves_records_config_meta_checkpoint_and_a_figure(cli, tmp_path, capsys):
    cli("method=rad_diff", "evaluate.test_every=2")
    path = only_run(tmp_path)
    folder = tmp_path / "runs" / "mlp-mnist"
    assert path == folder / "method=rad_diff,batch_size=30,evaluate.test_every=2,iterations=4"
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [r["iteration"] for r in records] == [0, 2, 4]
    meta = json.loads((path / "meta.json").read_text())
    assert meta["status"] == "finished"
    assert (meta["method"], meta["data"], meta["seed"], meta["batch_size"]) == ("rad_diff", "mnist", 0, 30)
    assert 0 < meta["saved_bytes"] < 0.2 * meta["exact_saved_bytes"]
    assert {"commit", "dirty", "cpu", "threads", "python", "torch", "started"} <= meta["sessions"][0].keys()
    assert yaml.safe_load((path / "config.yaml").read_text())["iterations"] == 4
    assert torch.load(path / "checkpoint.pt", weights_only=True)["iteration"] == 4
    out = capsys.readouterr().out
    assert f"figure: {path}/convergence.png" in out
    assert (path / "convergence.png").stat().st_size > 10_000


def test_a_finished_run_is_not_run_again(cli, tmp_path, capsys):
    cli()
    before, first = files(only_run(tmp_path)), capsys.readouterr().out
    cli()
    again = capsys.readouterr().out.split("delete it to run it again\n")[1]
    assert first.endswith(again)
    assert "training loss" in again
    assert files(only_run(tmp_path)) == before


def test_what_is_finished_is_said_without_loading_what_only_runs_need(cli, tmp_path):
    cli()
    heavy = "{'torch', 'pandas', 'matplotlib', 'scipy', 'rad'}"
    code = f"import sys, run; run.main(); print(sorted({heavy} & set(sys.modules)))"
    arguments = ["data=mnist", "batch_size=30", "iterations=4", f"runs={tmp_path / 'runs'}"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert "is finished already" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_finished_run_whose_summary_was_lost_is_summarized_again(cli, tmp_path, capsys):
    cli()
    (only_run(tmp_path) / "summary.txt").unlink()
    (only_run(tmp_path) / "convergence.png").unlink()
    cli()
    assert "is finished already" in capsys.readouterr().out
    assert (only_run(tmp_path) / "convergence.png").exists()


def test_a_run_that_holds_examples_out_says_so(cli, tmp_path, capsys):
    cli("held_out=60", "method=exact")
    meta = json.loads((only_run(tmp_path) / "meta.json").read_text())
    assert meta["data"] == "mnist (60 held out)"
    assert "on mnist (60 held out)" in capsys.readouterr().out


def test_a_sweep_goes_on_after_a_run_that_fails(cli, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli("-m", "method=exact", "optimizer.lr=-1,0.001")
    assert stopped.value.code != 0
    err = capsys.readouterr().err + str(stopped.value)
    assert "optimizer.lr must be greater than 0, got -1" in err
    assert "Traceback" not in err
    left = [p.parent.name for p in (tmp_path / "runs").rglob("checkpoint.pt")]
    assert left == ["method=exact,batch_size=30,iterations=4"]  # 0.001 is the default


MISTAKES = {
    "budget of zero": (["budget=0"], r"budget must lie in (0, 1], got 0;"),
    "negative budget": (["budget=-0.1"], "got -0.1"),
    "budget above one": (["budget=1.5"], "got 1.5"),
    "budget that is no number": (["budget=abc"], "budget must be a number in (0, 1], got 'abc'"),
    "budget that is no size": (["budget=50XB"], "got '50XB'; for example 0.1 keeps a tenth, and 50MB or 1.5GiB is"),
    "budget that is too little": (["budget=3kB"], "budget is 3,000 bytes, but rad_proj holds"),
    "budget of an exact method": (["method=exact", "budget=2"], "got 2"),
    "unknown method": (["method=magic"], "Could not find 'method/magic'"),
    "unknown data": (["data=svhn"], "Could not find 'data/svhn'"),
    "unknown experiment": (["experiment=mnist_mpl"], "Could not find 'experiment/mnist_mpl'"),
    "misspelt option": (["iteration=3"], "Could not override 'iteration'"),
    "misspelt nested option": (["optimizer.learning_rate=3"], "Could not override 'optimizer.learning_rate'"),
    "no iterations": (["iterations=0"], "iterations must be at least 1, got 0"),
    "negative iterations": (["iterations=-5"], "got -5"),
    "half an iteration": (["iterations=2.5"], "got 2.5"),
    "evaluation never": (["evaluate.test_every=0"], "evaluate.test_every must be at least 1, got 0"),
    "batch larger than the set": (["batch_size=301"], "batch_size is 301, but mnist has 300 training examples"),
    "seed": (["seed=-1"], "seed must be at least 0, got -1"),
    "threads": (["threads=0"], "threads must be at least 1, got 0"),
    "device": (["device=tpu9"], "device must be one that is there, or auto, got 'tpu9'"),
    "optimizer": (["optimizer.lr=-1"], "optimizer.lr must be greater than 0, got -1"),
    "rounding group": (["method=rad_round", "method.sketch.group=0"], "group must be a positive whole number"),
    "sampling": (["method=rad_same", "method.sketch.per=row"], "per must be 'batch' or 'element', got 'row'"),
    "segments": (["method=checkpoint", "method.segments=99"], "segments must lie in [1, 8]"),
    "segments and a half": (["method=checkpoint", "method.segments=2.5"], "got 2.5"),
    "all held out": (["held_out=300"], "below the 300 training examples of mnist, 0 for none, got 300"),
    "held out too many for a batch": (["held_out=299"], "batch_size is 30, but mnist (299 held out) has 1 "),
    "decay never": (["schedule.step_size=0"], "schedule.step_size must be at least 1, got 0"),
    "too few inputs": (["model.widths=[100,10]"], "the model cannot train on mnist"),
    "too few classes": (["model.widths=[784,5]"], "the model cannot train on mnist"),
    "no layer": (["model.widths=[784]"], "model.widths must hold at least 2 of them, got [784]"),
    "name too long": ([f"run_dir={'x' * 300}"], "set runs or run_dir to another place"),
    "wandb mode": (
        ["tracker=wandb", "tracker.mode=cloud"],
        "tracker.mode must be 'online', 'offline' or 'disabled', got 'cloud'",
    ),
}


@pytest.mark.parametrize(("args", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_gets_one_clear_sentence_and_leaves_nothing(cli, tmp_path, capsys, args, said):
    with pytest.raises(SystemExit) as stopped:
        cli(*args)
    message = str(stopped.value.code) if isinstance(stopped.value.code, str) else capsys.readouterr().err
    assert stopped.value.code not in (0, None)
    assert said in message
    assert "Traceback" not in message
    assert not (tmp_path / "runs").exists()


def test_a_directory_of_another_config_is_left_alone(cli, tmp_path):
    cli(f"run_dir={tmp_path / 'mine'}")
    before = files(tmp_path / "mine")
    with pytest.raises(SystemExit, match=r"another config \(it differs in seed\); set another run_dir"):
        cli(f"run_dir={tmp_path / 'mine'}", "seed=1")
    assert files(tmp_path / "mine") == before


def test_a_directory_that_is_no_run_is_left_alone(cli, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match="holds files but no config.yaml"):
        cli(f"run_dir={tmp_path / 'mine'}")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_directory_that_cannot_be_written_is_named(cli, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="cannot be written"):
        cli(f"run_dir={tmp_path / 'file' / 'run'}")


def test_a_directory_in_use_is_left_to_its_process(cli, tmp_path):
    (tmp_path / "mine").mkdir()
    with FileLock(tmp_path / "mine" / ".lock"), pytest.raises(SystemExit, match="another process works in"):
        cli(f"run_dir={tmp_path / 'mine'}")


def test_a_damaged_checkpoint_is_named_kept_and_runs_no_code(cli, tmp_path):
    path = tmp_path / "mine"
    cli(f"run_dir={path}", "evaluate.test_every=2")
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"status": "running"}))
    trap = io.BytesIO()
    torch.save({"model": _Trap(str(tmp_path / "sprung"))}, trap)
    half = (path / "checkpoint.pt").read_bytes()[:5000]
    for content in (b"", b"not a checkpoint", half, trap.getvalue()):
        (path / "checkpoint.pt").write_bytes(content)
        before = files(path)
        with pytest.raises(SystemExit, match=r"checkpoint\.pt is damaged .*; delete it to begin this run anew"):
            cli(f"run_dir={path}", "evaluate.test_every=2")
        assert files(path) == before, content[:20]
        assert not (tmp_path / "sprung").exists()


class _Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_loss_that_is_not_finite_fails_the_run_and_keeps_what_was_there(cli, tmp_path):
    with pytest.raises(SystemExit, match=r"_loss is (nan|inf) at iteration 10; lower optimizer.lr"):
        cli("method=exact", "iterations=20", "evaluate.test_every=10", "optimizer.lr=1e30")
    path = only_run(tmp_path)
    assert json.loads((path / "meta.json").read_text())["status"] == "failed"
    assert torch.load(path / "checkpoint.pt", weights_only=True)["iteration"] == 0
    # The record stays, or the seed would vanish from the statistics.
    assert [json.loads(line)["iteration"] for line in (path / "metrics.jsonl").read_text().splitlines()] == [0, 10]


def test_bad_data_is_named_before_anything_is_made(cli, digits, tmp_path):
    write_digits(digits, x_train=np.zeros((300, 28, 28)))
    with pytest.raises(SystemExit, match=r"mnist\.npz holds x_train float64"):
        cli()
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_from_a_shell_a_mistake_exits_with_an_error_and_no_traceback(tmp_path):
    command = [sys.executable, ROOT / "run.py", "budget=7", f"runs={tmp_path}/runs"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr == "error: budget must lie in (0, 1], got 7; for example 0.1 keeps a tenth, 1 everything\n"
    assert done.stdout == ""


@pytest.mark.slow
def test_wandb_mirrors_the_records_without_an_account(cli, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    cli("tracker=wandb", "evaluate.test_every=2")
    assert list(only_run(tmp_path).glob("wandb/offline-run-*/*.wandb"))


def test_without_wandb_the_way_out_is_named(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit, match=r"pip install -e '\.\[wandb\]', or tracker=none"):
        cli("tracker=wandb")


def test_a_label_that_no_output_stands_for_is_found_before_its_batch_comes(cli, digits, tmp_path):
    labels = np.zeros(300, np.uint8)
    labels[-1] = 9
    write_digits(digits, y_train=labels, y_test=labels[:60])
    with pytest.raises(SystemExit, match="the model cannot train on mnist.*Target 9 is out of bounds"):
        cli("model.widths=[784,9]", "bootstrap=false", "method=exact")
    assert not (tmp_path / "runs").exists()
