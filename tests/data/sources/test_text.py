"""Text files in the encodings and with the line ends of different systems."""

import codecs
from pathlib import Path

import pytest

from fastcnn.data.sources.text import lines_of, read_text_any
from fastcnn.errors import UserError

LINES = ["café/1.jpg crème", "b/2.jpg dog"]


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (b"", "utf-16-le"),
        (b"", "utf-16-be"),
        (b"", "cp1252"),
        (b"", "latin-1"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_list_reads_alike_in_every_encoding_and_with_every_line_end(
    tmp_path: Path, mark: bytes, encoding: str, end: str
) -> None:
    path = tmp_path / "val.txt"
    path.write_bytes(mark + (end.join(LINES) + end).encode(encoding))
    assert lines_of(path) == LINES
    assert read_text_any(path) == "\n".join(LINES) + "\n"


def test_only_line_ends_separate_lines(tmp_path: Path) -> None:
    path = tmp_path / "val.txt"
    path.write_bytes("a\x85b 1\nc\u2028d 2".encode())
    assert lines_of(path) == ["a\x85b 1", "c\u2028d 2"]


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "val.txt"
    path.write_bytes(codecs.BOM_UTF8)
    assert lines_of(path) == []


@pytest.mark.parametrize(
    "data", [bytes(range(256)), b"PK\x03\x04\x00\x00\x00\x01", codecs.BOM_UTF16_LE + b"a"]
)
def test_a_file_that_is_no_text_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "val.txt"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"val\.txt: not a text file; save it as text in UTF-8"):
        lines_of(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"val\.txt: No such file or directory"):
        lines_of(tmp_path / "val.txt")
