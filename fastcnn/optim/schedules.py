"""Learning rate schedules as pure functions of the step, and their plots. Torch-free.

Example:
    from fastcnn.optim.schedules import Schedule, describe_schedule
    print(describe_schedule(Schedule(peak=0.4, steps_per_epoch=100, epochs=90, warmup_epochs=5)))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from fastcnn import files
from fastcnn.config import SchedName, ScheduleSettings

ONECYCLE_DIV, ONECYCLE_FINAL_DIV = 25.0, 1e4
"""Peak / initial rate, and initial / final rate: the defaults of torch.optim.lr_scheduler.OneCycleLR."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Settings of a learning rate schedule. Lengths are in epochs."""

    peak: float
    steps_per_epoch: int
    epochs: float
    """May end with a partial epoch."""
    warmup_epochs: float = 0.0
    kind: SchedName = "cosine"
    min_lr: float = 0.0
    """Final rate of "cosine", "polynomial" and "triangular"."""
    decay_epochs: float = 30.0
    """Epochs between the decays of "step"."""
    decay_milestones: tuple[float, ...] = ()
    """Epochs of the decays of "multistep"."""
    decay_rate: float = 0.1
    decay_power: float = 1.0
    """Power of "polynomial"."""
    warmup_factor: float = 0.0
    """Initial rate of the warmup as a fraction of the peak; "onecycle" has its own."""

    @classmethod
    def of(cls, settings: ScheduleSettings, *, peak: float, steps_per_epoch: int) -> Schedule:
        """Return the schedule of settings with numbers for `epochs` and `warmup_epochs`."""
        return cls(
            peak=peak,
            steps_per_epoch=steps_per_epoch,
            epochs=float(settings.epochs),
            warmup_epochs=float(settings.warmup_epochs),
            warmup_factor=settings.warmup_factor,
            kind=settings.sched,
            min_lr=settings.min_lr,
            decay_epochs=settings.decay_epochs,
            decay_milestones=settings.decay_milestones,
            decay_rate=settings.decay_rate,
            decay_power=settings.decay_power,
        )

    @property
    def total_steps(self) -> int:
        """Number of updates in the run."""
        return max(1, round(self.epochs * self.steps_per_epoch))

    @property
    def warmup_steps(self) -> int:
        """Number of updates in the warmup."""
        return round(self.warmup_epochs * self.steps_per_epoch)


def learning_rate(step: int, schedule: Schedule) -> float:
    """Return the learning rate of update `step`, counted from 0.

    A warmup of n steps is linear from peak * (f + (1 - f) / n) to the peak, where f is the warmup factor
    (Goyal et al. 2017, section 2.2). After it:

    - "cosine": a half cosine to `min_lr` (Loshchilov, Hutter 2017, equation 5);
    - "polynomial": to `min_lr` by the power `decay_power` of the remaining fraction of the run (Caffe's
      "poly", which trained GoogLeNet there with 0.5);
    - "step", "multistep": the peak times `decay_rate` for each decay so far;
    - "constant": the peak.

    Two kinds have their own rise instead, of the same length as the warmup:

    - "onecycle": a half cosine from peak / 25 to the peak at the last step of the warmup, and one to
      peak / 250,000 at the last step of the run (Smith, Topin 2017, with the shape of torch's OneCycleLR);
    - "triangular": linear from the peak times the warmup factor to the peak at the first step after the
      warmup, and to `min_lr` at the end of the run (Smith 2017, one cycle of section 3.1).

    After the end of the run, kinds with a final rate stay at it.
    """
    s = schedule
    warmup, total = s.warmup_steps, s.total_steps
    if s.kind == "onecycle":
        return _onecycle(step, warmup, total, s.peak)
    if step < warmup:
        done = step if s.kind == "triangular" else step + 1
        return s.peak * (s.warmup_factor + (1 - s.warmup_factor) * done / warmup)
    if s.kind == "step":
        return s.peak * s.decay_rate ** math.floor(step / s.steps_per_epoch / s.decay_epochs)
    if s.kind == "multistep":
        epoch = step / s.steps_per_epoch
        return s.peak * s.decay_rate ** sum(epoch >= milestone for milestone in s.decay_milestones)
    if s.kind == "constant":
        return s.peak
    remaining = 1 - min(1.0, (step - warmup) / max(1, total - warmup))
    factor = {
        "cosine": 0.5 * (1 - math.cos(math.pi * remaining)),
        "polynomial": remaining**s.decay_power,
        "triangular": remaining,
    }[s.kind]
    return s.min_lr + (s.peak - s.min_lr) * factor


def _onecycle(step: int, warmup: int, total: int, peak: float) -> float:
    first, last = peak / ONECYCLE_DIV, peak / ONECYCLE_DIV / ONECYCLE_FINAL_DIV
    if step < warmup:
        return _half_cosine(first, peak, step / (warmup - 1) if warmup > 1 else 1.0)
    return _half_cosine(peak, last, min(1.0, (step + 1 - warmup) / max(1, total - warmup)))


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def _peak_step(schedule: Schedule) -> int:
    """Return the first step with the highest rate: the last of the warmup, or the one after it."""
    warmup, end = schedule.warmup_steps, schedule.total_steps - 1
    around = [min(max(0, step), end) for step in (warmup - 1, warmup)]
    return max(around, key=lambda step: learning_rate(step, schedule))


def describe_schedule(schedule: Schedule) -> str:
    """Return the learning rate at its start, peak, quarters and end, as lines for a terminal."""
    s, total = schedule, schedule.total_steps
    inner = [(_peak_step(s), "peak"), *((q * total // 4, f"{q}/4") for q in (1, 2, 3))]
    points = [(0, "start"), *sorted(inner), (total - 1, "end")]
    warmup = f", warmup of {s.warmup_epochs:g} epochs" if s.warmup_steps else ""
    lines = [f"learning rate: {s.kind}, {s.epochs:g} epochs of {s.steps_per_epoch:,} steps{warmup}"]
    lines += [
        f"  {name:<6}epoch {step / s.steps_per_epoch:<8.4g}{learning_rate(step, s):.4g}"
        for step, name in points
    ]
    return "\n".join(lines)


def draw_schedule(schedule: Schedule, png: Path) -> None:
    """Plot the learning rate over epochs to a PNG, with the warmup shaded; raise WriteError if that fails."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from fastcnn.viz.curves import MUTED, TRAIN, VAL

    # Points of the curve, with its peak and end.
    s, total, top = schedule, schedule.total_steps, _peak_step(schedule)
    steps = sorted({*range(0, total, max(1, total // 2000)), top, total - 1})
    epochs = [step / s.steps_per_epoch for step in steps]
    rates = [learning_rate(step, s) for step in steps]
    at, peak = top / s.steps_per_epoch, learning_rate(top, s)

    # Curve, peak and axes.
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if s.warmup_steps:
        axes.axvspan(0, s.warmup_epochs, color=MUTED, alpha=0.5, linewidth=0, label="warmup")
    axes.plot(epochs, rates, color=TRAIN, linewidth=2, clip_on=False)
    axes.plot(at, peak, color=VAL, marker="o", markersize=4, clip_on=False)
    right, side = (6, "left") if at < s.epochs / 10 else (0, "center")  # not across the axis
    axes.annotate(
        f"{peak:.4g}", (at, peak), textcoords="offset points", xytext=(right, 7), ha=side, color=VAL
    )
    axes.set_title(f"learning rate ({s.kind})", loc="left")
    axes.set_xlabel("epoch")
    axes.set_xlim(0, s.epochs)
    axes.set_ylim(0, 1.12 * (peak or 1))
    axes.grid(color=MUTED, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if s.warmup_steps:
        axes.legend(frameon=False, loc="upper right")
    files.save_picture(figure, png, "the picture")
