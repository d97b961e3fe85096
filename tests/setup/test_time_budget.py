"""`--time-budget`: how many epochs a time allows."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from fastcnn.config.duration import parse_time
from fastcnn.errors import UserError
from fastcnn.setup.time_budget import RESERVE, epochs_within, validations


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2h", 7200), ("1m5s", 65)]
)
def test_times_are_read(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "10 m", "m10", "0m", "ten minutes", "1.5h", "-5m"])
def test_anything_else_is_refused_with_what_to_write(text, wording):
    with pytest.raises(UserError, match="^--time-budget ") as caught:
        parse_time(text)
    wording(caught.value)


@pytest.mark.parametrize(
    ("steps", "interval", "expected"),
    [(10, 1, 1), (11, 1, 2), (20, 1, 2), (20, 2, 1), (30, 2, 2), (25, 2, 2), (5, 1, 1), (40, 3, 2)],
)
def test_validations_are_those_of_whole_epochs_and_of_the_end(steps, interval, expected):
    assert validations(steps, 10, interval) == expected


times = st.floats(0.001, 100, allow_nan=False)


@given(
    st.floats(1, 10_000), st.floats(0, 5_000), times, st.integers(1, 2000), times, st.integers(1, 5), times
)
def test_what_is_planned_fits_and_one_more_update_does_not(
    budget, elapsed, step, per_epoch, val, interval, end
):
    epochs = epochs_within(
        budget=budget,
        elapsed=elapsed,
        step_seconds=step,
        steps_per_epoch=per_epoch,
        val_seconds=val,
        val_interval=interval,
        at_the_end=end,
    )
    steps = round(epochs * per_epoch)
    assert steps >= 1

    def taken(count: int) -> float:
        return elapsed + count * step + validations(count, per_epoch, interval) * val + end

    assert steps == 1 or taken(steps) <= budget * (1 - RESERVE) * 1.000001
    assert taken(steps + 1) > budget * (1 - RESERVE) * 0.999999
