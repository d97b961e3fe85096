"""The quick parser reports what Pillow reports, or leaves the file to Pillow."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastcnn.data.arrays import MAX_PIXELS
from fastcnn.data.sources.headers import examine_header
from fastcnn.data.sources.quick_headers import Header, quick_header

ORIENTATION, DESCRIPTION, X_RESOLUTION = 0x0112, 0x010E, 0x011A


def quick(data: bytes) -> Header | None:
    return quick_header(lambda at, count: data[at : at + count], len(data))


def by_pillow(data: bytes) -> Header | None:
    """The facts, or None for an image that is not read; as `headers.examine` treats it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = examine_header(io.BytesIO(data))
    except Exception:
        return None
    return None if found.problem else found


def image(mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    if mode.startswith("I;16"):
        return Image.fromarray(pixels[..., 0].astype(np.uint16) << 4)
    return Image.fromarray(pixels).convert(mode)


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (24, 16), **options: Any) -> bytes:
    stream = io.BytesIO()
    image(mode, size).save(stream, kind, **options)
    return stream.getvalue()


def exif(order: str = "<", orientation: int | None = None) -> bytes:
    found = Image.Exif()
    found.endian = order
    found[DESCRIPTION] = "a description longer than four bytes"
    found[X_RESOLUTION] = 72.0
    if orientation is not None:
        found[ORIENTATION] = orientation
    return found.tobytes()


def xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta tiff:Orientation="{orientation}"/>'.encode()


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_segment(marker: int, content: bytes, data: bytes | None = None) -> bytes:
    """A JPEG with one more segment behind its start."""
    data = data or encoded("JPEG")
    return data[:2] + segment(marker, content) + data[2:]


def chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def with_chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    data = encoded("PNG")
    return data[:33] + chunk(kind, content) + data[33:]


PLAIN = {
    "rgb": encoded("JPEG"),
    "gray": encoded("JPEG", "L"),
    "cmyk": encoded("JPEG", "CMYK"),
    "progressive": encoded("JPEG", progressive=True),
    "optimized": encoded("JPEG", optimize=True),
    "restarts": encoded("JPEG", restart_marker_blocks=1),
    "comment": encoded("JPEG", comment="by hand"),
    "large": encoded("JPEG", size=(700, 500)),
    "profile": encoded("JPEG", icc_profile=bytes(range(256)) * 20),
    "large profile": encoded("JPEG", icc_profile=bytes(range(256)) * 500),
    "thumbnail": with_segment(0xE5, bytes(60_000)),
    "photoshop": with_segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x04abcd" + bytes(9000)),
    **{f"turned {i}": encoded("JPEG", exif=exif(orientation=i)) for i in range(1, 10)},
    "turned, big-endian": encoded("JPEG", exif=exif(">", orientation=6)),
    "exif without orientation": encoded("JPEG", exif=exif()),
    "exif and xmp": encoded("JPEG", exif=exif(orientation=3), xmp=xmp(6)),
    **{f"png {mode}": encoded("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
    "png, large": encoded("PNG", size=(300, 300)),
    "png, palette of 4 bits": encoded("PNG", "P", bits=4),
    "png, transparent": encoded("PNG", "P", transparency=3),
    "png, dpi": encoded("PNG", dpi=(72, 72)),
    "png, gamma": with_chunk(b"gAMA", b"\0\0\xb1\x8f"),
    "png, color": with_chunk(b"sRGB", b"\0"),
}
"""Files as cameras, editors and libraries write them."""

UNUSUAL = {
    "xmp alone": encoded("JPEG", xmp=xmp(6)),
    "exif without orientation, and xmp": encoded("JPEG", exif=exif(), xmp=xmp(8)),
    "exif twice": with_segment(0xE1, exif(orientation=8), encoded("JPEG", exif=exif(orientation=6))),
    "exif of noise": with_segment(0xE1, b"Exif\0\0" + bytes(range(200))),
    "exif cut": encoded("JPEG", exif=exif(orientation=6)[:40]),
    "short jfif": with_segment(0xE0, b"JFIF\0"),
    "short adobe": with_segment(0xEE, b"Adobe"),
    "short profile": with_segment(0xE2, b"ICC_PROFILE\0\1"),
    "photoshop cut": with_segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04"),
    "bad tables": with_segment(0xDB, bytes(66)),
    "16-bit tables": with_segment(0xDB, b"\x11" + bytes(128)),
    "two frames": with_segment(0xC0, struct.pack(">BHHB", 8, 5, 6, 1) + bytes(3)),
    "12 bits": encoded("JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
    "2 layers": encoded("JPEG").replace(b"\x08\0\x10\0\x18\x03", b"\x08\0\x10\0\x18\x02"),
    "no height": encoded("JPEG").replace(b"\xff\xc0\0\x11\x08\0\x10", b"\xff\xc0\0\x11\x08\0\0"),
    "padded markers": encoded("JPEG")[:2] + b"\xff\xff" + encoded("JPEG")[2:],
    "junk between": encoded("JPEG")[:2] + b"junk" + encoded("JPEG")[2:],
    "trailing bytes": encoded("JPEG") + b"\n",
    "end lost": encoded("JPEG")[:-2],
    "gif": encoded("GIF"),
    "png, exif": encoded("PNG", exif=exif(orientation=6)),
    "png, profile": encoded("PNG", icc_profile=bytes(200)),
    "png, exif as text": with_chunk(b"tEXt", b"exif\0" + exif(orientation=6)),
    "png, animated": encoded("PNG", save_all=True, append_images=[image("L").convert("RGB")]),
    "png, short gamma": with_chunk(b"gAMA", b"\0"),
    "png, short transparency": with_chunk(b"tRNS", b"\0"),
    "png, second header": with_chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 6, 8, 2, 0, 0, 0)),
    "png, 3 bits": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 6, 3, 2, 0, 0, 0)),
    "png, wrong checksum": encoded("PNG")[:29] + b"\0\0\0\0" + encoded("PNG")[33:],
    "png, other filters": b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 6, 8, 2, 0, 1, 0))
    + encoded("PNG")[33:],
    "png, end lost": encoded("PNG")[:-12],
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_file_is_read_at_once_and_as_pillow_reads_it(name):
    found = quick(PLAIN[name])
    assert found is not None
    assert found == by_pillow(PLAIN[name])


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_file_is_left_to_pillow(name):
    assert quick(UNUSUAL[name]) is None


def test_more_pixels_than_allowed_are_left_to_pillow():
    data = bytearray(encoded("JPEG"))
    place = data.index(b"\xff\xc0") + 5
    side = int(MAX_PIXELS**0.5)
    for height, taken in ((side, True), (side + 2, False)):
        data[place : place + 4] = struct.pack(">HH", height, side)
        assert (quick(bytes(data)) is not None) is taken


def test_the_header_of_a_long_segment_is_read_from_where_it_lies():
    """Of a photo with a thumbnail of 60 kB, less than 3 blocks and the end are read."""
    data, taken = PLAIN["thumbnail"], []

    def read(at: int, count: int) -> bytes:
        taken.append(len(data[at : at + count]))
        return data[at : at + count]

    assert quick_header(read, len(data)) is not None
    assert sum(taken) < 10_000


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A file with a few other bytes near its start, or cut, or with bytes lost or put in."""
    data = bytearray(draw(st.sampled_from([*PLAIN.values(), *UNUSUAL.values()])))
    near = st.integers(0, min(len(data), 1000) - 1)
    for place in draw(st.lists(near, max_size=4)):
        data[place] = draw(st.sampled_from([0, 1, 2, 3, 6, 8, 255]) | st.integers(0, 255))
    kind = draw(st.sampled_from(["as long", "cut", "lost", "put in"]))
    place = draw(near)
    if kind == "cut":
        del data[place:]
        data += draw(st.sampled_from([b"", b"\xff\xd9", b"IEND\xaeB`\x82"]))
    elif kind == "lost":
        del data[place : place + draw(st.integers(1, 20))]
    elif kind == "put in":
        data[place:place] = draw(st.binary(max_size=20))
    return bytes(data)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(damaged())
def test_of_a_damaged_file_nothing_is_reported_that_pillow_does_not_report(data):
    found = quick(data)
    assert found is None or found == by_pillow(data)
