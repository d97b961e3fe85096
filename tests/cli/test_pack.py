"""`fastcnn pack`: the shards hold the images, labels and order of the folder, whatever happens on the way."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastcnn.cli.main import main
from fastcnn.config.settings import DataSettings
from fastcnn.data import pack as packing
from fastcnn.data.decode import decode
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.sources.open import open_source
from fastcnn.files import NEIGHBORS

COMMAND = (sys.executable, "-m", "fastcnn", "pack")
CLASSES = ("ant", "bee", "cat")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def draw(root: Path, phases: tuple[str, ...] = ("train", "val"), count: int = 5) -> Path:
    """Class folders of JPEGs: large ones, and each second one small and coarse, which is copied."""
    for phase in phases:
        for c, name in enumerate(CLASSES):
            folder = root / phase / name
            folder.mkdir(parents=True)
            for i in range(count):
                small = i % 2
                image = picture(100 * c + i, (40, 30) if small else (400, 300))
                image.save(folder / f"{i}.jpg", quality=60 if small else 95)
    return root


def pack(*words: object) -> int:
    return main(["pack", *map(str, words)])


def read(data: Path, **settings: Any) -> Source:
    return open_source(DataSettings(data=str(data), **settings), seed=0)


def members(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def stems(split: Split | None) -> list[str]:
    """Class folder and name without suffix of each image."""
    assert split is not None
    return [str(Path(*Path(split.name(i)).with_suffix("").parts[-2:])) for i in range(len(split))]


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert pack(*words) == 2
    (line,) = (text for text in capsys.readouterr().err.splitlines() if text.startswith("fastcnn: error: "))
    return line.removeprefix("fastcnn: error: ")


def test_the_shards_have_the_labels_the_order_and_the_classes_of_the_folder(tmp_path, capsys):
    folder = draw(tmp_path / "photos", ("train", "val"))
    assert pack(folder, tmp_path / "shards", "--max-size", 100, "--shard-images", 4) == 0
    out = capsys.readouterr().out
    assert re.search(r"wrote .*shards: train 15, val 15 images, 8 shards, 0\.\d MB\n", out)
    one, other = read(folder), read(tmp_path / "shards")
    assert other.class_names == one.class_names == CLASSES
    for before, after in ((one.train, other.train), (one.val, other.val)):
        np.testing.assert_array_equal(before.labels, after.labels)
        assert stems(before) == stems(after)
    assert other.test is None


def test_a_test_folder_beside_val_stays_held_out(tmp_path):
    folder = draw(tmp_path / "photos", ("train", "val"))
    source = read(folder)
    held_out = source.val.take(np.arange(3))
    packing.pack(
        Source(name="x", train=source.train, val=source.val, test=held_out, class_names=source.class_names),
        "x",
        tmp_path / "shards",
        packing.PackSettings(),
        workers=2,
    )
    assert stems(read(tmp_path / "shards").test) == stems(held_out)


def test_a_split_is_packed_as_it_is_drawn(tmp_path):
    folder = draw(tmp_path / "photos", ("train",))
    assert pack(folder / "train", tmp_path / "shards", "--val-split", 0.4, "--seed", 3) == 0
    one = open_source(DataSettings(data=str(folder / "train"), val_split=0.4), seed=3)
    other = read(tmp_path / "shards")
    assert stems(one.train) == stems(other.train)
    assert stems(one.val) == stems(other.val)


def test_a_class_without_images_in_a_split_keeps_its_number(tmp_path):
    folder = draw(tmp_path / "photos")
    for path in (folder / "val" / "cat").iterdir():
        path.unlink()
    (folder / "val" / "cat").rmdir()
    pack(folder, tmp_path / "shards")
    assert read(tmp_path / "shards").class_names == CLASSES


def test_large_images_are_shrunk_and_small_coarse_jpegs_are_copied(tmp_path):
    folder = draw(tmp_path / "photos")
    pack(folder, tmp_path / "shards", "--max-size", 100)
    packed = members(tmp_path / "shards" / "train-000000.tar")
    for c, name in enumerate(CLASSES):
        assert packed[f"{name}/1.jpg"] == (folder / "train" / name / "1.jpg").read_bytes()
        assert packed[f"{name}/0.cls"] == str(c).encode()
        image = Image.open(io.BytesIO(packed[f"{name}/0.jpg"]))
        assert image.size == (100, 75)
        shown = np.asarray(Image.open(folder / "train" / name / "0.jpg").resize((100, 75))).astype(int)
        assert np.abs(np.asarray(image) - shown).mean() < 3


@pytest.mark.parametrize(("quality", "copied"), [(75, True), (90, False)])
def test_a_jpeg_of_a_higher_quality_is_encoded_anew(tmp_path, quality, copied):
    folder = draw(tmp_path / "photos")
    path = folder / "train" / "ant" / "1.jpg"
    picture(1).save(path, quality=quality)
    pack(folder, tmp_path / "shards", "--quality", 75)
    packed = members(tmp_path / "shards" / "train-000000.tar")["ant/1.jpg"]
    assert (packed == path.read_bytes()) == copied
    assert len(packed) <= path.stat().st_size


@pytest.mark.parametrize("long", [99, 100, 101])
@pytest.mark.parametrize("turned", [False, True])
def test_the_long_side_is_at_most_the_size(tmp_path, long, turned):
    folder = draw(tmp_path / "photos")
    path = folder / "train" / "ant" / "0.jpg"
    picture(1, (3, long) if turned else (long, 3)).save(path, quality=50)
    pack(folder, tmp_path / "shards", "--max-size", 100)
    packed = members(tmp_path / "shards" / "train-000000.tar")["ant/0.jpg"]
    assert max(Image.open(io.BytesIO(packed)).size) == min(long, 100)
    assert (packed == path.read_bytes()) == (long <= 100)


@pytest.mark.parametrize("size", [(60, 40), (600, 400)])
def test_a_turned_photo_is_upright_in_the_shards(tmp_path, size):
    """A small one keeps its EXIF, and is turned by whoever reads the shards; a large one is turned."""
    folder = draw(tmp_path / "photos")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(7, size).save(folder / "train" / "ant" / "0.jpg", exif=exif, quality=50)
    pack(folder, tmp_path / "shards", "--max-size", 120)
    one, other = read(folder).train.files, read(tmp_path / "shards").train.files
    assert one is not None
    assert other is not None
    before, after = one.decode(0, 3), other.decode(0, 3)
    assert after.shape[:2] == ((60, 40) if size[0] == 60 else (120, 80))
    shown = np.asarray(Image.fromarray(before).resize(after.shape[1::-1], Image.Resampling.BILINEAR))
    assert np.abs(shown.astype(int) - after).mean() < 3


def test_other_formats_become_jpegs_of_what_training_sees(tmp_path):
    folder = draw(tmp_path / "photos")
    ant = folder / "train" / "ant"
    alpha = picture(1)
    alpha.putalpha(100)
    alpha.save(ant / "a.png")
    picture(2).quantize(32).save(ant / "b.png")
    picture(3).save(ant / "c.webp", lossless=True)
    Image.fromarray(np.asarray(picture(4).convert("L")).astype(np.uint16) * 257).save(ant / "d.png")
    picture(5).convert("CMYK").save(ant / "e.jpg", quality=50)
    picture(6).convert("L").save(ant / "f.jpg", quality=95)
    assert pack(folder, tmp_path / "shards") == 0
    packed = members(tmp_path / "shards" / "train-000000.tar")
    for path in ant.iterdir():
        data = np.frombuffer(packed[f"ant/{path.stem}.jpg"], dtype=np.uint8)
        seen = decode(np.fromfile(path, dtype=np.uint8), 3).astype(int)
        shape = seen.shape
        if path.stem == "0" or path.stem in "24":  # shrunk nowhere: 400 is less than 500
            assert shape == (300, 400, 3)
        assert decode(data, 3).shape == shape
        assert np.abs(decode(data, 3) - seen).mean() < 8  # palette and chroma


def test_names_that_webdataset_would_cut_at_a_dot_or_take_for_one_sample(tmp_path):
    folder = draw(tmp_path / "photos")
    ant = folder / "train" / "ant"
    awkward = (
        "1.5 metres.jpg",
        "1.5 feet.jpg",
        "1.png",
        "x.y/1.jpg",
        "z.y/1.jpg",
        "Käfer.jpg",
        "no\udcff.jpg",
    )
    for i, name in enumerate(awkward):
        (ant / name).parent.mkdir(exist_ok=True)
        image = picture(i)
        with open(os.fsencode(ant / name), "wb") as file:
            image.save(file, "PNG" if name.endswith("png") else "JPEG")
    assert pack(folder, tmp_path / "shards") == 0
    packed = list(members(tmp_path / "shards" / "train-000000.tar"))
    keys = [re.fullmatch(r"((?:.*/)?[^./]+)\.(jpg|cls)", name) for name in packed]
    assert all(keys)
    counts = {k[1]: packed.count(k[1] + ".jpg") for k in keys if k}
    assert set(counts.values()) == {1}
    assert len(packed) == 2 * len(counts) == 2 * (15 + len(awkward))
    one, other = read(folder), read(tmp_path / "shards")
    np.testing.assert_array_equal(one.train.labels, other.train.labels)


def test_webdataset_reads_the_shards(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    folder = draw(tmp_path / "photos")
    pack(folder, tmp_path / "shards", "--shard-images", 8)
    urls = sorted(map(str, (tmp_path / "shards").glob("train-*.tar")))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("jpg", "cls"))
    assert [label for _, label in samples] == read(folder).train.labels.tolist()
    assert {image.shape for image, _ in samples} == {(300, 400, 3), (30, 40, 3)}


def test_shards_can_be_packed_again(tmp_path):
    folder = draw(tmp_path / "photos")
    pack(folder, tmp_path / "shards")
    pack(tmp_path / "shards", tmp_path / "smaller", "--max-size", 50)
    one, other = read(folder), read(tmp_path / "smaller")
    np.testing.assert_array_equal(one.train.labels, other.train.labels)
    assert other.class_names == CLASSES
    assert other.train.sizes.max() == 50


def test_undecodable_images_are_named_and_left_out(tmp_path, capsys):
    folder = draw(tmp_path / "photos")
    ant = folder / "train" / "ant"
    whole = (ant / "0.jpg").read_bytes()
    (ant / "0.jpg").write_bytes(whole[: len(whole) // 2])  # truncated: the header scan finds it
    (ant / "1.jpg").write_text("no image")
    middle = (ant / "3.jpg").read_bytes()
    (ant / "3.jpg").write_bytes(middle[: len(middle) // 2] + b"\xff\xd9")  # decoding finds it
    command = folder, tmp_path / "shards", "--shard-images", 4, "--max-size", 100
    lines = []
    for _ in range(2):  # the second time all shards are there
        assert pack(*command) == 1
        out, err = capsys.readouterr()
        lines.append(err)
        assert "3 left out" in out
        named = [Path(line.split(": ")[2]).name for line in err.splitlines() if "left out" in line]
        assert named == ["0.jpg", "1.jpg", "3.jpg"]
    assert lines[0] == lines[1]
    other = read(tmp_path / "shards")
    assert stems(other.train) == [
        f"{name}/{i}" for name in CLASSES for i in range(5) if name != "ant" or i in (2, 4)
    ]


def test_the_same_bytes_with_any_number_of_threads_and_from_a_copy(tmp_path):
    folder = draw(tmp_path / "photos")
    found = []
    for workers in (1, 3):
        shards = tmp_path / f"shards{workers}"
        pack(folder, shards, "--workers", workers, "--max-size", 100, "--shard-images", 4)
        found.append(content(shards))
    assert found[0] == found[1]
    for name in found[0]:
        if name.endswith(".tar"):
            with tarfile.open(tmp_path / "shards1" / name) as tar:
                assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}


def wait_for(holds: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stopped_run_ends_with_the_same_bytes(tmp_path, stop):
    """Stopped once some shards are there and the next one is begun."""
    folder = draw(tmp_path / "photos", count=30)
    command = ["--max-size", "100", "--shard-images", "10", "--workers", "1"]
    pack(folder, tmp_path / "whole", *command)
    shards = tmp_path / "shards"
    process = subprocess.Popen(
        [*COMMAND, str(folder), str(shards), *command], stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: len(list(shards.glob("*.tar"))) >= 3 and any(shards.glob(NEIGHBORS)), process)
    process.send_signal(stop)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-stop if stop == signal.SIGKILL else 130)
    if stop == signal.SIGINT:
        assert err.splitlines()[-1] == f"fastcnn pack: stopped; the same command completes {shards}"
        assert "Traceback" not in err
    finished = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.tar")}
    assert 3 <= len(finished) < 18
    with pytest.raises(ValueError, match="finish fastcnn pack first"):
        read(shards)
    assert pack(folder, shards, *command) == 0
    assert content(shards) == content(tmp_path / "whole")
    for name, written in finished.items():
        assert (shards / name).stat().st_mtime_ns == written


def test_a_second_run_at_the_same_time_is_refused(tmp_path, capsys, monkeypatch):
    pytest.importorskip("fcntl")
    folder, shards = draw(tmp_path / "photos"), tmp_path / "shards"
    inside, go = threading.Event(), threading.Event()
    encode = packing.encode

    def slow(*args: Any) -> bytes:
        inside.set()
        go.wait(60)
        return encode(*args)

    monkeypatch.setattr(packing, "encode", slow)
    first = threading.Thread(target=pack, args=(folder, shards))
    first.start()
    inside.wait(60)
    assert "another fastcnn pack is writing it" in refusal(capsys, folder, shards)
    go.set()
    first.join()
    assert len(read(shards).train) == 15


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", ["max_size", "quality", "shard_images", "a new image", "an edited image", "a renamed class"]
)
def test_other_settings_or_images_are_refused_by_a_begun_pack(tmp_path, capsys, wording, change):
    folder, shards = draw(tmp_path / "photos"), tmp_path / "shards"
    pack(folder, shards)
    before = content(shards)
    flags = {
        "max_size": ["--max-size", 300],
        "quality": ["--quality", 80],
        "shard_images": ["--shard-images", 9],
    }
    if change == "a new image":
        picture(1).save(folder / "val" / "ant" / "new.jpg")
    elif change == "an edited image":
        picture(1).save(folder / "val" / "ant" / "0.jpg")
    elif change == "a renamed class":
        for phase in ("train", "val"):
            (folder / phase / "cat").rename(folder / phase / "dog")
    line = refusal(capsys, folder, shards, *flags.get(change, []))
    wording(line)
    if change in flags:
        flag = "--" + change.replace("_", "-")
        kept = json.loads(before["pack.json"])[change]
        assert f"was begun with {flag} {kept}" in line
        assert pack(folder, shards, flag, kept) == 0
    else:
        assert "holds other images than" in line
        assert pack(folder, tmp_path / "new") == 0
    assert content(shards) == before


def test_a_folder_with_something_else_is_refused(tmp_path, capsys, wording):
    folder = draw(tmp_path / "photos")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    lines = [refusal(capsys, folder, tmp_path / "full")]
    assert "thesis.txt" in lines[-1]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pack.json").write_text("{}")
    lines.append(refusal(capsys, folder, tmp_path / "other"))
    assert "is not of fastcnn pack" in lines[-1]
    (tmp_path / "file").write_text("")
    lines.append(refusal(capsys, folder, tmp_path / "file"))
    assert "file: File exists" in lines[-1]
    for inside in (folder / "shards", folder):
        lines.append(refusal(capsys, folder, inside))
        assert "use a folder beside it" in lines[-1]
    for line in lines:
        wording(line)
    (tmp_path / "empty").mkdir()
    assert pack(folder, tmp_path / "empty") == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-size", "0"], "use at least 1"),
        (["--quality", "100"], "use 1 to 95"),
        (["--shard-images", "x"], "use at least 1"),
        (["--epochs", "3"], "--epochs does not change a pack; omit it"),
        (["--arch", "unet"], "masks and boxes are not packed"),
        (["--arch", "yolo"], "masks and boxes are not packed"),
        (["--max-sise", "3"], "did you mean --max-size?"),
        (["--val-splt", "0.1"], "did you mean --val-split?"),
    ],
)
def test_flags_that_do_nothing_here_are_refused(tmp_path, capsys, wording, flags, message):
    line = refusal(capsys, tmp_path, tmp_path / "shards", *flags)
    assert message in line
    wording(line)
    assert not (tmp_path / "shards").exists()


def test_deep_images_are_packed_by_the_levels_of_a_training(tmp_path, capsys, wording):
    rng = np.random.default_rng(0)
    for phase in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / "deep" / phase / name).mkdir(parents=True)
            for i in range(3):
                values = np.full((8, 8), rng.integers(4096), dtype=np.uint16)
                values[0, 0] = 4095
                Image.fromarray(values).save(tmp_path / "deep" / phase / name / f"{i}.png")
    assert pack(tmp_path / "deep", tmp_path / "shards") == 0
    wording.line(capsys.readouterr().err, "--levels")
    deep, packed = read(tmp_path / "deep"), read(tmp_path / "shards")
    for i in range(6):
        stored = np.asarray(Image.open(deep.train.name(i))).astype(float)[4:, 4:].mean()
        assert packed.train.files is not None
        assert abs(packed.train.files.decode(i, 3)[4:, 4:].mean() - stored * 255 / 4095) < 2
    line = refusal(capsys, tmp_path / "deep", tmp_path / "shards", "--levels", "0", "65535")
    wording(line)
    assert pack(tmp_path / "deep", tmp_path / "others", "--levels", "0", "65535") == 0
    assert read(tmp_path / "others").train.files.decode(0, 3).max() < 20  # type: ignore[union-attr]


@pytest.mark.parametrize("data", ["synthetic", "missing"])
def test_data_without_files_is_refused(tmp_path, capsys, data):
    assert data in refusal(capsys, data, tmp_path / "shards")


def test_a_full_disk_is_one_line_and_the_run_can_be_completed(tmp_path, capsys, monkeypatch):
    folder, shards = draw(tmp_path / "photos"), tmp_path / "shards"

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert pack(folder, shards) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device (" in line
    assert line.endswith(f"then the same command completes {shards}")
    assert not list(shards.glob(NEIGHBORS))
    assert pack(folder, shards) == 0
    assert not list(shards.glob(NEIGHBORS))


def test_help_names_the_command_and_its_flags(capsys):
    with pytest.raises(SystemExit) as caught:
        pack("--help")
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(flag in out for flag in ("--max-size", "--quality", "--shard-images", "FOLDER", "SHARDS"))
    main(["--help"])
    assert "pack " in capsys.readouterr().out
