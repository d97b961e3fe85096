"""Files of tensors: no code runs, and no file takes more memory than its bytes."""

from __future__ import annotations

import io
import os
import pickle
import zipfile

import pytest
import torch

from fastcnn.runtime.tensor_file import read_tensor_file


def rewritten(path, change, method=zipfile.ZIP_STORED) -> None:
    """Write a zip again, with each record changed by `change(name, content)`."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", method) as new:
        for record in old.infolist():
            new.writestr(record.filename, change(record.filename, old.read(record)))
    path.write_bytes(out.getvalue())


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"a": torch.arange(1000.0), "names": ["x"], "step": 5}, path)
    return path


def test_tensors_and_plain_types_are_read(path):
    content = read_tensor_file(path)
    assert torch.equal(content.pop("a"), torch.arange(1000.0))
    assert content == {"names": ["x"], "step": 5}


def test_files_of_before_zips_are_read(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_tensor_file(tmp_path / "old.pth")["a"].tolist() == [1, 1, 1]


def test_code_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(pickle.UnpicklingError):
        read_tensor_file(tmp_path / "evil.pt")
    assert not (tmp_path / "made").exists()


def test_compressed_records_are_refused(path):
    rewritten(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        read_tensor_file(path)


def test_memory_by_a_number_alone_is_refused(path):
    evil = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R."  # bytearray(2**36)
    rewritten(path, lambda name, content: evil if name.endswith("data.pkl") else content)
    with pytest.raises(ValueError, match="a bytearray"):
        read_tensor_file(path)


def test_a_storage_larger_than_its_record_is_refused(path):
    much = b"J" + (10**8).to_bytes(4, "little")
    rewritten(path, lambda name, content: content.replace(b"M\xe8\x03", much))
    with pytest.raises((ValueError, RuntimeError), match="larger than the file|does not match"):
        read_tensor_file(path)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.zeros(()).expand(10**6, 10**6), "larger than the file"),
        (torch.ones(3, 3).to_sparse(), "not dense"),
        (torch.empty(10**6, 10**6, device="meta"), "not dense"),
        (2**63, "64 bits"),
    ],
    ids=["strides of 0", "sparse", "meta", "number"],
)
def test_values_without_bytes_of_their_own_are_refused(tmp_path, value, reason):
    torch.save([value], tmp_path / "a.pt")
    with pytest.raises(ValueError, match=reason):
        read_tensor_file(tmp_path / "a.pt")


def test_references_without_end_are_refused(tmp_path):
    value: list = ["x"]
    for _ in range(40):
        value = [value, value]
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="values"):
        read_tensor_file(tmp_path / "a.pt")


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_cut_file_is_not_an_error_of_the_machine(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises((ValueError, EOFError, RuntimeError, pickle.UnpicklingError)):
        read_tensor_file(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_and_folders_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, strerror in (("pipe", "Not a regular file"), (".", "Is a directory"), ("none", "No such file")):
        with pytest.raises(OSError, match=strerror):
            read_tensor_file(tmp_path / name)
