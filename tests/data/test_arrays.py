"""Images of more than 8 bits or three channels, and formats that Pillow reads by a plugin."""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastcnn.data import decode as decoding
from fastcnn.data import header as header_module
from fastcnn.data.arrays import ARRAY, FULL, PILLOW, SHARED, Header, Levels
from fastcnn.data.decode import DecodeError, decode, value_range
from fastcnn.data.header import examine_header
from odd_images import dicom, npy, png16, tiff

HEIGHT, WIDTH = 37, 53
rng = np.random.default_rng(0)
TWELVE = rng.integers(0, 4096, (HEIGHT, WIDTH, 3)).astype(np.uint16)
GRAY = TWELVE[..., :1]
SIGNED = (GRAY.astype(np.int16) - 1024)[..., 0]
BANDS = rng.integers(0, 256, (HEIGHT, WIDTH, 5)).astype(np.uint8)
REGION = (3, 20, 11, 30)


def ours(data: bytes, channels: int = 3, **options: Any) -> np.ndarray:
    return decode(np.frombuffer(data, dtype=np.uint8), channels, **options)


def header(data: bytes) -> Header:
    return examine_header(io.BytesIO(data))


def scaled(values: np.ndarray, levels: Levels) -> np.ndarray:
    low, high = levels
    return (values.astype(float) - low) * 255 / (high - low)


def assert_scaled(pixels: np.ndarray, values: np.ndarray, levels: Levels) -> None:
    values = values[..., None] if values.ndim == 2 else values
    expected = np.broadcast_to(scaled(values, levels).clip(0, 255), pixels.shape)
    assert np.abs(pixels - expected).max() <= 0.5 + 1e-9


def each(cases: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in cases.items()])


# Levels of high depths

DEEP = {
    "PNG gray": (png16(GRAY), GRAY),
    "PNG color": (png16(TWELVE), TWELVE),
    "TIFF gray": (tiff(GRAY[..., 0]), GRAY),
    "TIFF color": (tiff(TWELVE, photometric="rgb"), TWELVE),
    "TIFF color LZW": (tiff(TWELVE, photometric="rgb", compression="lzw"), TWELVE),
    "TIFF color, big-endian": (tiff(TWELVE, photometric="rgb", byteorder=">"), TWELVE),
    "TIFF color in planes": (tiff(TWELVE.transpose(2, 0, 1), photometric="rgb"), TWELVE),
    "TIFF signed": (tiff(SIGNED), SIGNED),
    "TIFF float": (tiff(GRAY[..., 0].astype(np.float32)), GRAY),
    "TIFF half": (tiff(GRAY[..., 0].astype(np.float16)), GRAY.astype(np.float16)),
    "npy uint16": (npy(TWELVE), TWELVE),
    "npy gray": (npy(GRAY[..., 0]), GRAY),
    "npy float": (npy(TWELVE.astype(np.float32)), TWELVE),
    "DICOM": (dicom(GRAY[..., 0]), GRAY),
}


@each(DEEP)
@pytest.mark.parametrize("levels", [(0, 4095), (0, 1023), (1000, 3000), (4095, 0), (-1024, 3071)], ids=str)
def test_values_between_the_levels_become_0_to_255_and_others_are_clipped(case, levels):
    data, values = case
    assert_scaled(ours(data, 3, levels=levels), values, levels)


@each(DEEP)
def test_a_header_tells_size_depth_and_channels_and_a_region_is_cut(case):
    data, values = case
    found = header(data)
    assert (found.height, found.width, found.orientation, found.problem) == (HEIGHT, WIDTH, 1, "")
    assert found.bits > 8
    assert found.bands == (values.shape[2] if values.ndim == 3 else 1)
    top, left, height, width = REGION
    whole = ours(data, 3, levels=(0, 4095))
    part = ours(data, 3, size=(HEIGHT, WIDTH), region=REGION, levels=(0, 4095))
    assert np.array_equal(part, whole[top : top + height, left : left + width])
    with pytest.raises(DecodeError, match="changed since"):
        ours(data, 3, size=(HEIGHT + 1, WIDTH))


@each(DEEP)
def test_the_range_of_the_values_is_found(case):
    data, values = case
    low, high, whole, window = value_range(np.frombuffer(data, dtype=np.uint8))
    assert (low, high) == (values.min(), values.max())
    assert (whole, window) == (True, False)


def test_full_levels_are_those_of_16_bits_without_levels():
    for data in (png16(TWELVE * 16), png16(GRAY * 16), tiff(GRAY[..., 0] * 16)):
        assert np.abs(ours(data).astype(int) - ours(data, levels=FULL)).max() <= 1


def test_gray_of_16_bits_with_alpha_is_read_at_full_levels_alone(wording):
    pixels = np.concatenate([GRAY * 16, GRAY * 0 + 65_535], axis=2)
    data = png16(pixels)
    assert (header(data).bits, header(data).reader) == (16, SHARED)
    assert np.abs(ours(data, 1) - GRAY[..., :1] / 16).max() <= 1
    with pytest.raises(DecodeError) as caught:
        ours(data, 1, levels=(0, 4095))
    wording(caught.value)


def test_levels_leave_images_of_8_bits_alone():
    for data in (npy(BANDS[..., :3]), tiff(BANDS[..., :3], photometric="rgb")):
        assert np.array_equal(ours(data, levels=(0, 10)), BANDS[..., :3])


def test_values_that_are_no_numbers_are_black():
    values = np.array([[0.5, np.nan], [np.inf, -np.inf]], dtype=np.float32)
    assert ours(npy(values), 1)[..., 0].tolist() == [[128, 0], [255, 0]]
    assert value_range(np.frombuffer(npy(values), dtype=np.uint8))[:3] == (0.5, 0.5, False)


# Channels


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("bands", [2, 4, 5, 8])
@pytest.mark.parametrize("planes", [False, True])
def test_bands_of_a_tiff_are_channels(kind, bands, planes, capfd):
    values = rng.integers(0, 200, (HEIGHT, WIDTH, bands)).astype(kind)
    layout: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "separate" if planes else "contig"}
    data = tiff(values.transpose(2, 0, 1) if planes else values, **layout)
    assert header(data)[:5] == (HEIGHT, WIDTH, 1, 8 * values.itemsize, bands)
    pixels = ours(data, bands, levels=(0, 255))
    assert np.array_equal(pixels, values)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_gray_pages_of_a_tiff_are_channels_and_smaller_ones_are_not(kind):
    import tifffile

    values = rng.integers(0, 200, (4, HEIGHT, WIDTH)).astype(kind)
    data = tiff(values, photometric="minisblack")
    assert header(data) == Header(HEIGHT, WIDTH, 1, 8 * values.itemsize, 4, ARRAY)
    assert np.array_equal(ours(data, 4, levels=(0, 255)), values.transpose(1, 2, 0))
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        file.write(values[0], photometric="minisblack")
        file.write(values[0, ::2, ::2], photometric="minisblack")
    assert header(stream.getvalue()).reader == (PILLOW if kind == "float32" else SHARED)
    assert header(stream.getvalue()).bands == 1


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_infrared_beside_rgb_is_a_channel_and_alpha_is_none(big, order):
    four: dict[str, Any] = {"photometric": "rgb", "bigtiff": big, "byteorder": order}
    pixels = BANDS[..., :4]
    assert header(tiff(pixels, extrasamples=["unspecified"], **four))[4:6] == (4, ARRAY)
    if not (big and order == ">"):  # which Pillow does not read
        assert header(tiff(pixels, extrasamples=["unassalpha"], **four)).reader == SHARED
        assert np.array_equal(ours(tiff(pixels, extrasamples=["unassalpha"], **four)), pixels[..., :3])


def test_gray_and_color_arrays_are_read_as_either():
    assert np.array_equal(ours(npy(BANDS[..., 0]), 3), np.repeat(BANDS[..., :1], 3, axis=2))
    gray = np.asarray(Image.fromarray(BANDS[..., :3]).convert("L"))
    assert np.array_equal(ours(npy(BANDS[..., :3]), 1)[..., 0], gray)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_other_channels_than_there_are_is_refused(channels):
    with pytest.raises(DecodeError, match=f"5 channels, not of {channels}"):
        ours(npy(BANDS), channels)
    with pytest.raises(DecodeError, match="not of 5 channels"):
        ours(png16(GRAY), 5)


UNREAD = {
    "objects": npy(np.array([[{}]], dtype=object)),
    "text": npy(np.array([["a", "b"]])),
    "a vector": npy(np.zeros(9)),
    "a batch": npy(np.zeros((2, 9, 9, 3))),
    "channels first": npy(np.zeros((3, 9, 9))),
    "many channels first": npy(np.zeros((8, 99, 120))),
    "no pixels": npy(np.zeros((0, 9, 3))),
    "too many channels": npy(np.zeros((9, 9, 300))),
    "no image in DICOM": dicom(GRAY[..., 0]).replace(b"\x28\x00\x10\x00US", b"\x28\x00\x0f\x00US"),
    "pages in color": tiff(np.stack([BANDS[..., :3]] * 2), photometric="rgb"),
    "frames in DICOM": dicom(np.concatenate([GRAY[..., 0]] * 2), Rows=HEIGHT, NumberOfFrames=2),
}


@each(UNREAD)
def test_an_array_that_is_no_image_says_why(case, wording):
    problem = header(case).problem
    assert "\n" not in problem
    wording(problem)


@each({**{name: data for name, (data, _) in DEEP.items()}, "npy of 8 bits": npy(BANDS)})
def test_half_an_image_is_undecodable(case):
    with pytest.raises(DecodeError) as caught:
        ours(case[: len(case) // 2], 5)
    assert "\n" not in str(caught.value)
    with pytest.raises(DecodeError):
        value_range(np.frombuffer(case[: len(case) // 3], dtype=np.uint8))


def test_an_array_of_a_terabyte_is_no_image():
    """NumPy would allocate what the header states."""
    data = npy(BANDS).replace(str(BANDS.shape).encode(), str((12_000, 14_000, BANDS.shape[2])).encode(), 1)
    data = data.replace(b"'|u1'", b"'<f8'", 1)
    assert header(data).problem == "truncated"
    with pytest.raises(DecodeError, match="truncated"):
        ours(data, BANDS.shape[2])


# DICOM


def test_slope_and_intercept_of_dicom_are_applied():
    data = dicom(SIGNED, bits=16, RescaleSlope=2, RescaleIntercept=-100)
    assert value_range(np.frombuffer(data, dtype=np.uint8))[0] == 2 * SIGNED.min() - 100
    assert_scaled(ours(data, 1, levels=(-1000, 400)), 2 * SIGNED.astype(int) - 100, (-1000, 400))


@pytest.mark.parametrize("slope", [1, 2])
def test_the_window_of_dicom_is_applied_unless_levels_are_given(slope):
    tags = {"RescaleSlope": slope, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400}
    data = dicom(GRAY[..., 0], **tags)
    values = slope * GRAY.astype(int) - 1024
    pixels = ours(data, 1)
    expected = scaled(values, (40 - 0.5 - 399 / 2, 40 - 0.5 + 399 / 2)).clip(0, 255)
    assert np.abs(pixels - expected).max() <= 0.5 + 1e-9
    assert_scaled(ours(data, 1, levels=(-1024, 0)), values, (-1024, 0))
    assert value_range(np.frombuffer(data, dtype=np.uint8))[3]


def test_the_first_of_several_windows_of_dicom_is_applied():
    one = dicom(GRAY[..., 0], WindowCenter=500, WindowWidth=300)
    two = dicom(GRAY[..., 0], WindowCenter=[500, 2000], WindowWidth=[300, 900])
    assert np.array_equal(ours(one), ours(two))


def test_monochrome1_of_dicom_is_inverted():
    data = dicom(GRAY[..., 0], PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(ours(data), 255 - ours(dicom(GRAY[..., 0])))
    windowed = dicom(GRAY[..., 0], PhotometricInterpretation="MONOCHROME1", WindowCenter=500, WindowWidth=300)
    assert np.array_equal(ours(windowed), 255 - ours(dicom(GRAY[..., 0], WindowCenter=500, WindowWidth=300)))


def test_dicom_without_window_or_levels_uses_its_bits():
    assert_scaled(ours(dicom(GRAY[..., 0], bits=12)), GRAY, (0, 4095))
    assert_scaled(ours(dicom(SIGNED, bits=16)), SIGNED, (-32768, 32767))


def test_compressed_dicom_is_read_or_its_package_named(monkeypatch, wording):
    from pydicom.pixels.decoders.base import Decoder

    data = dicom(GRAY[..., 0], compress=True)
    assert np.array_equal(ours(data, levels=(0, 4095)), ours(dicom(GRAY[..., 0]), levels=(0, 4095)))
    monkeypatch.setattr(Decoder, "is_available", False)
    wording(header(data).problem)


def test_color_of_dicom_is_rgb():
    color = BANDS[..., :3].copy()
    assert header(dicom(color, bits=8))[3:5] == (8, 3)
    assert np.array_equal(ours(dicom(color, bits=8)), color)
    pixels = ours(dicom(np.full_like(color, (76, 85, 255)), bits=8, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(pixels[0, 0].astype(int) - (254, 0, 0)).max() <= 2


# Formats by Pillow and its plugins


@pytest.mark.parametrize("kind", ["GIF", "JPEG2000", "AVIF", "HEIF"])
def test_formats_that_dali_does_not_read_are_pillows(kind):
    if kind not in decoding.formats():
        pytest.skip("not in this Pillow")
    stream = io.BytesIO()
    Image.fromarray(BANDS[..., :3]).save(stream, kind)
    found = header(stream.getvalue())
    assert found == Header(HEIGHT, WIDTH, 1, 8, found.bands, PILLOW)
    with Image.open(stream) as image:
        assert np.array_equal(ours(stream.getvalue()), np.asarray(image.convert("RGB")))


def test_of_an_animation_the_first_image_is_taken():
    stream = io.BytesIO()
    first, second = (Image.new("L", (9, 7), value) for value in (50, 200))
    first.save(stream, "GIF", save_all=True, append_images=[second])
    assert (ours(stream.getvalue(), 1) == 50).all()


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`without("pydicom")`: as if it were not installed."""
    find, load = importlib.util.find_spec, importlib.import_module
    gone: list[str] = []

    def import_module(name: str, package: str | None = None) -> Any:
        if name in gone:
            raise ImportError(name)
        return load(name, package)

    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in gone else find(name, *a)
    )
    monkeypatch.setattr(importlib, "import_module", import_module)
    yield gone.append
    decoding.formats.cache_clear()


@pytest.mark.parametrize(
    ("package", "data"),
    [
        ("pydicom", dicom(GRAY[..., 0])),
        ("tifffile", tiff(BANDS, photometric="minisblack", planarconfig="contig")),
    ],
    ids=["dicom", "tiff"],
)
def test_a_missing_package_is_named(package, data, without, wording):
    without(package)
    wording(header(data).problem)
    with pytest.raises(DecodeError, match="pip install"):
        ours(data, 5)


def test_the_missing_package_for_heic_is_named(without, monkeypatch, wording):
    stream = io.BytesIO()
    decoding.formats()
    Image.fromarray(BANDS[..., :3]).save(stream, "HEIF")
    without("pillow_heif")
    decoding.formats.cache_clear()
    monkeypatch.delitem(Image.OPEN, "HEIF")
    wording(header(stream.getvalue()).problem)


def test_the_missing_pillow_for_avif_is_named(monkeypatch, wording):
    head = b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1B"
    monkeypatch.setattr(header_module, "formats", lambda: ("JPEG",))
    wording(header(head + bytes(99)).problem)


# Orientation


@pytest.mark.parametrize("orientation", range(10))
def test_a_tiffs_orientation_is_applied_once(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(BANDS[..., :3]).save(stream, "TIFF", exif=exif)
    found = header(stream.getvalue())
    with Image.open(stream) as image:
        expected = np.asarray(image)
    height, width = expected.shape[:2]
    reader = PILLOW if orientation in range(2, 9) else SHARED
    assert found == Header(height, width, 1, 8, 3, reader)
    assert np.array_equal(ours(stream.getvalue(), size=expected.shape[:2]), expected)
    assert (found.height > found.width) == (orientation in range(5, 9))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("value", [0, 9, 255, -1 & 0xFFFF])
def test_an_orientation_that_is_none_is_upright(kind, value):
    exif = Image.Exif()
    exif[0x0112] = value
    stream = io.BytesIO()
    Image.fromarray(BANDS[..., :3]).save(stream, kind, exif=exif)
    assert header(stream.getvalue()).orientation == 1
