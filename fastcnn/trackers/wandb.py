"""Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastcnn.trackers.base import PROJECT, TrackedRun, Tracker


class Wandb(Tracker):
    """A run of wandb, beside those that the user's program has open.

    $WANDB_MODE=offline, $WANDB_DIR, $WANDB_ENTITY and the others of wandb hold.

    Args:
        patience: seconds to wait for uploads at the end; the rest stays for `wandb sync`.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience

    def start(self, run: TrackedRun, resume: str | None) -> str:
        import wandb

        options: dict[str, Any] = {
            "console": "off",
            "login_timeout": 1,  # a prompt for a key would share the terminal with the log
            "finish_timeout": self.patience,
        }
        known = {name: value for name, value in options.items() if name in wandb.Settings.model_fields}
        self.run = wandb.init(
            project=run.project or os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", run.name),
            id=resume,
            resume="allow" if resume else None,
            config=dict(run.settings),
            reinit="create_new",
            settings=wandb.Settings(**known),
        )
        # A resumed run repeats steps, which wandb's own counter drops.
        self.run.define_metric("*", step_metric="step")
        return self.run.id

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log({**numbers, "step": step})

    def picture(self, step: int, name: str, path: Path) -> None:
        import wandb

        self.run.log({name: wandb.Image(str(path)), "step": step})

    def text(self, step: int, name: str, text: str) -> None:
        self.run.summary[name] = text

    def finish(self, *, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))
