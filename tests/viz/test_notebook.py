"""A run in a notebook: one bar, curves that are redrawn in the cell, a history."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest

from fastcnn.viz import notebook
from runs import QUICK_SETTINGS

ROOT = Path(__file__).parents[2]


def test_ipython_is_not_imported_and_a_terminal_of_it_is_no_notebook(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not notebook.in_notebook()
    assert "IPython" not in sys.modules

    class Shell:
        kernel: Any = None

        @staticmethod
        def get_ipython() -> Any:
            return Shell

    monkeypatch.setitem(sys.modules, "IPython", Shell)
    assert not notebook.in_notebook()
    monkeypatch.setattr(Shell, "kernel", object())
    assert notebook.in_notebook()


@pytest.mark.slow
def test_a_run_in_a_kernel(demo, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'kernels'}")
    settings: dict[str, Any] = {"arch": "lenet5", "data": str(demo), "data_backend": "torch", "lr": 0.05}
    settings |= {**QUICK_SETTINGS, "epochs": 2, "tracker": "none", "log_interval": 1}
    run = f"import fastcnn\nresult = fastcnn.fit(**{settings!r})"
    code = run, "[epoch['epoch'] for epoch in result.history]"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in code])
    nbclient.NotebookClient(book, timeout=250, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = book.cells[0].outputs
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 1  # replaced in place
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "epoch 2/2  train loss" in text
    assert ", total time 0:" in text.splitlines()[-1]
    assert "step 1/" not in text  # in the bar
    assert ast.literal_eval(book.cells[1].outputs[0]["data"]["text/plain"]) == [1, 2]
