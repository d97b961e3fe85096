"""Facts of an image from its header and end, without decoding."""

from __future__ import annotations

import os
from typing import BinaryIO

from PIL import Image, ImageFile

from fastcnn.data.arrays import (
    MAX_PIXELS,
    NO_PACKAGE,
    PILLOW,
    SHARED,
    Header,
    array_header,
    array_kind,
)
from fastcnn.data.decode import OTHER_FORMATS, SHARED_FORMATS, formats, orientation_of


def examine_header(stream: BinaryIO) -> Header:
    """Read an image's header and end; its decoding may fail all the same.

    Raises:
        Image.DecompressionBombError: more pixels than Pillow allows.
        OSError: it cannot be read, or is not an image.
    """
    end = stream.seek(0, os.SEEK_END)
    if end == 0:
        return Header(problem="empty")
    kind = array_kind(stream)
    if kind is not None:
        try:
            return array_header(stream, kind)
        except ValueError as error:
            return Header(problem=str(error))
    formats()  # registers pillow-heif
    missing = _missing_package(stream)
    if missing:
        return Header(problem=missing)
    with Image.open(stream) as image:
        width, height = image.size
        if image.format not in SHARED_FORMATS + OTHER_FORMATS:
            return Header(problem=f"{image.format} is not read; convert it to PNG")
        if width * height > MAX_PIXELS:
            return Header(problem=f"declares {width:,} x {height:,} pixels, more than {MAX_PIXELS:,}")
        header = _header_of(image)
        # A truncated file lacks the end marker.
        stream.seek(max(0, end - 16))
        tail = stream.read()
        jpeg = tail.endswith(b"\xff\xd9")
        ends = {"JPEG": jpeg, "MPO": jpeg, "PNG": tail.endswith(b"IEND\xaeB`\x82")}
        if not ends.get(image.format, True):  # trailing bytes are harmless
            stream.seek(0)
            try:
                image.load()
                stream.seek(0)
                if image.format == "PNG" and b"IEND\xaeB`\x82" not in stream.read():
                    return Header(problem="truncated")
            except (OSError, SyntaxError) as error:
                if getattr(error, "errno", None):  # of the machine, not of the file
                    raise
                return Header(problem="truncated")
    return header


def _header_of(image: ImageFile.ImageFile) -> Header:
    """Return the header of an opened image."""
    shared = image.format in SHARED_FORMATS and not _is_rare(image)
    orientation, bits, bands = orientation_of(image), _bits(image), len(image.getbands())
    if image.format == "TIFF" and orientation != 1:
        image.load()  # turns it; until then older versions of Pillow have the stored size
        orientation = 1
    width, height = image.size
    return Header(height, width, orientation, bits, bands, SHARED if shared else PILLOW)


def _bits(image: ImageFile.ImageFile) -> int:
    """Return the bits per channel of an image as stored."""
    if image.format == "PNG":
        stream = image.fp
        assert stream is not None
        stream.seek(24)
        return stream.read(1)[0]
    if image.format == "TIFF":
        return int(image.tag_v2.get(258, (1,))[0])  # type: ignore[attr-defined]
    return {"1": 1, "I": 16, "F": 32}.get(image.mode.partition(";")[0], 8)


def _is_rare(image: ImageFile.ImageFile) -> bool:
    """Return whether DALI decodes an image of a shared format differently."""
    if image.format == "TIFF":
        return orientation_of(image) != 1 or image.mode in ("1", "I", "F")
    if image.format == "WEBP":
        return "exif" in image.info  # of which DALI reads only some
    if image.format == "PPM":
        return image.tile[0][0] != "raw"  # text, or a maximum other than 255 and 65,535
    return False


def _missing_package(stream: BinaryIO) -> str:
    """Return what is missing to read a HEIC or AVIF image, "" for other images and if nothing is."""
    stream.seek(0)
    head = stream.read(32)
    stream.seek(0)
    if head[4:8] != b"ftyp":
        return ""
    if b"avif" in head or b"avis" in head:
        return "" if "AVIF" in formats() else f"AVIF {NO_PACKAGE} pip install 'pillow>=11.3'"
    heif = head[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
    return f'HEIC {NO_PACKAGE} pip install "fastcnn[heif]"' if heif and "HEIF" not in formats() else ""
