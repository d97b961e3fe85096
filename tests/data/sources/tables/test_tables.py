"""Labels in tables: formats and encodings, columns and files by name, one label an image or several."""

from __future__ import annotations

import codecs
import json
import shutil
import unicodedata
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastcnn.config.settings import DataSettings, LoaderSettings
from fastcnn.data.loaders.build import build_loaders
from fastcnn.data.loaders.registry import has_dali
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.sources.open import open_source
from fastcnn.data.targets import MultiLabels
from fastcnn.data.transforms.transform import Transform
from fastcnn.runtime.distributed import Ranks
from small_sources import message_of, names

CELLS = ["cat", "dog", "cat", "hén", "dog", "hén", "cat", "dog"]
HEADER = ("file", "label")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def draw(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / path)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of eight images."""
    return draw(tmp_path / "images", *(f"{i}.png" for i in range(8)))


def rows_of(labels: Sequence[Any], suffix: str = ".png") -> list[tuple[Any, ...]]:
    return [HEADER, *((f"{i}{suffix}", label) for i, label in enumerate(labels))]


def write(path: Path, rows: Sequence[Sequence[Any]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    path.write_bytes("".join(delimiter.join(map(str, row)) + "\n" for row in rows).encode(encoding))
    return path


def read(root: Path, table: str | None = "labels.csv", **settings: Any) -> Source:
    settings.setdefault("val_split", 0.3)
    return open_source(DataSettings(data=str(root), labels=table, **settings), seed=0)


def found(source: Source) -> dict[str, Any]:
    """The labels of the images by their names, over all splits."""

    def of_split(split: Split | None) -> dict[str, Any]:
        if split is None:
            return {}
        if isinstance(split.annotations, MultiLabels):
            rows = split.annotations.values.tolist()
            return {
                n: [c for c, has in zip(source.class_names, r) if has] for n, r in zip(names(split), rows)
            }
        return {n: source.class_names[label] for n, label in zip(names(split), split.labels.tolist())}

    return of_split(source.train) | of_split(source.val) | of_split(source.test)


EXPECTED = {str(i): label for i, label in enumerate(CELLS)}


# Formats


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_delimiter_encoding_and_line_end_is_read(root, delimiter, encoding, end):
    text = "".join(delimiter.join(row) + end for row in rows_of(CELLS))
    mark = codecs.BOM_UTF16_LE if encoding == "utf-16" else b""
    data = mark + text.encode("utf-16-le") if mark else text.encode(encoding)
    (root / "labels.csv").write_bytes(data)
    assert found(read(root)) == EXPECTED


def test_tab_and_space_separated_lists_without_a_header_are_read(root):
    write(root / "list.tsv", rows_of(CELLS)[1:], "\t")
    write(root / "list.txt", rows_of(CELLS)[1:], " ")
    for name in ("list.tsv", "list.txt"):
        source = read(root, name)
        assert found(source) == EXPECTED
        assert f"{name}: files in column 1, labels in column 2 (there is no header)" in source.remarks


def test_quotes_spaces_empty_lines_and_excel_s_first_line_are_read(root):
    lines = ["sep=;", '"file" ; "label"', "", *(f'"{i}.png"; {label};' for i, label in enumerate(CELLS))]
    (root / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    assert found(read(root)) == EXPECTED
    (root / "labels.csv").write_text(
        'file,label\n0.png,"a, ""b""\nc"\n1.png,d\n2.png,d\n3.png,"a, ""b""\nc"\n'
    )
    assert set(read(root).class_names) == {'a, "b"\nc', "d"}


def test_json_lines_and_json_are_read(root):
    objects = [{"file": f"{i}.png", "label": label} for i, label in enumerate(CELLS)]
    (root / "a.jsonl").write_text("\n".join(map(json.dumps, objects)) + "\n\n")
    (root / "b.json").write_text(json.dumps(objects))
    (root / "c.json").write_text(json.dumps({row["file"]: row["label"] for row in objects}))
    for name in ("a.jsonl", "b.json", "c.json"):
        assert found(read(root, name)) == EXPECTED


def test_parquet_is_read_and_its_package_asked_for(root, monkeypatch, wording):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"file": [f"{i}.png" for i in range(8)], "label": [[c] for c in CELLS]})
    parquet.write_table(table, root / "a.parquet")
    assert found(read(root, "a.parquet")) == EXPECTED
    (root / "bad.parquet").write_bytes(b"PAR1")
    wording(message_of(lambda: read(root, "bad.parquet")))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    wording(message_of(lambda: read(root, "a.parquet")))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.xlsx", b"PK"),
        ("labels.csv", b""),
        ("labels.csv", b"file,label\n"),
        ("labels.csv", b"0.png\n1.png\n"),
        ("labels.csv", b"file,label,label\n0.png,a,b\n"),
        ("labels.csv", bytes(range(256))),
        ("labels.csv", b'file,label\n0.png,"a\n1.png,b\n2.png,b\n'),
        ("labels.jsonl", b'{"file": "0.png", "label": {"name": "a"}}'),
        ("labels.json", b"{"),
        ("labels.json", b"[1, 2]"),
        ("labels.jsonl", b'{"file": "0.png", "label": "a"}\n[1]\n{\n'),
    ],
    ids=[
        "excel",
        "empty",
        "header",
        "one column",
        "twice",
        "binary",
        "quote",
        "object",
        "json",
        "numbers",
        "lines",
    ],
)
def test_what_is_no_table_is_one_line(root, wording, name, content):
    (root / name).write_bytes(content)
    wording(message_of(lambda: read(root, name)))


# Files


def test_ids_back_slashes_folders_and_paths_of_other_machines_are_found(tmp_path):
    root = draw(
        tmp_path / "d", "a/0.png", "a/1.png", "b/c/2.png", "B/3.PNG", "é.png", "b/v1.2.png", "x.y.png"
    )
    cells = [
        "0",
        "a\\1.png",
        "/kaggle/input/b/c/2",
        "b/3.png",
        unicodedata.normalize("NFD", "é"),
        "v1.2",
        "x.y.png",
    ]
    write(tmp_path / "t.csv", [("id", "breed"), *((cell, "cd"[i % 2]) for i, cell in enumerate(cells))])
    source = read(root, str(tmp_path / "t.csv"))
    assert len(found(source)) == len(cells)
    assert len(source.train) + len(source.val) == len(cells)


def test_equal_names_in_many_folders_are_told_apart(tmp_path):
    files = [f"{phase}/patient{i}/study1/view.png" for phase in ("train", "valid") for i in range(4)]
    root = draw(tmp_path / "d", *files)
    rows = [(f"/other/d-small/{file}", "ab"[i % 2]) for i, file in enumerate(files)]
    write(root / "labels.csv", [("Path", "label"), *rows])
    source = read(root, val_split=None)
    assert (len(source.train), len(source.val)) == (4, 4)
    assert [path[-len(files[0]) :] for path in source.train.files.paths] == files[:4]  # type: ignore[union-attr]


def test_a_path_of_another_folder_is_no_match(tmp_path, wording):
    root = draw(
        tmp_path / "d", *(f"train/{i}.png" for i in range(4)), "val/1.png", "val/9.png", "a/t.png", "b/t.png"
    )
    cells = [
        "train/0.png",
        "train/1.png",
        "train/9.png",
        "1",
        "t.png",
        "train/2.png",
        "train/3.png",
        "train/4",
    ]
    write(root / "labels.csv", [HEADER, *((cell, "cd"[i % 2]) for i, cell in enumerate(cells))])
    wording(message_of(lambda: read(root)))
    source = read(root, bad_labels="skip")
    assert found(source) == {"0": "c", "1": "d", "2": "d", "3": "c"}


def test_the_name_of_a_table_decides_between_images_of_the_same_name(tmp_path):
    root = draw(tmp_path / "d", *(f"{phase}/{i}.png" for phase in ("train", "test") for i in range(8)))
    write(root / "train.csv", [("id", "label"), *enumerate(CELLS)])
    source = read(root, "train.csv")
    assert found(source) == EXPECTED
    assert all("/train/" in path for path in source.train.files.paths)  # type: ignore[union-attr]


def test_absolute_paths_are_read_and_images_without_a_row_are_a_remark(root, tmp_path):
    elsewhere = draw(tmp_path / "more", "far.png")
    rows = rows_of(CELLS)[:6]
    write(root / "labels.csv", [*rows, (elsewhere / "far.png", "dog")])
    source = read(root)
    assert found(source) == {**{str(i): CELLS[i] for i in range(5)}, "far": "dog"}
    assert f"skipped: {root}/5.png is not listed in labels.csv (3 in all)" in source.remarks


def test_rows_without_image_or_label_and_ragged_rows_are_named_and_counted(root, wording):
    rows = [*rows_of(CELLS), ("8.png", "cat"), ("9.png", "cat"), ("1.png", "dog"), ("2.png",), ("", "dog")]
    (root / "labels.csv").write_text(
        "".join(",".join(row) + "\n" for row in rows) + "3.png,cat,dog\n4.png,\n"
    )
    message = message_of(lambda: read(root))
    assert "labels.csv, line 10: 8.png is not in" in message
    wording(message)
    source = read(root, bad_labels="skip")
    assert found(source) == EXPECTED
    assert "skipped repeated rows: 1" in source.remarks


def test_rows_that_contradict_each_other_are_an_error_and_no_side_is_taken(root, wording):
    write(root / "labels.csv", [*rows_of(CELLS), ("0.png", "dog"), ("1", "dog")])
    wording(message_of(lambda: read(root)))
    assert found(read(root, bad_labels="skip")) == {k: v for k, v in EXPECTED.items() if k != "0"}


def test_a_table_of_other_images_is_one_line(root, wording):
    write(root / "labels.csv", rows_of(CELLS, ".jpg"))
    wording(message_of(lambda: read(root)))


# Columns


def test_columns_are_found_by_their_names_and_by_what_they_hold(root):
    header = ("", "id", "Image Name", "width", "Category_ID", "category")
    classes = sorted(set(CELLS))
    rows = [(i, 100 + i, f"{i}.png", 8, classes.index(c), c) for i, c in enumerate(CELLS)]
    write(root / "labels.csv", [header, *rows])
    assert found(read(root)) == EXPECTED  # the names rather than their numbers
    numbered = read(root, label_column=("Category_ID",), file_column="Image Name")
    assert numbered.class_names == ("0", "1", "2")


AMBIGUOUS: dict[str, tuple[list[tuple[Any, ...]], dict[str, Any]]] = {
    "labels": (
        [("file", "label", "target"), *((f"{i}.png", i % 2, i % 3) for i in range(8))],
        {"label_column": ("label",)},
    ),
    "files": (
        [("file", "path", "label"), *((f"{i}.png", f"{7 - i}.png", i % 2) for i in range(8))],
        {"file_column": "file"},
    ),
    "no label": (
        [("file", "height", "age"), *((f"{i}.png", i % 2, i % 3) for i in range(8))],
        {"label_column": ("age",)},
    ),
    "no file": (
        [("who", "when", "label"), *((f"x{i}", f"y{i}", i % 2) for i in range(8))],
        {"file_column": "who"},
    ),
}
"""Rows of a table whose columns may be others, and the settings that the message names."""


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_an_ambiguous_column_is_an_error_and_its_advice_works(root, wording, kind):
    rows, advised = AMBIGUOUS[kind]
    write(root / "labels.csv", rows)
    message = message_of(lambda: read(root))
    assert all("--" + name.replace("_", "-") in message for name in advised)
    wording(message)
    draw(root, *(f"x{i}.png" for i in range(8)))
    assert len(found(read(root, **advised))) == 8


def test_a_missing_column_is_an_error_with_those_there_are(root, wording):
    write(root / "labels.csv", rows_of(CELLS))
    told: list[dict[str, Any]] = [{"label_column": ("breed",)}, {"file_column": "x"}, {"split_column": "y"}]
    for settings in told:
        wording(message_of(partial(read, root, **settings)))


def test_numbers_keep_their_order_and_the_point_of_missing_ones_is_dropped(root):
    write(root / "labels.csv", rows_of(["10", "9", "-1", "9.0", "10.0", "-1", "2", "2"]))
    assert read(root).class_names == ("-1", "2", "9", "10")


@pytest.mark.parametrize("labels", ["fractions", "ids", "one class", "empty"])
def test_a_column_that_holds_no_classes_is_one_line(tmp_path, wording, labels):
    root = draw(tmp_path / "d", *(f"{i}.png" for i in range(30)))
    cells = {
        "fractions": [f"{i % 25 / 7:.3f}" for i in range(30)],
        "ids": [f"id{i}" for i in range(30)],
        "one class": ["cat"] * 30,
        "empty": [""] * 30,
    }
    write(root / "labels.csv", rows_of(cells[labels]))
    wording(message_of(lambda: read(root)))


def test_two_unicode_forms_are_one_class_and_two_cases_a_warning(root):
    forms = [unicodedata.normalize(form, "hén") for form in ("NFC", "NFD")]
    write(root / "labels.csv", rows_of([*forms, *forms, "Hén", "Hén", "cat", "cat"]))
    source = read(root)
    assert source.class_names == tuple(sorted(("Hén", "cat", "hén")))
    assert any("two Unicode forms" in remark for remark in source.remarks)
    assert any(
        remark.startswith("warning: the classes hén and Hén differ in case") for remark in source.remarks
    )


# Phases


@pytest.mark.parametrize("name", ["split", "Usage", "subset"])
def test_a_column_of_phases_splits_the_images(root, name):
    phases = ["train", "Training", "val", "validation", "valid", "TEST", "test", "train"]
    write(
        root / "labels.csv",
        [(*HEADER, name), *((f"{i}.png", c, p) for i, (c, p) in enumerate(zip(CELLS, phases)))],
    )
    source = read(root, val_split=None)
    assert source.test is not None
    assert [names(split) for split in (source.train, source.val, source.test)] == [
        ["0", "1", "7"],
        ["2", "3", "4"],
        ["5", "6"],
    ]


def test_a_column_of_truth_values_splits_the_images(root):
    write(
        root / "labels.csv",
        [(*HEADER, "is_valid"), *((f"{i}.png", c, i % 4 == 0) for i, c in enumerate(CELLS))],
    )
    assert names(read(root, val_split=None).val) == ["0", "4"]


def test_a_named_column_that_holds_no_phases_is_named(root, wording):
    rows = [(f"{i}.png", c, f"fold{i % 2}") for i, c in enumerate(CELLS)]
    write(root / "labels.csv", [(*HEADER, "fold"), *rows])
    wording(message_of(lambda: read(root, val_split=None, split_column="fold", label_column=("label",))))


def test_other_words_beside_phases_are_an_error_and_its_advice_works(root, wording):
    rows = [(f"{i}.png", c, ["train", "val", "", "none"][i // 2]) for i, c in enumerate(CELLS)]
    write(root / "labels.csv", [(*HEADER, "split"), *rows])
    wording(message_of(lambda: read(root, val_split=None)))
    source = read(root, val_split=None, split_column="split", bad_labels="skip")
    assert (names(source.train), names(source.val)) == (["0", "1"], ["2", "3"])


def test_images_in_folders_of_phases_belong_to_them(tmp_path):
    files = [f"{phase}/{i}.png" for phase in ("train", "val") for i in range(4)]
    root = draw(tmp_path / "d", *files)
    write(root / "labels.csv", [HEADER, *((f, "ab"[i % 2]) for i, f in enumerate(files))])
    source = read(root, val_split=None)
    assert (len(source.train), len(source.val)) == (4, 4)
    assert "labels.csv: phases by the folders of the images" in source.remarks
    assert all("/val/" in path for path in source.val.files.paths)  # type: ignore[union-attr]


def test_an_image_in_two_phases_is_an_error(root, wording):
    rows = [(f"{i}.png", c, "val" if i % 4 else "train") for i, c in enumerate(CELLS)]
    write(root / "labels.csv", [(*HEADER, "split"), *rows, ("0.png", "cat", "val")])
    wording(message_of(lambda: read(root, val_split=None)))


def test_test_rows_without_labels_are_left_out(root):
    rows = [(f"{i}.png", c if i < 6 else "", ["train", "val", "test"][i // 3]) for i, c in enumerate(CELLS)]
    write(root / "labels.csv", [(*HEADER, "split"), *rows])
    source = read(root, val_split=None)
    assert source.test is None
    assert "skipped test images without label: 2" in source.remarks


def test_without_phases_something_to_validate_on_is_asked_for_and_split_off(root, wording):
    write(root / "labels.csv", rows_of(CELLS))
    wording(message_of(lambda: read(root, val_split=None)))
    source = read(root, val_split=0.25, test_split=0.25)
    assert source.test is not None
    assert (len(source.train), len(source.val), len(source.test)) == (4, 2, 2)


def test_a_column_groups_the_images_of_a_split(root):
    rows = [(f"{i}.png", c, f"p{i // 2}") for i, c in enumerate("abababab")]
    write(root / "labels.csv", [(*HEADER, "patient"), *rows])
    source = read(root, group_by="patient", val_split=0.25)
    assert sorted(int(name) // 2 for name in names(source.val)) in [[k, k] for k in range(4)]


# Several labels an image


@pytest.mark.parametrize("separator", [";", "|", "; "])
def test_labels_in_a_cell_are_separated(root, separator):
    labels = [["b"], ["a", "b"], [], ["a"], ["c", "a", "b"], ["b"], [], ["c"]]
    delimiter = "," if separator != "|" else "\t"
    write(root / "labels.csv", rows_of([separator.join(row) for row in labels]), delimiter)
    source = read(root)
    assert source.multi_label
    assert {name: sorted(row) for name, row in found(source).items()} == {
        str(i): sorted(row) for i, row in enumerate(labels)
    }
    assert "images without label: 2" in source.remarks
    assert source.train.targets.load(np.arange(2), None, 8).dtype == np.uint8  # type: ignore[arg-type]


def test_lists_of_labels_are_read(root):
    labels = [["b"], ["a", "b"], [], ["a"], ["a", "c"], ["b"], ["b"], ["c"]]
    lines = [json.dumps({"file_name": f"{i}.png", "labels": row}) for i, row in enumerate(labels)]
    (root / "a.jsonl").write_text("\n".join(lines))
    (root / "b.csv").write_text("file,tags\n" + "".join(f'{i}.png,"{row}"\n' for i, row in enumerate(labels)))
    for name in ("a.jsonl", "b.csv"):
        assert found(read(root, name)) == {str(i): row for i, row in enumerate(labels)}


def test_a_column_for_each_class_is_guessed_or_told(root):
    flags = [(1, 0), (1, 1), (0, 0), (0, 1), (1, 0), (0, 1), (1, 1), (0, 0)]
    expected = {str(i): [n for n, has in zip(("cat", "dog"), row) if has] for i, row in enumerate(flags)}
    write(root / "labels.csv", [("file", "cat", "dog"), *((f"{i}.png", *row) for i, row in enumerate(flags))])
    source = read(root)
    assert source.multi_label
    assert found(source) == expected
    rows = [(f"{i}.png", float(a), bool(b), i) for i, (a, b) in enumerate(flags)]
    write(root / "labels.csv", [("file", "cat", "dog", "age"), *rows])
    assert found(read(root, label_column=("cat", "dog"))) == expected


def test_columns_of_which_each_image_has_one_are_classes(root):
    write(root / "labels.csv", [("file", "cat", "dog"), *((f"{i}.png", i % 2, 1 - i % 2) for i in range(8))])
    source = read(root)
    assert not source.multi_label
    assert found(source) == {str(i): ("dog", "cat")[i % 2] for i in range(8)}


def test_a_column_of_a_class_with_other_values_is_named(root, wording):
    write(root / "labels.csv", [("file", "cat", "dog"), *((f"{i}.png", i % 2, i % 3 - 1) for i in range(8))])
    wording(message_of(lambda: read(root, label_column=("cat", "dog"))))


def test_words_that_may_be_several_labels_are_a_warning(root):
    tags = ["haze road", "clear road", "haze", "clear", "road", "haze road", "clear", "road"]
    write(root / "labels.csv", rows_of(tags))
    source = read(root)
    assert not source.multi_label
    assert any(remark.startswith("warning: labels.csv: column label: ") for remark in source.remarks)
    write(root / "labels.csv", rows_of([tag.replace(" ", ";") for tag in tags]))  # as it says
    assert read(root).class_names == ("clear", "haze", "road")


def test_a_split_keeps_the_rarest_label_in_training(tmp_path):
    root = draw(tmp_path / "d", *(f"{i}.png" for i in range(40)))
    labels = ["common;rare" if i == 7 else "common;often" if i % 3 else "common" for i in range(40)]
    write(root / "labels.csv", rows_of(labels))
    for seed in range(5):
        source = read(root, val_split=0.5, split_seed=seed)
        assert source.train.class_counts(3).min() >= 1
        assert (len(source.train), len(source.val)) == (20, 20)


# Hugging Face's ImageFolder


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
@pytest.mark.parametrize("parted", [False, True])
def test_metadata_is_found_without_a_flag(tmp_path, name, parted):
    root = tmp_path / "d"
    phases = {"train": range(6), "validation": range(6, 8)} if parted else {"": range(8)}
    for phase, numbers in phases.items():
        folder = draw(root / phase, *(f"{i}.png" for i in numbers))
        rows = [{"file_name": f"{i}.png", "label": CELLS[i]} for i in numbers]
        if name.endswith("parquet"):
            pyarrow = pytest.importorskip("pyarrow")
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)
        elif name.endswith("jsonl"):
            (folder / name).write_text("\n".join(map(json.dumps, rows)))
        else:
            write(folder / name, [tuple(rows[0]), *(tuple(row.values()) for row in rows)])
    source = read(root, None, val_split=None if parted else 0.25)
    assert found(source) == EXPECTED
    assert (len(source.train), len(source.val)) == (6, 2)


def test_metadata_without_labels_leaves_the_class_folders(tmp_path):
    root = draw(tmp_path / "d", *(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(4)))
    write(
        root / "metadata.csv", [("file_name", "caption"), *((f"{i}.png", f"one {i % 3}") for i in range(4))]
    )
    source = read(root, None)
    assert source.class_names == ("cat", "dog")
    assert any("metadata.csv has no column label, among file_name, caption" in r for r in source.remarks)
    write(root / "metadata.csv", [("name", "label"), *((f"{i}.png", "x") for i in range(4))])
    assert any("metadata.csv has no column file_name" in remark for remark in read(root, None).remarks)


def test_metadata_of_a_test_folder_alone_leaves_the_class_folders(tmp_path):
    files = [f"{phase}/{c}/{i}.png" for phase in ("train", "val") for c in ("cat", "dog") for i in range(4)]
    root = draw(tmp_path / "d", *files, "test/0.png")
    write(root / "test" / "metadata.csv", [("file_name", "label"), ("0.png", "cat")])
    source = read(root, None, val_split=None)
    assert (source.class_names, len(source.train)) == (("cat", "dog"), 8)
    assert any("there is none for training" in remark for remark in source.remarks)


def test_metadata_of_a_test_folder_without_labels_is_left_out(tmp_path):
    root = tmp_path / "d"
    for phase in ("train", "val", "test"):
        draw(root / phase, *(f"{i}.png" for i in range(4)))
        rows = [("file_name", "label"), *((f"{i}.png", "ab"[i % 2]) for i in range(4))]
        write(root / phase / "metadata.csv", [row[:1] for row in rows] if phase == "test" else rows)
    (root / "test" / "metadata.csv").write_text(
        "file_name,size\n" + "".join(f"{i}.png,8\n" for i in range(4))
    )
    source = read(root, None, val_split=None)
    assert (len(source.train), len(source.val), source.test) == (4, 4, None)


# Loaders


BACKENDS = [
    pytest.param("dali", marks=pytest.mark.skipif(not has_dali(), reason="DALI is not installed")),
    *("torch", "cached"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("several", [False, True])
def test_every_loader_gives_the_targets_of_its_samples(photos, tmp_path, backend, several):
    root = tmp_path / "d"
    shutil.copytree(photos, root, dirs_exist_ok=True)
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
    cells = [
        ";".join(c for k, c in enumerate("abc") if (several and i >> k & 1) or k == i % 3) for i in range(30)
    ]
    write(root / "labels.csv", [HEADER, *zip(files, cells)])
    source = read(root, val_split=None)
    settings = LoaderSettings(
        data_backend=backend, batch_size=5, workers=1, sampler="shuffle" if several else "balanced"
    )
    transform = Transform(size=32)
    loaders = build_loaders(source, transform, settings, ranks=Ranks(), device=torch.device("cpu"), seed=0)
    try:
        for loader, split in zip(loaders, (source.train, source.val)):
            order = loader.sampler.order(0) % len(split)  # type: ignore[attr-defined]
            targets = torch.cat([batch.targets[batch.mask] for batch in loader])
            expected = split.targets.load(order[: len(targets)], None, 32)  # type: ignore[arg-type]
            assert targets.tolist() == expected.tolist()
            assert targets.dtype == (torch.uint8 if several else torch.int64)
    finally:
        for loader in loaders:
            loader.close()
