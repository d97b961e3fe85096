"""Images of more than 8 bits or three channels: NumPy arrays, DICOM, TIFF of several bands.

Loaders keep uint8. `Levels` say which values become 0 and 255; values beyond are clipped. Packages for DICOM
and TIFF are extras, imported when such an image is read.
"""

from __future__ import annotations

import io
import math
import sys
from functools import cache
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

Levels = tuple[float, float]
"""Values that become 0 and 255."""
FULL: Levels = (0, 65_535)
"""Levels of images of 16 bits that use them all."""
MAX_CHANNELS = 255
NO_PACKAGE = "needs a package:"
"""Part of the reason why an image cannot be read: a package is missing."""
MAX_PIXELS = 178_956_970
"""Pillow's own limit: a file of a few bytes can declare billions of pixels."""

Kind = Literal["npy", "dicom", "tiff"]
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ALPHA = (1,), (2,)
"""TIFF's ExtraSamples of an alpha channel; other extra samples are bands."""


SHARED, PILLOW, ARRAY = 0, 1, 2
"""What decodes an image: DALI and Pillow alike; Pillow alone; this module, where bands are channels."""


class Header(NamedTuple):
    """Facts of an image from its header."""

    height: int = 0
    """Height and width in pixels, as stored."""
    width: int = 0
    orientation: int = 1
    """EXIF orientation, 1 to 8."""
    bits: int = 0
    """Bits per channel; levels apply above 8."""
    bands: int = 0
    """Channels."""
    reader: int = SHARED
    """`SHARED`, `PILLOW` or `ARRAY`."""
    problem: str = ""
    """Reason why the image cannot be decoded."""


class Values(NamedTuple):
    """An image before its values are mapped to 0 to 255."""

    pixels: np.ndarray
    """[H, W, C] of any numeric type."""
    levels: Levels
    """The file's own levels: its window in DICOM, else the range of its type."""
    inverted: bool = False
    """0 is white."""
    window: bool = False
    """A DICOM file has a window."""


def array_kind(data: bytes | BinaryIO) -> Kind | None:
    """Return the kind of an image that is read as an array, None for one that Pillow reads."""
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    stream.seek(0)
    head = stream.read(132)
    stream.seek(0)
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head[128:] == b"DICM":
        return "dicom"
    return "tiff" if head.startswith(_TIFF) and _is_array(stream, head) else None


def _is_array(stream: BinaryIO, head: bytes) -> bool:
    """Return whether Pillow does not read a TIFF whole: it has bands or pages beside, or deep planes."""
    if head.startswith(_TIFF[-1]):  # Pillow takes its offset for 4 bytes
        return True
    try:
        tags = ImageFileDirectory_v2(head[: 16 if head.startswith(_TIFF[-2]) else 8])
        stream.seek(tags.next)
        tags.load(stream)
        if tags.next:
            size = tags.get(256), tags.get(257)
            stream.seek(tags.next)
            tags.load(stream)
            if size == (tags.get(256), tags.get(257)):  # others are reduced copies of the first
                return True
    except Exception:  # malformed: Pillow names the reason
        return False
    finally:
        stream.seek(0)
    samples, bits = int(tags.get(277, 1)), max(tags.get(258, (1,)))
    extra, is_float = tags.get(338, ()), 3 in tags.get(339, ())
    colors = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}.get(int(tags.get(262, -1)), samples)
    has_bands = samples > colors and not (samples == colors + 1 and extra[:1] in _ALPHA)
    deep = samples > 1 and (bits > 16 or (tags.get(284) == 2 and bits > 8))
    return has_bands or deep or (is_float and bits == 16)


def array_header(stream: BinaryIO, kind: Kind) -> Header:
    """Return the header of an image of a kind.

    Raises:
        ValueError: not read, with the reason.
    """
    if kind == "npy":
        shape, dtype = _npy_shape(stream)
    elif kind == "dicom":
        shape, dtype = _dicom_shape(stream)
    else:
        shape, dtype = _tiff_shape(stream)
    height, width, bands = shape
    if min(shape) < 1:
        raise ValueError("empty")
    if bands > MAX_CHANNELS:
        raise ValueError(f"{bands} channels in [height, width, channels]; at most {MAX_CHANNELS} are read")
    if height * width > MAX_PIXELS:
        raise ValueError(f"declares {width:,} x {height:,} pixels, more than {MAX_PIXELS:,}")
    return Header(height, width, 1, 8 * dtype.itemsize, bands, ARRAY)


def read_array(data: bytes, kind: Kind, *, window: bool) -> Values:
    """Read an image of a kind; ValueError or any error of its package if that fails.

    Args:
        window: apply the window of a DICOM file, if it has one.
    """
    if kind == "npy":
        stream = io.BytesIO(data)
        _npy_shape(stream)
        stream.seek(0)
        pixels = np.load(stream, allow_pickle=False)
    elif kind == "dicom":
        return _read_dicom(data, window=window)
    else:
        pixels = _read_tiff(data)
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    return Values(pixels, type_range(pixels.dtype))


def type_range(dtype: np.dtype[Any]) -> Levels:
    """Return the levels of a type if nothing else is known: its range; 0 and 1 for floats."""
    if dtype.kind in "fb":
        return 0, 1
    if dtype.itemsize > 2:  # 16 bits in a larger type
        return FULL
    return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)


def to_bytes(values: np.ndarray, levels: Levels) -> np.ndarray:
    """Map values to uint8, rounded and clipped; NaN becomes 0."""
    if values.dtype == np.uint16:
        return _table(levels)[values]
    low, high = levels
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.nan_to_num(np.rint(scaled), nan=0).clip(0, 255).astype(np.uint8)


@cache
def _table(levels: Levels) -> np.ndarray:
    """Return the byte of each value of 16 bits."""
    return to_bytes(np.arange(65_536, dtype=np.int64), levels)


def mapped(values: Values, levels: Levels | None) -> np.ndarray:
    """Map an image to uint8 [H, W, C] by the levels, None: its own; bytes stay as they are."""
    pixels = values.pixels
    if pixels.dtype != np.uint8:
        pixels = to_bytes(pixels, values.levels if levels is None or pixels.dtype == bool else levels)
    return 255 - pixels if values.inverted else pixels


def is_wide(image: Image.Image) -> bool:
    """Return whether a decoded image has values of more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def is_deep_color(image: Image.Image) -> bool:
    """Return whether an opened, not yet decoded image has several channels of 16 bits."""
    return image.mode in ("LA", "RGB", "RGBA", "RGBX") and ";16" in _raw_mode(image)


def deep_color(data: bytes, formats: tuple[str, ...]) -> np.ndarray:
    """Decode an image of several channels of 16 bits, uint16 [H, W, 3].

    Pillow keeps the high byte alone. It is decoded in both byte orders, for the high and the low byte.

    Raises:
        ValueError: gray with alpha, which Pillow decodes in one order only.
    """
    parts = []
    for swap in (False, True):
        with Image.open(io.BytesIO(data), formats=formats) as image:
            assert isinstance(image, ImageFile.ImageFile)
            if _raw_mode(image).startswith("LA"):
                raise ValueError("16-bit gray with alpha; convert it to one without alpha")
            if swap:
                swapped = _swapped(_raw_mode(image))
                image.tile = [tile._replace(args=_with_raw_mode(tile.args, swapped)) for tile in image.tile]
            image.load()
            parts.append(np.asarray(image)[..., :3].astype(np.uint16))
    return parts[0] * 256 + parts[1]


def _raw_mode(image: Image.Image) -> str:
    """Return how the values of an opened image are stored, such as RGB;16B; "" if Pillow does not tell."""
    tiles = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _with_raw_mode(args: Any, raw_mode: str) -> Any:
    return (raw_mode, *args[1:]) if isinstance(args, tuple) else raw_mode


def _swapped(raw_mode: str) -> str:
    order = raw_mode[-1]
    if order == "N":
        order = "L" if sys.byteorder == "little" else "B"
    return raw_mode[:-1] + {"L": "B", "B": "L"}[order]


def _npy_shape(stream: BinaryIO) -> tuple[tuple[int, int, int], np.dtype[Any]]:
    """Return the shape [H, W, C] and the type of an array in a file."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.kind not in "buif":
        raise ValueError(f"an array of {dtype}; use uint8, uint16 or float32")
    start = stream.tell()
    if math.prod(shape) * dtype.itemsize > stream.seek(0, io.SEEK_END) - start:
        raise ValueError("truncated")
    if len(shape) == 2:
        return (*shape, 1), dtype
    if len(shape) != 3:
        raise ValueError(f"an array of {len(shape)} dimensions; use [height, width, channels]")
    first, rows, columns = shape
    if first < rows == columns or (first <= 16 and columns > 64 and rows > 64):
        raise ValueError(f"an array of {first} x {rows} x {columns}; use [height, width, channels]")
    return shape, dtype


def _dicom_shape(stream: BinaryIO) -> tuple[tuple[int, int, int], np.dtype[Any]]:
    pydicom = _package("pydicom", "dicom", "DICOM")
    from pydicom.pixels import get_decoder

    header = pydicom.dcmread(stream, stop_before_pixels=True)
    if "Rows" not in header or "Columns" not in header:
        raise ValueError("a DICOM file without an image")
    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not get_decoder(syntax).is_available:
        raise ValueError(f'DICOM in {syntax.name} {NO_PACKAGE} pip install "pylibjpeg[all]"')
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(f"a DICOM file of {frames} frames; split it into files of one")
    bands = 3 if header.get("PhotometricInterpretation") == "PALETTE COLOR" else header.SamplesPerPixel
    wide = np.dtype(np.uint16 if header.BitsAllocated > 8 else np.uint8)
    return (int(header.Rows), int(header.Columns), int(bands)), wide


def _read_dicom(data: bytes, *, window: bool) -> Values:
    pydicom = _package("pydicom", "dicom", "DICOM")
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

    file = pydicom.dcmread(io.BytesIO(data))
    pixels = pixel_array(file)
    if file.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, file)
    if pixels.ndim == 3:
        return Values(pixels, type_range(pixels.dtype))
    values = apply_modality_lut(pixels, file)
    low, high = 0, 2**file.BitsStored - 1
    if file.PixelRepresentation == 1:
        low, high = -(2 ** (file.BitsStored - 1)), 2 ** (file.BitsStored - 1) - 1
    bounds = apply_modality_lut(np.array([low, high]), file).tolist()
    voi = file.get("VOILUTSequence")
    has_window = bool(voi) or file.get("WindowCenter") is not None
    if window and has_window:
        values = apply_voi_lut(values, file)
        if voi:
            bounds = [0, 2 ** voi[0].LUTDescriptor[2] - 1]
    inverted = file.PhotometricInterpretation == "MONOCHROME1"
    return Values(values[..., None], (bounds[0], bounds[1]), inverted, has_window)


def _tiff_shape(stream: BinaryIO) -> tuple[tuple[int, int, int], np.dtype[Any]]:
    tifffile = _package("tifffile", "tiff", "a TIFF of several bands")
    with tifffile.TiffFile(stream) as file:
        first, *others = _pages(file)
        if others and first.samplesperpixel > 1:
            raise ValueError(f"a TIFF of {1 + len(others)} pages in color; split it into files of one")
        shape = first.imagelength, first.imagewidth, first.samplesperpixel + len(others)
        return shape, np.dtype(first.dtype)


def _read_tiff(data: bytes) -> np.ndarray:
    tifffile = _package("tifffile", "tiff", "a TIFF of several bands")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        pages = _pages(file)
        if len(pages) > 1:
            return np.stack([page.asarray() for page in pages], axis=2)
        pixels: np.ndarray = pages[0].asarray()
        return pixels.transpose(1, 2, 0) if pages[0].axes == "SYX" else pixels


def _pages(file: Any) -> list[Any]:
    """Return the pages of a TIFF that have the first one's size: its channels."""
    first = file.pages[0]
    size = first.imagelength, first.imagewidth
    return [page for page in file.pages if (page.imagelength, page.imagewidth) == size]


def _package(name: str, extra: str, what: str) -> Any:
    """Import a package of an extra; ValueError with what to install if it is missing."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f'{what} {NO_PACKAGE} pip install "fastcnn[{extra}]"') from error
