"""The cache's folder, also for a user without a home, and a cache that cannot be written."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from fastcnn.data import cache
from fastcnn.errors import UserError
from full_disk import refuse_writes


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Simulate a user without HOME and without an entry in the list of users."""

    def unknown(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("FASTCNN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", unknown)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    cache._without_home.cache_clear()
    return tmp_path


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no users with numbers")
def test_a_user_without_a_home_has_a_private_temporary_folder(homeless, capsys):
    path = homeless / f"fastcnn-{os.getuid()}"
    assert [cache.cache_root() for _ in range(3)] == [path] * 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert capsys.readouterr().err == (
        f"warning: no home folder: the cache is {path}; FASTCNN_CACHE sets another\n"
    )


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no users with numbers")
def test_a_temporary_folder_of_another_user_is_refused(homeless, monkeypatch):
    (homeless / "fastcnn-4242").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    with pytest.raises(UserError, match="of another user; set FASTCNN_CACHE"):
        cache.cache_root()


def test_a_cache_that_cannot_be_written_is_one_warning_and_stays(tmp_path, capsys, monkeypatch):
    path = tmp_path / "manifests" / "a.npz"
    cache.keep(path, "files are examined anew next time", numbers=np.arange(3))
    refuse_writes(monkeypatch, errno.EDQUOT)
    cache.keep(path, "files are examined anew next time", numbers=np.arange(4))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: cannot write a cache's file {path}: Disk quota exceeded (")
    assert line.endswith("; make room within the quota; until then files are examined anew next time")
    assert len(np.load(path)["numbers"]) == 3
    assert list(path.parent.iterdir()) == [path]
