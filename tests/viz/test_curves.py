"""Curves of a run of any length have a bounded number of points and take bounded time and memory."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from fastcnn.files import save_picture
from fastcnn.viz.curves import POINTS, VAL, Curves, Series


def step(progress: float, loss: float, **more: float) -> dict[str, Any]:
    return {"kind": "train", "progress": progress, "metrics": {"loss": loss, **more}, "main_metric": "acc1"}


def epoch(number: float, **val: float) -> dict[str, Any]:
    return {"kind": "epoch", "epoch": number, **({"val": val} if val else {})}


def curves_of(*records: dict[str, Any]) -> Curves:
    curves = Curves()
    for record in records:
        curves.add(record)
    return curves


@pytest.mark.parametrize("count", [1, POINTS - 1, POINTS, POINTS + 1, 3 * POINTS, 50 * POINTS])
def test_a_series_keeps_its_shape_in_few_points(count):
    series = Series()
    x = np.arange(count) / count
    for value in x.tolist():
        series.add(value, value**2)
    assert len(series.x) < POINTS
    assert len(series.x) == len(series.y)
    assert len(series.x) * series.stride <= count < (len(series.x) + 1) * series.stride
    groups = x[: len(series.x) * series.stride].reshape(-1, series.stride)
    assert np.allclose(series.x, groups.mean(1))
    assert np.allclose(series.y, (groups**2).mean(1))
    assert (np.diff(series.x) > 0).all()


def test_nothing_is_drawn_before_the_first_log_line():
    assert Curves().figure() is None
    assert curves_of(epoch(1, loss=1.0)).figure() is None


def test_a_resumed_run_that_has_only_validations_so_far_is_drawn():
    figure = curves_of(step(0.5, 2.0), epoch(1, loss=1.5, acc1=20)).figure()
    assert [axes.get_title("left") for axes in figure.axes] == ["loss", "acc1 (%)"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 1]  # training has no acc1 here


def test_the_best_validation_is_marked():
    records = [
        record
        for i, (loss, acc) in enumerate([(2, 30), (1, 50), (3, 50)], 1)
        for record in (step(i - 0.5, loss + 0.5, acc1=acc - 5), epoch(i, loss=loss, acc1=acc))
    ]
    figure = curves_of(*records).figure()
    marks = [[(text.get_text(), text.xy, text.get_color()) for text in axes.texts] for axes in figure.axes]
    assert marks == [[("1", (2, 1), VAL)], [("50.0%", (2, 50), VAL)]]


def test_drawing_again_shows_what_was_added_in_the_same_figure(tmp_path):
    curves = curves_of(step(0.5, 2.0, acc1=10))
    first = curves.figure()
    assert [text.get_text() for text in first.axes[0].get_legend().get_texts()] == ["training"]
    curves.add(epoch(1, loss=1.0, acc1=20))
    figure = curves.figure()
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["training", "validation"]
    for number in range(2, 6):
        curves.add(step(number - 0.5, 1 / number, acc1=10 * number))
        curves.add(epoch(number, loss=1 / number, acc1=10 * number))
        assert curves.figure() is figure
        save_picture(figure, tmp_path / "curves.png", "the curves")
    train, val = figure.axes[0].lines
    assert list(train.get_xdata()) == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert list(val.get_ydata()) == [1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    assert figure.axes[0].get_xlim()[1] >= 5
    assert figure.axes[1].get_ylim()[1] >= 50
    assert len(figure.axes[0].texts) == 1


def test_drawing_again_leaves_no_garbage(tmp_path):
    curves = curves_of(*(step(i / 10, 1 / (i + 1)) for i in range(50)))

    def draw() -> None:
        save_picture(curves.figure(), tmp_path / "curves.png", "the curves")

    for _ in range(3):
        draw()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(5):
            draw()
        grown = (len(gc.get_objects()) - before) / 5
    finally:
        gc.enable()
    assert grown < 500
