"""The figure of time against memory."""

from __future__ import annotations

import pytest

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
    assert first.get_xlim()[0] == 0
    assert first.get_xlim()[1] > 1.3
    assert first.get_ylim()[0] < 1 < 1.21 < first.get_ylim()[1]


def test_one_legend_names_the_points_of_all_panels_by_colour_and_marker():
    figure = tradeoff_figure([("gpt", POINTS[:4]), ("resnet18", [POINTS[0], POINTS[4]])])
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [point.look.label for point in POINTS]
    looks = [(bars.lines[0].get_color(), bars.lines[0].get_marker()) for bars in figure.axes[0].containers]
    assert len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == 4
    assert figure.bbox.x0 <= legend.get_window_extent().x0
    assert legend.get_window_extent().x1 <= figure.bbox.x1
    assert legend.get_window_extent().y1 <= figure.axes[0].bbox.y0


def test_a_method_has_the_same_marker_in_every_panel():
    figure = tradeoff_figure([("gpt", POINTS), ("resnet18", POINTS[::2])])
    first, second = ({bars.get_label(): bars.lines[0].get_marker() for bars in axes.containers} for axes in figure.axes)
    assert second.items() <= first.items()


def test_bars_reach_from_quartile_to_quartile():
    (axes,) = tradeoff_figure([("gpt", POINTS)]).axes
    (bars,) = axes.containers[1].lines[2]
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([1.1, 1.4])


def test_no_net_is_refused():
    with pytest.raises(ValueError, match="at least one net"):
        tradeoff_figure([])
