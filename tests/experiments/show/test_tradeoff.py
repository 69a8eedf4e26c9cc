"""The figure of time against memory."""

from __future__ import annotations

import pytest
from matplotlib.text import Text

from experiments.labels import look
from experiments.show.tradeoff import Point, tradeoff_figure

POINTS = [
    Point(look("exact"), 1.0, (1.0, 1.0, 1.0)),
    Point(look("rad_round"), 0.3, (1.1, 1.2, 1.4)),
    Point(look("rad_auto"), 0.31, (1.1, 1.21, 1.3)),
    Point(look("accumulate"), 0.9, (1.0, 1.02, 1.1)),
    Point(look("compile_budget"), 1.3, (0.9, 1.0, 1.05)),
]


def test_a_panel_shows_memory_and_time_of_every_method_by_name():
    figure = tradeoff_figure([("gpt", POINTS), ("resnet18", POINTS[:2])])
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("gpt", "resnet18")
    shown = {tuple(container.lines[0].get_xydata()[0]) for container in first.containers}
    assert shown == {(point.memory, point.time[1]) for point in POINTS}
    assert {text.get_text() for text in first.texts} == {point.look.label for point in POINTS}
    assert first.get_xlim()[0] == 0
    assert first.get_xlim()[1] > 1.3
    assert first.get_ylim()[0] < 1 < 1.21 < first.get_ylim()[1]


def test_no_name_covers_another_and_all_lie_inside():
    figure = tradeoff_figure([("gpt", POINTS)])
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the lines to their points
    assert all(not a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_bars_reach_from_quartile_to_quartile():
    (axes,) = tradeoff_figure([("gpt", POINTS)]).axes
    (bars,) = axes.containers[1].lines[2]
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([1.1, 1.4])


def test_no_net_is_refused():
    with pytest.raises(ValueError, match="at least one net"):
        tradeoff_figure([])
