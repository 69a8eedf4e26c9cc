"""The benchmark of nets: its methods and what it writes. Its timings are nobody's business here."""

from __future__ import annotations

import argparse
import re
import sys

import pytest
import torch

from scripts import bench_nets as script


@pytest.mark.slow
def test_every_method_has_a_row_for_each_net_and_a_place_in_the_figure(tmp_path, monkeypatch, capsys):
    methods = "exact,rounding,rounding:1,allocated,same,different,projection,checkpoint,accumulate"
    out, figure = tmp_path / "bench.md", tmp_path / "tradeoff"
    options = f"--net mlp,gpt --batch 2 --parts 2 --rounds 2 --warmup 1 --threads 1 --methods {methods}".split()
    monkeypatch.setattr(sys, "argv", ["scripts/bench_nets.py", *options, "--out", str(out), "--figure", str(figure)])
    threads = torch.get_num_threads()
    try:
        script.main()
    finally:
        torch.set_num_threads(threads)
    tables = out.read_text().split("gpt, 2 × 256 tokens")
    assert "mlp, 2 × 1 × 28 × 28" in tables[0]
    for text, left_out in zip(tables, ({"checkpoint"}, set()), strict=True):
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line][2:]
        assert {row[0] for row in rows} == set(methods.split(",")) - left_out
        share = {row[0]: float(row[2]) for row in rows}
        assert share["rounding:1"] < share["rounding"] < share["same"] <= share["exact"] == 1
        assert share["allocated"] == pytest.approx(share["rounding"], rel=0.05)
    assert "checkpoint: UserError: no block" in tables[0]
    assert figure.with_suffix(".png").exists()
    assert str(figure.with_suffix(".pdf")) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "label"),
    [
        ("rounding:2", "rounding, 2 bits"),
        ("compile:0.3", "compiled, budget 0.3"),
        ("same", "same sample"),
        ("rounding+compile", "rounding, compiled"),
        ("rounding:2+graph", "rounding, 2 bits, graph"),
        ("exact+graph", "exact, graph"),
    ],
)
def test_methods_are_named_in_the_figure(method, label):
    assert script.look_of(script.method(method)).label == label


@pytest.mark.parametrize("method", ["compile+graph", "rounding+compile+graph", "graph", "rounding:17+graph", "+graph"])
def test_methods_that_there_are_not(method):
    with pytest.raises(argparse.ArgumentTypeError, match=f"no method {re.escape(repr(method))}|to 16"):
        script.method(method)


def test_a_graph_needs_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["bench_nets.py", "--net", "mlp", "--methods", "exact+graph", "--rounds", "1"])
    with pytest.raises(SystemExit, match="exact\\+graph replays a CUDA graph and needs --device cuda"):
        script.main()
