"""The learning rate at each step: torch's where torch has it, and what all kinds keep to."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.optim import lr_scheduler

from fastcnn.optim.schedules import Schedule, describe_schedule, draw_schedule, learning_rate

KINDS = ("cosine", "step", "multistep", "polynomial", "onecycle", "triangular", "constant")
SMOOTH = ("cosine", "polynomial", "onecycle", "triangular", "constant")
LINEAR_WARMUP = ("cosine", "step", "multistep", "polynomial", "constant")


def rates(schedule: Schedule) -> list[float]:
    return [learning_rate(step, schedule) for step in range(schedule.total_steps)]


def torchs(peak: float, steps: int, scheduler: type, **settings: object) -> list[float]:
    """The rates of so many steps under one of torch's schedulers."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    following = scheduler(optimizer, **settings)
    found = [following.get_last_lr()[0]]
    for _ in range(steps - 1):
        optimizer.step()
        following.step()
        found += following.get_last_lr()
    return found


# Lengths


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "steps"), [(9.9, 48, 475), (3, 7, 21), (0.5, 3, 2), (0.01, 5, 1)]
)
def test_epochs_need_not_be_whole_and_a_run_has_a_step_at_least(epochs, steps_per_epoch, steps):
    assert Schedule(peak=1.0, steps_per_epoch=steps_per_epoch, epochs=epochs).total_steps == steps


@pytest.mark.parametrize("kind", ["cosine", "polynomial", "triangular"])
def test_a_run_that_ends_within_an_epoch_ends_at_the_least_rate(kind):
    schedule = Schedule(peak=1.0, steps_per_epoch=10, epochs=2.5, kind=kind, min_lr=0.1)
    assert learning_rate(24, schedule) > 0.1
    assert learning_rate(25, schedule) == learning_rate(90, schedule) == pytest.approx(0.1)


# Warm-up


@pytest.mark.parametrize("kind", LINEAR_WARMUP)
def test_the_warm_up_rises_by_equal_steps_to_the_peak(kind):
    schedule = Schedule(peak=0.8, steps_per_epoch=4, epochs=10, warmup_epochs=2, kind=kind)
    assert rates(schedule)[:8] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert rates(schedule)[8] == pytest.approx(0.8)


@pytest.mark.parametrize("kind", LINEAR_WARMUP)
def test_the_warm_up_begins_at_its_share_of_the_peak_as_torch_s_does_a_step_later(kind):
    schedule = Schedule(
        peak=0.8, steps_per_epoch=4, epochs=10, warmup_epochs=2, kind=kind, warmup_factor=0.25
    )
    expected = torchs(0.8, 9, lr_scheduler.LinearLR, start_factor=0.25, total_iters=8)
    assert rates(schedule)[:8] == pytest.approx(expected[1:], rel=1e-9)


def test_a_warm_up_may_be_a_part_of_an_epoch():
    schedule = Schedule(peak=0.8, steps_per_epoch=4, epochs=10, warmup_epochs=0.5)
    assert rates(schedule)[:3] == pytest.approx([0.4, 0.8, 0.8])


def test_a_warm_up_as_long_as_the_run_ends_at_the_peak():
    schedule = Schedule(peak=0.6, steps_per_epoch=3, epochs=1, warmup_epochs=1)
    assert rates(schedule) == pytest.approx([0.2, 0.4, 0.6])


# Kinds


def test_the_cosine_starts_at_the_peak_is_halfway_in_the_middle_and_ends_at_the_least():
    schedule = Schedule(peak=1.0, steps_per_epoch=10, epochs=22, warmup_epochs=2, min_lr=0.2)
    curve = rates(schedule)
    assert curve[20] == 1.0
    assert curve[120] == pytest.approx(0.6)
    assert 0.2 < curve[-1] < 0.201
    assert all(later < earlier for earlier, later in itertools.pairwise(curve[20:]))
    assert learning_rate(220, schedule) == learning_rate(500, schedule) == 0.2


def test_the_cosine_without_warm_up_is_that_of_torch():
    expected = torchs(0.3, 40, lr_scheduler.CosineAnnealingLR, T_max=40, eta_min=0.01)
    assert rates(Schedule(peak=0.3, steps_per_epoch=5, epochs=8, min_lr=0.01)) == pytest.approx(
        expected, rel=1e-9
    )


def test_step_drops_after_every_decay_epochs_as_torch_s():
    schedule = Schedule(peak=1.0, steps_per_epoch=3, epochs=7, kind="step", decay_epochs=3, decay_rate=0.5)
    assert rates(schedule) == pytest.approx([1.0] * 9 + [0.5] * 9 + [0.25] * 3)
    assert rates(schedule) == pytest.approx(torchs(1.0, 21, lr_scheduler.StepLR, step_size=9, gamma=0.5))


def test_step_drops_within_epochs_as_tensorflow_s_staircase_from_the_first_step_on():
    schedule = Schedule(
        peak=1.0, steps_per_epoch=5, epochs=6, kind="step", decay_epochs=2.4, decay_rate=0.97, warmup_epochs=1
    )
    warmup = [0.2, 0.4, 0.6, 0.8, 1.0]
    assert rates(schedule) == pytest.approx(warmup + [1.0] * 7 + [0.97] * 12 + [0.97**2] * 6)


def test_multistep_drops_at_each_milestone_as_torch_s():
    schedule = Schedule(
        peak=1.0, steps_per_epoch=2, epochs=6, kind="multistep", decay_milestones=(2, 4.5), decay_rate=0.1
    )
    assert rates(schedule) == pytest.approx([1.0] * 4 + [0.1] * 5 + [0.01] * 3)
    expected = torchs(1.0, 12, lr_scheduler.MultiStepLR, milestones=[4, 9], gamma=0.1)
    assert rates(schedule) == pytest.approx(expected)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_polynomial_is_that_of_torch(power):
    schedule = Schedule(peak=0.3, steps_per_epoch=5, epochs=8, kind="polynomial", decay_power=power)
    expected = torchs(0.3, 40, lr_scheduler.PolynomialLR, total_iters=40, power=power)
    assert rates(schedule) == pytest.approx(expected, rel=1e-9)


def test_the_polynomial_begins_after_the_warm_up_and_ends_at_the_least_rate():
    schedule = Schedule(
        peak=1.0,
        steps_per_epoch=10,
        epochs=12,
        warmup_epochs=2.0,
        kind="polynomial",
        min_lr=0.2,
        decay_power=2.0,
    )
    assert learning_rate(20, schedule) == pytest.approx(1.0)
    assert learning_rate(70, schedule) == pytest.approx(0.2 + 0.8 * 0.25)
    assert learning_rate(120, schedule) == pytest.approx(0.2)


@pytest.mark.parametrize(("warmup", "total"), [(12, 40), (2, 40), (20, 21), (0, 10), (39, 40)])
def test_onecycle_is_that_of_torch(warmup, total):
    schedule = Schedule(peak=0.7, steps_per_epoch=1, epochs=total, warmup_epochs=warmup, kind="onecycle")
    settings = {"max_lr": 0.7, "total_steps": total, "pct_start": warmup / total}
    expected = torchs(0.7, total, lr_scheduler.OneCycleLR, **settings, cycle_momentum=False)
    assert rates(schedule) == pytest.approx(expected, rel=1e-9)


def test_onecycle_with_a_warm_up_of_one_step_starts_at_the_peak():
    curve = rates(Schedule(peak=0.7, steps_per_epoch=1, epochs=10, warmup_epochs=1, kind="onecycle"))
    assert curve[0] == pytest.approx(0.7)
    assert curve[-1] == pytest.approx(0.7 / 25e4)


@pytest.mark.parametrize(("warmup", "factor"), [(3.0, 0.2), (3.0, 0.0), (0.0, 0.5)])
def test_triangular_interpolates_between_its_three_corners(warmup, factor):
    """As np.interp in airbench's and FFCV's trainings, from the same points."""
    schedule = Schedule(
        peak=0.5,
        steps_per_epoch=8,
        epochs=9.5,
        warmup_epochs=warmup,
        kind="triangular",
        min_lr=0.05,
        warmup_factor=factor,
    )
    corners = [0, 8 * warmup, 76] if warmup else [0, 76]
    values = [0.5 * factor, 0.5, 0.05] if warmup else [0.5, 0.05]
    assert rates(schedule) == pytest.approx(np.interp(np.arange(76), corners, values).tolist())


def test_constant_stays_at_the_peak():
    assert rates(Schedule(peak=0.7, steps_per_epoch=2, epochs=3, kind="constant")) == [0.7] * 6


# What all keep to


@st.composite
def schedules(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS) -> Schedule:
    """Any sensible one, whose drops come after the warm-up."""
    steps_per_epoch, epochs = draw(st.integers(1, 50)), draw(st.floats(0.2, 20))
    peak = draw(st.floats(1e-4, 10))
    warmup = draw(st.floats(0, 1)) * epochs
    after = sorted(warmup + draw(st.floats(0, 1)) * (epochs - warmup) + 1 for _ in range(2))
    return Schedule(
        peak=peak,
        steps_per_epoch=steps_per_epoch,
        epochs=epochs,
        warmup_epochs=warmup,
        kind=draw(st.sampled_from(kinds)),
        min_lr=draw(st.floats(0, 1)) * peak,
        decay_epochs=warmup + draw(st.floats(1, 5)),
        decay_milestones=tuple(after),
        decay_rate=draw(st.floats(0.01, 1)),
        decay_power=draw(st.floats(1, 4)),
        warmup_factor=draw(st.floats(0, 1)),
    )


@settings(deadline=None, derandomize=True, database=None)
@given(schedules())
def test_the_rate_is_never_below_zero_or_above_the_peak_and_reaches_the_peak(schedule):
    curve = rates(schedule)
    assert 0 <= min(curve)
    assert max(curve) <= schedule.peak * (1 + 1e-9)
    if schedule.warmup_steps < schedule.total_steps and (schedule.kind, schedule.warmup_steps) != (
        "onecycle",
        0,
    ):
        assert max(curve) == pytest.approx(schedule.peak)


@settings(deadline=None, derandomize=True, database=None)
@given(schedules())
def test_the_rate_rises_in_the_warm_up_and_never_after_it(schedule):
    curve, warmup = rates(schedule), schedule.warmup_steps
    least = -1e-9 * schedule.peak
    assert all(after - before >= least for before, after in itertools.pairwise(curve[:warmup]))
    assert all(before - after >= least for before, after in itertools.pairwise(curve[warmup:]))


@settings(deadline=None, derandomize=True, database=None)
@given(schedules(SMOOTH))
def test_the_rate_does_not_jump_where_the_warm_up_ends(schedule):
    """There it changes by no more than a step of the steeper of the two curves, at its steepest."""
    warmup, total = schedule.warmup_steps, schedule.total_steps
    if 0 < warmup < total:
        jump = learning_rate(warmup, schedule) - learning_rate(warmup - 1, schedule)
        bound = {"onecycle": np.pi / 2 / (total - warmup), "triangular": 1 / warmup}.get(schedule.kind, 0.0)
        assert abs(jump) <= schedule.peak * (bound + 1e-9)


# For people


def test_a_schedule_is_described_by_its_peak_its_quarters_and_its_ends(wording):
    schedule = Schedule(peak=0.4, steps_per_epoch=100, epochs=16, warmup_epochs=5, min_lr=0.01)
    title, *points = describe_schedule(schedule).splitlines()
    wording(title)
    words = [point.split() for point in points]
    assert [word[0] for word in words] == ["start", "1/4", "peak", "2/4", "3/4", "end"]
    at = [round(float(word[2]) * 100) for word in words]
    assert at == [0, 400, 499, 800, 1200, 1599]
    expected = [learning_rate(step, schedule) for step in at]
    assert [float(word[3]) for word in words] == pytest.approx(expected, rel=1e-3)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def coloured(image: np.ndarray, color: str, tolerance: int = 12) -> np.ndarray:
    """Where an image has a colour, bool [H, W]."""
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return np.asarray((abs(image - rgb) <= tolerance).all(axis=2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_is_drawn_from_its_first_step_to_its_last(kind, tmp_path):
    from fastcnn.viz.curves import TRAIN

    schedule = Schedule(
        peak=0.4,
        steps_per_epoch=20,
        epochs=9.5,
        warmup_epochs=3.0,
        kind=kind,
        decay_epochs=4.0,
        decay_milestones=(4.0, 8.0),
    )
    draw_schedule(schedule, tmp_path / "schedule.png")
    line = coloured(pixels(tmp_path / "schedule.png"), TRAIN)
    columns = np.flatnonzero(line.any(axis=0))
    assert np.ptp(columns) > 0.85 * line.shape[1]
    heights = [float(np.flatnonzero(line[:, c]).min()) for c in columns]
    peak = np.interp(columns[int(np.argmin(heights))], columns[[0, -1]], [0, 9.5])
    assert peak == pytest.approx(3.0, abs=0.5) or kind in ("constant", "step", "multistep")


def test_the_warm_up_is_shaded_in_the_drawing(tmp_path):
    shades = []
    for epochs in (0.0, 2.0, 4.0):
        draw_schedule(
            Schedule(peak=0.4, steps_per_epoch=20, epochs=10, warmup_epochs=epochs), tmp_path / "schedule.png"
        )
        shades.append(int(coloured(pixels(tmp_path / "schedule.png"), "#ebedef", 3).sum()))
    assert shades[0] < 0.1 * shades[1]
    assert shades[2] == pytest.approx(2 * shades[1], rel=0.15)
