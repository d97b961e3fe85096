"""Encoded images of more than 8 bits, of several bands, or from a scanner."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def png16(wide: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write in color; uint16 [H, W, 1 to 3]."""
    height, width, channels = wide.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in wide.astype(">u2"))
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    """A TIFF of any type and number of bands, [H, W], [H, W, C] or planes."""
    import tifffile

    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def npy(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, pixels)
    return stream.getvalue()


def dicom(pixels: np.ndarray, bits: int = 12, *, compress: bool = False, **tags: Any) -> bytes:
    """A DICOM file of [H, W] or [H, W, 3]; tags by their keywords."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Rows, file.Columns = pixels.shape[:2]
    file.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    file.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        file.PlanarConfiguration = 0
    file.BitsAllocated = 8 * pixels.dtype.itemsize
    file.BitsStored = min(bits, file.BitsAllocated)
    file.HighBit = file.BitsStored - 1
    file.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in tags.items():
        setattr(file, name, value)
    file.PixelData = pixels.tobytes()
    if compress:
        file.compress(RLELossless)
    stream = io.BytesIO()
    file.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How an upright image is stored for each orientation."""


def turned(upright: Image.Image, orientation: int, kind: str = "JPEG", **options: Any) -> bytes:
    """An image that is upright by its EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(STORED[orientation]) if orientation in STORED else upright
    stream = io.BytesIO()
    stored.save(stream, kind, exif=exif, **options)
    return stream.getvalue()


RECTANGLE = (9, 20, 34, 50)
"""Left, top, right and bottom of the red rectangle in `scene`."""


def scene(width: int = 48, height: int = 96) -> Image.Image:
    """A red rectangle in one corner of a gray picture."""
    picture = Image.new("RGB", (width, height), (90, 100, 110))
    picture.paste((255, 0, 0), RECTANGLE)
    return picture


def red_box(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the red part of pixels, uint8 [H, W, 3]."""
    values = pixels.astype(int)
    red = (values[..., 0] > 170) & (values[..., 1:].max(axis=2) < 60)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def iou(a: Any, b: Any) -> float:
    """Intersection over union of two boxes: left, top, right, bottom."""
    sides = [max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    inside = sides[0] * sides[1]
    return float(inside / (sum(areas) - inside))
