"""`benchmarks/export_networks.py`: outputs and latency of exported networks, as JSON and as a table."""

from __future__ import annotations

import json
import sys

import pytest

import export_networks
import report
from fastcnn.exporter import check


@pytest.mark.slow
def test_networks_are_compared_timed_and_listed(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "SECONDS", 0.1)
    output = tmp_path / "export.json"
    words = [
        "--photos",
        str(demo / "train"),
        "--images",
        "24",
        "--networks",
        "lenet5",
        "--output",
        str(output),
    ]
    monkeypatch.setattr(sys, "argv", ["export_networks.py", *words])
    export_networks.main()
    out = capsys.readouterr().out
    assert "lenet5, 32 px, " in out
    content = json.loads(output.read_text())
    found = content["networks"]["lenet5"]
    assert content["settings"]["photos"] == 24
    assert found["distinct_predictions"] > 20
    assert found["agreement"] == {"onnx": 1, "pt2": 1}
    assert max(found["difference"].values()) < 1e-4
    table = "\n".join(report.exported_networks_section(content))
    assert "| lenet5, 32 px | eager | " in table
    assert "| 100.000% |" in table
