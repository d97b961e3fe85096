"""`--val-interval`: what is validated, said, saved and drawn when some epochs are not validated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastcnn.files import save_picture
from fastcnn.viz.curves import Curves
from runs import QUICK, interrupt_after, records

FLAGS = (*QUICK, "--data-backend", "torch", "--lr", "0.05", "--output-dir", "run")


@pytest.mark.parametrize(
    ("interval", "epochs", "expected"),
    [
        pytest.param(2, "4", [2, 4], marks=pytest.mark.slow),
        (2, "3", [2, 3]),
        (3, "3.5", [3, 3.5]),
        pytest.param(9, "2", [2], marks=pytest.mark.slow),
    ],
)
def test_every_so_many_epochs_and_the_last_are_validated(train, demo, interval, epochs, expected):
    assert train(*FLAGS, "--data", demo, "--epochs", epochs, "--val-interval", interval) == 0
    logged = records(Path("run"), "epoch")
    assert [record["step"] for record in logged] == [10, 20, 30, 40][: int(float(epochs))] + [35] * (
        epochs == "3.5"
    )
    assert [record["epoch"] for record in logged if "val" in record] == expected
    best = torch.load("run/best.pt")["best"]
    found = {record["epoch"]: record["val"]["acc1"] for record in logged if "val" in record}
    assert best["acc1"] == max(found.values()) == found[best["epoch"]]
    assert torch.load("run/best.pt")["epoch"] == best["epoch"]


def test_lines_say_what_was_not_validated(train, demo, capsys):
    assert train(*FLAGS, "--data", demo, "--epochs", "3", "--val-interval", "2") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "  train loss" in line]
    assert [("not validated" in line, "val loss" in line) for line in lines] == [
        (True, False),
        (False, True),
        (False, True),
    ]
    assert all(" img/s  data wait " in line for line in lines)


@pytest.mark.slow
def test_checkpoints_come_as_often_as_without_and_a_resumed_run_validates_the_same_epochs(
    train, demo, monkeypatch
):
    flags = (*FLAGS, "--data", demo, "--epochs", "4", "--val-interval", "3", "--deterministic")
    assert train(*flags, "--output-dir", "whole") == 0
    interrupt_after(20, lambda: train(*flags))
    saved = torch.load("run/last.pt")
    assert (saved["epoch"], saved["best"]) == (2, {})
    assert not Path("run/best.pt").exists()
    assert train(*flags, "--resume") == 0
    whole, parts = (records(Path(name), "epoch") for name in ("whole", "run"))
    assert [(r["step"], r["train"], r.get("val")) for r in whole] == [
        (r["step"], r["train"], r.get("val")) for r in parts
    ]
    assert ["val" in record for record in parts] == [False, False, True, True]


def test_curves_show_validations_where_they_were(tmp_path):
    def metrics(value: float) -> dict[str, float]:
        return {"loss": value, "acc1": 10 * value}

    log: list[dict[str, Any]] = []
    for epoch in (1, 2, 3, 4):
        window = {"kind": "train", "progress": epoch, "metrics": metrics(epoch), "main_metric": "acc1"}
        validated = {"val": metrics(epoch + 0.5)} if epoch in (2, 4) else {}
        log += [window, {"kind": "epoch", "epoch": epoch, "train": metrics(epoch), **validated}]
    curves = Curves()
    for record in log:
        curves.add(record)
    figure = curves.figure()
    drawn = [line for axes in figure.axes for line in axes.lines if line.get_label() == "validation"]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in drawn] == [
        ([2, 4], [2.5, 4.5]),
        ([2, 4], [25, 45]),
    ]
    save_picture(figure, tmp_path / "curves.png", "the curves")
    assert (tmp_path / "curves.png").stat().st_size > 5_000
