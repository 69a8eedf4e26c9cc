"""What the figures of the studies show: points, intervals and panels are those of the records."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from experiments.labels import look
from experiments.studies.depth_figures import GRAPHS, NETS, depth_figure, example_figure
from experiments.studies.noise_figure import noise_figure
from experiments.studies.step_noise import MEASURES, ratios, step_figure


def bars(axes: Axes) -> dict[str, tuple[list[float], list[float], list[float], str]]:
    """Places, values, half the length of each bar and colour of all points with bars, by label."""
    found = {}
    for container in axes.containers:
        line, _, (segments,) = container
        ends = [path.vertices[:, 1] for path in segments.get_paths()]
        halves = [(high - low) / 2 for low, high in ends]
        colour = mpl.colors.to_hex(line.get_color())
        found[container.get_label()] = (list(line.get_xdata()), list(line.get_ydata()), halves, colour)
    return found


NOISE = pd.DataFrame(
    [
        ("mlp", "initial", "rad_same", 200, 0.2, 5.0, 0.5, True),
        ("mlp", "initial", "rad_same", 100, 0.1, 9.0, 7.0, False),
        ("mlp", "initial", "small_batch", 110, 0.11, 6.0, 0.25, True),
        ("mlp", "trained", "rad_same", 100, 0.1, 4.0, 0.5, True),
        ("cnn", "initial", "rad_same", 50, 0.4, 3.0, 0.5, True),
        ("cnn", "initial", "rad_round", 40, 0.3, -0.1, 0.5, True),
        ("cnn", "trained", "rad_same", 50, 0.4, 2.0, 0.5, True),
    ],
    columns=["net", "phase", "estimator", "saved_bytes", "bytes_ratio", "added", "added_error", "front"],
).assign(data="toy")


def test_noise_has_a_panel_for_each_net_and_phase():
    panels = {axes.get_title(): axes for axes in noise_figure(NOISE).axes}
    assert list(panels) == [f"{net}, toy, {phase}" for phase in ("initial", "trained") for net in ("mlp", "cnn")]
    first = panels["mlp, toy, initial"]
    found = bars(first)
    assert set(found) == {look(name).label for name in ("rad_same", "small_batch")}
    x, y, halves, colour = found[look("rad_same").label]
    assert (x, y, colour) == ([0.1, 0.2], [9.0, 5.0], look("rad_same").colour.lower())
    assert halves == pytest.approx([0.9 * 9, 1.96 * 0.5])  # a bar ends above zero on a logarithmic axis
    front = next(line for line in first.get_lines() if line.get_label() == "Pareto front")
    assert (list(front.get_xdata()), list(front.get_ydata())) == ([0.11, 0.2], [6.0, 5.0])
    assert any(list(line.get_ydata()) == [1, 1] for line in first.get_lines())  # the full batch's own variance
    # What is not above zero cannot be drawn.
    assert bars(panels["cnn, toy, initial"])[look("rad_round").label][:2] == ([], [])
    assert {axes.get_xscale() for axes in panels.values()} == {axes.get_yscale() for axes in panels.values()} == {"log"}


def test_depth_shows_measured_and_closed_form():
    graphs = pd.DataFrame(
        [
            (family, depth, depth + i / 10, 0.1 * depth, 2.0 * depth + i)
            for i, family in enumerate(GRAPHS)
            for depth in (1, 2)
        ],
        columns=["family", "depth", "variance", "variance_error", "predicted"],
    )
    nets = pd.DataFrame(
        [(how, depth, np.nan if how == "exact" else 3.0 * depth, 0.2, 0.5 / depth) for how in NETS for depth in (1, 2)],
        columns=["how", "depth", "variance", "variance_error", "train_loss"],
    )
    figure = depth_figure(graphs, nets, "toy", 1200)
    one, over, every, variance, loss = figure.axes
    assert [axes.get_title() for axes in (one, every)] == [
        f"{name} paths, one edge kept a vertex" for name in ("independent", "interleaved")
    ]
    assert variance.get_title() == "deep ReLU net, toy"
    assert loss.get_title() == "the same net after 1,200 steps"
    found = bars(over)
    for i, (family, (colour, _)) in enumerate(GRAPHS.items()):
        x, y, halves, drawn = found[family]
        assert x == pytest.approx([1 + 0.06 * (i - 1), 2 + 0.06 * (i - 1)])
        assert y == pytest.approx([1 + i / 10, 2 + i / 10])
        assert halves == pytest.approx([0.196, 0.392])
        assert drawn == colour.lower()
    closed = [list(line.get_ydata()) for line in over.get_lines() if line.get_alpha() == 0.3]
    assert closed[:3] == [[2.0 + i, 4.0 + i] for i in range(3)]
    assert set(bars(variance)) == {label for how, (_, label) in NETS.items() if how != "exact"}
    assert bars(variance)[NETS["every"][1]][:3] == ([1, 2], [3.0, 6.0], pytest.approx([0.392, 0.392]))
    losses = {line.get_label(): list(line.get_ydata()) for line in loss.get_lines() if len(line.get_ydata())}
    assert all([0.5, 0.25] in (ys, *losses.values()) for ys in losses.values())
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {label for _, label in NETS.values()}


def test_the_worked_example_has_its_paths():
    whole, sampled = example_figure().axes
    assert whole.get_title() == "linearized graph of Fig. 1: 4 paths"
    assert sampled.get_title() == "a sample: one outgoing edge of each vertex"


STEPS = pd.DataFrame(
    [
        {"net": net, "steps": steps, "estimator": name}
        | {
            f"{measure}{suffix}": value * scale * (1 + i + steps / 100)
            for i, measure in enumerate(MEASURES)
            for suffix, scale in (("", 1.0), ("_error", 0.01))
        }
        for net in ("mlp", "cnn")
        for steps in (0, 100)
        for name, value in (("full_batch", 1.0), ("small_batch", 9.0), ("rad_same", 2.0), ("rad_round", 0.5))
    ]
)


def test_steps_have_a_panel_for_each_measure_and_net():
    figure = step_figure(STEPS)
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == [f"{net}: {label}" for label in MEASURES.values() for net in ("mlp", "cnn")]
    for measure, label in MEASURES.items():
        axes = panels[f"cnn: {label}"]
        expected = ratios(STEPS[STEPS["net"] == "cnn"], measure)
        for name in ("rad_same", "rad_round"):
            part = expected[expected["estimator"] == name]
            x, y, halves, colour = bars(axes)[look(name).label]
            assert (x, y) == ([0, 100], pytest.approx(list(part["value"])))
            assert halves == pytest.approx(list(part["half"]))
            assert colour == look(name).colour.lower()
        assert y == pytest.approx([16.0, 16.0])  # (9 − 1) ÷ 0.5
        assert any(list(line.get_ydata()) == [1, 1] for line in axes.get_lines())
