"""Every augmentation in every loader: the same samples whichever loads them, from any place on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastcnn.config.settings import DataSettings, LoaderSettings
from fastcnn.data.batch import Batch
from fastcnn.data.loaders.build import build_loaders
from fastcnn.data.loaders.cached import CachedLoader
from fastcnn.data.loaders.registry import has_dali
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.sources.folder import read_folder
from fastcnn.data.transforms.augment import Augment
from fastcnn.data.transforms.color import IMAGENET_COMPONENTS
from fastcnn.data.transforms.geometry import train_geometry
from fastcnn.data.transforms.transform import Transform
from fastcnn.runtime.distributed import Ranks

CPU = torch.device("cpu")
BACKENDS = [
    pytest.param("dali", marks=pytest.mark.skipif(not has_dali(), reason="DALI is not installed")),
    "torch",
    "cached",
]
COMPONENTS = tuple(tuple(row) for row in IMAGENET_COMPONENTS.tolist())
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "rotate": {"augment": Augment(rotate=30.0)},
    "ra": {"augment": Augment(aa="ra")},
    "ta_wide": {"augment": Augment(aa="ta_wide")},
    "imagenet": {"augment": Augment(aa="imagenet")},
    "cifar10": {"augment": Augment(aa="cifar10")},
    "svhn": {"augment": Augment(aa="svhn")},
    "rand": {"augment": Augment(aa="rand-m9-n2-mstd0.5-inc1")},
    "color_jitter": {"augment": Augment(color_jitter=(0.4, 0.4, 0.4, 0.1))},
    "grayscale_prob": {"augment": Augment(grayscale_prob=0.5)},
    "lighting": {"augment": Augment(lighting=0.5, lighting_components=COMPONENTS)},
    "reprob": {"augment": Augment(reprob=0.7)},
    "cutout": {"augment": Augment(cutout=10)},
    "all": {
        "augment": Augment(
            aa="ra",
            color_jitter=(0.2,),
            grayscale_prob=0.2,
            lighting=0.1,
            lighting_components=COMPONENTS,
            rotate=10.0,
            reprob=0.5,
            cutout=6,
        ),
        "hflip_mode": "alternating",
    },
    "alternating": {"hflip_mode": "alternating"},
    "reflect": {"train_crop": "pad", "pad_mode": "reflect", "crop_padding": 6},
    "random": {"train_crop": "random"},
}
ON_THE_DEVICE = ("color_jitter", "grayscale_prob", "lighting", "reprob", "cutout", "alternating", "reflect")
GEOMETRIC = ("rotate", "ra", "ta_wide", "imagenet", "cifar10", "svhn", "rand", "all", "random")


def transform_of(name: str, train_crop: str = "pad") -> Transform:
    return dataclasses.replace(Transform(size=32, train_crop=train_crop), **AUGMENTATIONS[name])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def small(photos: Path) -> Source:
    """Images in memory, of the samples' size, their numbers as labels."""

    def decode(split: Split) -> Split:
        assert split.files is not None
        images = [np.asarray(Image.open(f).convert("RGB").resize((32, 32))) for f in split.files.paths]
        return Split(np.arange(len(split)), images=np.stack(images))

    files = read_folder(photos, DataSettings(), 0)
    return Source(
        name="small", train=decode(files.train), val=decode(files.val), class_names=files.class_names
    )


@pytest.fixture
def loaders() -> Iterator[Any]:
    made: list[Any] = []

    def make(source: Source, backend: Any, transform: Transform, seed: int = 0, **more: Any) -> Any:
        ranks = more.pop("ranks", Ranks())
        settings = LoaderSettings(data_backend=backend, batch_size=4, workers=2, **more)
        pair = build_loaders(source, transform, settings, ranks=ranks, device=CPU, seed=seed)
        made.extend(pair)
        return pair[0]

    yield make
    for loader in made:
        loader.close()


def epochs(loader: Any, first: int = 0, count: int = 2) -> list[Batch]:
    batches = []
    for epoch in range(first, count):
        loader.set_epoch(epoch)
        batches += list(loader)
    return batches


def each_augmentation(default: Iterable[str]) -> list[Any]:
    """Of images in memory and of files; slow where they are in memory and not in `default`."""
    marks = {name: () if name in default else pytest.mark.slow for name in AUGMENTATIONS}
    return [
        *(pytest.param(name, False, marks=mark) for name, mark in marks.items()),
        *(("random", True), ("all", True)),
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "files"), each_augmentation(("cutout", "alternating")))
def test_a_seed_decides_and_a_restored_loader_goes_on_with_the_same_pixels(
    loaders, small, photos, backend, name, files
):
    source = read_folder(photos, DataSettings(), 0) if files else small
    transform = transform_of(name, "random-resized" if files else "pad")
    whole = epochs(loaders(source, backend, transform))
    interrupted = loaders(source, backend, transform)
    iterator = iter(interrupted)
    for batch in (next(iterator), next(iterator)):
        assert batch.images.dtype == torch.uint8
    restored = loaders(source, backend, transform)
    restored.load_state_dict(interrupted.state_dict())
    rest = [*restored, *epochs(restored, 1)]
    assert len(rest) == len(whole) - 2
    for got, expected in zip(rest, whole[2:]):
        assert torch.equal(got.images, expected.images)
    other = next(iter(loaders(source, backend, transform, seed=1)))
    assert not torch.equal(other.images, whole[0].images)


@pytest.mark.parametrize(
    ("name", "files"), each_augmentation(("ra", "color_jitter", "lighting", "cutout", "reflect"))
)
def test_all_backends_make_the_same_samples(loaders, small, photos, name, files):
    """Bounds in values of 255: the crops are resampled within 2, and an operation may multiply that."""
    source = read_folder(photos, DataSettings(), 0) if files else small
    transform = transform_of(name, "random-resized" if files else "pad")
    kinds = ["torch", "cached", *(["dali"] if has_dali() else [])]
    of_one, *of_others = (epochs(loaders(source, kind, transform)) for kind in kinds)
    for others in of_others:
        for one, other in zip(of_one, others, strict=True):
            assert torch.equal(one.targets, other.targets)
            difference = (one.images.int() - other.images.int()).abs().float()
            assert difference.mean() < (3.0 if files else 1.5)
            if name not in GEOMETRIC and not files:
                # Hue multiplies what the steps before it have rounded.
                assert difference.max() <= (6 if name == "color_jitter" else 3)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmentation_changes_samples(loaders, small, name):
    plain = epochs(loaders(small, "torch", Transform(size=32, train_crop="pad")))
    changed = epochs(loaders(small, "torch", transform_of(name)))
    assert any(not torch.equal(a.images, b.images) for a, b in zip(plain, changed))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_small_images_stay_on_the_device_for_what_is_done_to_whole_batches(loaders, small, name):
    loader = loaders(small, "cached", transform_of(name))
    assert isinstance(loader, CachedLoader) == (name in ON_THE_DEVICE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_reflection_is_numpys(loaders, small, backend):
    transform = dataclasses.replace(transform_of("reflect"), hflip=0.0)
    for batch in loaders(small, backend, transform):
        for image, index in zip(batch.images, batch.targets):
            padded = np.pad(small.train.images[index], ((6, 6), (6, 6), (0, 0)), "reflect")
            windows = [padded[y : y + 32, x : x + 32] for y in range(13) for x in range(13)]
            assert any(np.array_equal(image.permute(1, 2, 0), window) for window in windows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_alternating_flips_mirror_each_sample_every_other_epoch(loaders, small, backend):
    loader = loaders(small, backend, dataclasses.replace(transform_of("alternating"), crop_padding=0))
    seen: list[dict[int, torch.Tensor]] = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        seen.append({int(t): image for b in loader for t, image in zip(b.targets, b.images)})
    for first, second in itertools.pairwise(seen):
        both = first.keys() & second.keys()
        assert both
        assert all(torch.equal(first[i], second[i].flip(2)) for i in both)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("world_size", [1, 2])
def test_repeated_samples_go_to_different_ranks_each_augmented_anew(loaders, small, backend, world_size):
    transform = transform_of("color_jitter")
    ranks = [
        loaders(small, backend, transform, aug_repeats=2, ranks=Ranks(rank, world_size, rank, world_size))
        for rank in range(world_size)
    ]
    seen = [[(int(t), i) for b in loader for t, i in zip(b.targets, b.images)] for loader in ranks]
    together = [sample for samples in zip(*seen) for sample in samples]
    assert len(together) == 23 // (4 * world_size) * 4 * world_size  # as without
    for (a, one), (b, two) in zip(together[::2], together[1::2]):
        assert a == b
        assert not torch.equal(one, two)
    assert len({index for index, _ in together}) == len(together) // 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_random_crop_is_one_of_those_of_torchvision(loaders, photos, backend):
    from torchvision.transforms import v2

    source = read_folder(photos, DataSettings(), 0)
    train = Split(np.arange(len(source.train)), source.train.files)
    numbered = Source(name="numbered", train=train, val=source.val, class_names=source.class_names)
    transform = dataclasses.replace(transform_of("random"), hflip=0.0)
    places = set()
    assert source.train.files is not None
    for batch in loaders(numbered, backend, transform):
        for image, index in zip(batch.images.int(), batch.targets):
            file = Image.open(source.train.files.paths[index])
            resized = v2.functional.pil_to_tensor(v2.Resize(transform.resize)(file)).int()
            rows, columns = (side - 31 for side in resized.shape[1:])
            errors = {
                (y, x): (resized[:, y : y + 32, x : x + 32] - image).abs().float().mean().item()
                for y in range(rows)
                for x in range(columns)
            }
            best = min(errors, key=errors.__getitem__)
            assert errors[best] < 1
            places.add(best)
    assert len(places) > 8


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(3, 400), (400, 3)])
def test_a_random_crop_of_a_strip_is_where_the_geometry_says(loaders, backend, size):
    """The strip's values grow evenly along it, so that a sample tells where it is from."""
    height, width = size
    ramp = np.linspace(0, 255, max(size)).astype(np.uint8)
    strip = np.broadcast_to(ramp if width > height else ramp[:, None], size)
    split = Split(np.arange(16), images=np.tile(strip[None, :, :, None], (16, 1, 1, 3)))
    source = Source(name="strips", train=split, val=split, class_names=("a", "b"))
    transform = dataclasses.replace(transform_of("random"), hflip=0.0)
    for batch in loaders(source, backend, transform):
        indices = batch.targets.numpy()
        g = train_geometry(transform, np.tile(size, (len(indices), 1)), 0, 0, indices)
        middle = (g.start + (g.roi_start + g.roi_end) / 2)[:, int(width > height)]
        found = batch.images.float().mean(dim=(1, 2, 3)).numpy()
        np.testing.assert_allclose(found, middle * 255 / max(size), atol=2)
        assert np.ptp(found) > 20
