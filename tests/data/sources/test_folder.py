"""Where images come from: the layouts that are read, the lines that name a mistake; and the contract of the
batches that loaders make of them."""

from __future__ import annotations

import dataclasses
import pickle
import re
import struct
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from fastcnn.config.settings import DataSettings
from fastcnn.data.batch import ShardedSampler, epoch_order
from fastcnn.data.sources import dataset
from fastcnn.data.sources import open as open_module
from fastcnn.data.sources.dataset import Source, Split, native_size
from fastcnn.data.sources.folder import read_folder
from fastcnn.data.sources.headers import Files
from fastcnn.data.sources.open import open_source
from fastcnn.data.transforms.transform import Transform

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def picture(path: Path, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, format="JPEG")


def folders(root: Path, counts: dict[str, int], size: tuple[int, int] = (8, 8)) -> Path:
    """Class folders with so many images each."""
    for name, count in counts.items():
        for i in range(count):
            picture(root / name / f"{i}.jpg", size)
    return root


def train_and(root: Path, val: str = "val") -> Path:
    folders(root / "train", dict.fromkeys(CLASSES, 2))
    (root / val).mkdir()
    return root


def flat_val(root: Path, text: str, name: str = "val.txt", beside: bool = False) -> Path:
    """train/ with class folders, val/ with two images and their list."""
    train_and(root)
    picture(root / "val" / "one.JPEG")
    picture(root / "val" / "two.JPEG")
    (root / name if beside else root / "val" / name).write_text(text)
    return root


def paths(split: Split) -> Sequence[str]:
    assert split.files is not None
    return split.files.paths


def names(split: Split) -> list[str]:
    return [Path(path).name for path in paths(split)]


def refusal(data: object, val_split: float | None = None, data_root: object = "data") -> str:
    """The message of the ValueError that opening this raises, which must be one line."""
    with pytest.raises(ValueError) as caught:
        open_source(DataSettings(data=str(data), data_root=str(data_root), val_split=val_split), seed=0)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Folders


@pytest.mark.parametrize("val", ["val", "validation", "valid", "test"])
def test_a_folder_with_train_and_val_is_read(val, tmp_path):
    folders(tmp_path / "train", {"bee": 3, "ant": 2})
    folders(tmp_path / val, {"bee": 1, "ant": 2})
    source = open_source(DataSettings(data=str(tmp_path)), seed=0)
    assert (source.name, source.channels, source.mirror) == (tmp_path.name, 3, True)
    assert source.class_names == ("ant", "bee")
    assert source.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert source.val.labels.tolist() == [0, 0, 1]
    assert source.train.labels.dtype == np.int64
    assert len(source.train) == len(paths(source.train)) == 5
    assert source.train.sizes.tolist() == [[8, 8]] * 5
    assert len(source.remarks) == (val == "test")  # said in tests/data/sources/test_splits.py
    for split in (source.train, source.val):
        parents = [Path(path).parent.name for path in paths(split)]
        assert parents == [source.class_names[label] for label in split.labels]


def test_val_is_preferred_to_test(tmp_path):
    train_and(tmp_path)
    folders(tmp_path / "val", {"ant": 1})
    folders(tmp_path / "test", {"ant": 2})
    assert len(read_folder(tmp_path, DataSettings(), 0).val) == 1


def test_validation_may_lack_a_class_and_keeps_the_labels(tmp_path):
    train_and(tmp_path)
    folders(tmp_path / "val", {"cat": 2})
    assert read_folder(tmp_path, DataSettings(), 0).val.labels.tolist() == [2, 2]


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folders(train_and(tmp_path / "mine") / "val", {"ant": 1})
    assert open_source(DataSettings(data="~/mine"), seed=0).name == "mine"


def test_the_current_folder_has_its_own_name(tmp_path, monkeypatch):
    folders(train_and(tmp_path) / "val", {"ant": 1})
    monkeypatch.chdir(tmp_path)
    assert open_source(DataSettings(data="."), seed=0).name == tmp_path.name


def test_images_are_found_in_nested_folders_and_hidden_ones_and_other_files_are_not(tmp_path):
    train_and(tmp_path)
    folders(tmp_path / "val", {"ant": 1})
    ant = tmp_path / "train" / "ant"
    picture(ant / "deep" / "er" / "nested.jpg")
    picture(ant / "LOUD.JPG")
    picture(ant / ".thumbnails" / "hidden.jpg")
    picture(ant / ".hidden.jpg")
    (ant / "notes.txt").write_text("")
    picture(tmp_path / "train" / ".cache" / "0.jpg")
    (tmp_path / "train" / "readme.md").write_text("")
    source = read_folder(tmp_path, DataSettings(), 0)
    assert source.class_names == CLASSES
    found = [name for name, label in zip(names(source.train), source.train.labels) if label == 0]
    assert sorted(found) == ["0.jpg", "1.jpg", "LOUD.JPG", "nested.jpg"]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "bmp", "ppm", "tif", "tiff", "PNG"])
def test_a_picture_is_known_by_its_suffix(suffix, tmp_path):
    folders(tmp_path, {"ant": 1, "bee": 1})
    (tmp_path / "ant" / f"more.{suffix}").write_bytes(b"")
    source = read_folder(tmp_path, DataSettings(val_split=0.5), 0)
    assert f"more.{suffix}" in names(source.train) + names(source.val)


@pytest.mark.parametrize("suffix", ["gif", "avif", "heic", "jp2"])
def test_a_picture_of_a_kind_that_is_not_decoded_is_not_passed_over(suffix, tmp_path):
    folders(train_and(tmp_path) / "val", {"ant": 1})
    (tmp_path / "train" / "bee" / f"more.{suffix}").write_bytes(b"")
    train = read_folder(tmp_path, DataSettings(), 0).train
    assert [train.name(i) for i in train.problems] == [str(tmp_path / "train" / "bee" / f"more.{suffix}")]


def test_what_is_left_out_is_named(tmp_path, wording):
    folders(train_and(tmp_path) / "val", {"ant": 1})
    picture(tmp_path / "train" / "stray.jpg")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / ".thumbnails").mkdir()
    (tmp_path / "train" / "readme.md").write_text("")
    picture(tmp_path / "val" / "stray.PNG")
    picture(tmp_path / "val" / "another.jpg")
    remarks = read_folder(tmp_path, DataSettings(), 0).remarks
    assert len(remarks) == 3
    for remark in remarks:
        wording(remark)


def test_listed_images_are_not_left_out(tmp_path):
    assert read_folder(flat_val(tmp_path, "two.JPEG 2\none.JPEG 0\n"), DataSettings(), 0).remarks == ()


# A val/ without class folders


@pytest.mark.parametrize("beside", [False, True], ids=["in val", "beside val"])
@pytest.mark.parametrize(
    "text", ["two.JPEG 2\none.JPEG 0\n", "two.JPEG cat\n\none.JPEG ant"], ids=["index", "name"]
)
def test_a_flat_val_is_read_with_its_list(text, beside, tmp_path):
    val = read_folder(flat_val(tmp_path, text, beside=beside), DataSettings(), 0).val
    assert names(val) == ["two.JPEG", "one.JPEG"]
    assert val.labels.tolist() == [2, 0]
    assert all(Path(path).is_file() for path in paths(val))


def test_a_flat_val_is_read_with_the_list_of_imagenet(tmp_path):
    text = "ImageId,PredictionString\ntwo,cat 1 2 3 4 cat 5 6 7 8\none,bee 1 2 3 4\n"
    val = read_folder(flat_val(tmp_path, text, "LOC_val_solution.csv", beside=True), DataSettings(), 0).val
    assert names(val) == ["two.JPEG", "one.JPEG"]
    assert val.labels.tolist() == [2, 1]


def test_a_class_whose_name_is_a_number_is_known_by_its_name(tmp_path):
    # Sorted as text, "2" comes after "10": its index is 3.
    folders(tmp_path / "train", {"0": 1, "1": 1, "10": 1, "2": 1})
    picture(tmp_path / "val" / "x.jpg")
    (tmp_path / "val.txt").write_text("x.jpg 2")
    assert read_folder(tmp_path, DataSettings(), 0).val.labels.tolist() == [3]


def test_a_listed_name_may_have_spaces(tmp_path):
    train_and(tmp_path)
    picture(tmp_path / "val" / "my cat.jpg")
    (tmp_path / "val.txt").write_text("my cat.jpg cat")
    assert names(read_folder(tmp_path, DataSettings(), 0).val) == ["my cat.jpg"]


def test_a_list_may_be_written_with_tabs_and_more_spaces(tmp_path):
    val = read_folder(flat_val(tmp_path, "two.JPEG\t2\none.JPEG   0\n"), DataSettings(), 0).val
    assert val.labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one.JPEG 0\n", None),
        ("one.JPEG 0\ntwo.JPEG 3", 2),
        ("one.JPEG -1\ntwo.JPEG 0", 1),
        ("one.JPEG dog\ntwo.JPEG 0", 1),
        ("one.JPEG 0\ntwo.JPEG\n", 2),
        ("one.JPEG 0\ntwo.JPEG 0\nno.JPEG 0", 3),
    ],
    ids=["not listed", "beyond", "negative", "a name", "no class", "not there"],
)
def test_a_mistake_in_the_list_is_named(text, line, tmp_path, wording):
    message = refusal(flat_val(tmp_path, text))
    assert message.startswith(f"{tmp_path / 'val' / 'val.txt'}" + (f", line {line}: " if line else ": "))
    wording(message)


def test_a_flat_val_without_a_list_says_which_to_write(tmp_path, wording):
    message = refusal(train_and(tmp_path))
    assert message.startswith(f"{tmp_path / 'val'}: ")
    wording(message)


# A share to validate on


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_the_share_is_taken_from_every_class_and_no_image_is_lost_or_twice(share, tmp_path):
    folders(tmp_path, {"ant": 20, "bee": 40, "cat": 10})
    source = read_folder(tmp_path, DataSettings(val_split=share), 0)
    train, val = set(paths(source.train)), set(paths(source.val))
    assert train | val == {str(path) for path in tmp_path.rglob("*.jpg")}
    assert len(source.train) + len(source.val) == len(train | val) == 70
    assert len(source.val) == round(share * 70)
    taken = Counter(source.val.labels.tolist())
    assert all(abs(taken[label] - share * total) <= 1 for label, total in enumerate((20, 40, 10)))
    for split in (source.train, source.val):
        parents = [Path(path).parent.name for path in paths(split)]
        assert parents == [CLASSES[label] for label in split.labels]


def test_the_seed_alone_decides_the_share(tmp_path):
    folders(tmp_path, {"ant": 10, "bee": 10})
    first, again, other = (
        paths(read_folder(tmp_path, DataSettings(val_split=0.3), seed).val) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(("share", "taken"), [(0.01, 1), (0.99, 2)])
def test_neither_side_of_the_share_is_empty(share, taken, tmp_path):
    folders(tmp_path, {"ant": 2, "bee": 2})
    assert len(read_folder(tmp_path, DataSettings(val_split=share), 0).val) == taken


# Folders that are refused


def test_a_missing_folder_is_refused_with_the_names_that_could_stand_there(tmp_path, wording):
    message = refusal(tmp_path / "nowhere")
    assert message.startswith("--data")
    wording(message)
    assert all(name in message for name in dataset.NAMED)


def test_a_file_is_refused(tmp_path, wording):
    picture(tmp_path / "cat.jpg")
    message = refusal(tmp_path / "cat.jpg")
    assert message.startswith("--data")
    wording(message)


def test_a_folder_without_classes_is_refused(tmp_path, wording):
    picture(tmp_path / "cat.jpg")
    message = refusal(tmp_path)
    assert message.startswith(f"--data {tmp_path}: ")
    wording(message)


def test_an_empty_class_folder_is_refused(tmp_path, wording):
    train_and(tmp_path)
    (tmp_path / "train" / "dog").mkdir()
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / 'train' / 'dog'}: ")
    wording(message)


def test_a_class_of_val_that_train_lacks_is_refused(tmp_path, wording):
    folders(train_and(tmp_path) / "val", {"ant": 1, "dog": 1})
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / 'val' / 'dog'}: ")
    wording(message)


def test_one_class_is_refused(tmp_path, wording):
    folders(tmp_path, {"ant": 2})
    message = refusal(tmp_path)
    assert message.startswith("--data")
    wording(message)


def test_a_folder_without_val_asks_for_a_share(tmp_path, wording):
    folders(tmp_path, {"ant": 2, "bee": 2})
    message = refusal(tmp_path)
    assert message.startswith(f"--data {tmp_path}: ")
    wording(message)


def test_a_share_beside_a_val_folder_is_refused(tmp_path, wording):
    folders(train_and(tmp_path) / "val", {"ant": 1})
    message = refusal(tmp_path, val_split=0.1)
    assert message.startswith("--val-split")
    wording(message)


@pytest.mark.parametrize("name", dataset.NAMED)
def test_a_share_of_a_named_set_is_refused(name, wording):
    message = refusal(name, val_split=0.1)
    assert message.startswith("--val-split")
    wording(message)


# The size of the images


@pytest.mark.parametrize(
    ("sizes", "native"),
    [
        ([(32, 32)] * 2, 32),
        ([(96, 96)] * 2, 96),
        ([(97, 97)] * 2, None),
        ([(32, 24)] * 2, None),
        ([(32, 32), (48, 48)], None),
        ([(32, 24), (24, 32)], None),
    ],
    ids=str,
)
def test_small_squares_of_one_size_have_a_native_size(sizes, native, tmp_path):
    for i, size in enumerate(sizes):
        folders(tmp_path / "train", {f"class {i}": 2}, size)
        folders(tmp_path / "val", {f"class {i}": 1})
    assert read_folder(tmp_path, DataSettings(), 0).native_size == native


def test_an_unreadable_image_does_not_hide_the_size_of_the_others(tmp_path):
    folders(tmp_path, {"ant": 4, "bee": 4}, (16, 16))
    (tmp_path / "ant" / "broken.jpg").write_bytes(b"no image")
    assert read_folder(tmp_path, DataSettings(val_split=0.2), 0).native_size == 16


def test_images_of_which_none_can_be_read_have_no_size():
    split = Split(
        np.arange(2),
        dataclasses.replace(Files.unread(["a", "b"]), problems={0: "empty", 1: "empty"}),
    )
    assert split.common_size is None
    assert native_size(split) is None


def test_images_in_memory_have_a_size_without_files():
    assert native_size(Split(np.arange(3), images=np.zeros((3, 28, 28, 1), dtype=np.uint8))) == 28
    mixed = [np.zeros((4, 5, 3), dtype=np.uint8), np.zeros((5, 4, 3), dtype=np.uint8)]
    assert Split(np.arange(2), images=mixed).sizes.tolist() == [[4, 5], [5, 4]]
    assert native_size(Split(np.arange(2), images=mixed)) is None


def test_an_unreadable_image_is_told_with_the_side_of_the_share_that_it_is_on(tmp_path):
    folders(tmp_path, {"ant": 10, "bee": 10})
    broken = tmp_path / "bee" / "4.jpg"
    broken.write_bytes(b"no image")
    source = read_folder(tmp_path, DataSettings(val_split=0.5), 0)
    found = [split.name(i) for split in (source.train, source.val) for i in split.problems]
    assert found == [str(broken)]


# Named sets

rng = np.random.default_rng(0)
RED = np.array([255, 0, 0], dtype=np.uint8)


def cifar(root: Path, name: str) -> None:
    """Three images a file, as torchvision has them on disk; the last test image is red."""
    if name == "cifar10":
        folder, files, key = root / "cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], "labels"
        files, meta, count = [*files, "test_batch"], ("batches.meta", "label_names"), 10
    else:
        folder, files, key = root / "cifar-100-python", ["train", "test"], "fine_labels"
        meta, count = ("meta", "fine_label_names"), 100
    folder.mkdir()
    for file in files:
        images = rng.integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)  # channels come first
        images[2] = RED[:, None, None]
        entry = {"data": images.reshape(3, -1), key: [0, 4, count - 1]}
        (folder / file).write_bytes(pickle.dumps(entry))
    (folder / meta[0]).write_bytes(pickle.dumps({meta[1]: [f"thing {i}" for i in range(count)]}))


def mnist(root: Path, folder: str) -> None:
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 5), ("t10k", 2)):
        images = np.arange(count, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
        header = struct.pack(">4i", 0x803, count, 28, 28)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = struct.pack(">2i", 0x801, count) + bytes(9 - i for i in range(count))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(labels)


@pytest.mark.parametrize(("name", "count", "train"), [("cifar10", 10, 15), ("cifar100", 100, 3)])
def test_cifar_is_read_from_the_files_of_torchvision(name, count, train, tmp_path, monkeypatch):
    def is_there(path, md5=None):  # the sums are those of the whole set
        return Path(path).is_file()

    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", is_there)
    cifar(tmp_path, name)
    source = open_source(DataSettings(data=name, data_root=str(tmp_path)), seed=0)
    assert (source.name, source.channels, source.native_size, source.mirror) == (name, 3, 32, True)
    assert source.class_names == tuple(f"thing {i}" for i in range(count))
    assert isinstance(source.train.images, np.ndarray)
    assert isinstance(source.val.images, np.ndarray)
    assert source.train.images.shape == (train, 32, 32, 3)
    assert source.train.images.dtype == np.uint8
    assert source.val.labels.tolist() == [0, 4, count - 1]
    assert source.val.labels.dtype == np.int64
    assert (source.val.images[2] == RED).all()
    assert len(source.mean) == len(source.std) == 3


@pytest.mark.parametrize(
    ("name", "folder", "first", "mirror"),
    [("mnist", "MNIST", "0 - zero", False), ("fashion-mnist", "FashionMNIST", "T-shirt/top", True)],
)
def test_mnist_is_read_from_the_files_of_torchvision(name, folder, first, mirror, tmp_path):
    mnist(tmp_path, folder)
    source = open_source(DataSettings(data=name, data_root=str(tmp_path)), seed=0)
    assert (source.name, source.channels, source.native_size, source.mirror) == (name, 1, 28, mirror)
    assert source.class_names[0] == first
    assert len(source.class_names) == 10
    assert isinstance(source.train.images, np.ndarray)
    assert source.train.images.shape == (5, 28, 28, 1)
    assert source.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert source.train.labels.tolist() == [9, 8, 7, 6, 5]
    assert len(source.val) == 2
    assert len(source.mean) == len(source.std) == 1


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion-mnist"])
def test_a_named_set_that_can_be_neither_found_nor_downloaded_names_its_folder(
    name, tmp_path, monkeypatch, wording
):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    message = refusal(name, data_root=tmp_path)
    assert message.startswith(f"--data {name}: ")
    assert "--data-root" in message
    wording(re.sub(r"\(.*\)", "(...)", message))  # torchvision's words


def test_the_demo_set_is_the_folder_that_is_made_for_it(demo, monkeypatch):
    monkeypatch.setattr(open_module, "ensure_demo", lambda: demo)
    source = open_source(DataSettings(data="demo"), seed=0)
    assert (source.name, source.native_size, len(source.class_names)) == ("demo", 64, 10)
    assert (len(source.train), len(source.val)) == (160, 50)


def test_synthetic_data_is_labels_alone():
    source = open_source(DataSettings(data="synthetic"), seed=0)
    assert (len(source.train), len(source.val), len(source.class_names)) == (12_800, 1_280, 1000)
    assert source.train.files is None
    assert source.train.images is None
    assert source.train.labels.min() >= 0
    assert source.train.labels.max() < 1000


# Splits and channels


def test_taking_images_keeps_their_labels_and_the_order_asked_for():
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    files = dataclasses.replace(
        Files.unread(["a", "b", "c", "d"]),
        sizes=np.arange(8).reshape(4, 2),
        problems={0: "empty", 1: "truncated"},
    )
    split = Split(np.array([5, 6, 7, 8]), files, images).take(np.array([3, 0]))
    assert split.labels.tolist() == [8, 5]
    assert paths(split) == ("d", "a")
    assert split.sizes.tolist() == [[6, 7], [0, 1]]
    assert split.problems == {1: "empty"}
    assert isinstance(split.images, np.ndarray)
    assert split.images.ravel().tolist() == [3, 0]
    assert Split(np.array([1, 2])).take(np.array([1])).labels.tolist() == [2]


def test_images_of_different_sizes_are_taken_in_the_order_asked_for():
    images = [np.full((1, side, 1), side, dtype=np.uint8) for side in (1, 2, 3)]
    split = Split(np.arange(3), images=images).take(np.array([2, 0]))
    assert split.sizes.tolist() == [[1, 3], [1, 1]]


def test_a_fingerprint_tells_other_images_or_labels_and_not_another_place(tmp_path):
    folders(tmp_path / "here", {"ant": 3, "bee": 2})
    (tmp_path / "there").symlink_to("here")
    here, there = (
        read_folder(tmp_path / place, DataSettings(val_split=0.4), 0).train for place in ("here", "there")
    )
    assert here.fingerprint == there.fingerprint
    assert here.fingerprint.startswith("3 (")
    others = [
        here.take(np.array([1, 0, 2])),
        here.take(np.array([0, 1])),
        Split(1 - here.labels, here.files),
        read_folder(tmp_path / "here", DataSettings(val_split=0.4), 1).train,
    ]
    assert here.fingerprint not in {other.fingerprint for other in others}


def arrays(channels: int, **kwargs: tuple[float, ...]) -> Source:
    images = rng.integers(0, 256, (3, 4, 5, channels), dtype=np.uint8)
    split = Split(np.arange(3), images=images)
    return Source(
        name="arrays",
        train=split,
        val=split.take(np.array([1])),
        class_names=CLASSES,
        channels=channels,
        **kwargs,  # type: ignore[arg-type]
    )


def test_grey_images_become_rgb_of_three_equal_channels():
    source = arrays(1, mean=(0.2,), std=(0.3,))
    rgb = source.with_channels(3)
    assert isinstance(rgb.train.images, np.ndarray)
    assert isinstance(source.train.images, np.ndarray)
    assert (rgb.channels, rgb.mean, rgb.std) == (3, (0.2,) * 3, (0.3,) * 3)
    assert np.array_equal(rgb.train.images, source.train.images.repeat(3, axis=-1))
    assert np.array_equal(rgb.val.images, rgb.train.images[1:2])  # type: ignore[arg-type]
    assert rgb.train.labels.tolist() == [0, 1, 2]


def test_rgb_images_become_grey_by_their_brightness():
    source = arrays(3, mean=(0.1, 0.2, 0.6), std=(0.2, 0.3, 0.4))
    grey = source.with_channels(1)
    assert isinstance(grey.train.images, np.ndarray)
    assert isinstance(source.train.images, np.ndarray)
    assert grey.channels == 1
    assert grey.mean == pytest.approx((0.3,))
    assert grey.std == pytest.approx((0.3,))
    assert grey.train.images.shape == (3, 4, 5, 1)
    luma = source.train.images @ np.array([0.299, 0.587, 0.114])  # ITU-R 601, as Pillow
    assert np.abs(grey.train.images[..., 0] - luma).max() <= 1


def test_files_are_left_to_the_decoder():
    split = Split(np.arange(2), Files.unread(["a.jpg", "b.jpg"]))
    grey = Source(name="files", train=split, val=split, class_names=CLASSES).with_channels(1)
    assert (grey.channels, grey.train, grey.val) == (1, split, split)


def test_the_channels_that_are_there_change_nothing():
    source = arrays(3)
    assert source.with_channels(3) is source


# Batches


@pytest.mark.parametrize("count", [1, 2, 100])
def test_the_order_of_an_epoch_holds_every_image_once(count):
    assert sorted(epoch_order(3, 5, count)) == list(range(count))


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    orders = {(seed, epoch): epoch_order(seed, epoch, 50).tolist() for seed in range(3) for epoch in range(3)}
    assert len({tuple(order) for order in orders.values()}) == 9
    assert all(epoch_order(*key, 50).tolist() == order for key, order in orders.items())


def all_ranks(count: int, batch_size: int, world_size: int, train: bool) -> list[ShardedSampler]:
    return [
        ShardedSampler(
            count=count, batch_size=batch_size, rank=rank, world_size=world_size, train=train, seed=7
        )
        for rank in range(world_size)
    ]


def consumed_by(samplers: list[ShardedSampler], epoch: int, consumed: int, steps: int) -> list[int]:
    """What all ranks together have in the first `steps` steps, step after step."""
    orders = [sampler.order(epoch, consumed) for sampler in samplers]
    return [
        int(i)
        for step in range(steps)
        for sampler, order in zip(samplers, orders)
        for i in sampler.indices(order, step)
    ]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 10, 101])
def test_the_shares_of_the_ranks_hold_every_image_once_and_differ_by_one_at_most(count, world_size, train):
    orders = [sampler.order(0).tolist() for sampler in all_ranks(count, 4, world_size, train)]
    assert sorted(i for order in orders for i in order) == list(range(count))
    sizes = [len(order) for order in orders]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 10, 101])
def test_evaluation_goes_through_the_images_in_their_order(count, world_size):
    samplers = all_ranks(count, 4, world_size, train=False)
    bounds = [sampler.bounds for sampler in samplers]
    assert [i for first, end in bounds for i in range(first, end)] == list(range(count))
    assert [sampler.order(3).tolist() for sampler in samplers] == [list(range(*b)) for b in bounds]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
@pytest.mark.parametrize("count", [35, 40, 101])
def test_the_batches_of_a_phase_fit_the_share_of_every_rank(count, batch_size, world_size):
    sizes = {
        train: [len(sampler.order(0)) for sampler in all_ranks(count, batch_size, world_size, train)]
        for train in (True, False)
    }
    full = ShardedSampler(count=count, batch_size=batch_size, rank=0, world_size=world_size, train=True).steps
    assert full * batch_size <= min(sizes[True]) < (full + 1) * batch_size
    padded = ShardedSampler(
        count=count, batch_size=batch_size, rank=0, world_size=world_size, train=False
    ).steps
    assert (padded - 1) * batch_size < max(sizes[False]) <= padded * batch_size


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_an_epoch_uses_full_batches_in_training_and_all_images_in_evaluation(batch_size, world_size):
    train, val = (
        ShardedSampler(count=101, batch_size=batch_size, rank=0, world_size=world_size, train=train)
        for train in (True, False)
    )
    assert train.num_samples == train.steps * batch_size * world_size
    assert 101 - train.num_samples < batch_size * world_size
    assert val.num_samples == 101


# The position in an epoch is one number: how many samples all ranks have had


@pytest.mark.parametrize("consumed", [0, 1, 24, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_what_all_ranks_have_in_some_steps_is_a_beginning_of_the_epochs_order(
    batch_size, world_size, consumed
):
    samplers = all_ranks(101, batch_size, world_size, train=True)
    rest = epoch_order(7, 3, 101)[consumed:].tolist()
    for steps in range(samplers[0].steps_after(consumed) + 1):
        had = consumed_by(samplers, 3, consumed, steps)
        assert len(had) == steps * batch_size * world_size
        assert sorted(had) == sorted(rest[: len(had)])


@pytest.mark.parametrize("consumed", [0, 1, 24, 100, 101])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_the_rest_of_an_epoch_has_as_many_batches_as_it_fills(batch_size, world_size, consumed):
    sampler = ShardedSampler(count=101, batch_size=batch_size, rank=0, world_size=world_size, train=True)
    steps, step = sampler.steps_after(consumed), batch_size * world_size
    assert steps * step <= 101 - consumed < (steps + 1) * step
    assert sampler.steps == sampler.steps_after(0)


def test_other_ranks_and_batch_sizes_take_over_the_rest_of_an_epoch_and_repeat_nothing():
    had: list[int] = []
    for world_size, batch_size, steps in ((2, 4, 3), (3, 5, 1), (1, 7, 2), (4, 1, 5), (5, 2, 99)):
        samplers = all_ranks(101, batch_size, world_size, train=True)
        had += consumed_by(samplers, 3, len(had), min(steps, samplers[0].steps_after(len(had))))
    assert len(had) > 90
    assert len(set(had)) == len(had)
    assert sorted(had) == sorted(epoch_order(7, 3, 101)[: len(had)])


def test_evaluation_always_begins_at_its_beginning():
    sampler = ShardedSampler(count=10, batch_size=4, rank=1, world_size=2, train=False)
    assert sampler.order(0, 8).tolist() == sampler.order(0).tolist() == [5, 6, 7, 8, 9]
    assert sampler.steps_after(8) == sampler.steps == 2


@pytest.mark.parametrize(
    ("count", "batch_size", "world_size"),
    [(7, 8, 1), (15, 4, 4)],
)
def test_fewer_images_than_one_batch_are_refused(count, batch_size, world_size, wording):
    with pytest.raises(
        ValueError, match=f"^--batch-size {batch_size}.* use at most {count // world_size}"
    ) as caught:
        ShardedSampler(count=count, batch_size=batch_size, rank=0, world_size=world_size, train=True).check()
    wording(caught.value)
    ShardedSampler(
        count=count, batch_size=count // world_size, rank=0, world_size=world_size, train=True
    ).check()  # the advice works


@pytest.mark.parametrize("count", [1, 4, 5, 8])
def test_an_evaluation_share_is_padded_with_its_last_sample_and_masked(count):
    sampler = ShardedSampler(count=count, batch_size=4, rank=0, world_size=1, train=False)
    steps = range(sampler.steps)
    indices = [int(i) for step in steps for i in sampler.indices(sampler.order(0), step)]
    real = np.concatenate([sampler.is_real(step) for step in steps])
    assert indices == [*range(count), *[count - 1] * (len(indices) - count)]
    assert real.dtype == bool
    assert real.tolist() == [True] * count + [False] * (len(indices) - count)


@pytest.mark.parametrize("count", [7, 8, 9, 17])
@pytest.mark.parametrize("world_size", [2, 3])
def test_all_ranks_together_evaluate_every_image_once(count, world_size):
    evaluated = []
    for sampler in all_ranks(count, 4, world_size, train=False):
        for step in range(sampler.steps):
            evaluated += sampler.indices(sampler.order(0), step)[sampler.is_real(step)].tolist()
    assert sorted(evaluated) == list(range(count))


def test_fewer_validation_images_than_processes_are_refused(wording):
    with pytest.raises(ValueError, match="^--data") as caught:
        ShardedSampler(count=1, batch_size=4, rank=0, world_size=2, train=False).check()
    wording(caught.value)


@pytest.mark.parametrize(
    ("settings", "resize", "padding"),
    [
        ({"size": 224}, 256, 28),
        ({"size": 224, "crop_pct": 1.0}, 224, 28),
        ({"size": 224, "crop_pct": 0.95}, 235, 28),
        ({"size": 32, "train_crop": "pad"}, 32, 4),
        ({"size": 28, "train_crop": "pad"}, 28, 3),
    ],
    ids=str,
)
def test_the_evaluation_crop_and_the_padding_follow_the_size(settings, resize, padding):
    transform = Transform(**settings)
    assert (transform.resize, transform.padding) == (resize, padding)
