"""DALI gets intact images alone: an error in its decoder may end the process."""

from __future__ import annotations

import io
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastcnn.data.intact import intact_jpeg, intact_png
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.loaders.registry import has_dali
from fastcnn.data.sources.dataset import Split
from fastcnn.data.sources.headers import scan
from fastcnn.data.transforms.transform import Transform
from odd_images import turned

if not has_dali():
    pytest.skip("DALI is not installed", allow_module_level=True)

from fastcnn.data.batch import ShardedSampler
from fastcnn.data.loaders import dali_regions
from fastcnn.data.loaders.base import LoaderArgs
from fastcnn.data.loaders.dali import DaliLoader
from fastcnn.data.loaders.dali_images import STABLE_AGE, DaliImages
from fastcnn.data.loaders.dali_regions import FAILED, WORKS, regions_work, try_regions

rng = np.random.default_rng(0)


def picture(height: int = 32, width: int = 40) -> Image.Image:
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def encoded(kind: str = "JPEG", image: Image.Image | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    (image or picture()).save(stream, kind, **options)
    return stream.getvalue()


JPEGS = {
    "usual": encoded(),
    "best": encoded(quality=100, subsampling=0),
    "wide": encoded(subsampling=1, optimize=True),
    "progressive": encoded(progressive=True),
    "restarts": encoded(restart_marker_blocks=1),
    "gray": encoded(image=picture().convert("L")),
    "turned": turned(picture(), 6),
    "comment": encoded(comment=b"a" * 300),
}
PNGS = {
    "color": encoded("PNG"),
    "gray": encoded("PNG", picture().convert("L")),
    "palette": encoded("PNG", picture().convert("P")),
    "alpha": encoded("PNG", picture().convert("RGBA")),
    "bits": encoded("PNG", picture().convert("1")),
    "deep": encoded("PNG", Image.fromarray(rng.integers(0, 65_536, (9, 7), dtype=np.uint16))),
}


@pytest.mark.parametrize("data", JPEGS.values(), ids=JPEGS)
def test_usual_jpegs_are_intact_and_their_beginnings_are_not(data):
    assert intact_jpeg(data)
    assert not any(intact_jpeg(data[:length]) for length in range(len(data)))
    assert intact_jpeg(data + b"a trailer of a phone") == intact_jpeg(data)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_frame_has_the_size_as_stored_and_the_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    stream = io.BytesIO()
    image.save(stream, "JPEG", exif=exif)
    assert intact_jpeg(stream.getvalue()) == (20, 30, orientation)
    assert intact_png(encoded("PNG", image)) == (20, 30, 1)


def test_photos_of_phones_are_left_to_dali(tmp_path):
    """A second image (MPO), XMP or other bytes follow the first one."""
    photo, small = picture(), picture().resize((8, 8))
    photo.save(tmp_path / "0.jpg", "MPO", save_all=True, append_images=[small])
    (tmp_path / "1.jpg").write_bytes(encoded("JPEG", photo) + b"trailer" * 100)
    photo.save(tmp_path / "2.jpg", "JPEG", xmp=b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>")
    paths = [str(tmp_path / f"{i}.jpg") for i in range(3)]
    images = DaliImages(scan("data", paths), 3)
    for i, path in enumerate(paths):
        assert images.load(i).tobytes() == Path(path).read_bytes()


@pytest.mark.parametrize("data", PNGS.values(), ids=PNGS)
def test_usual_pngs_are_intact_and_with_any_other_byte_they_are_not(data):
    assert intact_png(data)
    assert not any(intact_png(data[:length]) for length in range(len(data)))
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << (place % 8)
        assert not intact_png(bytes(changed)), place


def without(data: bytes, marker: int) -> bytes:
    """A JPEG without the segments of a marker."""
    at, kept = 2, data[:2]
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        kept += b"" if data[at + 1] == marker else data[at:end]
        at = end
    return kept + data[at:]


@pytest.mark.parametrize("marker", [0xC0, 0xC4, 0xDB], ids=["frame", "huffman", "quantization"])
def test_a_jpeg_without_what_its_decoder_needs_is_not_intact(marker):
    assert intact_jpeg(without(JPEGS["usual"], 0xE0))
    assert not intact_jpeg(without(JPEGS["usual"], marker))


def test_a_png_that_holds_other_rows_than_it_states_is_not_intact():
    """Its checksums are right."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    def png(rows: bytes, height: int = 4) -> bytes:
        header = struct.pack(">IIBBBBB", 4, height, 8, 0, 0, 0, 0)
        chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)

    good = b"\0abcd" * 4
    assert intact_png(png(good))
    for rows in (good[:-1], good + b"\0", b"\5abcd" * 4, b""):
        assert not intact_png(png(rows))
    assert not intact_png(png(good, height=1 << 30))


# Files that change


def loader_of(paths: list[str], **changes: Any) -> DaliLoader:
    split = Split(np.zeros(len(paths), dtype=np.int64), scan("data", paths))
    sampler = ShardedSampler(count=len(paths), batch_size=8, rank=0, world_size=1, train=True)
    transform = Transform(**{"size": 16, "scale": (0.1, 1.0), **changes})
    return DaliLoader(
        LoaderArgs(
            split=split,
            transform=transform,
            sampler=sampler,
            device=torch.device("cpu"),
            workers=2,
            bad=BadFiles(split, "training", max_fraction=1, quiet=True),
        )
    )


def write(folder: Path, count: int = 32) -> list[str]:
    paths = [str(folder / f"{i}.jpg") for i in range(count)]
    for path in paths:
        Path(path).write_bytes(encoded())
        os.utime(path, ns=(0, time.time_ns() - 2 * STABLE_AGE))
    return paths


CHANGES = {
    "garbage": b"x" * 500,
    "empty": b"",
    "cut": JPEGS["usual"][:200],
    "late cut": JPEGS["usual"][:-40],
    "start": b"\xff\xd8\xff\xe0" + bytes(50),
    "smaller": encoded(image=picture(20, 20)),
    "larger": encoded(image=picture(64, 80)),
    "turned": turned(picture(40, 32), 6),
    "no table": without(JPEGS["usual"], 0xDB),
}


@pytest.mark.parametrize("content", CHANGES.values(), ids=CHANGES)
def test_a_file_that_changes_while_it_is_trained_on_ends_nothing(tmp_path, content):
    paths = write(tmp_path)
    loader = loader_of(paths)
    assert len(list(loader)) == 4
    for path in paths[::8]:
        Path(path).write_bytes(content)
    for epoch in range(1, 4):
        loader.set_epoch(epoch)
        assert len(list(loader)) == 4
    loader.close()
    assert set(loader.bad.reasons) in (set(range(0, 32, 8)), set())
    assert (not loader.bad.reasons) == (content == CHANGES["turned"])  # the same size as stored


def test_a_file_is_checked_once_while_it_does_not_change(tmp_path, monkeypatch):
    paths = write(tmp_path, 1)
    checked = []

    def noted(data: bytes) -> object:
        checked.append(len(data))
        return intact_jpeg(data)

    monkeypatch.setattr("fastcnn.data.loaders.dali_images.intact_jpeg", noted)
    images = DaliImages(scan("data", paths), 3)
    for _ in range(3):
        assert images.load(0).tobytes() == Path(paths[0]).read_bytes()
    assert len(checked) == 1
    # A time that may still stand for two contents.
    os.utime(paths[0], ns=(0, time.time_ns() - STABLE_AGE // 2))
    images.load(0)
    images.load(0)
    assert len(checked) == 3


def test_what_dali_fails_at_is_decoded_by_pillow(tmp_path, capsys):
    paths = write(tmp_path)
    expected = [batch.images.clone() for batch in loader_of(paths)]
    loader = loader_of(paths)
    loader._start(loader.position)
    loader._prefetched = loader.position
    pipeline = loader._pipeline

    class Failing:
        def run(self, stream: Any) -> None:
            loader._pipeline = pipeline
            pipeline.run(stream)
            raise RuntimeError("Error in CPU operator `decoder`,\nwhich was encountered:\nno such codec")

    loader._pipeline = Failing()
    found = [batch.images for batch in loader]
    loader.close()
    assert loader._encoded is not None
    assert loader._encoded.by_pillow.any()
    assert loader.bad.reasons == {}
    apart = max(int((a.int() - b.int()).abs().max()) for a, b in zip(found, expected))
    assert apart <= 8
    assert capsys.readouterr().err.count("warning: DALI cannot decode a batch (no such codec)") == 1


# Regions on a GPU


def test_regions_are_tried_in_a_process_of_its_own():
    assert try_regions(None) == (WORKS, True)


CHILDREN = {
    "crash": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by signal 11", True),
    "error": ("print('failed: an error of the decoder')", "failed: an error of the decoder", True),
    "no device": ("raise RuntimeError('no device')", f"{FAILED}: RuntimeError: no device", False),
    "hang": ("import time; time.sleep(60)", "no answer in 1 s", False),
    "other": ("print('works'); raise SystemExit(1)", f"{FAILED}: no reason", False),
}


@pytest.mark.parametrize(("code", "reason", "settled"), CHILDREN.values(), ids=CHILDREN)
def test_a_process_that_fails_is_named(tmp_path, monkeypatch, code, reason, settled):
    (tmp_path / "child.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome, known = try_regions(0, program="child", seconds=1 if reason.startswith("no answer") else 30)
    assert (outcome, known) == (reason, settled)


def test_the_outcome_is_kept_for_a_gpu_and_its_versions(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path))
    asked = []

    def tried(index: int | None) -> tuple[str, bool]:
        asked.append(index)
        return ("ended by signal 11", True) if index == 0 else (WORKS, True)

    monkeypatch.setattr(dali_regions, "try_regions", tried)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    devices = [torch.device("cuda", i) for i in (0, 1)]
    for _ in range(2):
        assert [regions_work(device) for device in (*devices, *devices)] == [False, True, False, True]
        regions_work.cache_clear()  # as in another process
    assert asked == [0, 1]
    line = "DALI: regions of images on GPU 0: ended by signal 11; whole images are decoded, then cut"
    assert capsys.readouterr().err.splitlines() == [line, line]
    monkeypatch.setattr(dali_regions, "_versions", lambda: ("another",))
    regions_work(devices[0], announce=False)
    regions_work.cache_clear()
    assert asked == [0, 1, 0]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("crop", ["random-resized", "pad"])
def test_whole_images_that_are_cut_have_the_same_pixels(tmp_path, crop):
    paths = write(tmp_path)
    with_regions, cut = loader_of(paths, train_crop=crop), loader_of(paths, train_crop=crop)
    cut._regions = False
    for a, b in zip(with_regions, cut):
        assert int((a.images.int() - b.images.int()).abs().max()) <= 8
    with_regions.close()
    cut.close()


# Many changed images


@pytest.mark.slow
def test_intact_bytes_are_decoded_by_dali_without_an_error():
    """In this process: an error would end it, or be raised."""
    from nvidia.dali import fn, pipeline_def, types

    random_numbers = random.Random(0)
    found = []
    for data in [*JPEGS.values(), *PNGS.values()] * 400:
        changed = bytearray(data)
        for _ in range(random_numbers.choice((1, 2, 8))):
            changed[random_numbers.randrange(2, len(data))] = random_numbers.randrange(256)
        if intact_jpeg(bytes(changed)):
            found.append(np.frombuffer(bytes(changed), dtype=np.uint8))
    assert len(found) > 1000

    @pipeline_def(batch_size=32, num_threads=2, device_id=None)
    def decode() -> Any:
        feed = fn.external_source(lambda i: found[32 * i : 32 * i + 32], batch=True)
        return fn.decoders.image(feed, output_type=types.RGB)

    pipeline = decode()
    pipeline.build()
    for _ in range(len(found) // 32):
        pipeline.run()
