"""What is known of images without decoding them: their sizes, what is wrong with them, and what is not read
twice."""

from __future__ import annotations

import io
import os
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from fastcnn.data.arrays import Header
from fastcnn.data.cache import cache_root
from fastcnn.data.decode import DecodeError
from fastcnn.data.sources import headers
from fastcnn.data.sources.headers import Files, scan
from fastcnn.errors import ReadError

ODD_NAMES = [
    b"caf\xc3\xa9 \xe7\x8c\xab.jpg",
    b"two\nlines.jpg",
    b" spaces, 'quotes' \"and\" \\ .jpg",
    b"%s{}$HOME*.jpg",
    b"latin1-\xe9-\xff.jpg",
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "manifests"


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(kind: str = "JPEG", size: tuple[int, int] = (24, 16), **options: Any) -> bytes:
    """An image of that width and height."""
    stream = io.BytesIO()
    picture(*size).save(stream, kind, **options)
    return stream.getvalue()


def declaring(width: int, height: int) -> bytes:
    """A JPEG of 8 x 8 pixels whose header says otherwise."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG")
    data = bytearray(stream.getvalue())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    assert len(data) == 631
    return bytes(data)


def write(folder: Path, contents: dict[str, bytes]) -> list[str]:
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [str(folder / name) for name in contents]


def files(tmp_path: Path, *contents: bytes) -> Files:
    return scan("data", write(tmp_path / "data", {f"{i:04}.jpg": c for i, c in enumerate(contents)}))


def refuse_to_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(files: Files, index: int) -> Any:
        raise AssertionError(f"{files.name(index)} was opened")

    monkeypatch.setattr(headers, "examine", opened)


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that are opened from now on."""
    names: list[str] = []
    examine = headers.examine

    def noted(files: Files, index: int) -> Header:
        names.append(Path(files.name(index)).name)
        return examine(files, index)

    monkeypatch.setattr(headers, "examine", noted)
    return names


# Sizes


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF"])
def test_the_height_and_width_of_every_kind_are_read(kind, tmp_path):
    found = files(tmp_path, encoded(kind, (24, 16)), encoded(kind, (5, 70)))
    assert found.problems == {}
    assert found.sizes.tolist() == [[16, 24], [70, 5]]
    assert found.sizes.dtype == np.int32


def test_two_photos_in_one_file_count_as_the_first(tmp_path):
    stream = io.BytesIO()
    picture(24, 16).save(stream, "MPO", save_all=True, append_images=[picture(8, 8)])
    with Image.open(stream) as image:
        assert image.format == "MPO"
    found = files(tmp_path, stream.getvalue())
    assert found.problems == {}
    assert found.sizes.tolist() == [[16, 24]]


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "BMP", "PPM", "TIFF"])
def test_a_whole_image_is_not_decoded(kind, tmp_path, monkeypatch):
    more: Any = {"save_all": True, "append_images": [picture(8, 8)]} if kind == "MPO" else {}
    data = encoded(kind, **more)

    def load(image: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert files(tmp_path, data).problems == {}


def test_nothing_is_scanned_where_there_is_nothing(tmp_path):
    assert len(scan("data", [])) == 0
    files(tmp_path, encoded())
    assert scan("data", []).sizes.shape == (0, 2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("trailing", [b"\n", b"\0" * 100, b"<html>" * 20], ids=["newline", "zeros", "text"])
def test_bytes_behind_the_end_are_harmless(kind, trailing, tmp_path):
    found = files(tmp_path, encoded(kind) + trailing)
    assert found.problems == {}
    assert found.sizes.tolist() == [[16, 24]]


# Problems


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not found\n",
        b"\xff\xd8\xff",
        b"\x07" * 4096,
        encoded("TGA"),
        encoded("ICO", (16, 16)),
        encoded()[:-2],
        encoded("PNG")[:-40],
        declaring(65_500, 65_500),
    ],
    ids=["empty", "text", "start", "noise", "tga", "ico", "jpeg", "png", "bomb"],
)
def test_a_problem_is_named_and_leaves_the_size_open(content, tmp_path, wording):
    found = files(tmp_path, encoded(), content, encoded())
    assert list(found.problems) == [1]
    wording(found.problems[1])
    assert found.sizes.tolist() == [[16, 24], [0, 0], [16, 24]]


def test_a_missing_file_and_a_folder_are_problems_and_no_errors(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    found = scan("data", [str(tmp_path / "nowhere.jpg"), str(tmp_path / "folder.jpg")])
    assert found.problems == {0: "No such file or directory", 1: "Is a directory"}
    assert found.sizes.tolist() == [[0, 0], [0, 0]]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
def test_a_pipe_is_a_problem_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert list(scan("data", [str(tmp_path / "pipe.jpg")]).problems) == [0]


@pytest.mark.parametrize(
    "data",
    [
        encoded("JPEG"),
        encoded("JPEG", progressive=True),
        encoded("JPEG", (300, 300)),
        encoded("PNG"),
        encoded("PNG", (300, 300)),
    ],
    ids=["jpeg", "progressive", "large jpeg", "png", "large png"],
)
def test_a_file_that_was_cut_anywhere_is_a_problem(data, tmp_path):
    ends = range(1, len(data)) if len(data) < 2000 else range(len(data) - 40, len(data))
    found = files(tmp_path, *(data[:end] for end in ends))
    kept = [end - len(data) for i, end in enumerate(ends) if i not in found.problems]
    assert kept == [], "cut there, and taken for whole"
    assert (found.sizes == 0).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_that_was_cut_and_goes_on_with_other_bytes_is_a_problem(kind, tmp_path):
    data = encoded(kind, (100, 100))
    assert files(tmp_path, data[: len(data) // 2] + b"\0" * 500).problems == {0: "truncated"}


def test_as_many_pixels_as_pillow_takes_are_fine_and_more_are_not(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        assert files(tmp_path, declaring(13_000, 13_765)).sizes.tolist() == [[13_765, 13_000]]
    assert files(tmp_path, declaring(13_000, 13_766)).problems.keys() == {0}


def test_the_most_pixels_do_not_depend_on_what_pillow_was_told(tmp_path, monkeypatch, wording):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    found = files(tmp_path, declaring(65_500, 65_500))
    assert list(found.problems) == [0]
    wording(found.problems[0])
    assert found.sizes.tolist() == [[0, 0]]


# Names


def odd(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / os.fsdecode(name)) for name in ODD_NAMES]
    for i, path in enumerate(paths):
        Path(path).write_bytes(encoded(size=(8, 8 + i)))
    return paths


def test_names_with_any_bytes_are_read_and_remembered(tmp_path, monkeypatch):
    paths = odd(tmp_path)
    first = scan("data", paths)
    assert first.problems == {}
    assert first.sizes.tolist() == [[8 + i, 8] for i in range(len(paths))]
    refuse_to_open(monkeypatch)
    assert scan("data", paths).sizes.tolist() == first.sizes.tolist()


def test_the_folder_too_may_have_any_bytes_in_its_name(tmp_path):
    root = str(tmp_path / os.fsdecode(b"latin1-\xe9"))
    paths = write(Path(root), {"0.jpg": encoded()})
    assert scan(root, paths).sizes.tolist() == [[16, 24]]


# What was read is kept


def same(first: Files, second: Files) -> bool:
    return np.array_equal(first.sizes, second.sizes) and first.problems == second.problems


def test_a_second_scan_opens_no_file(tmp_path, monkeypatch):
    contents = encoded(), b"text", encoded(size=(9, 7)), encoded()[:-2], b""
    first = files(tmp_path, *contents)
    assert len(first.problems) == 3
    refuse_to_open(monkeypatch)
    second = scan("data", first.paths)
    assert same(first, second)
    assert second.sizes.dtype == np.int32


def test_a_second_scan_writes_nothing(tmp_path, cache):
    paths = files(tmp_path, encoded(), b"").paths
    (entry,) = cache.iterdir()
    os.utime(entry, ns=(0, 0))
    scan("data", paths)
    assert entry.stat().st_mtime_ns == 0


@pytest.mark.parametrize("change", ["time", "bytes"])
def test_a_changed_file_is_read_again_and_the_others_are_not(change, tmp_path, examined):
    before = encoded("BMP", (24, 16))
    paths = files(tmp_path, encoded(), before, b"text").paths
    status = os.stat(paths[1])
    if change == "time":  # 32 x 12 pixels take as many bytes as 24 x 16
        after = encoded("BMP", (32, 12))
        assert len(after) == len(before)
        Path(paths[1]).write_bytes(after)
        os.utime(paths[1], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    else:
        Path(paths[1]).write_bytes(encoded("BMP", (32, 12)) + b"\0")
        os.utime(paths[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    examined.clear()
    found = scan("data", paths)
    assert examined == ["0001.jpg"]
    assert found.sizes.tolist() == [[16, 24], [12, 32], [0, 0]]
    assert found.problems == {2: "not an image"}
    examined.clear()
    assert same(scan("data", paths), found)
    assert examined == []


def test_a_mended_file_has_no_problem_any_more(tmp_path):
    paths = files(tmp_path, encoded()[:-2]).paths
    Path(paths[0]).write_bytes(encoded())
    assert scan("data", paths).problems == {}


def test_a_missing_file_is_looked_for_again(tmp_path):
    paths = [str(tmp_path / "late.jpg")]
    assert list(scan("data", paths).problems) == [0]
    write(tmp_path, {"late.jpg": encoded()})
    assert scan("data", paths).problems == {}
    os.remove(paths[0])
    assert list(scan("data", paths).problems) == [0]


def test_files_may_come_go_and_change_places(tmp_path, examined):
    shapes = {"a.jpg": (8, 10), "b.jpg": (8, 11), "c.jpg": (8, 12), "d.jpg": (8, 13)}
    paths = write(tmp_path, {name: encoded(size=size) for name, size in shapes.items()})
    scan("data", paths[:3])
    for chosen, opened in (((3, 2, 0), ["d.jpg"]), ((2, 0), []), ((2, 0), []), ((0, 1, 2), ["b.jpg"])):
        examined.clear()
        found = scan("data", [paths[i] for i in chosen])
        assert examined == opened
        assert found.sizes.tolist() == [[10 + i, 8] for i in chosen]


def test_a_bad_file_that_went_takes_its_problem_along(tmp_path):
    paths = files(tmp_path, b"", encoded()).paths
    assert scan("data", paths[1:]).problems == {}
    assert scan("data", paths[::-1]).problems == {1: "empty"}


def test_data_sets_are_kept_apart(tmp_path, examined):
    paths = files(tmp_path, encoded()).paths
    scan("other", paths)
    assert examined == ["0000.jpg"] * 2
    scan("data", paths)
    scan("other", paths)
    assert len(examined) == 2


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "other"])
def test_a_damaged_cache_is_made_again(damage, tmp_path, cache, examined):
    first = files(tmp_path, encoded(), b"")
    (entry,) = cache.iterdir()
    if damage == "other":
        np.savez(entry, names=np.zeros(3))
    else:
        entry.write_bytes({"empty": b"", "text": b"text", "cut": entry.read_bytes()[:-50]}[damage])
    examined.clear()
    assert same(scan("data", first.paths), first)
    assert sorted(examined) == ["0000.jpg", "0001.jpg"]
    examined.clear()
    assert same(scan("data", first.paths), first)
    assert examined == []


def test_a_folder_that_cannot_be_written_costs_a_warning_and_no_more(tmp_path, monkeypatch, capsys, wording):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert files(tmp_path, encoded(), b"").problems == {1: "empty"}
        warning = capsys.readouterr().err
        assert warning.startswith(
            f"warning: cannot write the cache's folder {tmp_path / 'file' / 'manifests'}: "
        )
        wording(warning)
        assert warning.count("\n") == 1


def test_the_cache_is_where_it_was_told_to_be(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("FASTCNN_CACHE", "~/told")
    assert cache_root() == tmp_path / "told"
    monkeypatch.setenv("FASTCNN_CACHE", "")
    assert cache_root() == tmp_path / "xdg" / "fastcnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == tmp_path / ".cache" / "fastcnn"


def test_too_many_open_files_are_an_error_of_the_machine_and_no_bad_image(tmp_path, monkeypatch):
    opened = os.open

    def too_many(path: Any, *args: Any, **kwargs: Any) -> int:
        if os.fsencode(path).endswith(b".jpg"):
            raise OSError(24, "Too many open files")
        return opened(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", too_many)
        with pytest.raises(ReadError, match="Too many open files"):
            files(tmp_path, encoded())
    assert files(tmp_path, encoded()).problems == {}


# A long scan is announced


def test_a_long_scan_is_announced_once(tmp_path, monkeypatch, capsys, wording):
    monkeypatch.setattr(headers, "SLOW_SCAN", 2)
    paths = write(tmp_path, {f"{i}.jpg": encoded() for i in range(3)})
    scan("slow", paths[:2])
    scan("slow", paths)  # one of them is new
    scan("unannounced", paths, announce=False)
    assert capsys.readouterr().err == ""
    scan("announced", paths)
    notice, bar = capsys.readouterr().err.split("\n", 1)
    wording(notice)
    assert "0/3" in bar
    assert "3/3" in bar
    scan("announced", paths)
    assert capsys.readouterr().err == ""


# Images in shards


CONTENTS = {"a.jpg": encoded(size=(8, 10)), "b.jpg": b"text", "c.png": encoded("PNG", (9, 7)), "d.jpg": b""}


def shard(tmp_path: Path) -> tuple[list[str], np.ndarray, list[str]]:
    """The contents in one file, with other bytes between them."""
    data, spans = b"", []
    for content in CONTENTS.values():
        data += b"\xff\xd8 between"
        spans.append((len(data), len(content)))
        data += content
    path = tmp_path / "shard"
    path.write_bytes(data + b"behind")
    return [str(path)] * len(spans), np.array(spans, dtype=np.int64), list(CONTENTS)


def test_the_images_of_a_shard_are_read_from_where_they_lie(tmp_path, monkeypatch):
    found = scan("shards", *shard(tmp_path))
    assert found.sizes.tolist() == [[10, 8], [0, 0], [7, 9], [0, 0]]
    assert found.problems == {1: "not an image", 3: "empty"}
    assert [found.read(i).tobytes() for i in range(4)] == list(CONTENTS.values())
    assert found.name(2) == f"{tmp_path / 'shard'}/c.png"
    refuse_to_open(monkeypatch)
    assert same(scan("shards", found.paths, found.spans, found.members), found)


def test_an_image_that_moved_in_its_shard_is_read_again(tmp_path, examined):
    paths, spans, members = shard(tmp_path)
    scan("shards", paths, spans, members)
    examined.clear()
    spans[0] = spans[2]
    assert scan("shards", paths, spans, members).sizes.tolist() == [[7, 9], [0, 0], [7, 9], [0, 0]]
    assert examined == ["a.jpg"]


def test_a_file_is_read_whole_and_named_by_its_path(tmp_path):
    found = files(tmp_path, encoded(), b"other")
    assert found.read(1).tobytes() == b"other"
    assert found.read(0).dtype == np.uint8
    assert found.name(1) == str(tmp_path / "data" / "0001.jpg")
    os.remove(found.paths[0])
    with pytest.raises(OSError):
        found.read(0)


def test_pixels_are_decoded_from_what_the_scan_has_seen(tmp_path):
    found = scan("shards", *shard(tmp_path))
    assert np.array_equal(found.decode(2, 3), np.asarray(picture(9, 7)))
    assert np.array_equal(found.decode(2, 1)[..., 0], np.asarray(picture(9, 7).convert("L")))
    assert np.array_equal(found.decode(2, 3, (1, 2, 5, 4)), np.asarray(picture(9, 7))[1:6, 2:6])


def test_a_file_that_went_or_changed_since_the_scan_is_not_decoded(tmp_path):
    found = files(tmp_path, encoded(), encoded())
    os.remove(found.paths[0])
    Path(found.paths[1]).write_bytes(encoded(size=(16, 24)))
    for i, reason in enumerate(("No such file or directory", "changed since its header was read")):
        with pytest.raises(DecodeError, match=f"^{reason}$"):
            found.decode(i, 3)


def test_taking_files_keeps_all_that_is_known_of_them(tmp_path):
    found = scan("shards", *shard(tmp_path)).take(np.array([3, 2, 0]))
    assert len(found) == 3
    assert found.sizes.tolist() == [[0, 0], [7, 9], [10, 8]]
    assert found.problems == {0: "empty"}
    assert [found.read(i).tobytes() for i in range(3)] == [b"", CONTENTS["c.png"], CONTENTS["a.jpg"]]
    assert [Path(found.name(i)).name for i in range(3)] == ["d.jpg", "c.png", "a.jpg"]


def turned_tiff() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("TIFF", exif=exif)


def tiff_of(mode: str) -> bytes:
    stream = io.BytesIO()
    picture(24, 16).convert("L").convert(mode).save(stream, "TIFF")
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [turned_tiff(), *map(tiff_of, "1IF"), b"P5 2 2 100\n" + bytes(4), b"P2 2 2 255\n1 2 3 4\n"],
    ids=["turned TIFF", "1-bit TIFF", "32-bit TIFF", "float TIFF", "PGM up to 100", "PGM as text"],
)
def test_what_dali_reads_differently_is_left_to_pillow(tmp_path, content):
    found = files(tmp_path, content, encoded("TIFF"), b"P5 2 2 255\n" + bytes(4))
    assert found.problems == {}
    assert found.special is not None
    assert found.special.tolist() == [True, False, False]
    assert found.decode(0, 3).shape == (*found.sizes[0], 3)


@pytest.mark.parametrize("quick", [True, False], ids=["quick", "Pillow"])
def test_of_a_shard_only_the_heads_and_ends_of_its_images_are_read(quick, tmp_path, monkeypatch):
    whole, cut = encoded(size=(600, 500)), encoded(size=(300, 200))[:-1]
    shard = tmp_path / "a.tar"
    shard.write_bytes(b"before" + whole + cut + b"after")
    spans = np.array([[6, len(whole)], [6 + len(whole), len(cut)]])
    paths = [str(shard)] * 2
    assert scan("shard", paths, spans, ["whole", "cut"]).sizes[0].tolist() == [500, 600]
    assert scan("shard", paths, spans, ["whole", "cut"]).problems == {1: "truncated"}
    if not quick:
        monkeypatch.setattr(headers, "quick_header", lambda read, length: None)
    taken, read = [], os.read

    def counted(file: int, count: int) -> bytes:
        data = read(file, count)
        taken.append(len(data))
        return data

    found = Files.unread(paths, spans, ["whole", "cut"])
    monkeypatch.setattr(os, "read", counted)
    assert headers.examine(found, 0) == Header(500, 600, 1, 8, 3)
    assert 0 < sum(taken) < len(whole) / 2
