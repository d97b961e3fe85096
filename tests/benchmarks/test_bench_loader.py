"""benchmarks/bench_loader.py: its sides, what it leaves out, and DALI's settings for a GPU."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcnn.config.settings import DataSettings, LoaderSettings
from fastcnn.data.batch import ShardedSampler
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.loaders.base import LoaderArgs
from fastcnn.data.loaders.build import build_loaders
from fastcnn.data.loaders.registry import has_dali
from fastcnn.data.sources.dataset import IMAGENET_MEAN, IMAGENET_STD, Split
from fastcnn.data.sources.folder import read_folder
from fastcnn.data.transforms.transform import Transform
from fastcnn.errors import UserError
from fastcnn.runtime.distributed import Ranks

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
bench_loader, sides, sizes = map(importlib.import_module, ("bench_loader", "loader_sides", "sizes"))

CPU = torch.device("cpu")
PHOTOS, SMALL = sizes.Load(24, 4, "random-resized", 16), sizes.Load(None, 4, "pad", 16)
needs_dali = pytest.mark.skipif(not has_dali(), reason="DALI is not installed")


@pytest.fixture
def job(photos, demo, request):
    """Of photos, or of small images of one size."""
    folder = sides.open_folder(photos if request.param == "photos" else demo)
    source = sides.read(folder)
    load = sides.choose_load(source.train, (PHOTOS, SMALL))
    return sides.Job(folder=folder, source=source, load=load, workers=1, device=CPU)


@pytest.mark.parametrize("height", [96, 97])
def test_small_images_of_one_size_are_cut_as_they_are(height):
    split = Split(np.zeros(2), images=np.zeros((2, height, height, 3), dtype=np.uint8))
    assert sides.choose_load(split, (PHOTOS, SMALL)) is (SMALL if height == 96 else PHOTOS)


def test_a_folder_without_images_says_what_to_write(tmp_path, wording):
    with pytest.raises(UserError) as caught:
        sides.open_folder(tmp_path)
    wording(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["photos", "demo"], indirect=True)
@pytest.mark.parametrize("name", sides.PROCESSES)
def test_every_side_of_processes_gives_batches_of_all_images(job, name):
    size = 24 if job.load is PHOTOS else 64
    batches = sides.process_batches(name, job)
    images, targets = next(batches)
    assert images.shape == (4, 3, size, size)
    assert targets.shape == (4,)
    assert images.dtype == (torch.float32 if name in ("torchvision float recipe", "timm") else torch.uint8)
    for _ in range(len(job.split) // 4 + 1):  # into the second epoch
        next(batches)


@pytest.mark.parametrize("job", ["demo"], indirect=True)
def test_timms_pad_crop_is_a_shifted_image_over_black_with_its_own_class(job):
    images, targets = next(sides.timm_batches(job))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    originals: dict[int, list[torch.Tensor]] = {}
    for path, label in job.samples:
        originals.setdefault(label, []).append(torch.from_numpy(_pixels(path)))
    for image, target in zip(images, targets.tolist()):
        pixels = (255 * (image * std + mean)).round().to(torch.uint8)
        centre = pixels[:, 8:-8, 8:-8]  # which no shift by up to 8 pixels makes black
        assert any(_holds(original, centre) for original in originals[target])


def _pixels(path: str) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1).copy()


def _holds(image: torch.Tensor, part: torch.Tensor) -> bool:
    """Whether `part`, mirrored or not, is somewhere in `image`."""
    windows = image.unfold(1, part.shape[1], 1).unfold(2, part.shape[2], 1)  # [3, down, right, H, W]
    return any(
        bool((windows == p[:, None, None]).all(dim=0).flatten(2).all(dim=2).any())
        for p in (part, part.flip(2))
    )


def test_dalis_other_settings_are_left_out_without_a_gpu(photos):
    source = sides.read(sides.open_folder(photos))
    found = bench_loader.left_out(source, 1, CPU)
    assert {name: found[name] for name in sides.TUNED} == dict.fromkeys(sides.TUNED, "needs a CUDA GPU")
    assert not set(found) & {"fastcnn torch", "fastcnn cached", *sides.PROCESSES[:3]}


@pytest.mark.slow
def test_all_that_can_be_measured_is(photos, tmp_path, monkeypatch):
    shutil.copytree(photos / "train", tmp_path / "flowers" / "train")
    monkeypatch.setattr("fastcnn.data.loaders.autoselect.SECONDS", 0.01)
    monkeypatch.setattr(bench_loader, "wait_for_quiet", lambda: None)
    monkeypatch.setattr("fastcnn.runtime.machine.cores_per_process", lambda ranks: 1)
    found = bench_loader.measure(tmp_path / "flowers", (PHOTOS, SMALL), CPU, rounds=2, images=20, share=0.5)
    assert found.what == "loader-flowers-24px-batch4"
    assert set(found.seconds) | set(found.left_out) == set(bench_loader.SIDES)
    assert found.work == found.settings["turn_images"] == 8
    assert found.settings["images"] == 20
    assert 0 < found.settings["auto"]["share_of_fastest"] <= 1
    report = found.as_json()
    assert report["sides"]["fastcnn cached"]["decoding_seconds"] > 0
    assert report["sides"]["torchvision PIL"]["gives"] == "uint8"
    assert "PIL" in report["settings"]["versions"]


@needs_dali
@pytest.mark.parametrize("name", sides.TUNED)
def test_dali_on_a_gpu_knows_the_settings(name):
    """The graph is made without a GPU; a name that the decoder does not know is refused then."""
    from fastcnn.data.loaders.dali import Graph, Tuning, batch_pipeline

    def pipeline(decoder):
        graph = Graph(
            fields=["start", "shape"],
            steps=[],
            border="pad",
            fill=(0, 0, 0),
            size=8,
            channels=3,
            upright=True,
            gpu=True,
            decoder=decoder,
        )
        batch_pipeline(
            lambda: None,
            graph,
            batch_size=2,
            num_threads=1,
            device_id=0,
            prefetch_queue_depth=2,
        )

    pipeline(Tuning(**sides.TUNED[name]).decoder_arguments(np.array([[3, 9], [7, 2]])))
    with pytest.raises(KeyError):
        pipeline({"hw_decoder_lode": 0.5})


@needs_dali
def test_memory_is_taken_for_the_largest_height_and_width():
    from fastcnn.data.loaders.dali import Tuning

    sizes_of_images = np.array([[3, 9], [7, 2]], dtype=np.int32)
    assert Tuning().decoder_arguments(sizes_of_images) == {"hw_decoder_load": 0.65}
    assert Tuning(preallocate=True, hw_decoder_load=0.0).decoder_arguments(sizes_of_images) == {
        "hw_decoder_load": 0.0,
        "preallocate_height_hint": 7,
        "preallocate_width_hint": 9,
    }


@needs_dali
@pytest.mark.parametrize("crop", ["random-resized", "pad"])
def test_dalis_settings_do_not_change_a_pixel(photos, crop):
    from fastcnn.data.loaders.dali import DaliLoader, Tuning

    source, transform = read_folder(photos, DataSettings(), 0), Transform(size=24, train_crop=crop)
    sampler = ShardedSampler(count=len(source.train), batch_size=4, rank=0, world_size=1, train=True)
    bad = BadFiles(source.train, "training", 1)
    tuning = Tuning(prefetch=4, threads=3, hw_decoder_load=0.9, preallocate=True)
    args = LoaderArgs(
        split=source.train, transform=transform, sampler=sampler, device=CPU, workers=1, bad=bad
    )
    tuned = DaliLoader(args, tuning)
    settings = LoaderSettings(data_backend="dali", batch_size=4, workers=1)
    plain, val = build_loaders(source, transform, settings, ranks=Ranks(), device=CPU, seed=0)
    for epoch in range(2):
        tuned.set_epoch(epoch)
        plain.set_epoch(epoch)
        for one, other in zip(tuned, plain, strict=True):
            assert torch.equal(one.images, other.images)
    for loader in (tuned, plain, val):
        loader.close()


@pytest.mark.slow
@pytest.mark.parametrize("grain", [0.0, 4.0])
def test_big_photos_are_measured_beside_dalis_own_pipeline(tmp_path, monkeypatch, grain):
    big_photos = importlib.import_module("big_photos")
    big_photos.write(tmp_path / "big", 8, grain=grain, size=(400, 300))
    monkeypatch.setattr("fastcnn.data.loaders.autoselect.SECONDS", 0.01)
    monkeypatch.setattr(bench_loader, "wait_for_quiet", lambda: None)
    monkeypatch.setattr("fastcnn.runtime.machine.cores_per_process", lambda ranks: 1)
    loads = (PHOTOS, PHOTOS)
    found = bench_loader.measure(
        tmp_path / "big", loads, CPU, rounds=2, images=None, share=0.5, names=bench_loader.BIG_SIDES
    )
    assert set(found.seconds) | set(found.left_out) == set(bench_loader.BIG_SIDES)
    assert found.settings["images"] == 8
    assert found.settings["median_height_and_width"] == [300, 400]


def test_an_enlarged_photo_shows_the_photo(photos, tmp_path):
    from PIL import Image

    big_photos = importlib.import_module("big_photos")
    paths = [str(path) for path in sorted((photos / "train").rglob("*")) if path.suffix in (".jpg", ".png")]
    big_photos.write(tmp_path / "big", len(paths), paths, grain=2.0, size=(400, 300))
    written = sorted((tmp_path / "big").rglob("*.jpg"), key=lambda path: path.name)
    for path, big in zip(paths, written, strict=True):
        with Image.open(path) as small, Image.open(big) as large:
            assert large.size == (400, 300)
            shown = np.asarray(large.resize(small.size, Image.Resampling.BOX)).astype(int)
            assert np.abs(shown - np.asarray(small.convert("RGB"))).mean() < 12


@needs_dali
@pytest.mark.parametrize("job", ["photos"], indirect=True)
def test_dalis_own_pipeline_gives_batches_of_all_images(job):
    seen: set[int] = set()
    batches = sides.dali_batches(job)
    for _ in range(2 * (len(job.split) // 4 + 1)):
        images, labels = next(batches)
        assert images.shape == (4, 24, 24, 3)
        assert images.dtype == torch.uint8
        seen |= set(labels.flatten().tolist())
    assert seen == set(job.split.labels.tolist())


def test_full_decoding_is_a_side_of_its_own(tmp_path):
    big_photos = importlib.import_module("big_photos")
    big_photos.write(tmp_path / "big", 8, grain=0.0, size=(400, 300))
    folder = sides.open_folder(tmp_path / "big")
    job = sides.Job(folder=folder, source=sides.read(folder), load=PHOTOS, workers=1, device=CPU)
    scaled, full = (
        next(sides.own_batches(sides.own_loader(name, job))).images
        for name in ("fastcnn torch", sides.FULL_DECODING)
    )
    difference = (scaled.int() - full.int()).abs().float().mean()
    assert 0 < difference < 1
