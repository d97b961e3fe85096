"""wandb offline, MLflow and Trackio with local storage: a run, and its continuation under the same id."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from fake_trackers import feed, open_tracking
from fastcnn.trackers.tracking import IDS, read_ids


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_twice(folder: Path, name: str) -> str:
    """Track two starts of one run; return its id."""
    folder.mkdir()
    ids = []
    for resumes, steps in ((False, (1, 2)), (True, (2, 3))):
        tracking = open_tracking(folder, name, resumes=resumes, arch="lenet5", lr=0.1)
        feed(tracking, folder, steps)
        assert tracking.lines() == []
        ids.append(read_ids(folder / IDS)[name])
    assert ids[0] == ids[1]
    return ids[0]


def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the database takes seconds to create
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "shapes")
    identity = run_twice(tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient()
    run = client.get_run(identity)
    assert client.get_experiment(run.info.experiment_id).name == "shapes"
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params == {"arch": "lenet5", "lr": "0.1"}
    assert run.data.tags["bottleneck"] == "Bottleneck: data."
    history = client.get_metric_history(identity, "train/metrics/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 1.0), (2, 1.0), (3, 1.5)]
    assert [file.path for file in client.list_artifacts(identity)] == ["validation.png"]


@pytest.mark.slow
def test_mlflow_in_its_database(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr("fastcnn.trackers.tracking.FINISH_SECONDS", 200.0)
    identity = run_twice(tmp_path / "run", "mlflow")
    assert mlflow.MlflowClient().get_run(identity).data.metrics["train/metrics/loss"] == 1.5


def test_trackio(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    from trackio import sqlite_storage, utils

    for module in (sqlite_storage, utils):  # read from $TRACKIO_DIR once
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr(sqlite_storage, "MEDIA_DIR", tmp_path / "trackio" / "media", raising=False)
    monkeypatch.setenv("TRACKIO_PROJECT", "shapes")
    name = run_twice(tmp_path / "run", "trackio")
    assert name.startswith("run-")
    with sqlite3.connect(tmp_path / "trackio" / "shapes.db") as database:
        rows = database.execute("SELECT step, metrics FROM metrics WHERE run_name = ?", (name,)).fetchall()
    assert [step for step, metrics in rows if "train/metrics/loss" in str(metrics)] == [1, 2, 2, 3]
    assert any("Bottleneck" in str(metrics) for _, metrics in rows)


@pytest.mark.slow
def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    identity = run_twice(tmp_path / "run", "wandb")
    assert wandb.run is None
    folders = sorted((tmp_path / "wandb").glob(f"offline-run-*-{identity}"))
    assert len(folders) in (1, 2)  # of the same second
    content = b"".join(path.read_bytes() for folder in folders for path in folder.glob("run-*.wandb"))
    for word in (b"lenet5", b"train/metrics/loss", b"Bottleneck: data."):
        assert word in content
    assert [path for folder in folders for path in folder.rglob("validation_*.png")]
