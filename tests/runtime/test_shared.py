"""A value in a file whose arrays are mapped."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from fastcnn.config.settings import DataSettings
from fastcnn.data.sources.open import open_data
from fastcnn.runtime import shared as shared_module
from fastcnn.runtime.shared import map_shared, write_shared


def shared(value: object) -> object:
    path = write_shared(value)
    try:
        return map_shared(path)
    finally:
        os.remove(path)


@pytest.mark.parametrize("task", ["classification", "segmentation", "detection"])
@pytest.mark.parametrize("data", ["demo", "synthetic"])
def test_a_data_set_is_the_same_after_it(task, data, demo, monkeypatch):
    for module in ("open", "masks.source", "boxes.source"):
        monkeypatch.setattr(f"fastcnn.data.sources.{module}.ensure_demo", lambda: demo)
    source = open_data(DataSettings(data=data), task=task, seed=0)
    found = shared(source)
    assert type(found) is type(source)
    assert found.class_names == source.class_names
    for split, same in ((source.train, found.train), (source.val, found.val)):
        assert same.fingerprint == split.fingerprint
        assert np.array_equal(same.sizes, split.sizes)
        assert same.problems == split.problems
        assert [same.name(i) for i in range(len(same))] == [split.name(i) for i in range(len(split))]


def test_arrays_are_equal_and_may_be_written_to():
    arrays = [np.arange(1000), np.zeros((0, 3)), np.eye(4)[:, ::2], np.array(5), np.ones((3, 4), order="F")]
    path = write_shared({"arrays": arrays, "text": "caf\u00e9"})
    first, second = map_shared(path), map_shared(path)
    os.remove(path)
    assert first["text"] == "caf\u00e9"
    for array, found in zip(arrays, first["arrays"]):
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)
    first["arrays"][0][:] = -1
    assert np.array_equal(second["arrays"][0], arrays[0])


def test_a_value_without_arrays_needs_no_mapping():
    assert shared({"a": [1, None]}) == {"a": [1, None]}


def test_the_file_is_its_users_alone():
    path = write_shared(np.arange(3))
    assert os.stat(path).st_mode & 0o077 == 0
    os.remove(path)


def test_a_full_disk_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_module.tempfile, "tempdir", str(tmp_path))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shared_module.pickle, "dump", full)
    with pytest.raises(OSError, match="space"):
        write_shared(np.arange(10))
    assert not list(tmp_path.iterdir())
