"""The built-in demo data set: what it holds, that neither hue nor shape gives it away, how it is written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcnn.data.sources import demo

FOLDERS = [name.replace(" ", "_") for name in demo.CLASS_NAMES]


def draw(label, seed=0, **kwargs):
    return demo.draw(label, np.random.default_rng((seed, label)), **kwargs)


def files(root: Path) -> dict[str, bytes]:
    found = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def chroma(image) -> np.ndarray:
    pixels = np.asarray(image, dtype=float)
    return pixels.max(2) - pixels.min(2)


def hue_vector(image, where) -> complex:
    """The mean direction on the hue circle of the pixels `where` is true."""
    hue = np.asarray(image.convert("HSV"))[..., 0][where] / 256
    return np.exp(2j * np.pi * hue).mean()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "small"
    demo.write(root, train_per_class=15, val_per_class=15)
    return root


# What a class is


def test_classes_are_in_the_order_of_their_sorted_folders():
    assert list(demo.CLASS_NAMES) == sorted(demo.CLASS_NAMES)
    assert FOLDERS == sorted(FOLDERS)
    assert len(set(demo.CLASS_NAMES)) == 10


def test_each_hue_and_each_shape_is_shared_by_two_classes():
    pairs = [name.split() for name in demo.CLASS_NAMES]
    assert Counter(hue for hue, _ in pairs) == dict.fromkeys(demo.HUES, 2)
    assert Counter(shape for _, shape in pairs) == dict.fromkeys(demo.SHAPES, 2)


def test_jittered_hues_stay_apart():
    degrees = sorted(demo.HUES.values())
    gaps = np.diff([*degrees, degrees[0] + 360])
    assert gaps.min() > 4 * demo.HUE_JITTER


# What an image is


@pytest.mark.parametrize("size", [demo.IMAGE_SIZE, 96])
@pytest.mark.parametrize("label", range(10))
def test_image_mask_and_box_agree(label, size):
    for seed in range(10):
        image, mask, box = draw(label, seed, size=size)
        assert (image.mode, image.size, mask.mode, mask.size) == ("RGB", (size, size), "L", (size, size))
        inside = np.asarray(mask)
        assert set(np.unique(inside)) == {0, label + 1}
        rows, columns = np.nonzero(inside)
        assert box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        longer = max(box[2] - box[0], box[3] - box[1])
        assert 0.3 * size - 3 <= longer <= 0.75 * size + 2


@pytest.mark.parametrize("label", range(10))
def test_the_mask_is_where_the_hue_of_the_class_is(label):
    target = demo.HUES[demo.CLASS_NAMES[label].split()[0]]
    for seed in range(10):
        image, mask, _ = draw(label, seed)
        inside = np.asarray(mask) > 0
        off = np.angle(hue_vector(image, inside) * np.exp(-1j * np.deg2rad(target)), deg=True)
        assert abs(off) < demo.HUE_JITTER + 5
        coloured = chroma(image) > 70
        assert (coloured & inside).sum() / (coloured | inside).sum() > 0.7


def test_each_shape_fills_its_box_in_its_own_way():
    fill: dict[str, list[float]] = {shape: [] for shape in demo.SHAPES}
    for label, name in enumerate(demo.CLASS_NAMES):
        for seed in range(40):
            _, mask, (left, top, right, bottom) = draw(label, seed)
            fill[name.split()[1]].append((np.asarray(mask) > 0).sum() / ((right - left) * (bottom - top)))
    mean = {shape: np.mean(values) for shape, values in fill.items()}
    assert mean["circle"] == pytest.approx(np.pi / 4, abs=0.02)
    assert np.std(fill["circle"]) < 0.02
    assert mean["star"] < 0.45 < mean["triangle"] < 0.6 < mean["square"]
    assert 0.45 < mean["cross"] < 0.6
    assert np.std(fill["triangle"]) < np.std(fill["square"])


@pytest.mark.slow
def test_hue_alone_gets_half_of_the_images(small):
    def hues(split):
        for label, folder in enumerate(FOLDERS):
            for path in sorted((small / split / folder).iterdir()):
                image = Image.open(path)
                yield label, hue_vector(image, chroma(image) > 70)

    centroids = np.array([np.mean([hue for of, hue in hues("train") if of == label]) for label in range(10)])
    right = [np.abs(centroids - hue).argmin() == label for label, hue in hues("val")]
    assert 0.4 <= np.mean(right) <= 0.55


def test_the_background_does_not_give_the_class_away():
    images = [(label, *draw(label, seed)) for label in range(10) for seed in range(40)]
    means: list[list[np.ndarray]] = [[] for _ in range(10)]
    for label, image, mask, _ in images:
        means[label].append(np.asarray(image)[np.asarray(mask) == 0].mean(0))
    spread = np.std([pixel for of_class in means for pixel in of_class], axis=0)
    between = np.std([np.mean(of_class, axis=0) for of_class in means], axis=0)
    # The mean of 40 scatters by 1 / sqrt(40) = 0.16 of the spread.
    assert (between < 0.35 * spread).all()


def test_a_label_out_of_range_is_refused(wording):
    for label in (-1, 10):
        with pytest.raises(ValueError) as caught:
            demo.draw(label, np.random.default_rng(0))
        wording(caught.value)


def test_a_changed_drawing_needs_a_new_version():
    # A cached set is found by its version alone. If this fails on purpose, raise VERSION as well.
    pinned = {
        1: ((5, 28, 32, 55), [152, 149, 162]),
        3: ((10, 15, 55, 54), [96, 139, 96]),
        5: ((5, 27, 41, 55), [138, 127, 147]),
        7: ((12, 29, 37, 55), [206, 184, 181]),
        9: ((1, 1, 47, 47), [113, 119, 104]),
    }
    assert demo.VERSION == 1
    for label, (box, mean) in pinned.items():
        image, _, drawn_box = draw(label)
        assert np.abs(np.subtract(drawn_box, box)).max() <= 1
        assert np.abs(np.asarray(image).mean((0, 1)) - mean).max() < 1


# What is written


def test_the_whole_set_is_1500_and_400_images():
    assert (demo.TRAIN_PER_CLASS, demo.VAL_PER_CLASS, demo.IMAGE_SIZE) == (150, 40, 64)


def test_folders_hold_the_counts_asked_for(tmp_path):
    demo.write(tmp_path / "set", train_per_class=3, val_per_class=2)
    expected = {"boxes.json"}
    for split, count in (("train", 3), ("val", 2)):
        for folder in FOLDERS:
            expected |= {f"{split}/{folder}/{index:04d}.jpg" for index in range(count)}
            expected |= {f"masks/{split}/{folder}/{index:04d}.png" for index in range(count)}
    assert set(files(tmp_path / "set")) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_boxes_and_masks_belong_to_their_images(small):
    boxes = json.loads((small / "boxes.json").read_text())
    images = {path.relative_to(small).as_posix() for path in small.rglob("*.jpg")}
    assert set(boxes) == images
    for path, entry in boxes.items():
        assert FOLDERS[entry["label"]] == Path(path).parent.name
        image, mask = Image.open(small / path), Image.open((small / "masks" / path).with_suffix(".png"))
        assert (image.format, image.mode, image.size, mask.mode) == ("JPEG", "RGB", (64, 64), "L")
        assert mask.getbbox() == tuple(entry["box"])
        inside = np.asarray(mask)
        assert inside.max() == entry["label"] + 1
        assert chroma(image)[inside > 0].mean() > 2 * chroma(image)[inside == 0].mean()


def test_the_seed_alone_decides_the_bytes(tmp_path):
    for name, seed in (("first", 7), ("again", 7), ("other", 8)):
        demo.write(tmp_path / name, 2, 1, seed=seed)
    first, again, other = (files(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    assert all(first[path] != other[path] for path in first if path.endswith(".jpg"))


def test_an_image_does_not_depend_on_the_counts(tmp_path, small):
    demo.write(tmp_path / "set", 1, 2)
    whole = files(small)
    assert all(whole[path] == data for path, data in files(tmp_path / "set").items() if path != "boxes.json")


def test_no_image_is_in_both_splits(small):
    images = [data for path, data in files(small).items() if path.endswith(".jpg")]
    assert len(images) == len(set(images)) == 300


def test_counts_below_one_are_refused(tmp_path, wording):
    with pytest.raises(ValueError) as caught:
        demo.write(tmp_path / "set", 3, 0)
    wording(caught.value)
    assert not any(tmp_path.iterdir())


# Interrupted, in parallel, in the way


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    whole, calls = demo.draw, []

    def interrupted(label, rng):
        calls.append(label)
        assert not (tmp_path / "set").exists()
        if len(calls) == 15:
            raise KeyboardInterrupt
        return whole(label, rng)

    monkeypatch.setattr(demo, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.write(tmp_path / "set", 2, 1)
    assert len(calls) == 15
    assert not any(tmp_path.iterdir())


def test_a_set_that_was_finished_first_is_kept(tmp_path):
    demo.write(tmp_path / "set", 1, 1, seed=1)
    before = files(tmp_path / "set")
    demo.write(tmp_path / "set", 1, 1, seed=2)
    assert files(tmp_path / "set") == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_parallel_writers_leave_one_whole_set(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: demo.write(tmp_path / "set", 1, 1, seed), range(4)))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    for seed in range(4):
        demo.write(tmp_path / "alone" / str(seed), 1, 1, seed)
    assert files(tmp_path / "set") in [files(tmp_path / "alone" / str(seed)) for seed in range(4)]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("mine")
    with pytest.raises(OSError):
        demo.write(tmp_path / "set", 1, 1)
    assert files(tmp_path) == {"set/mine.txt": b"mine"}


# The cache folder


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert demo.demo_root() == tmp_path / "ours" / "shapes-v1"
    monkeypatch.delenv("FASTCNN_CACHE")
    assert demo.demo_root() == tmp_path / "xdg" / "fastcnn" / "shapes-v1"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert demo.demo_root() == tmp_path / "home" / ".cache" / "fastcnn" / "shapes-v1"


def test_the_demo_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(demo.write, "__defaults__", (2, 1, 0))
    root = demo.ensure_demo()
    assert root == tmp_path / "not" / "yet" / "shapes-v1"
    assert len(list(root.rglob("*.jpg"))) == 30

    monkeypatch.setattr(demo, "write", lambda root: pytest.fail("written again"))
    assert demo.ensure_demo() == root


def test_an_unwritable_cache_folder_is_named(tmp_path, monkeypatch):
    # A file in the folder's place stops even the superuser, whom permissions do not.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError) as caught:
        demo.ensure_demo()
    message = str(caught.value)
    assert str(tmp_path / "file" / "cache") in message
    assert "set FASTCNN_CACHE" in message
    assert "\n" not in message


def test_drawing_does_not_load_torch():
    # By its path, since the packages around it may have reasons of their own.
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, demo.__file__], check=True)
