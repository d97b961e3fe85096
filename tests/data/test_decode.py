"""An encoded image has one meaning: decoded here, by DALI or by Pillow alone, it is the same pixels."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastcnn.data.decode import DecodeError, decode
from fastcnn.data.loaders.registry import has_dali
from odd_images import png16

pytestmark = pytest.mark.filterwarnings("ignore:Palette images with Transparency")

HEIGHT, WIDTH = 37, 53  # no multiple of a JPEG's blocks
rng = np.random.default_rng(0)


def _picture() -> Image.Image:
    """Smooth, with some noise."""
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + rng.integers(-20, 21, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def turned(orientation: int = 6) -> Image.Exif:
    """EXIF as a phone writes it that was held upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


RGB = _picture()
GREY = RGB.convert("L")
ALPHA = Image.fromarray(np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH))
RGBA = Image.merge("RGBA", (*RGB.split(), ALPHA))
PALETTE = RGB.quantize(64)
WIDE_GREY = np.linspace(0, 65_535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
WIDE_RGB = rng.integers(0, 65_536, (HEIGHT, WIDTH, 3)).astype(np.uint16)
DOT = Image.new("RGB", (1, 1), (9, 99, 200))

JPEGS = {
    "JPEG 4:4:4": encoded(RGB, "JPEG", subsampling=0),
    "JPEG 4:2:2": encoded(RGB, "JPEG", subsampling=1),
    "JPEG 4:2:0": encoded(RGB, "JPEG", subsampling=2),
    "JPEG progressive": encoded(RGB, "JPEG", progressive=True),
    "JPEG turned": encoded(RGB, "JPEG", exif=turned()),
    "MPO": encoded(RGB, "MPO", save_all=True, append_images=[DOT]),
}
OTHERS = {
    "JPEG grey": encoded(GREY, "JPEG"),
    "JPEG CMYK": encoded(RGB.convert("CMYK"), "JPEG"),
    "PNG RGB": encoded(RGB, "PNG"),
    "PNG RGBA": encoded(RGBA, "PNG"),
    "PNG grey": encoded(GREY, "PNG"),
    "PNG LA": encoded(RGBA.convert("LA"), "PNG"),
    "PNG palette": encoded(PALETTE, "PNG"),
    "PNG palette, one transparent": encoded(PALETTE, "PNG", transparency=3),
    "PNG palette, alpha": encoded(PALETTE, "PNG", transparency=bytes(range(64))),
    "PNG 1 bit": encoded(RGB.convert("1"), "PNG"),
    "WebP": encoded(RGB, "WEBP"),
    "WebP lossless": encoded(RGB, "WEBP", lossless=True),
    "WebP alpha": encoded(RGBA, "WEBP"),
    "BMP": encoded(RGB, "BMP"),
    "BMP palette": encoded(PALETTE, "BMP"),
    "TIFF": encoded(RGB, "TIFF"),
    "TIFF LZW": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "TIFF grey": encoded(GREY, "TIFF"),
    "TIFF RGBA": encoded(RGBA, "TIFF"),
    "TIFF palette": encoded(PALETTE, "TIFF"),
    "PPM": encoded(RGB, "PPM"),
    "PGM": encoded(GREY, "PPM"),
    **{f"{kind} of one pixel": encoded(DOT, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")},
}
WIDE = {
    "PNG 16 bits grey": png16(WIDE_GREY[..., None]),
    "TIFF 16 bits grey": encoded(Image.fromarray(WIDE_GREY), "TIFF"),
    "PGM 16 bits grey": b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + WIDE_GREY.astype(">u2").tobytes(),
}
WIDE_COLOR = {"PNG 16 bits": png16(WIDE_RGB)}
ALL = {**JPEGS, **OTHERS, **WIDE, **WIDE_COLOR}


def each(cases: dict[str, bytes]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in cases.items()])


def ours(data: bytes, channels: int = 3, **options: Any) -> np.ndarray:
    return decode(np.frombuffer(data, dtype=np.uint8), channels, **options)


def pillows(data: bytes, mode: str) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def dalis(data: bytes, channels: int) -> np.ndarray:
    """As the loader has it decoded."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def
    def one(source: Iterator[Any]) -> Any:
        return fn.decoders.image(
            fn.external_source(source),
            output_type=types.GRAY if channels == 1 else types.RGB,
            adjust_orientation=False,
        )

    source = iter([[np.frombuffer(data, dtype=np.uint8)]])
    pipeline = one(source, batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    pipeline.build()
    (pixels,) = pipeline.run()
    return np.array(pixels.at(0))


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    assert a.shape == b.shape
    return np.abs(a.astype(int) - b.astype(int))


# The same pixels


@each(ALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_height_by_width_by_channels(data, channels):
    pixels = ours(data, channels)
    with Image.open(io.BytesIO(data)) as image:
        assert pixels.shape == (image.height, image.width, channels)
    assert pixels.dtype == np.uint8


@each({**JPEGS, **OTHERS, **WIDE_COLOR})
def test_colours_are_pillows(data):
    assert np.array_equal(ours(data, 3), pillows(data, "RGB"))


@each({**OTHERS, **WIDE_COLOR})
def test_brightness_is_pillows(data):
    assert np.array_equal(ours(data, 1), pillows(data, "L"))


@each(JPEGS)
def test_a_colour_jpegs_brightness_is_nearly_pillows(data):
    apart = difference(ours(data, 1), pillows(data, "L"))  # the file's own, not that of the rounded colours
    assert apart.max() <= 5
    assert apart.mean() < 0.05


@pytest.mark.skipif(not has_dali(), reason="DALI is not installed")
@each(ALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_dalis(data, channels):
    apart = difference(ours(data, channels), dalis(data, channels))
    rounded = channels == 1 or data in (*WIDE_COLOR.values(), ALL["TIFF palette"])
    assert apart.max() <= (1 if rounded else 0)
    if data in JPEGS.values():
        assert apart.max() == 0


# What the file says beside


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_orientation_is_ignored(kind, orientation):
    data = encoded(RGB, kind, exif=turned(orientation))
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif()[0x0112] == orientation
    assert np.array_equal(ours(data), ours(encoded(RGB, kind)))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_alpha_is_dropped_whatever_it_hides(kind):
    assert np.array_equal(ours(encoded(RGBA, kind)), np.asarray(RGB))


def test_the_first_of_two_photos_in_a_file_is_taken():
    with Image.open(io.BytesIO(JPEGS["MPO"])) as image:
        assert image.format == "MPO"
    assert np.array_equal(ours(JPEGS["MPO"]), ours(encoded(RGB, "JPEG")))


@each(WIDE)
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_of_grey_are_scaled_and_not_clipped(data, channels):
    apart = np.abs(ours(data, channels) - WIDE_GREY[..., None] / 257)
    assert apart.max() < 1
    assert np.unique(ours(data, channels)).tolist() == list(range(256))


def test_16_bits_of_colour_are_scaled_and_not_clipped():
    assert np.abs(ours(WIDE_COLOR["PNG 16 bits"]) - WIDE_RGB / 257).max() <= 1


def test_lossless_kinds_give_back_what_went_in():
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        assert np.array_equal(ours(encoded(RGB, kind)), np.asarray(RGB))
        assert np.array_equal(ours(encoded(GREY, kind), 1)[..., 0], np.asarray(GREY))


# A part, and the size that is expected


@each(ALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_region_is_that_part_of_the_whole(data, channels):
    whole = ours(data, channels)
    height, width = whole.shape[:2]
    for top, left, h, w in (
        (0, 0, height, width),
        (height // 2, width // 3, height - height // 2, width // 4 + 1),
        (height - 1, width - 1, 1, 1),
    ):
        part = ours(data, channels, region=(top, left, h, w))
        assert np.array_equal(part, whole[top : top + h, left : left + w])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_of_another_size_than_expected_is_refused(kind, wording):
    data = encoded(RGB, kind)
    assert np.array_equal(ours(data, size=(HEIGHT, WIDTH)), ours(data))
    with pytest.raises(DecodeError) as caught:
        ours(data, size=(WIDTH, HEIGHT))
    wording(caught.value)


# What is no image


UNDECODABLE = {
    "nothing": b"",
    "text": b"not found\n",
    "html": b"<html>" * 100,
    "zeros": bytes(1000),
    "start of a JPEG": JPEGS["JPEG 4:2:0"][:2],
    "half a JPEG": JPEGS["JPEG 4:2:0"][:600],
    "a JPEG without its end": JPEGS["JPEG 4:2:0"][:-2],
    "half a progressive JPEG": JPEGS["JPEG progressive"][:600],
    **{f"half a {kind}": OTHERS[kind][:700] for kind in ("PNG RGB", "WebP", "BMP", "TIFF", "PPM")},
    "a PNG with other bytes in it": OTHERS["PNG RGB"][:200] + bytes(200) + OTHERS["PNG RGB"][400:],
}


@each(UNDECODABLE)
@pytest.mark.parametrize("channels", [1, 3])
def test_undecodable_bytes_are_refused_in_one_line(data, channels):
    with pytest.raises(DecodeError) as caught:
        ours(data, channels)
    message = str(caught.value)
    assert message.strip() == message != ""
    assert "\n" not in message


@pytest.mark.parametrize(
    ("error", "expected"),
    [(OSError("two\n  lines"), "two lines"), (KeyError(), "KeyError"), (ValueError(" spaces "), "spaces")],
    ids=repr,
)
def test_whatever_pillow_raises_becomes_a_reason_in_one_line(error, expected, monkeypatch):
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(DecodeError) as caught:
        ours(JPEGS["JPEG 4:4:4"])
    assert str(caught.value) == expected


def test_the_reason_is_one_for_people():
    with pytest.raises(DecodeError) as caught:
        ours(b"not found\n")
    assert "object at 0x" not in str(caught.value)


def test_an_image_of_billions_of_pixels_is_refused():
    data = bytearray(encoded(DOT, "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    with pytest.raises(DecodeError):
        ours(bytes(data))
