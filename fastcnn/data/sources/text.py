"""Text files of any encoding and line ends: lists, label files, class names, tables."""

from __future__ import annotations

import codecs
import os

from fastcnn.data.reading import read_file
from fastcnn.errors import UserError

_MARKS = (  # UTF-32 first, as its mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SAMPLE = 4096
"""Bytes that tell UTF-16 without a mark, and data that is no text."""


def read_text_any(path: str | os.PathLike[str]) -> str:
    """Read a text file whatever its encoding, with "\\n" as the only line end.

    UTF-8, UTF-16 and UTF-32 with a mark, UTF-8 and UTF-16 without, else Windows-1252 or Latin-1.

    Raises:
        UserError: no such file, a file that cannot be read, or one that is no text.
    """
    try:
        data = read_file(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; correct the path") from error
    try:
        text = decode_text(data)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file; save it as text in UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines_of(path: str | os.PathLike[str]) -> list[str]:
    """Return the lines of a text file, whatever its encoding and line ends; UserError as `read_text_any`."""
    lines = read_text_any(path).split("\n")  # not splitlines, which splits names at rare characters too
    return lines if lines[-1] else lines[:-1]


def decode_text(data: bytes) -> str:
    """Decode the bytes of a text file by its mark or its content.

    Raises:
        UnicodeDecodeError: not a text.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding)
    sample = data[:_SAMPLE]
    zeros = (sample[0::2].count(0), sample[1::2].count(0))
    if sum(zeros):
        if min(zeros) * 4 > max(zeros) or max(zeros) * 5 < len(sample):  # not one of two bytes, mostly
            raise UnicodeDecodeError("utf-8", data, data.index(0), data.index(0) + 1, "a zero byte")
        return data.decode("utf-16-be" if zeros[0] > zeros[1] else "utf-16-le")
    for encoding in ("utf-8", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def stated_side(value: object) -> int:
    """Return the height or width in pixels that a label file states; 0 if it is none below 2**31."""
    if isinstance(value, str):
        value = float(value) if value.isdecimal() else 0
    return int(value) if isinstance(value, int | float) and 0 < value < 2**31 else 0
