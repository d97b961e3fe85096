"""Every loader keeps the contract of `fastcnn.data.batch`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from fastcnn.data import Batch, Transform, build_loaders, has_dali
from fastcnn.data.sources import Source, Split, read_folder
from fastcnn.distributed import Ranks

CPU = torch.device("cpu")
needs_dali = pytest.mark.skipif(not has_dali(), reason="DALI is not installed")
BACKENDS = [pytest.param("dali", marks=needs_dali), "torch"]
KINDS = ["files", "arrays"]


def numbered(source: Source) -> Source:
    """The same images with their numbers as labels, so that a batch tells which samples it holds."""

    def renumber(split: Split) -> Split:
        return Split(np.arange(len(split)), split.files, split.images)

    return Source("numbered", renumber(source.train), renumber(source.val), source.class_names)


def in_memory(source: Source, size: int) -> Source:
    def decode(split: Split) -> Split:
        assert split.files is not None
        images = [np.asarray(Image.open(f).convert("RGB").resize((size, size))) for f in split.files.paths]
        return Split(split.labels, images=np.stack(images))

    return Source("arrays", decode(source.train), decode(source.val), source.class_names)


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, photos: Path) -> Source:
    files = numbered(read_folder(photos, None, 0))
    return files if request.param == "files" else in_memory(files, 48)


def loaders(source: Source, backend: Any, rank: int = 0, world_size: int = 1, **changes: Any) -> Any:
    transform = changes.pop("transform", Transform(32))
    settings = {"batch_size": 4, "workers": 0 if backend == "torch" else 2, "seed": 0, **changes}
    return build_loaders(
        source, backend, transform, ranks=Ranks(rank, world_size, rank, world_size), device=CPU, **settings
    )


def samples(batches: Iterator[Batch]) -> list[int]:
    return [int(t) for batch in batches for t, real in zip(batch.targets, batch.mask) if real]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("crop", ["pad", "random-resized"])
@pytest.mark.parametrize("channels", [1, 3])
def test_batches_are_uint8_channels_last_with_targets_and_mask(source, backend, crop, channels):
    transform = Transform(32, channels, crop)
    for loader in loaders(source.with_channels(channels), backend, transform=transform):
        batches = list(loader)
        assert len(batches) == len(loader)
        for batch in batches:
            assert batch.images.shape == (4, channels, 32, 32)
            assert batch.images.dtype == torch.uint8
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert batch.targets.shape == batch.mask.shape == (4,)
            assert batch.targets.dtype == torch.int64
            assert batch.mask.dtype == torch.bool


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_epoch_trains_on_each_sample_once_at_most_and_validates_each_once(source, backend, world_size):
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
def test_the_order_depends_on_the_seed(source, backend):
    first, again, other = (samples(loaders(source, backend, seed=seed)[0]) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("backend", BACKENDS)
def test_validation_is_padded_to_full_batches_and_masked(source, backend):
    val = loaders(source, backend)[1]
    masks = [batch.mask.tolist() for batch in val]
    assert masks == [[True] * 4, [True] * 3 + [False]]
    assert val.num_samples == 7


@pytest.mark.parametrize("backend", BACKENDS)
def test_validation_images_are_torchvisions_resize_and_centre_crop(photos, backend):
    source = read_folder(photos, None, 0)
    reference = v2.Compose([v2.Resize(int(32 / 0.875)), v2.CenterCrop(32), v2.PILToTensor()])
    images = torch.cat([batch.images for batch in loaders(source, backend)[1]])
    for file, image in zip(paths(source.val), images):
        difference = (reference(Image.open(file)).int() - image.int()).abs()
        assert difference.max() <= 2
        assert difference.float().mean() < 0.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_of_the_right_size_are_validated_as_they_are(photos, backend):
    source = in_memory(read_folder(photos, None, 0), 32)
    images = torch.cat([b.images for b in loaders(source, backend, transform=Transform(32, 3, "pad"))[1]])
    assert source.val.images is not None
    assert torch.equal(images[:7], torch.from_numpy(source.val.images).permute(0, 3, 1, 2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_pad_crop_moves_the_image_by_at_most_the_padding_over_black(photos, backend):
    source = numbered(in_memory(read_folder(photos, None, 0), 32))
    transform = Transform(32, 3, "pad", hflip=0.0)
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
def test_flip_mirrors_with_its_probability(source, backend, crop):
    def images(hflip: float) -> torch.Tensor:
        transform = Transform(32, 3, crop, hflip=hflip)
        return torch.cat([b.images for b in loaders(source, backend, transform=transform)[0]])

    never, always, sometimes = images(0.0), images(1.0), images(0.5)
    assert torch.equal(always, never.flip(3))
    mirrored = [torch.equal(image, flipped) for image, flipped in zip(sometimes, always)]
    assert 3 <= sum(mirrored) <= len(mirrored) - 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_resized_crops_cover_the_stated_share_of_the_area(tmp_path, backend):
    # An image whose pixels tell where they come from: red is the row, green the column.
    rows, columns = np.mgrid[0:200, 0:200].astype(np.uint8)
    picture = Image.fromarray(np.dstack([rows, columns, 0 * rows]))
    for split in ("train", "val"):
        for i in range(40):
            folder = tmp_path / split / f"class_{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{i}.png")
    transform = Transform(32, 3, scale=(0.2, 0.5), hflip=0.0)
    shares, ratios = [], []
    for batch in loaders(read_folder(tmp_path, None, 0), backend, transform=transform)[0]:
        for image in batch.images.float():
            height = (image[0].max() - image[0].min()).item() * 32 / 31
            width = (image[1].max() - image[1].min()).item() * 32 / 31
            shares.append(height * width / 200**2)
            ratios.append(width / height)
    assert 0.18 < min(shares) < 0.3 < np.mean(shares) < 0.4 < max(shares) < 0.53
    assert 0.7 < min(ratios) < 0.9 < 1.1 < max(ratios) < 1.43


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stop_after", [0, 3, 5, 8])
def test_a_restored_loader_goes_on_with_the_same_pixels(source, backend, stop_after):
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


def test_torchvisions_augmentation_does_not_depend_on_the_worker(photos):
    source = read_folder(photos, None, 0)
    alone, helped = loaders(source, "torch", workers=0)[0], loaders(source, "torch", workers=2)[0]
    assert all(torch.equal(a.images, b.images) for a, b in zip(alone, helped))
    helped.close()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_cannot_be_decoded_is_named_in_one_line(tmp_path, photos, backend, workers):
    shutil.copytree(photos, tmp_path / "photos")
    bad = tmp_path / "photos" / "val" / "cat" / "001.jpg"
    bad.write_bytes(b"not an image at all")
    least = 1 if backend == "dali" else 0
    with pytest.raises(ValueError, match="--data: .*001.jpg") as caught:
        list(loaders(read_folder(tmp_path / "photos", None, 0), backend, workers=max(workers, least))[1])
    assert "\n" not in str(caught.value)


def test_synthetic_batches_stay_on_the_device_and_fit_the_classes(source):
    train, val = loaders(source, "synthetic")
    batches = list(train)
    assert len(batches) == 5
    assert all(batch.images is batches[0].images for batch in batches)
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last)
    assert val.num_samples == sum(int(batch.mask.sum()) for batch in val)


def test_fewer_images_than_one_batch_says_what_to_write(source):
    with pytest.raises(ValueError, match="--batch-size 24.*write 23 or less"):
        loaders(source, "torch", batch_size=24)
    with pytest.raises(ValueError, match="--batch-size 12 x 2 processes.*write 11 or less"):
        loaders(source, "torch", batch_size=12, world_size=2)
