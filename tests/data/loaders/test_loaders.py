"""Every loader keeps the contract of `fastcnn.data.batch`."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from fastcnn.config.settings import DataSettings, LoaderSettings
from fastcnn.data.batch import Batch
from fastcnn.data.loaders.autoselect import choose_backend, time_backends
from fastcnn.data.loaders.build import build_loaders
from fastcnn.data.loaders.cached import free_memory
from fastcnn.data.loaders.registry import has_dali
from fastcnn.data.loaders.threads import pool_for
from fastcnn.data.loaders.torch_loader import TorchLoader
from fastcnn.data.mask_files import MaskArrays
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.sources.folder import read_folder
from fastcnn.data.targets import IGNORE, NO_BOX, Boxes, Masks
from fastcnn.data.transforms.transform import Transform
from fastcnn.runtime.distributed import Ranks
from networks import each

CPU = torch.device("cpu")
needs_dali = pytest.mark.skipif(not has_dali(), reason="DALI is not installed")
BACKENDS = [pytest.param("dali", marks=needs_dali), "torch", "cached"]
TARGETS = ["labels", "masks", "boxes"]
KINDS = ["files", "arrays", "masks", "boxes"]
MANY = 64
"""More than there are samples."""


def numbered(source: Source, targets: str = "labels") -> Source:
    """The same images with their numbers as targets, so that a batch tells which samples it holds."""

    def renumber(split: Split) -> Split:
        if targets == "labels":
            return Split(np.arange(len(split)), split.files, split.images)
        sizes = enumerate(split.sizes.clip(min=1).tolist())  # of an unreadable image nothing is known
        annotations: Masks | Boxes
        if targets == "masks":
            annotations = Masks(
                np.arange(256, dtype=np.uint8), MaskArrays([quarters(i, *size) for i, size in sizes])
            )
        else:
            annotations = Boxes.of_images([tiles(i, *size) for i, size in sizes])
        return Split(np.zeros(len(split), dtype=np.int64), split.files, split.images, annotations)

    return Source(
        name="numbered",
        train=renumber(source.train),
        val=renumber(source.val),
        class_names=source.class_names,
    )


def quarters(number: int, height: int, width: int) -> np.ndarray:
    """A mask that says in each pixel which image it is of, and which quarter."""
    rows, columns = np.mgrid[:height, :width]
    return (number + MANY * (2 * (2 * rows // height) + 2 * columns // width)).astype(np.uint8)


def tiles(number: int, height: int, width: int, sides: int = 8) -> np.ndarray:
    """Boxes of the image's class all over it, so small that every crop keeps some; of a strip, which is
    cropped in its middle, there."""
    rows, columns = np.mgrid[:sides, :sides].reshape(2, -1)
    high, wide = height / sides, min(width, 3 * height) / sides
    left = width / 2 + (columns - sides / 2) * wide
    corners = left, rows * high, left + wide, (rows + 1) * high
    return np.column_stack([np.full(sides**2, number), *corners, 0 * rows])


def number(target: torch.Tensor) -> int:
    """Which sample it is of."""
    if target.ndim == 0:
        return int(target)
    mask = target.dtype == torch.uint8
    found = target[target != IGNORE] % MANY if mask else target[target[:, 0] != NO_BOX, 0]
    (only,) = found.unique().tolist()
    return int(only)


def mirrored(targets: torch.Tensor, size: int) -> torch.Tensor:
    """The targets of mirrored images."""
    if targets.dtype == torch.uint8:
        return targets.flip(2)
    if targets.ndim == 1:
        return targets
    flipped, real = targets.clone(), targets[..., 0] != NO_BOX
    flipped[..., 1], flipped[..., 3] = size - targets[..., 3], size - targets[..., 1]
    return flipped.where(real[..., None], targets)


def in_memory(source: Source, size: int) -> Source:
    def decode(split: Split) -> Split:
        assert split.files is not None
        images = [np.asarray(Image.open(f).convert("RGB").resize((size, size))) for f in split.files.paths]
        return Split(split.labels, images=np.stack(images))

    return Source(
        name="arrays", train=decode(source.train), val=decode(source.val), class_names=source.class_names
    )


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, photos: Path) -> Source:
    targets = request.param if request.param in TARGETS else "labels"
    files = numbered(read_folder(photos, DataSettings(), 0), targets)
    return in_memory(files, 48) if request.param == "arrays" else files


@pytest.fixture
def loaders() -> Iterator[Any]:
    """`loaders(source, "dali")`: the training and the validation loader of a rank, closed at the end."""
    made: list[Any] = []

    def make(source: Source, backend: Any, rank: int = 0, world_size: int = 1, **changes: Any) -> Any:
        transform = changes.pop("transform", Transform(size=32))
        seed = changes.pop("seed", 0)
        settings = LoaderSettings(data_backend=backend, **{"batch_size": 4, "workers": 2, **changes})
        ranks = Ranks(rank, world_size, rank, world_size)
        pair = build_loaders(source, transform, settings, ranks=ranks, device=CPU, seed=seed)
        made.extend(pair)
        return pair

    yield make
    for loader in made:
        loader.close()


def samples(batches: Iterator[Batch]) -> list[int]:
    return [number(t) for batch in batches for t, real in zip(batch.targets, batch.mask) if real]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("crop", ["pad", "random-resized"])
@pytest.mark.parametrize("channels", each([1, 3], [3]))
def test_batches_are_uint8_channels_last_with_targets_and_mask(loaders, source, backend, crop, channels):
    transform = Transform(size=32, channels=channels, train_crop=crop)
    for loader in loaders(source.with_channels(channels), backend, transform=transform):
        batches = list(loader)
        assert len(batches) == len(loader)
        for batch in batches:
            assert batch.images.shape == (4, channels, 32, 32)
            assert batch.images.dtype == torch.uint8
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            if isinstance(source.train.annotations, Masks):
                assert batch.targets.shape == (4, 32, 32)
                assert batch.targets.dtype == torch.uint8
            elif isinstance(source.train.annotations, Boxes):
                assert batch.targets.shape == (4, 64, 6)  # as many as the image with the most has
                assert batch.targets.dtype == torch.float32
            else:
                assert batch.targets.shape == (4,)
                assert batch.targets.dtype == torch.int64
            assert batch.mask.shape == (4,)
            assert batch.mask.dtype == torch.bool


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("world_size", each([1, 2, 3], [1, 3]))
def test_an_epoch_trains_on_each_sample_once_at_most_and_validates_each_once(
    loaders, source, backend, world_size
):
    ranks = [loaders(source, backend, rank, world_size) for rank in range(world_size)]
    orders = []
    for epoch in range(3):
        trained: list[int] = []
        validated: list[int] = []
        for train, val in ranks:
            train.set_epoch(epoch)
            seen = samples(train)
            assert len(seen) == len(train) * 4
            trained += seen
            validated += samples(val)
        assert len(trained) == len(set(trained)) == ranks[0][0].num_samples
        assert sorted(validated) == list(range(7))
        orders.append(trained)
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_order_depends_on_the_seed(loaders, source, backend):
    first, again, other = (samples(loaders(source, backend, seed=seed)[0]) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("backend", BACKENDS)
def test_validation_is_padded_to_full_batches_and_masked(loaders, source, backend):
    val = loaders(source, backend)[1]
    masks = [batch.mask.tolist() for batch in val]
    assert masks == [[True] * 4, [True] * 3 + [False]]
    assert val.num_samples == 7


@pytest.mark.parametrize("backend", BACKENDS)
def test_validation_images_are_torchvisions_resize_and_centre_crop(loaders, photos, backend):
    source = read_folder(photos, DataSettings(), 0)
    reference = v2.Compose([v2.Resize(int(32 / 0.875)), v2.CenterCrop(32), v2.PILToTensor()])
    images = torch.cat([batch.images for batch in loaders(source, backend)[1]])
    assert source.val.files is not None
    for file, image in zip(source.val.files.paths, images):
        difference = (reference(Image.open(file)).int() - image.int()).abs()
        assert difference.max() <= 2
        assert difference.float().mean() < 0.5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("crop", ["pad", "random-resized"])
def test_images_of_the_size_of_samples_are_resized_all_the_same_unless_they_are_small_ones(
    loaders, photos, backend, crop
):
    source, transform = (
        in_memory(read_folder(photos, DataSettings(), 0), 32),
        Transform(size=32, channels=3, train_crop=crop),
    )
    reference = v2.Compose([v2.Resize(transform.resize), v2.CenterCrop(32), v2.PILToTensor()])
    images = torch.cat([batch.images for batch in loaders(source, backend, transform=transform)[1]])
    assert isinstance(source.val.images, np.ndarray)
    for original, image in zip(source.val.images, images):
        difference = (reference(Image.fromarray(original)).int() - image.int()).abs()
        assert difference.max() <= (0 if crop == "pad" else 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("targets", TARGETS)
def test_a_file_that_another_process_found_bad_is_replaced_while_it_is_under_way(
    loaders, photos, tmp_path, backend, targets
):
    shutil.copytree(photos, tmp_path / "photos")
    source = numbered(read_folder(tmp_path / "photos", DataSettings(), 0), targets)
    order = samples(loaders(source, backend)[0])
    Path(source.train.name(order[8])).write_bytes(b"damaged")
    train = loaders(source, backend, max_bad_fraction=0.1)[0]
    batches = iter(train)
    seen = samples(iter([next(batches)]))
    train.bad.merge({order[8]: "as another process says"})
    seen += samples(batches)
    assert len(seen) == 20
    assert order[8] not in seen


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_of_the_right_size_are_validated_as_they_are(loaders, photos, backend):
    source = in_memory(read_folder(photos, DataSettings(), 0), 32)
    images = torch.cat(
        [
            b.images
            for b in loaders(source, backend, transform=Transform(size=32, channels=3, train_crop="pad"))[1]
        ]
    )
    assert source.val.images is not None
    assert torch.equal(images[:7], torch.from_numpy(source.val.images).permute(0, 3, 1, 2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_pad_crop_moves_the_image_by_at_most_the_padding_over_black(loaders, photos, backend):
    source = numbered(in_memory(read_folder(photos, DataSettings(), 0), 32))
    transform = Transform(size=32, channels=3, train_crop="pad", hflip=0.0)
    shifts = set()
    for batch in loaders(source, backend, transform=transform)[0]:
        for image, index in zip(batch.images, batch.targets):
            assert source.train.images is not None
            original = torch.from_numpy(source.train.images[index]).permute(2, 0, 1)
            padded = torch.nn.functional.pad(original, (4, 4, 4, 4))
            found = [
                (y - 4, x - 4)
                for y in range(9)
                for x in range(9)
                if torch.equal(padded[:, y : y + 32, x : x + 32], image)
            ]
            assert len(found) == 1
            shifts.add(found[0])
    assert len(shifts) > 5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("crop", ["pad", "random-resized"])
def test_flip_mirrors_images_and_targets_with_its_probability(loaders, source, backend, crop):
    def epoch(hflip: float) -> tuple[torch.Tensor, torch.Tensor]:
        transform = Transform(size=32, channels=3, train_crop=crop, hflip=hflip)
        batches = list(loaders(source, backend, transform=transform)[0])
        return torch.cat([b.images for b in batches]), torch.cat([b.targets for b in batches])

    (never, targets), (always, of_mirrored), (sometimes, of_either) = epoch(0.0), epoch(1.0), epoch(0.5)
    assert torch.equal(always, never.flip(3))
    torch.testing.assert_close(of_mirrored, mirrored(targets, 32))
    flips = [torch.equal(image, flipped) for image, flipped in zip(sometimes, always)]
    assert 3 <= sum(flips) <= len(flips) - 3
    for i, flip in enumerate(flips):
        assert torch.equal(of_either[i], of_mirrored[i] if flip else targets[i])


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_resized_crops_cover_the_stated_share_of_the_area(loaders, tmp_path, backend):
    # An image whose pixels tell where they come from: red is the row, green the column.
    rows, columns = np.mgrid[0:200, 0:200].astype(np.uint8)
    picture = Image.fromarray(np.dstack([rows, columns, 0 * rows]))
    for split in ("train", "val"):
        for i in range(40):
            folder = tmp_path / split / f"class_{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{i}.png")
    transform = Transform(size=32, channels=3, scale=(0.2, 0.5), hflip=0.0)
    shares, ratios = [], []
    for batch in loaders(read_folder(tmp_path, DataSettings(), 0), backend, transform=transform)[0]:
        for image in batch.images.float():
            height = (image[0].max() - image[0].min()).item() * 32 / 31
            width = (image[1].max() - image[1].min()).item() * 32 / 31
            shares.append(height * width / 200**2)
            ratios.append(width / height)
    assert 0.18 < min(shares) < 0.3 < np.mean(shares) < 0.4 < max(shares) < 0.53
    assert 0.7 < min(ratios) < 0.9 < 1.1 < max(ratios) < 1.43


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stop_after", each([0, 3, 5, 8], [3]))
def test_a_restored_loader_goes_on_with_the_same_pixels(loaders, source, backend, stop_after):
    def batches(loader: Any, start: int) -> Iterator[Batch]:
        for epoch in range(start, 3):
            loader.set_epoch(epoch)
            yield from loader

    whole = loaders(source, backend)[0]
    expected = list(batches(whole, 0))
    interrupted = loaders(source, backend)[0]
    iterator = batches(interrupted, 0)
    for _ in range(stop_after):
        next(iterator)
    state = interrupted.state_dict()
    restored = loaders(source, backend)[0]
    restored.load_state_dict(state)
    rest = list(batches(restored, state["epoch"]))
    assert len(rest) == len(expected) - stop_after
    for got, wanted in zip(rest, expected[stop_after:]):
        assert torch.equal(got.targets, wanted.targets)
        assert torch.equal(got.images, wanted.images)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_does_not_depend_on_the_number_of_threads(loaders, source, backend, monkeypatch):
    monkeypatch.setattr(
        "fastcnn.data.loaders.threads.SMALL_IMAGE", 0
    )  # else one thread takes such small ones
    alone, helped = (loaders(source, backend, workers=workers)[0] for workers in (1, 3))
    for a, b in zip(alone, helped):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)


@pytest.mark.parametrize("crop", ["pad", "random-resized"])
@pytest.mark.parametrize("torch_resizes", [True, False])  # False: as on a GPU
def test_all_backends_cut_the_same_crops(loaders, source, crop, torch_resizes, monkeypatch):
    """So the statistics of their crops, shown for one in test_geometry, are those of all."""
    if has_dali():
        monkeypatch.setattr("fastcnn.data.loaders.dali.DaliLoader.torch_resizes", torch_resizes)
    kinds = ["torch", "cached", *(["dali"] if has_dali() else [])]
    transform = Transform(size=32, channels=3, train_crop=crop)
    of_one, *of_others = (list(loaders(source, kind, transform=transform)[0]) for kind in kinds)
    for others in of_others:
        for batch, other in zip(of_one, others, strict=True):
            difference = (batch.images.int() - other.images.int()).abs().float()
            assert torch.equal(batch.targets, other.targets)
            assert difference.mean() < 0.5
            assert difference.max() <= 2  # of 255


@pytest.mark.parametrize("world_size", each([1, 2, 3], [3]))
@pytest.mark.parametrize("batch_size", [2, 5])
@pytest.mark.parametrize(("old", "new"), [("dali", "torch"), ("torch", "cached"), ("cached", "dali")])
def test_other_ranks_batches_and_backends_take_over_the_rest_of_an_epoch(
    loaders, source, old, new, batch_size, world_size
):
    if not has_dali():
        old, new = old.replace("dali", "torch"), new.replace("dali", "torch")
    whole = samples(loaders(source, old, batch_size=1)[0])
    before: list[int] = []
    for rank in range(2):  # two ranks make two steps of four
        loader = loaders(source, old, rank, 2)[0]
        batches = iter(loader)
        before += samples(next(batches) for _ in range(2))
    assert sorted(before) == sorted(whole[:16])
    after: list[int] = []
    for rank in range(world_size):
        rest = loaders(source, new, rank, world_size, batch_size=batch_size)[0]
        rest.load_state_dict(loader.state_dict())
        rest.set_epoch(0)
        steps = rest.steps_left
        seen = samples(rest)
        assert len(seen) == steps * batch_size
        after += seen
    assert steps == (23 - 16) // world_size // batch_size
    assert sorted(after) == sorted(whole[16 : 16 + len(after)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("targets", ["labels", "masks"])
def test_nothing_is_left_behind(tmp_path, photos, backend, targets, monkeypatch):
    """Neither threads nor processes, after a part of an epoch and after an error in it."""
    monkeypatch.setattr("fastcnn.data.loaders.threads.SMALL_IMAGE", 0)
    shutil.copytree(photos, tmp_path / "photos")
    data = numbered(read_folder(tmp_path / "photos", DataSettings(), 0), targets)

    def tasks() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    def use(fail: bool) -> None:
        settings = LoaderSettings(data_backend=backend, batch_size=4, workers=2, max_bad_fraction=0.0)
        pair = build_loaders(data, Transform(size=32), settings, ranks=Ranks(), device=CPU, seed=0)
        try:
            for loader in pair:
                for _ in loader:
                    if not fail:
                        break
        finally:
            for loader in pair:
                loader.close()

    use(fail=False)  # what libraries start once stays
    before, names = tasks(), {thread.name for thread in threading.enumerate()}
    use(fail=False)
    Path(data.val.name(5)).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="--max-bad-fraction 0: 1 of 7"):
        use(fail=True)
    deadline = time.monotonic() + 10  # a thread that was joined takes a moment to disappear
    while tasks() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert tasks() <= before
    assert {thread.name for thread in threading.enumerate()} <= names
    assert not multiprocessing.active_children()


def odd_images(folder: Path) -> dict[str, Path]:
    """Images of a size of its own kind each: what is bad has the word in its name."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    picture = coarse.resize((80, 60), Image.Resampling.BICUBIC)
    paths = {
        name.partition(".")[0]: folder / name
        for name in (
            *("bad_truncated.jpg", "bad_empty.jpg", "bad_text.jpg", "bad_tga.jpg", "bad_bomb.jpg"),
            *("bad_pixels.png", "cmyk.jpg", "grey.jpg", "exif.jpg", "deep.png", "palette.png", "alpha.png"),
            *("tiny.png", "strip.png"),
        )
    }
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    paths["bad_truncated"].write_bytes(jpeg[: len(jpeg) // 2])
    paths["bad_empty"].write_bytes(b"")
    paths["bad_text"].write_text("not an image at all")
    picture.save(paths["bad_tga"], "TGA")
    place = jpeg.index(b"\xff\xc0") + 5  # of height and width in the frame header
    paths["bad_bomb"].write_bytes(jpeg[:place] + b"\xff\xdc\xff\xdc" + jpeg[place + 4 :])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    png = bytearray(buffer.getvalue())
    png[len(png) // 2] ^= 0xFF  # header and end are good, the middle is not
    paths["bad_pixels"].write_bytes(png)
    picture.convert("CMYK").save(paths["cmyk"])
    picture.convert("L").save(paths["grey"])
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(paths["exif"], exif=turned)
    deep = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(paths["deep"])
    picture.convert("P", palette=Image.Palette.ADAPTIVE).save(paths["palette"])
    alpha = picture.copy()
    alpha.putalpha(100)
    alpha.save(paths["alpha"])
    picture.resize((1, 1)).save(paths["tiny"])
    picture.resize((700, 3)).save(paths["strip"])
    return paths


def with_odd(photos: Path, root: Path, *splits: str, targets: str = "labels") -> Source:
    """The photos with the odd ones among them."""
    shutil.copytree(photos, root / "photos")
    for split in splits:
        for path in odd_images(root / split).values():
            shutil.copy(path, root / "photos" / split / "cat")
    return numbered(read_folder(root / "photos", DataSettings(), 0), targets)


def bad_ones(split: Split) -> set[int]:
    return {i for i in range(len(split)) if Path(split.name(i)).name.startswith("bad_")}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("world_size", "targets"), [(2, "labels"), *((1, targets) for targets in TARGETS)])
def test_bad_files_are_named_replaced_in_training_and_left_out_of_validation(
    loaders, photos, tmp_path, capsys, backend, world_size, targets
):
    """Known from the headers, but for bad_pixels, whose middle is damaged."""
    odd = with_odd(photos, tmp_path, "train", "val", targets=targets)
    bad = bad_ones(odd.val)
    validated: list[int] = []
    skipped, trained = 0, []
    for rank in range(world_size):
        train, val = loaders(odd, backend, rank, world_size, max_bad_fraction=0.5)
        for epoch in (0, 1):
            train.set_epoch(epoch)
            trained += samples(train)
        validated += samples(val)
        skipped += val.skipped
        assert len(train.bad) >= 5
        assert set(train.bad.reasons) <= bad_ones(odd.train)
    assert skipped == len(bad) == 6
    assert sorted(validated) == sorted(set(range(len(odd.val))) - bad)
    assert not set(trained) & bad_ones(odd.train)
    assert len(trained) == 2 * len(train) * 4 * world_size
    if backend != "cached":  # which knows all before it starts
        warnings = capsys.readouterr().err.splitlines()
        assert (
            sum("undecodable validation image" in line and "bad_pixels.png" in line for line in warnings) == 1
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("small", "targets"), [(96, "labels"), *((0, targets) for targets in TARGETS)])
def test_a_bad_file_takes_none_of_the_others_with_it(
    loaders, tmp_path, photos, backend, small, targets, monkeypatch
):
    """The other samples of its batch, and those of all later ones, are what they would have been; its own
    target is that of the image in its place."""
    monkeypatch.setattr("fastcnn.data.loaders.threads.SMALL_IMAGE", small)  # several threads, and one
    shutil.copytree(photos, tmp_path / "photos")
    source = numbered(read_folder(tmp_path / "photos", DataSettings(), 0), targets)
    expected = list(loaders(source, backend)[0])
    victim = number(expected[2].targets[1])
    Path(source.train.name(victim)).write_bytes(b"damaged since its header was read")
    found = list(loaders(source, backend, max_bad_fraction=0.1)[0])
    assert len(found) == len(expected)
    for step, (batch, before) in enumerate(zip(found, expected)):
        for i in range(4):
            if (step, i) == (2, 1):
                assert number(batch.targets[i]) == (victim + 1) % len(source.train)
            else:
                assert torch.equal(batch.images[i], before.images[i])
                assert torch.equal(batch.targets[i], before.targets[i])


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_bad_files_than_allowed_stop_with_their_names(loaders, photos, tmp_path, backend):
    odd = with_odd(photos, tmp_path, "train")
    with pytest.raises(ValueError, match=r"--max-bad-fraction 0.1: 5 of 37 training images .*bad_bomb.jpg"):
        loaders(odd, backend, max_bad_fraction=0.1)
    with pytest.raises(ValueError, match=r"--max-bad-fraction 0.14: 6 of 37 .*bad_pixels") as caught:
        list(loaders(odd, backend, max_bad_fraction=0.14)[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_that_vanishes_is_a_bad_file(loaders, tmp_path, photos, backend):
    shutil.copytree(photos, tmp_path / "photos")
    source = numbered(read_folder(tmp_path / "photos", DataSettings(), 0))
    Path(source.val.name(3)).unlink()
    val = loaders(source, backend, max_bad_fraction=0.2)[1]
    assert samples(val) == [0, 1, 2, 4, 5, 6]
    assert "No such file" in val.bad.reasons[3]


@needs_dali
@pytest.mark.parametrize("channels", [1, 3])
def test_odd_images_have_the_same_pixels_in_every_backend(loaders, photos, tmp_path, channels):
    """In validation, where no crop hides a difference."""
    odd = with_odd(photos, tmp_path, "val")
    kinds, transform = ("dali", "torch", "cached"), Transform(size=32, channels=channels)
    every = [list(loaders(odd, kind, transform=transform, max_bad_fraction=0.5)[1]) for kind in kinds]
    images, mask = ([torch.cat([batch[i] for batch in batches]) for batches in every] for i in (0, 2))
    assert torch.equal(mask[0], mask[1])
    assert torch.equal(images[1], images[2])
    difference = (images[0].int() - images[1].int()).abs()[mask[0]]
    assert difference.max() <= 2
    assert difference.float().mean() < 0.5


def test_synthetic_batches_stay_on_the_device_and_fit_the_classes(loaders, source):
    train, val = loaders(source, "synthetic")
    batches = list(train)
    assert len(batches) == 5
    assert all(batch.images is batches[0].images for batch in batches)
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last)
    assert val.num_samples == sum(int(batch.mask.sum()) for batch in val)


def test_fewer_images_than_one_batch_says_what_to_write(loaders, source, wording):
    with pytest.raises(ValueError, match="^--batch-size 24.* 23$") as caught:
        loaders(source, "torch", batch_size=24)
    wording(caught.value)
    with pytest.raises(ValueError, match="^--batch-size 12 x 2 .* 11$") as caught:
        loaders(source, "torch", batch_size=12, world_size=2)
    wording(caught.value)


def test_more_decoded_images_than_memory_are_refused_and_not_chosen(loaders, photos, monkeypatch):
    monkeypatch.setattr("fastcnn.data.loaders.autoselect.SECONDS", 0.01)
    source = read_folder(photos, DataSettings(), 0)
    needed = sum(int(split.sizes.prod(axis=1).sum()) * 3 for split in (source.train, source.val))
    monkeypatch.setattr("fastcnn.data.loaders.cached.free_memory", lambda: needed)
    with pytest.raises(ValueError, match=r"--data-backend cached: the decoded images take 0.0 GiB and"):
        loaders(source, "cached")
    monkeypatch.setattr("fastcnn.data.loaders.cached.free_memory", lambda: 3 * needed)
    loaders(source, "cached")
    _, figures = choose_backend(
        source, Transform(size=32), LoaderSettings(batch_size=4, workers=1), device=CPU, ranks=Ranks()
    )
    assert "cached" not in figures
    monkeypatch.setattr("fastcnn.data.loaders.cached.free_memory", lambda: 5 * needed)
    _, figures = choose_backend(
        source, Transform(size=32), LoaderSettings(batch_size=4, workers=1), device=CPU, ranks=Ranks()
    )
    assert "cached" in figures


def test_free_memory_is_some_of_what_the_machine_has():
    assert 2**20 < free_memory() < 2**44


@pytest.mark.timing
def test_the_speeds_of_loaders_are_told_apart(photos, monkeypatch):
    monkeypatch.setattr("fastcnn.data.loaders.autoselect.SECONDS", 0.1)
    source = read_folder(photos, DataSettings(), 0)
    loaded = TorchLoader._load

    def slowly(*args: Any) -> None:
        time.sleep(0.01)
        loaded(*args)

    monkeypatch.setattr(TorchLoader, "_load", slowly)
    images = in_memory(source, 32).train
    speeds = time_backends(
        ["torch", "cached"],
        images,
        Transform(size=32, channels=3, train_crop="pad"),
        LoaderSettings(batch_size=4, workers=1),
        CPU,
    )
    assert speeds["torch"] < 100 < speeds["cached"] / 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads' own priorities")
@pytest.mark.parametrize("gives_way", [True, False])
def test_loading_threads_give_way_to_the_step_beside_them_and_nothing_else_does(
    source, gives_way, monkeypatch
):
    monkeypatch.undo()  # of what conftest.py does to priorities
    with pool_for(source.train, 2, gives_way=gives_way) as pool:
        priority = pool.submit(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())).result()
    assert priority == (19 if gives_way else 0)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == 0


@pytest.mark.slow
def test_loading_threads_leave_the_step_its_own_also_if_it_has_computed_nothing_yet():
    code = """
import numpy as np, torch
from fastcnn.data.sources.dataset import Split
from fastcnn.data.loaders.threads import pool_for

torch.set_num_threads(2)
pool_for(Split(np.zeros(1), images=[np.zeros((8, 8, 3), np.uint8)]), 2).shutdown()
print(torch.get_num_threads())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2"]
