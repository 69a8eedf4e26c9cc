"""What scripts are told on the command line: out of range it is one sentence, and no work has started."""

from __future__ import annotations

import importlib
import sys
from argparse import ArgumentTypeError

import pytest

from experiments.options import listed, positive, present, size, whole

BAD = {
    "below": (whole(2), "1"),
    "above": (whole(2, 9), "10"),
    "a fraction": (whole(2), "2.5"),
    "too long to read": (whole(2), "9" * 5000),
    "nothing": (whole(0), ""),
    "zero": (positive, "0"),
    "nan": (positive, "nan"),
    "infinite": (positive, "1e400"),
    "no number": (positive, "much"),
    "no unit": (size, "50XB"),
    "no bytes": (size, ""),
    "no such word": (listed(["a", "b"], "net"), "a,c"),
    "an empty word": (listed(["a", "b"], "net"), "a,"),
    "one of a list": (listed(whole(1, 8)), "3,9"),
    "no device": (present, "tpu9"),
    "a device without values": (present, "meta"),
    "a device that is not there": (present, "cuda:99"),
    "an empty device": (present, ""),
}


@pytest.mark.parametrize(("read", "text"), BAD.values(), ids=BAD.keys())
def test_bad_values_name_themselves_and_what_is_allowed(read, text):
    with pytest.raises(ArgumentTypeError) as caught:
        read(text)
    said = str(caught.value)
    assert text.rpartition(",")[2][:30] in said
    assert "must be" in said or "choose from" in said
    assert len(said) < 200
    assert "\n" not in said


def test_good_values_are_read():
    assert (whole(2, 9)("2"), whole(2, 9)("9"), positive("0.5"), size("2kB")) == (2, 9, 0.5, 2000)
    assert (listed(["a", "b"])("b,a,b"), listed(whole(1))("3,3,1"), present("cpu").type) == (["b", "a"], [3, 1], "cpu")


OPTIONS = {
    "bench": "--rounds 1 | --steps 1 | --threads 0",
    "bench_kernels": "--elements 255 | --rounds 0 | --threads -1 | --dtypes int8 | --device meta",
    "bench_nets": "--net x | --batch 0 | --size 0 | --bits 17 | --parts 0 | --rounds -1 | --warmup 0 | --threads 0 | "
    "--methods x | --methods compile:2 | --methods rounding:17 | --methods same:2 | --memory nanGB | --device meta",
    "beside": "--nets x | --steps 0 | --batch 0 | --size 0 | --lr inf | --seed -1 | --device meta",
    "faults": "--jobs 0",
    "front": "--nets x | --bits 0 | --steps -1 | --draws 2 | --threads 0",
    "nets": "--nets x | --batch 0 | --size 0 | --bits 0 | --draws 2 | --rounds 1 | --threads 0",
    "plot": "--target nan",
    "reactor": "--target nan | --rounds 0 | --draws 2",
    "reproduce": "--jobs 0",
    "status": "--every inf",
    "tune": "--trials 0 | --lr 0 1 | --weight-decay 1 nan | --held-out 0 | --draw -1 | --jobs 0",
}


@pytest.mark.parametrize("script", OPTIONS)
def test_every_option_has_a_range(script, monkeypatch, capsys):
    main = importlib.import_module(f"scripts.{script}").main
    for given in OPTIONS[script].split(" | "):
        monkeypatch.setattr(sys, "argv", [script, *given.split()])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr().err
        assert stopped.value.code == 2, given
        assert f"error: argument {given.split()[0]}: " in said, given
        assert "Traceback" not in said
