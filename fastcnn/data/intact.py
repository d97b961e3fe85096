"""Check that a decoder finds no error in encoded bytes: for DALI, where an error may end the process.

The structure of JPEG and PNG is checked to the end, including tables and checksums. Damaged pixels within it
are not found: they decode to other pixels, without an error. Rare structures count as not intact.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# JPEG (ITU T.81, annex B)

BASELINE, PROGRESSIVE = (0xC0, 0xC1), 0xC2
HUFFMAN, END, SCAN, QUANTIZATION, RESTARTS, APP0, APP1, APP15, COMMENT = (
    *(0xC4, 0xD9, 0xDA, 0xDB, 0xDD),
    *(0xE0, 0xE1, 0xEF, 0xFE),
)
GRAY_SAMPLINGS = (0x11, 0x12, 0x21, 0x22)
COLOR_SAMPLINGS = (0x11, 0x12, 0x21, 0x22, 0x41)
"""Horizontal and vertical sampling factors of brightness; those of the colors are 1."""
EXIF = b"Exif\0\0"
ORIENTATION = 0x0112


class Frame(NamedTuple):
    """What an intact image decodes to."""

    height: int
    width: int
    orientation: int = 1
    """EXIF orientation, 1 to 8."""


def intact_jpeg(data: bytes) -> Frame | None:
    """Return the frame of a JPEG with 1 or 3 channels of 8 bits and all that its decoder requires."""
    marks = _marks(data)
    at, components, progressive, scans = 2, b"", False, 0
    height = width = 0
    orientation = 1
    quantization: set[int] = set()
    huffman: set[int] = set()
    while data[at : at + 1] == b"\xff" and at + 2 <= len(data):
        marker = data[at + 1]
        if marker == END:
            whole = scans > 0 and (progressive or scans == 1)
            return Frame(height, width, orientation) if whole else None
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        content = data[at + 4 : at + 2 + size]
        at += 2 + size
        if size < 2 or len(content) != size - 2:
            return None
        if marker in (*BASELINE, PROGRESSIVE):
            if components or not _is_plain_frame(content):
                return None
            height, width = struct.unpack_from(">HH", content, 1)
            components, progressive = content[6:], marker == PROGRESSIVE
        elif marker == SCAN:
            tables = _tables_of(content, components, progressive=progressive)
            if tables is None or not (tables <= huffman and set(components[2::3]) <= quantization):
                return None
            scans += 1
            at = int(marks[np.searchsorted(marks, at)]) if len(marks) and marks[-1] >= at else len(data)
        elif marker == QUANTIZATION:
            if len(content) % 65 or max(content[::65], default=9) > 3:
                return None
            quantization.update(content[::65])
        elif marker == HUFFMAN:
            found = _huffman_tables(content)
            if found is None:
                return None
            huffman |= found
        elif marker == RESTARTS:
            if size != 4:
                return None
        elif marker == APP1 and content.startswith(EXIF):
            stated = _plain_orientation(content[len(EXIF) :])
            if stated is None:
                return None
            orientation = stated
        elif not (APP0 <= marker <= APP15 or marker == COMMENT):
            return None
    return None


def _marks(data: bytes) -> np.ndarray:
    """Return the places of the markers other than those within a scan, int64 [M]."""
    values = np.frombuffer(data, dtype=np.uint8)
    places = np.flatnonzero(values[:-1] == 0xFF)
    after = values[places + 1]
    return places[(after != 0) & ((after < 0xD0) | (after > 0xD7))]


def _is_plain_frame(content: bytes) -> bool:
    if len(content) < 6:
        return False
    bits, height, width, count = struct.unpack_from(">BHHB", content)
    parts = content[6:]
    if bits != 8 or not (height and width) or count not in (1, 3) or len(parts) != 3 * count:
        return False
    names, samplings, tables = parts[::3], parts[1::3], parts[2::3]
    usual = samplings[0] in GRAY_SAMPLINGS if count == 1 else samplings[0] in COLOR_SAMPLINGS
    return (
        usual and samplings[1:] == b"\x11\x11"[: count - 1] and len(set(names)) == count and max(tables) < 4
    )


def _tables_of(content: bytes, components: bytes, *, progressive: bool) -> set[int] | None:
    """Return the Huffman tables that a scan needs, numbered as in their segments; None if it is not plain."""
    count = content[0] if content else 0
    if not components or len(content) != 4 + 2 * count or not 1 <= count <= 3:
        return None
    names, tables = content[1 : 1 + 2 * count : 2], content[2 : 2 + 2 * count : 2]
    first, last, bits = content[-3:]
    high, low = bits >> 4, bits & 15
    of_frame = [name for name in components[::3] if name in names]
    if list(names) != of_frame or max(table >> 4 for table in tables) > 3 or max(t & 15 for t in tables) > 3:
        return None
    direct, others = {table >> 4 for table in tables}, {0x10 | (table & 15) for table in tables}
    if not progressive:
        whole = len(names) == len(components) // 3 and (first, last, bits) == (0, 63, 0)
        return direct | others if whole else None
    if low > 13 or (high and low != high - 1):
        return None
    if first == 0:
        return None if last else (set() if high else direct)
    return others if count == 1 and first <= last <= 63 else None


def _huffman_tables(content: bytes) -> set[int] | None:
    """Return the numbers of the tables of a segment, 0x10 and more for AC; None if one is invalid."""
    found = set()
    while content:
        number, lengths = content[0], content[1:17]
        count = sum(lengths)
        values = content[17 : 17 + count]
        if number & 0xEC or len(lengths) != 16 or count > 256 or len(values) != count:
            return None
        if number < 0x10 and max(values, default=0) > 15:
            return None
        code = 0
        for length, codes in enumerate(lengths, 1):  # no code is all ones
            code += codes
            if codes and code >= 1 << length:
                return None
            code <<= 1
        found.add(number)
        content = content[17 + count :]
    return found


def _plain_orientation(tags: bytes) -> int | None:
    """Return the orientation of EXIF, 1 without one; None unless every reader understands it alike."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tags[:4])
    if order is None or len(tags) < 10:
        return None
    (start,) = struct.unpack_from(order + "I", tags, 4)
    if start < 8 or start + 2 > len(tags):
        return None
    (count,) = struct.unpack_from(order + "H", tags, start)
    if start + 2 + 12 * count > len(tags):
        return None
    entries = [struct.unpack_from(order + "HHIHH", tags, start + 2 + 12 * i) for i in range(count)]
    stated = [entry for entry in entries if entry[0] == ORIENTATION]
    if not stated:
        return 1
    plain = len(stated) == 1 and stated[0][1:3] == (3, 1) and 1 <= stated[0][3] <= 8
    return stated[0][3] if plain else None


# PNG (w3.org/TR/png-3)

PNG_START = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Values of a pixel by type of color."""
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Bits of a value by type of color."""
PALETTE = 3
BEFORE = (b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"sBIT", b"bKGD", b"tIME", b"tEXt")
AFTER = (b"tIME", b"tEXt")
"""Chunks before and after the pixels; others may have a meaning for some decoders."""


def intact_png(data: bytes) -> Frame | None:
    """Return the frame of a PNG with right checksums and as many pixels as its header states; else None."""
    chunks = _chunks(data) if data.startswith(PNG_START) else []
    kinds = [kind for kind, _ in chunks]
    if kinds.count(b"IDAT") == 0 or kinds[0] != b"IHDR" or kinds[-1] != b"IEND":
        return None
    first, last = kinds.index(b"IDAT"), len(kinds) - 1 - kinds[::-1].index(b"IDAT")
    plain = (
        all(kind in BEFORE for kind in kinds[1:first])
        and all(kind == b"IDAT" for kind in kinds[first:last])
        and all(kind in AFTER for kind in kinds[last + 1 : -1])
        and kinds.count(b"PLTE") < 2
        and kinds.count(b"tRNS") < 2
    )
    contents = dict(reversed(chunks))
    header, colors = contents[b"IHDR"], len(contents.get(b"PLTE", b""))
    if not plain or len(header) != 13 or contents[b"IEND"]:
        return None
    width, height, bits, kind, compression, filters, interlaced = struct.unpack(">IIBBBBB", header)
    if bits not in DEPTHS.get(kind, ()) or compression or filters or interlaced or not (width and height):
        return None
    if b"tRNS" in contents and kind != PALETTE:  # a color that stands for transparent
        return None
    if colors % 3 or colors > 768 or (kind == PALETTE and not colors):
        return None
    row = 1 + (width * bits * CHANNELS[kind] + 7) // 8
    whole = _holds_rows([content for kind, content in chunks if kind == b"IDAT"], row, height)
    return Frame(height, width) if whole else None


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return kind and content of all chunks; none if one is cut, or has a wrong checksum."""
    found = []
    at = len(PNG_START)
    while at < len(data):
        if at + 12 > len(data):
            return []
        (size,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + size]
        check = data[at + 8 + size : at + 12 + size]
        if len(check) != 4 or zlib.crc32(body) != int.from_bytes(check, "big"):
            return []
        found.append((body[:4], body[4:]))
        at += 12 + size
    return found


def _holds_rows(parts: Sequence[bytes], row: int, count: int) -> bool:
    """Return whether compressed parts hold `count` rows of `row` bytes that begin with a filter's number."""
    stream = zlib.decompressobj()
    try:
        rows = stream.decompress(b"".join(parts), row * count + 1)
    except zlib.error:
        return False
    whole = stream.eof and not stream.unused_data and len(rows) == row * count
    return whole and bool((np.frombuffer(rows, dtype=np.uint8)[::row] <= 4).all())
