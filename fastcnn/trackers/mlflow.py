"""MLflow, through its client: the thread has no active run of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from fastcnn.trackers.base import PROJECT, TrackedRun, Tracker

BATCH = 100
"""Max parameters in a request of MLflow."""


class Mlflow(Tracker):
    """A run of MLflow at $MLFLOW_TRACKING_URI, by default in ./mlflow.db."""

    def start(self, run: TrackedRun, resume: str | None) -> str:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client = MlflowClient()
        if resume is not None:
            self.client.update_run(resume, status="RUNNING")
            self.id = resume
            return self.id
        name = run.project or os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self.client.create_experiment(name)
        self.id = self.client.create_run(number, run_name=run.name).info.run_id
        parameters = [Param(name, str(value)) for name, value in run.settings.items()]
        for first in range(0, len(parameters), BATCH):
            self.client.log_batch(self.id, params=parameters[first : first + BATCH])
        return self.id

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self.client.log_batch(self.id, [Metric(name, value, now, step) for name, value in numbers.items()])

    def picture(self, step: int, name: str, path: Path) -> None:
        self.client.log_artifact(self.id, str(path))

    def text(self, step: int, name: str, text: str) -> None:
        self.client.set_tag(self.id, name, text)

    def finish(self, *, failed: bool) -> None:
        self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")
