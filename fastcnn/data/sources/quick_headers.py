"""Headers of plain JPEG and PNG files, read from their first and last bytes in a tenth of Pillow's time.

Only the structure of nearly all files is accepted, with the facts that Pillow reports. None stands for
anything else, which is left to Pillow.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator

from fastcnn.data.arrays import MAX_PIXELS, Header
from fastcnn.data.intact import (
    APP0,
    APP1,
    APP15,
    BASELINE,
    CHANNELS,
    COMMENT,
    DEPTHS,
    HUFFMAN,
    ORIENTATION,
    PNG_START,
    PROGRESSIVE,
    QUANTIZATION,
    RESTARTS,
    SCAN,
)

Read = Callable[[int, int], bytes]
"""Read from this byte of an image on, at most so many bytes."""
HEAD = 4096
"""Bytes to read at a time."""
TAIL = 16
"""Bytes to read at the end."""
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
PNG_END = b"IEND\xaeB`\x82"


def quick_header(read: Read, length: int) -> Header | None:
    """Return the header of an image of `length` bytes, or None if it is not a plain and whole one."""
    head = read(0, HEAD)
    if head.startswith(JPEG_START):
        found, end = _jpeg(head, read), JPEG_END
    elif head.startswith(PNG_START):
        found, end = _png(head), PNG_END
    else:
        return None
    if found is None or not 0 < found.height * found.width <= MAX_PIXELS:
        return None
    return found if read(max(0, length - TAIL), TAIL).endswith(end) else None


# JPEG

FRAMES = (*BASELINE, PROGRESSIVE)
APP13 = 0xED
MIN_LENGTHS = {b"JF": 7, b"Ad": 7, b"IC": 14}
"""Bytes that Pillow requires of the segments JFIF, Adobe and ICC_PROFILE."""
SEGMENT = 600
"""Bytes that are read of each segment at least: four quantization tables, or 40 tags of EXIF."""
TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 9: 4, 10: 8}
"""Bytes of a value by its type in EXIF."""


def _jpeg(head: bytes, read: Read) -> Header | None:
    frame = orientation = None
    has_xmp = False
    for marker, content, length in _segments(head, read):
        if marker in FRAMES:
            if frame is not None or length < 6 or len(content) < length:
                return None
            bits, height, width, bands = struct.unpack_from(">BHHB", content)
            if bits != 8 or bands not in (1, 3, 4) or length != 6 + 3 * bands:
                return None
            frame = height, width, bands
        elif marker == APP1 and content.startswith(b"Exif\0\0"):
            if orientation is not None:  # EXIF in two segments
                return None
            orientation = _orientation(content[6:], length - 6)
            if orientation is None:
                return None
        elif marker == APP1:
            has_xmp |= content.startswith(b"http://ns.adobe.com/xap/1.0/\0")
        elif marker == SCAN:
            if frame is None or len(content) < length or (has_xmp and not orientation):
                return None
            height, width, bands = frame
            return Header(height, width, orientation if orientation and orientation < 9 else 1, 8, bands)
        elif not _is_plain(marker, content, length):
            return None
    return None


def _segments(head: bytes, read: Read) -> Iterator[tuple[int, bytes, int]]:
    """Yield the marker of each segment, the first bytes of its content and their number in all."""
    at, first = 2, 0  # place of the segment, and of `head`
    while True:
        here = at - first
        if here + SEGMENT > len(head) and len(head) == HEAD:
            head, first, here = read(at, HEAD), at, 0
        start = head[here : here + 4]
        if len(start) < 4 or start[0] != 0xFF:
            return
        size = start[2] << 8 | start[3]
        if size < 2:
            return
        content = head[here + 4 : here + 2 + size]
        if start[1] == APP13 and len(content) < size - 2:
            content = read(at + 4, size - 2)
        yield start[1], content, size - 2
        at += 2 + size


def _is_plain(marker: int, content: bytes, length: int) -> bool:
    """Return whether Pillow passes over a segment, and takes nothing that matters from it."""
    if marker == QUANTIZATION:  # 8-bit tables
        return len(content) == length and length % 65 == 0 and max(content[::65], default=0) < 16
    if APP0 <= marker <= APP15:
        if marker == APP13:  # Photoshop: Pillow fails where a block ends behind its second field
            return len(content) == length and content[-6:-2] != b"8BIM"
        return length >= MIN_LENGTHS.get(content[:2], 0) and not content.startswith(b"MPF")
    return marker in (HUFFMAN, RESTARTS, COMMENT)


def _orientation(tags: bytes, length: int) -> int | None:
    """Return the value of the orientation tag, 0 without one, or None.

    Args:
        tags: first bytes of the EXIF data.
        length: their number in all.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tags[:4])
    if order is None or len(tags) < 8:
        return None
    (start,) = struct.unpack_from(order + "I", tags, 4)
    if start < 8 or len(tags) < start + 2:
        return None
    (count,) = struct.unpack_from(order + "H", tags, start)
    table = tags[start + 2 : start + 2 + 12 * count]
    if len(table) < 12 * count:
        return None
    orientation = 0
    for tag, kind, values, data in struct.iter_unpack(order + "HHI4s", table):
        size = TAG_BYTES.get(kind, 0) * values
        if not size or (size > 4 and struct.unpack(order + "I", data)[0] + size > length):
            return None
        if tag == ORIENTATION:
            if orientation or kind != 3 or values != 1:
                return None
            (orientation,) = struct.unpack_from(order + "H", data)
            if not orientation:
                return None
    return orientation


# PNG

CHUNKS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"sBIT": 0, b"bKGD": 0, b"tIME": 0, b"PLTE": 0}
"""Chunks that say nothing about orientation, and bytes that Pillow requires of them."""


def _png(head: bytes) -> Header | None:
    """Read the chunks up to the first pixels."""
    found = None
    for number, (kind, content) in enumerate(_chunks(head)):
        if kind == b"IDAT":
            return found
        if number == 0:
            if kind != b"IHDR" or len(content) != 13:
                return None
            width, height, bits, color, _, filters, _ = struct.unpack(">IIBBBBB", content)
            if filters or bits not in DEPTHS.get(color, ()):
                return None
            found = Header(height, width, 1, bits, CHANNELS[color])
        elif kind == b"tRNS":
            if color != 3:  # Pillow checks its length by the image's mode
                return None
        elif kind not in CHUNKS or len(content) < CHUNKS[kind]:
            return None
    return None


def _chunks(head: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of the chunks with right checksums, and at last the kind of the pixels."""
    at = len(PNG_START)
    while at + 8 <= len(head):
        size, kind = struct.unpack_from(">I4s", head, at)
        if kind == b"IDAT":
            yield kind, b""
            return
        body, check = head[at + 4 : at + 8 + size], head[at + 8 + size : at + 12 + size]
        if zlib.crc32(body) != int.from_bytes(check, "big") or len(check) < 4:
            return
        yield kind, body[4:]
        at += 12 + size
