"""The study of docs/optuna.md, with small images and a trial that is pruned."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import fastcnn
from runs import QUICK_SETTINGS

PAGE = Path(__file__).parents[1] / "docs" / "optuna.md"


def test_the_study_of_the_page(demo, tmp_path, monkeypatch, one_core):
    optuna = pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastcnn.engine.logger.Logger._draw", lambda self: None)
    real, trials = fastcnn.fit, iter(range(3))

    def quick_fit(**settings: Any) -> Any:
        rate = 0.0 if next(trials) == 2 else 0.05  # the third one learns nothing
        small = {**QUICK_SETTINGS, "data": demo, "data_backend": "torch", "epochs": 2, "lr": rate}
        return real(**{**settings, **small})

    monkeypatch.setattr(fastcnn, "fit", quick_fit)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert "n_trials=8" in code
    names: dict[str, Any] = {}
    exec(compile(code.replace("n_trials=8", "n_trials=3"), str(PAGE), "exec"), names)
    states = [trial.state for trial in names["study"].trials]
    assert states == [optuna.trial.TrialState.COMPLETE] * 2 + [optuna.trial.TrialState.PRUNED]
    assert set(names["study"].best_params) == {"lr", "weight_decay"}
    assert Path("runs/study/2/last.pt").exists()
