"""Turned, deep, many-channel and rare images in every loader."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastcnn.config.settings import LoaderSettings
from fastcnn.data.batch import Batch
from fastcnn.data.decode import formats
from fastcnn.data.loaders.build import build_loaders
from fastcnn.data.loaders.registry import has_dali
from fastcnn.data.mask_files import MaskArrays
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.sources.headers import scan
from fastcnn.data.sources.pixels import with_levels
from fastcnn.data.targets import NO_BOX, Boxes, Masks
from fastcnn.data.transforms.augment import Augment
from fastcnn.data.transforms.transform import Transform
from fastcnn.runtime.distributed import Ranks
from odd_images import RECTANGLE, dicom, iou, npy, png16, red_box, scene, tiff, turned

CPU = torch.device("cpu")
needs_dali = pytest.mark.skipif(not has_dali(), reason="DALI is not installed")
BACKENDS = [pytest.param("dali", marks=needs_dali), "torch", "cached"]
TURNED: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
}
rng = np.random.default_rng(0)


@pytest.fixture
def loaders() -> Iterator[Any]:
    made: list[Any] = []

    def make(source: Source, backend: Any, transform: Transform, **changes: Any) -> Any:
        settings = LoaderSettings(data_backend=backend, **{"batch_size": 4, "workers": 2, **changes})
        ranks = Ranks(0, 1, 0, 1)
        pair = build_loaders(source, transform, settings, ranks=ranks, device=CPU, seed=0)
        made.extend(pair)
        return pair

    yield make
    for loader in made:
        loader.close()


def source_of(
    folder: Path, images: dict[str, bytes], annotations: Masks | Boxes | None = None, *, upright: bool = True
) -> Source:
    """Training and validation images of the same files."""
    folder.mkdir(exist_ok=True)
    for name, content in images.items():
        (folder / name).write_bytes(content)
    files = scan(str(folder), [str(folder / name) for name in images], upright=upright)
    split = Split(np.arange(len(images)), files, annotations=annotations)
    names = tuple(f"class {i}" for i in range(len(images)))
    return Source(name="odd", train=split, val=split, class_names=names)


def turned_images() -> dict[str, bytes]:
    return {
        f"{kind} {orientation}.{kind.lower()}": turned(scene(), orientation, kind, **options)
        for kind, options in TURNED.items()
        for orientation in range(10)
    }


def rows(batches: Iterator[Batch]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pixels [H, W, C] and target of each sample."""
    for batch in batches:
        for image, target, real in zip(batch.images, batch.targets, batch.mask.tolist()):
            if real:
                yield image.permute(1, 2, 0).numpy(), target.numpy()


TRANSFORMS = {
    "border": Transform(size=96, crop_mode="border", scale=(0.5, 1.0)),
    "center": Transform(size=32, crop_pct=0.5),
    "pad": Transform(size=96, train_crop="pad", crop_mode="border"),
    "rotated": Transform(size=96, crop_mode="border", augment=Augment(color_jitter=(0.01, 0.01, 0.0))),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_boxes_cover_the_object_of_a_turned_photo(loaders, tmp_path, backend, transform):
    images = turned_images()
    boxes = Boxes.of_images([np.array([[0, *RECTANGLE, 0]], dtype=np.float32)] * len(images))
    source = source_of(tmp_path / "images", images, boxes)
    assert (source.train.sizes == (96, 48)).all()
    seen = 0
    for loader in loaders(source, backend, transform):
        for pixels, target in rows(loader):
            for box in target[target[:, 0] != NO_BOX]:
                side = min(box[3] - box[1], box[4] - box[2])
                if side >= 16:  # of a sliver a pixel is much
                    assert iou(box[1:5], red_box(pixels)) > 0.9 - 2 / side
                    seen += 1
    assert seen > len(images)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_cover_the_object_of_a_turned_photo(loaders, tmp_path, backend):
    images, mask = turned_images(), np.zeros((96, 48), dtype=np.uint8)
    left, top, right, bottom = RECTANGLE
    mask[top:bottom, left:right] = 1
    masks = Masks(np.arange(256, dtype=np.uint8), MaskArrays([mask] * len(images)))
    source = source_of(tmp_path / "images", images, masks)
    seen = 0
    for loader in loaders(source, backend, TRANSFORMS["border"]):
        for pixels, target in rows(loader):
            red = (pixels[..., 0] > 170) & (pixels[..., 1:].max(axis=2) < 60)
            both, either = (red & (target == 1)).sum(), (red | (target == 1)).sum()
            if either > 300:
                assert both / either > 0.85
                seen += 1
    assert seen > len(images)


@pytest.mark.parametrize("backend", BACKENDS)
def test_exif_is_ignored_where_that_is_asked_for_and_a_tiff_is_upright(loaders, tmp_path, backend):
    images = {
        f"{kind}.{kind.lower()}": turned(scene(), 6, kind, **options) for kind, options in TURNED.items()
    }
    source = source_of(tmp_path / "images", images, upright=False)
    assert source.train.sizes.tolist() == [[48, 96]] * 3 + [[96, 48]]
    _, val = loaders(source, backend, Transform(size=96, crop_mode="border"))
    stored, upright = (
        red_box(np.asarray(picture)) for picture in (scene().transpose(Image.Transpose.ROTATE_90), scene())
    )
    found = [red_box(pixels) for pixels, _ in rows(val)]
    for box in found[:3]:
        assert iou(box, np.array(stored) + (0, 24, 0, 24)) > 0.9
    assert iou(found[3], np.array(upright) + (24, 0, 24, 0)) > 0.9


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def odd() -> dict[str, bytes]:
    """Images of 70 x 50 that DALI does not read as Pillow does, with plain ones between them."""
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    picture = coarse.resize((70, 50), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture)
    deep, gray = pixels.astype(np.uint16) * 16, np.asarray(picture.convert("L")).astype(np.uint16) * 16
    images = {
        "plain.jpg": saved(picture, "JPEG"),
        "plain.png": saved(picture, "PNG"),
        "animated.gif": saved(picture.convert("P"), "GIF"),
        "wavelets.jp2": saved(picture, "JPEG2000"),
        "turned.tiff": turned(picture, 6, "TIFF"),
        "one-bit.tiff": saved(picture.convert("1", dither=Image.Dither.NONE), "TIFF"),
        "color.png": png16(deep),
        "gray.png": png16(gray[..., None]),
        "color.tiff": tiff(deep, photometric="rgb"),
        "float.tiff": tiff(gray.astype(np.float32)),
        "scan.dcm": dicom(gray),
        "array.npy": npy(deep),
        "bytes.npy": npy(pixels),
        "text.pgm": b"P2 70 50 255\n" + " ".join(map(str, pixels[..., 0].reshape(-1))).encode(),
        "hundred.pgm": b"P5 70 50 100\n" + (pixels[..., 0] // 3).astype(np.uint8).tobytes(),
    }
    for kind, suffix in (("AVIF", "avif"), ("HEIF", "heic")):
        if kind in formats():
            images[f"photo.{suffix}"] = saved(picture, kind)
            images[f"turned.{suffix}"] = turned(picture, 6, kind)
    return images


@needs_dali
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("levels", [None, (0, 4095)], ids=str)
@pytest.mark.parametrize("crop", ["random-resized", "pad"])
def test_rare_images_have_the_same_pixels_in_every_backend(loaders, tmp_path, channels, levels, crop):
    source = source_of(tmp_path / "images", odd())
    assert source.train.problems == {}
    source = source if levels is None else with_levels(source, levels)
    transform = Transform(size=32, channels=channels, train_crop=crop)
    for phase in (0, 1):
        dali, torchs, cached = (
            list(rows(loaders(source, backend, transform)[phase])) for backend in ("dali", "torch", "cached")
        )
        assert len(dali) == len(torchs) == len(cached) >= 16
        for (a, label), (b, same), (c, _) in zip(dali, torchs, cached):
            assert label == same
            apart = np.abs(a.astype(int) - b)
            assert apart.max() <= 8  # the edges of one bit; 2 elsewhere
            assert apart.mean() < 1
            assert np.array_equal(b, c)


@pytest.mark.parametrize("backend", BACKENDS)
def test_levels_scale_what_they_are_for(loaders, tmp_path, backend):
    dark = np.linspace(0, 4095, 32 * 32).round().astype(np.uint16).reshape(32, 32, 1)
    source = with_levels(
        source_of(tmp_path / "images", {"a.png": png16(dark), "b.png": png16(dark)}), (0, 4095)
    )
    _, val = loaders(source, backend, Transform(size=32, train_crop="pad"), batch_size=2)
    for pixels, _ in rows(val):
        assert np.abs(pixels - dark * (255 / 4095)).max() <= 0.5 + 1e-9
        assert len(np.unique(pixels)) == 256


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["photo.heic", "scan.dcm", "array.npy", "animated.gif", "wavelets.jp2"])
def test_a_damaged_rare_image_is_replaced(loaders, tmp_path, backend, name, capfd):
    images = odd()
    if name not in images:
        pytest.skip("not in this Pillow")
    source = source_of(tmp_path / "images", {name: images[name], **images})
    victim = Path(source.train.name(0))
    victim.write_bytes(images[name][: len(images[name]) // 2])
    train, val = loaders(source, backend, Transform(size=32), max_bad_fraction=0.5)
    trained = [int(label) for _ in range(2) for _, label in rows(train)]
    assert 0 not in trained
    assert [int(label) for _, label in rows(val)] == list(range(1, len(images)))
    assert set(val.bad.reasons) == {0}


@needs_dali
def test_rare_images_in_shards_are_read_by_dali(loaders, tmp_path):
    images = odd()
    shard, spans = b"", []
    for content in images.values():
        spans.append((len(shard), len(content)))
        shard += content
    (tmp_path / "a.tar").write_bytes(shard)
    paths = [str(tmp_path / "a.tar")] * len(images)
    files = scan("shard", paths, np.array(spans), list(images))
    assert files.problems == {}
    split = Split(np.arange(len(images)), files)
    source = Source(name="odd", train=split, val=split, class_names=tuple(images))
    both = [list(rows(loaders(source, backend, Transform(size=32))[1])) for backend in ("dali", "torch")]
    for (a, _), (b, _) in zip(*both):
        assert np.abs(a.astype(int) - b).max() <= 8


# Channels


AUGMENTATIONS = {
    "none": Augment(fill=(1,) * 6),
    "color": Augment(color_jitter=(0.4, 0.4, 0.0), fill=(1,) * 6),
    "erasing": Augment(reprob=1.0, cutout=8, fill=(1, 2, 3, 4, 5, 6)),
    "rotation": Augment(rotate=30.0, fill=(1,) * 6),
}


@pytest.mark.parametrize("backend", ["torch", "cached"])
@pytest.mark.parametrize("crop", ["random-resized", "pad"])
@pytest.mark.parametrize("augment", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_batches_have_as_many_channels_as_the_images(loaders, tmp_path, backend, crop, augment):
    arrays = [rng.integers(0, 256, (32, 32, 6)).astype(np.uint8) for _ in range(8)]
    source = source_of(tmp_path / "images", {f"{i}.npy": npy(a) for i, a in enumerate(arrays)})
    transform = Transform(size=32, channels=6, train_crop=crop, crop_pct=1.0, augment=augment)
    train, val = loaders(source, backend, transform)
    for pixels, label in rows(val):
        assert np.array_equal(pixels, arrays[int(label)])
    for batch in train:
        assert batch.images.shape == (4, 6, 32, 32)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


@needs_dali
def test_dali_refuses_other_channels(loaders, tmp_path, wording):
    arrays = {f"{i}.npy": npy(np.zeros((32, 32, 6), dtype=np.uint8)) for i in range(8)}
    source = dataclasses.replace(source_of(tmp_path / "images", arrays), channels=6)
    with pytest.raises(ValueError) as caught:
        loaders(source, "dali", Transform(size=32, channels=6))
    wording(caught.value)
