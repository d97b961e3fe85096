"""Training state of a small network: SGD at a constant rate, on the CPU in float32."""

from __future__ import annotations

from torch import nn

from fastcnn.config import OptimizerSettings
from fastcnn.engine.state import StepOptions, TrainState, build_state
from fastcnn.optim.build import build_optimizer
from fastcnn.optim.schedules import Schedule
from fastcnn.transfer.freeze import Frozen, frozen_layers


def small_state(
    network: nn.Module, freeze: bool, accum_steps: int = 1, bucket_cap_mb: int | None = None
) -> TrainState:
    """Build a state for uint8 RGB images; with `freeze` only the classifier trains at first."""
    frozen = Frozen(network, frozen_layers(network, "backbone", None)) if freeze else None
    return build_state(
        network,
        build_optimizer(network, OptimizerSettings(weight_decay=1e-3), lr=0.05),
        Schedule(peak=0.05, steps_per_epoch=4, epochs=1, kind="constant"),
        StepOptions(accum_steps=accum_steps, bucket_cap_mb=bucket_cap_mb),
        mean=[0.5] * 3,
        std=[0.25] * 3,
        frozen=frozen,
    )
