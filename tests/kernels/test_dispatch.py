"""Which side does a layer: what was measured on this GPU, here before what the package ships, else Triton."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch

from fastcnn_kernels import dispatch
from fastcnn_kernels.dispatch import Layer, record, table, times, wins
from fastcnn_kernels.support import warn_once

GPU = "NVIDIA Test 9"
LAYER = Layer("forward", "bfloat16", 3, 1, 32, 112, 112, 1, 1)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCNN_KERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dispatch, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(dispatch, "_gpu", lambda device: GPU)
    (tmp_path / "shipped").mkdir()
    times.cache_clear()
    yield tmp_path
    times.cache_clear()
    warn_once.cache_clear()


def ship(folder, **batches: tuple[float, float]) -> None:
    known = {LAYER: {int(name[1:]): pair for name, pair in batches.items()}}
    (folder / "shipped" / "nvidia-test-9.json").write_text(json.dumps(table(GPU, known)))


def triton_wins(batch: int = 256, kind: str = "forward", padding: tuple[int, int] = (1, 1)) -> bool:
    size = (batch, 32, 112, 112)
    layer: dict[str, Any] = {"input_size": size, "kernel": 3, "stride": 1, "padding": padding}
    return wins(kind, torch.device("cpu"), torch.bfloat16, **layer)


def test_what_nobody_measured_runs_on_triton():
    assert triton_wins()


def test_the_shipped_table_decides(folders):
    ship(folders, n256=(20.0, 10.0))
    assert not triton_wins()
    assert triton_wins(kind="weight_grad")  # of which it says nothing
    assert triton_wins(padding=(1, 0))


def test_of_several_batch_sizes_the_nearest_decides(folders):
    ship(folders, n256=(10.0, 20.0), n8=(9.0, 3.0))
    assert triton_wins(128)
    assert not triton_wins(16)


def test_what_was_measured_here_goes_before_what_is_shipped(folders):
    ship(folders, n256=(20.0, 10.0), n8=(9.0, 3.0))
    record(GPU, [(LAYER, 256, 10.0, 20.0)])
    assert triton_wins(256)
    assert not triton_wins(8)
    record(GPU, [(LAYER, 256, 30.0, 20.0)])  # measured anew
    assert not triton_wins(256)


def test_measurements_are_kept_in_a_readable_file(folders):
    record(GPU, [(LAYER, 256, 10.0, 20.0)])
    content = json.loads((folders / "cache" / "nvidia-test-9.json").read_text())
    row = {"kind": "forward", "dtype": "bfloat16", "kernel": 3, "stride": 1, "channels": 32, "height": 112}
    row |= {"width": 112, "padding_height": 1, "padding_width": 1}
    assert content["gpu"] == GPU
    assert content["layers"] == [{**row, "batch": 256, "triton_us": 10.0, "pytorch_us": 20.0}]
    assert [path.name for path in (folders / "cache").iterdir()] == ["nvidia-test-9.json"]


def row(**changes: object) -> str:
    right = {**LAYER._asdict(), "batch": 8, "triton_us": 9, "pytorch_us": 3}
    return json.dumps({"layers": [right | changes]})


def test_layers_that_differ_in_padding_alone_have_times_of_their_own():
    record(GPU, [(LAYER, 256, 10.0, 20.0), (LAYER._replace(padding_width=0), 256, 20.0, 10.0)])
    times.cache_clear()
    assert triton_wins()
    assert not triton_wins(padding=(1, 0))


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", '{"layers": [{}]}', '{"layers": 3}'),
        *(row(batch="256"), row(batch=0), row(batch=None), row(triton_us=None), row(channels=[])),
    ],
)
def test_a_damaged_table_is_ignored_with_one_line(folders, content):
    path = folders / "cache" / "nvidia-test-9.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.warns(UserWarning, match="not a table of measurements"):
        assert triton_wins()
    times.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert triton_wins()  # said once


def test_a_cache_that_cannot_be_written_is_said_and_the_times_still_count(folders):
    (folders / "cache").write_text("a file, not a folder")
    with pytest.warns(UserWarning, match="measurements are made again the next time"):
        record(GPU, [(LAYER, 256, 20.0, 10.0)])
    assert not triton_wins()  # this process knows


def test_the_cache_lies_with_the_users_others(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTCNN_KERNELS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert dispatch.cache_folder() == tmp_path / "fastcnn" / "kernels"


def test_a_user_without_a_home_has_a_cache(monkeypatch):
    def no_home(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FASTCNN_KERNELS_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(dispatch.Path, "expanduser", no_home)
    assert dispatch.cache_folder().parts[-2:] == ("fastcnn", "kernels")
