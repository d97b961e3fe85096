"""Augmentations by DALI give the pixels of torchvision."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from fastcnn.config.settings import DataSettings
from fastcnn.data.batch import ShardedSampler
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.loaders.base import LoaderArgs
from fastcnn.data.loaders.registry import has_dali
from fastcnn.data.sources.folder import read_folder
from fastcnn.data.transforms.augment import OPERATIONS, Augment, Step
from fastcnn.data.transforms.color import hue_matrix
from fastcnn.data.transforms.transform import Transform
from reference_ops import FILL, REFERENCES, VALUES, picture

pytestmark = [
    pytest.mark.skipif(not has_dali(), reason="DALI is not installed"),
    pytest.mark.filterwarnings("error"),
]
CPU = torch.device("cpu")
FOR_THE_CPU, FOR_A_GPU, ON_A_GPU = ("cpu", False), ("cpu", True), ("gpu", True)
"""Where the images are, and by whose formulas it goes: those for a GPU are tested on the CPU as well."""
PLACES = [
    pytest.param(FOR_THE_CPU, id="cpu"),
    pytest.param(FOR_A_GPU, id="formulas of gpu"),
    pytest.param(
        ON_A_GPU,
        id="gpu",
        marks=pytest.mark.gpu,
    ),
]
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def apply(
    images: np.ndarray, steps: list[Step], place: tuple[str, bool] = FOR_THE_CPU, threads: int = 2
) -> np.ndarray:
    """Uint8 [N, size, size, C], by one batch of a pipeline."""
    from nvidia.dali import fn, pipeline_def

    from fastcnn.data.transforms.dali_ops import apply_steps, fields_of

    (device, gpu), (count, size, _, channels) = place, images.shape
    arrays = [fields_of(step, size, channels) for step in steps]
    flat = [array for fields in arrays for array in fields.values()]
    kinds = [(step.kinds, list(fields)) for step, fields in zip(steps, arrays)]

    @pipeline_def(enable_conditionals=True)
    def pipeline(feed: Any, kinds: Any) -> Any:
        layout = ["HWC", *[""] * len(flat)]
        data, *nodes = fn.external_source(feed, num_outputs=1 + len(flat), batch=True, layout=layout)
        rest = iter(nodes)
        operations = [(of_step, {name: next(rest) for name in names}) for of_step, names in kinds]
        return apply_steps(
            data.gpu() if device == "gpu" else data, operations, size, FILL[:channels], gpu=gpu
        )

    built = pipeline(
        lambda: (list(images), *flat),
        kinds,
        batch_size=count,
        num_threads=threads,
        device_id=0 if device == "gpu" else None,
        prefetch_queue_depth=1,
    )
    built.build()
    (result,) = built.run()
    return (result.as_cpu() if device == "gpu" else result).as_array().copy()


def pictures(count: int, size: int, channels: int) -> np.ndarray:
    return np.stack([picture(size, channels, seed) for seed in range(count)])


def step(kinds: tuple[str, ...], code: list[int], values: Sequence[tuple[float, ...]]) -> Step:
    padded = np.zeros((len(code), 4), dtype=np.float32)
    for row, value in zip(padded, values, strict=True):
        row[: len(value)] = value
    return Step(kinds, np.array(code, dtype=np.int32), padded)


def alike(kind: str, values: Sequence[tuple[float, ...]]) -> Step:
    return step((kind,), [0] * len(values), values)


def far(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(one.astype(int) - other.astype(int))


def torchvisions(kind: str, images: np.ndarray, values: Sequence[tuple[float, ...]]) -> np.ndarray:
    by_channel = torch.from_numpy(images).permute(0, 3, 1, 2)
    results = [REFERENCES[kind](image, *value[:1]) for image, value in zip(by_channel, values)]
    return torch.stack(results).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize(
    ("channels", "size"),
    [(1, 33), (3, 32), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((1, 32), (3, 33)))],
)
@pytest.mark.parametrize("place", PLACES)
def test_an_operation_is_torchvisions_but_for_rounding(kind, channels, size, place):
    values = [(value,) for value in VALUES.get(kind, (0.0,))]
    images = pictures(len(values), size, channels)
    result = apply(images, [alike(kind, values)], place)
    assert result.dtype == np.uint8
    difference = far(result, torchvisions(kind, images, values))
    if kind in GEOMETRIC:
        # Older DALIs interpolate at thirty-seconds of a pixel.
        assert difference.mean() < 1
        assert difference.max() <= 8
    else:
        # torchvision rounds down, of what depends on the grey image twice.
        assert difference.max() <= (2 if kind in ("saturation", "contrast") else 1)


@pytest.mark.parametrize("place", PLACES)
def test_translations_by_whole_pixels_are_exact(place):
    values = [(5.0,), (-9.0,), (0.0,), (32.0,)]
    for kind in ("translate_x", "translate_y"):
        images = pictures(4, 32, 3)
        result = apply(images, [alike(kind, values)], place)
        assert np.array_equal(result, torchvisions(kind, images, values))


@pytest.mark.parametrize("place", PLACES)
def test_equalize_and_autocontrast_keep_a_channel_that_has_too_few_values(place):
    """Where fewer than 255 pixels are below the highest value, Pillow changes nothing."""
    images = np.full((3, 32, 32, 3), 200, dtype=np.uint8)
    images[1, :4, :10, 0] = 90  # 40 pixels below
    images[1, :10, :30, 1] = 90  # 300
    images[2] = pictures(1, 32, 3)[0]
    images[2, :, :, 1] = 7
    for kind in ("equalize", "autocontrast"):
        result = apply(images, [alike(kind, [()] * 3)], place)
        assert far(result, torchvisions(kind, images, [(0.0,)] * 3)).max() <= 1
        assert np.array_equal(result[0], images[0])
        assert np.array_equal(result[2, :, :, 1], images[2, :, :, 1])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("place", PLACES)
def test_what_torchvision_does_not_have_is_as_it_is_described(channels, place):
    images = pictures(3, 32, channels)

    result = apply(images, [alike("lighting", [(10, -20, 4), (0.4, 0.7, -0.6), (90, 90, 90)])], place)
    added = [(10, -20, 4), (0, 1, -1), (90, 90, 90)] if channels == 3 else [(-2,), (0,), (90,)]
    assert np.array_equal(result, (images + np.array(added)[:, None, None]).clip(0, 255))

    result = apply(images, [alike("solarize_add", [(0,), (60,), (127,)])], place)
    for image, before, more in zip(result, images, (0, 60, 127)):
        assert np.array_equal(image, np.where(before < 128, (before.astype(int) + more).clip(0, 255), before))

    places = [(2, 3, 5, 7), (0, 0, 32, 1), (31, 31, 1, 1)]
    result = apply(images, [alike("erase", places)], place)
    expected = images.copy()
    for image, (top, left, height, width) in zip(expected, places):
        image[top : top + height, left : left + width] = FILL[:channels]
    assert np.array_equal(result, expected)

    turns = np.array([-0.5, 0.03, 0.25])
    result = apply(images, [alike("hue", [(turn,) for turn in turns])], place)
    if channels == 1:
        assert np.array_equal(result, images)
    else:
        expected = np.einsum("nij,nhwj->nhwi", hue_matrix(turns), images).round().clip(0, 255)
        assert far(result, expected).max() <= 1


def test_hue_is_dalis_own():
    from nvidia.dali import fn, pipeline_def

    images, turns = pictures(4, 16, 3), np.array([-0.4, -0.05, 0.1, 0.5], dtype=np.float32)

    @pipeline_def(batch_size=4, num_threads=1, device_id=None)
    def pipeline() -> Any:
        data, degrees = fn.external_source(
            lambda: (list(images), 360 * turns), num_outputs=2, batch=True, layout=["HWC", ""]
        )
        return fn.hue(data, hue=degrees)

    built = pipeline()
    built.build()
    (theirs,) = built.run()
    ours = apply(images, [alike("hue", [(turn,) for turn in turns.tolist()])])
    assert far(ours, theirs.as_array()).max() <= 2  # its YIQ is rounded: there grey is not quite grey


MIXED = tuple(OPERATIONS)
MIXED_VALUES = [(3, 2, 9, 8) if kind == "erase" else (VALUES.get(kind, (0.3,))[0],) for kind in MIXED]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("place", PLACES)
def test_in_a_batch_of_all_operations_each_image_is_what_it_is_alone(channels, place):
    images = pictures(len(MIXED), 32, channels)
    together = apply(images, [step(MIXED, list(range(len(MIXED))), MIXED_VALUES)], place)
    assert np.array_equal(together[0], images[0])  # "identity"
    for i, kind in enumerate(MIXED):
        alone = apply(images[i : i + 1], [alike(kind, MIXED_VALUES[i : i + 1])], place)
        assert np.array_equal(together[i], alone[0]), kind


@pytest.mark.parametrize("place", PLACES)
def test_operations_that_no_image_needs_do_nothing(place):
    images = pictures(5, 32, 3)
    assert np.array_equal(apply(images, [step(MIXED, [0] * 5, [()] * 5)], place), images)


def test_steps_come_one_after_the_other():
    images = pictures(2, 32, 3)
    brighter, inverted = alike("brightness", [(1.6,), (0.4,)]), step(("identity", "invert"), [0, 1], [(), ()])
    result = apply(images, [brighter, inverted])
    for image, before, factor in zip(result, torch.from_numpy(images).permute(0, 3, 1, 2), (1.6, 0.4)):
        expected = F.adjust_brightness(before, factor)  # which clips
        if factor == 0.4:
            expected = F.invert(expected)
        assert far(image, expected.permute(1, 2, 0).numpy()).max() <= 1


def test_the_number_of_threads_changes_nothing():
    images = pictures(len(MIXED), 32, 3)
    steps = [step(MIXED, list(range(len(MIXED))), MIXED_VALUES)] * 2
    one, *others = (apply(images, steps, threads=threads) for threads in (1, 2, 5))
    for other in others:
        assert np.array_equal(one, other)


def test_a_pipeline_that_is_built_anew_for_a_bad_file_goes_on_with_the_same_pixels(photos: Path, tmp_path):
    """A loader that finds the file in the middle, against one that knows of it from the start."""
    from fastcnn.data.loaders.dali import DaliLoader, Tuning

    root = shutil.copytree(photos, tmp_path / "photos")
    source = read_folder(root, DataSettings(), 0)
    assert source.train.files is not None
    spoilt = Path(source.train.files.paths[5])
    spoilt.write_bytes(spoilt.read_bytes()[:500])  # after its header was read
    transform = Transform(size=32, augment=Augment(aa="ra", color_jitter=(0.3,), reprob=0.5))
    sampler = ShardedSampler(count=len(source.train), batch_size=4, rank=0, world_size=1, train=True)
    bad = BadFiles(source.train, "training", max_fraction=0.5, quiet=True)
    args = LoaderArgs(
        split=source.train, transform=transform, sampler=sampler, device=CPU, workers=2, bad=bad
    )
    seen = []
    for threads in (1, 3):
        loader = DaliLoader(args, Tuning(threads=threads))
        seen.append([batch.images.clone() for batch in loader])
        loader.close()
        assert list(bad.reasons) == [5]
    assert all(torch.equal(*pair) for pair in zip(*seen, strict=True))
