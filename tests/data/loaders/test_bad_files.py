"""Images that cannot be decoded: what stands in for them, how many may be, and how they are named."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable

import numpy as np
import pytest

from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.sources.dataset import Split
from fastcnn.data.sources.headers import Files
from fastcnn.errors import BadImageError, UserError

#             0  1  2  3  4  5  6  7  8  9
LABELS = [0, 1, 0, 1, 0, 1, 0, 2, 0, 1]


def split_of(labels: Iterable[int], problems: dict[int, str] | None = None) -> Split:
    array = np.array(list(labels), dtype=np.int64)
    paths = tuple(f"data/{i}.jpg" for i in range(len(array)))
    return Split(array, dataclasses.replace(Files.unread(paths), problems=problems or {}))


def bad_of(bad: Iterable[int], labels: Iterable[int] = LABELS, max_fraction: float = 1.0) -> BadFiles:
    files = BadFiles(split_of(labels), "training", max_fraction)
    files.merge(dict.fromkeys(bad, "truncated"))
    return files


def lines(captured: pytest.CaptureFixture[str]) -> list[str]:
    out, err = captured.readouterr()
    assert out == ""
    return err.splitlines()


# Stand-ins


def test_a_good_image_stands_for_itself():
    files = bad_of([2, 7])
    assert [files.replacement(i) for i in (0, 1, 3, 9)] == [0, 1, 3, 9]


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ([0], {0: 2}),
        ([0, 2, 4], {0: 6, 2: 6, 4: 6}),
        ([8], {8: 0}),  # going round
        ([8, 0, 2], {8: 4}),
        ([1, 3, 9], {9: 5, 1: 5, 3: 5}),
        ([0, 2, 4, 6], {0: 8, 6: 8}),
    ],
    ids=str,
)
def test_the_next_good_image_of_the_class_stands_in(bad, expected):
    files = bad_of(bad)
    assert {sample: files.replacement(sample) for sample in expected} == expected


@pytest.mark.parametrize(
    ("bad", "expected"), [([7], 8), ([7, 8], 9), ([7, 8, 9], 0), ([7, 8, 9, 0, 1], 2)], ids=str
)
def test_the_next_good_image_of_any_class_stands_in_where_the_class_has_none(bad, expected):
    assert bad_of(bad).replacement(7) == expected


def test_no_image_stands_in_where_none_is_good(wording):
    files = bad_of(range(10))
    with pytest.raises(BadImageError) as caught:
        files.replacement(4)
    wording(caught.value)


def test_stand_ins_do_not_depend_on_the_order_in_which_the_bad_ones_were_found():
    found = {}
    for order in itertools.permutations([0, 2, 7, 9]):
        files = BadFiles(split_of(LABELS), "training", 1.0)
        for sample in order:
            files.find(sample, "truncated")
            files.replacements(np.arange(10))  # what is asked on the way changes nothing
        found[order] = files.replacements(np.arange(10)).tolist()
    assert set(map(tuple, found.values())) == {(4, 1, 4, 3, 4, 5, 6, 8, 8, 1)}


def test_stand_ins_are_those_of_each_sample():
    samples = np.array([9, 7, 7, 0, 8])
    assert bad_of([7, 8]).replacements(samples).tolist() == [9, 9, 9, 0, 0]
    assert bad_of([7, 8]).replacements(samples).dtype == np.int64


@pytest.mark.parametrize("bad", [[], [3]])
def test_asking_for_stand_ins_leaves_the_samples_alone(bad):
    samples = np.array([3, 4])
    bad_of(bad).replacements(samples)[:] = 0
    assert samples.tolist() == [3, 4]


# What is known


def test_what_the_headers_tell_is_known_from_the_start(capsys):
    files = BadFiles(split_of(LABELS, {3: "empty", 1: "truncated"}), "validation", 1.0)
    assert len(files) == 2
    assert [i for i in range(10) if i in files] == [1, 3]
    assert files.unreported == []
    assert files.lines() == ["data/1.jpg: truncated", "data/3.jpg: empty"]
    assert lines(capsys) == [], "named by the run, once for all ranks"


def test_what_is_found_is_news_and_named_once_on_stderr(capsys, wording):
    files = BadFiles(split_of(LABELS, {3: "empty"}), "validation", 1.0)
    files.merge({4: "told by another"})
    for sample, reason in ((8, "truncated"), (1, "No such file"), (8, "again"), (3, "again"), (4, "again")):
        files.find(sample, reason)
    assert files.unreported == [8, 1]
    first, second = lines(capsys)
    assert first.endswith(": data/8.jpg: truncated")
    assert second.endswith(": data/1.jpg: No such file")
    wording(first)
    wording(second)
    assert files.lines() == [
        "data/1.jpg: No such file",
        "data/3.jpg: empty",
        "data/4.jpg: told by another",
        "data/8.jpg: truncated",
    ]


def test_only_so_many_are_named_and_all_are_counted(monkeypatch, capsys):
    monkeypatch.setattr("fastcnn.data.loaders.bad_files.NAMED_AT_MOST", 3)
    files = BadFiles(split_of(LABELS), "training", 1.0)
    for sample in range(6):
        files.find(sample, "truncated")
    assert len(lines(capsys)) == 3
    assert len(files) == len(files.lines()) == 6


# How many may be


@pytest.mark.parametrize(
    ("count", "total", "fraction"),
    [
        (0, 10, 0.0),
        (1, 100, 0.01),
        (3, 10, 0.3),
        (5, 5, 1.0),
        (29, 100, 0.29),
        (7, 25, 0.28),
        (57, 100, 0.57),
    ],
)
def test_exactly_the_share_is_allowed_and_one_more_is_not(count, total, fraction, capsys):
    def found(bad: int) -> BadFiles:
        files = BadFiles(split_of([0] * total), "training", fraction)
        for sample in range(bad):
            files.find(sample, "truncated")
        files.check_all()
        return files

    assert len(found(count)) == count
    if count < total:
        with pytest.raises(BadImageError):
            found(count + 1)


def test_one_too_many_ends_the_run_with_their_names(capsys, wording):
    files = BadFiles(split_of(LABELS, {9: "empty"}), "training", 0.2)
    files.find(4, "truncated")
    with pytest.raises(BadImageError) as caught:
        files.find(2, "not an image")
    message = str(caught.value)
    assert message.startswith("--max-bad-fraction 0.2: 3 of 10 ")
    assert "\n" not in message
    wording(message)
    wording(lines(capsys)[-1])


def test_what_every_rank_knows_is_refused_as_a_mistake_of_the_user():
    files = bad_of([1, 2], max_fraction=0.1)
    with pytest.raises(UserError, match="2 of 10 training images") as caught:
        files.check_all()
    assert not isinstance(caught.value, BadImageError)


def test_a_long_list_is_cut(monkeypatch):
    monkeypatch.setattr("fastcnn.data.loaders.bad_files.NAMED_AT_MOST", 3)
    with pytest.raises(UserError) as caught:
        bad_of(range(5), max_fraction=0.1).check_all()
    assert str(caught.value).count("data/") == 3
    assert str(caught.value).endswith("data/2.jpg: truncated; ...")
    with pytest.raises(UserError) as caught:
        bad_of(range(3), max_fraction=0.1).check_all()
    assert not str(caught.value).endswith("...")


@pytest.mark.parametrize("total", [1, 3, 7, 50, 90, 100, 150, 1000, 1021])
def test_the_fraction_that_the_message_advises_is_enough_and_not_much_more(total):
    for count in {*range(1, min(total, 150) + 1), total}:
        with pytest.raises(UserError) as caught:
            bad_of(range(count), [0] * total, 0.0).check_all()
        advised = re.search(r"use --max-bad-fraction (\S+):", str(caught.value))
        assert advised is not None
        assert count / total - 1e-9 <= float(advised[1]) <= min(1, count / total + 0.001 + 1e-9)
        bad_of(range(count), [0] * total, float(advised[1])).check_all()
