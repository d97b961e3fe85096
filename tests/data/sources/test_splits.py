"""Shares split off the training images: stratified, the same for the same seed, and never within a group."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fastcnn.config import Config
from fastcnn.config.settings import DataSettings
from fastcnn.config.validate import check, ineffective
from fastcnn.data.sources.dataset import Split
from fastcnn.data.sources.headers import Files
from fastcnn.data.sources.splits import Splits, check_shares, split_off
from fastcnn.data.targets import MultiLabels
from fastcnn.errors import UserError


def images(counts: dict[str, int], root: str = "/data") -> Split:
    """Images of so many of each class; the i-th is named `CLASS/i.jpg`."""
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    paths = tuple(f"{root}/{name}/{i}.jpg" for name, count in counts.items() for i in range(count))
    return Split(labels, Files.unread(paths))


def named(paths: list[str], labels: list[int]) -> Split:
    return Split(np.array(labels), Files.unread([f"/data/{path}" for path in paths]))


def settings(**values: object) -> DataSettings:
    return DataSettings(data="/data", **values)  # type: ignore[arg-type]


def paths(split: Split | None) -> list[str]:
    assert split is not None
    assert split.files is not None
    return list(split.files.paths)


def all_paths(splits: Splits) -> list[str]:
    parts = (splits.train, splits.val, splits.test)
    return [path for part in parts if part is not None for path in paths(part)]


def earlier_split_by_class(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """The split of earlier releases, whose checkpoints remember the order of the images."""
    rng = np.random.default_rng(seed)
    place = np.empty(len(split))
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        place[members] = (rng.permutation(len(members)) + rng.random()) / len(members)
    count = min(max(1, round(share * len(split))), len(split) - 1)
    chosen = np.argsort(place, kind="stable")
    return split.take(np.sort(chosen[count:])), split.take(np.sort(chosen[:count]))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("counts", [{"a": 40}, {"a": 40, "b": 17, "c": 9}, {"a": 200, "b": 5}])
def test_a_share_has_the_images_that_it_had_in_earlier_releases(counts, seed, share):
    split = images(counts)
    found = split_off(split, settings(val_split=share), seed)
    train, val = earlier_split_by_class(split, share, seed)
    assert (paths(found.train), paths(found.val)) == (paths(train), paths(val))
    assert found.remarks == ()
    assert found.test is None


@pytest.mark.parametrize("shares", [(0.2, None), (0.2, 0.2), (0.6, 0.3), (0.9, None)])
@pytest.mark.parametrize("seed", range(5))
def test_every_class_keeps_a_training_image_and_no_image_is_lost_or_twice(seed, shares):
    split = images({"big": 20, "bigger": 30, "pair": 2, **{f"lone {i}": 1 for i in range(12)}})
    found = split_off(split, settings(val_split=shares[0], test_split=shares[1]), seed)
    assert set(found.train.labels) == set(range(15))
    assert sorted(all_paths(found)) == sorted(paths(split))
    assert len(found.val) == min(round(shares[0] * len(split)), len(split) - 15)


def test_both_shares_are_stratified():
    found = split_off(images({"a": 100, "b": 50, "c": 10}), settings(val_split=0.2, test_split=0.1), 0)
    assert found.test is not None
    assert [len(found.train), len(found.val), len(found.test)] == [112, 32, 16]
    for part, share in ((found.val, 0.2), (found.test, 0.1)):
        taken = Counter(part.labels.tolist())
        assert all(abs(taken[i] - share * total) <= 1 for i, total in enumerate((100, 50, 10)))


def test_a_test_share_leaves_the_validation_share_as_it_is():
    split = images({"a": 40, "b": 30})
    alone = split_off(split, settings(val_split=0.2), 3)
    both = split_off(split, settings(val_split=0.2, test_split=0.2), 3)
    assert paths(alone.val) == paths(both.val)


def test_the_seed_of_the_split_is_that_of_the_run_or_its_own():
    split = images({"a": 40, "b": 30})
    of_run = [paths(split_off(split, settings(val_split=0.2), seed).val) for seed in (0, 1)]
    own = [paths(split_off(split, settings(val_split=0.2, split_seed=1), seed).val) for seed in (0, 1)]
    assert of_run[0] != of_run[1]
    assert own[0] == own[1] == of_run[1]


def test_one_image_a_class_leaves_none_to_split_off(wording):
    with pytest.raises(UserError, match="^--val-split") as caught:
        split_off(images({f"lone {i}": 1 for i in range(12)}), settings(val_split=0.2), 0)
    wording(caught.value)


def test_too_few_images_for_both_shares_are_refused(wording):
    with pytest.raises(UserError, match="^--test-split") as caught:
        split_off(images({"a": 2, "b": 1}), settings(val_split=0.2, test_split=0.2), 0)
    wording(caught.value)


# The parts that a data set has


def test_a_test_part_alone_serves_for_validation_and_is_said(wording):
    train, test = images({"a": 4}), images({"a": 2})
    found = split_off(train, settings(), 0, test=test)
    assert (found.train, found.val, found.test) == (train, test, None)
    wording(found.remarks[0])


def test_a_validation_share_beside_a_test_part_holds_the_test_part_out():
    train, test = images({"a": 10}), images({"a": 2})
    found = split_off(train, settings(val_split=0.2), 0, test=test)
    assert (len(found.train), len(found.val), found.test) == (8, 2, test)
    assert found.remarks == ()


def test_a_test_share_beside_a_validation_part_is_taken_from_training():
    train, val = images({"a": 10}), images({"a": 3})
    found = split_off(train, settings(test_split=0.2), 0, val=val)
    assert found.test is not None
    assert (len(found.train), found.val, len(found.test)) == (8, val, 2)


def test_all_three_parts_stay_as_they_are():
    train, val, test = images({"a": 4}), images({"a": 3}), images({"a": 2})
    found = split_off(train, settings(), 0, val=val, test=test)
    assert (found.train, found.val, found.test) == (train, val, test)


@pytest.mark.parametrize(
    ("values", "parts", "flag"),
    [
        ({"val_split": 0.1}, {"val": "val/"}, "--val-split"),
        ({"val_split": 0.1, "test_split": 0.1}, {"test": "test/"}, "--test-split"),
        ({"test_split": 0.1}, {"val": "val/", "test": "test/"}, "--test-split"),
        ({"test_split": 0.1}, {}, "--data"),
        ({}, {}, "--data"),
    ],
    ids=str,
)
def test_shares_in_conflict_with_the_parts_are_refused(values, parts, flag, wording):
    with pytest.raises(UserError, match=f"^{flag}") as caught:
        check_shares(settings(**values), **parts)
    wording(caught.value)


def test_shares_that_leave_no_training_images_are_refused(wording):
    with pytest.raises(UserError, match="^--val-split 0.5 and --test-split 0.5") as caught:
        check(Config(val_split=0.5, test_split=0.5))
    wording(caught.value)


# Groups


def patients(count: int, images_each: int, classes: int = 2) -> Split:
    names = [f"{p % classes}/patient{p:03}_{i}.jpg" for p in range(count) for i in range(images_each)]
    return named(names, [int(name[0]) for name in names])


def groups_of(split: Split | None, length: int = len("/data/0/patient000")) -> set[str]:
    return {path[:length] for path in paths(split)}


@pytest.mark.parametrize("pattern", [r"patient\d+", r"(patient\d+)_", r"/([a-z]+\d{3})"])
@pytest.mark.parametrize("seed", range(3))
def test_the_images_of_a_group_are_on_one_side(seed, pattern):
    split = patients(40, 5)
    found = split_off(split, settings(val_split=0.2, test_split=0.1, group_by=pattern), seed)
    parts = [groups_of(part) for part in (found.train, found.val, found.test)]
    assert [len(part) for part in parts] == [28, 8, 4]
    assert len(set.union(*parts)) == 40
    assert sorted(all_paths(found)) == sorted(paths(split))
    assert Counter(found.val.labels.tolist()) == {0: 20, 1: 20}


def test_groups_of_several_classes_stay_together_and_keep_each_class_in_training():
    names = [f"{label}/video{v}_{i}.jpg" for v in range(12) for label in range(3) for i in range(4)]
    split = named(names, [int(name[0]) for name in names])
    for seed in range(5):
        found = split_off(split, settings(val_split=0.25, group_by=r"video\d+"), seed)
        videos = [{name.split("/")[-1].split("_")[0] for name in paths(p)} for p in (found.train, found.val)]
        assert not videos[0] & videos[1]
        assert len(videos[1]) == 3
        assert set(found.train.labels) == {0, 1, 2}


def test_a_group_far_larger_than_the_share_is_not_taken_while_others_are_left():
    names = [f"0/{'big' if i < 80 else f'small{i}'}_{i}.jpg" for i in range(100)]
    for seed in range(10):
        found = split_off(named(names, [0] * 100), settings(val_split=0.1, group_by=r"[a-z]+\d*_?"), seed)
        assert len(found.val) == 10
        assert all("small" in path for path in paths(found.val))


def test_the_sizes_of_the_parts_by_groups_are_said(wording):
    found = split_off(patients(10, 3), settings(val_split=0.2, group_by=r"patient\d+"), 0)
    assert "10 groups" in found.remarks[0]
    wording(found.remarks[0])


def test_groups_may_be_given_by_the_source():
    split = images({"a": 20, "b": 20})
    found = split_off(split, settings(val_split=0.5), 0, groups=[i // 5 for i in range(40)])
    chosen = [paths(split).index(path) // 5 for path in paths(found.val)]
    assert all(count == 5 for count in Counter(chosen).values())


@pytest.mark.parametrize(
    "pattern",
    [r"nothing", r"patient00\d", r"^[01]?/?", r"(x)?patient"],
    ids=["matches nothing", "matches some", "one group", "an empty group"],
)
def test_a_pattern_that_does_not_group_the_images_is_refused(pattern, wording):
    split = patients(20, 2, classes=1)
    with pytest.raises(UserError, match="^--group-by") as caught:
        split_off(split, settings(val_split=0.2, group_by=pattern), 0)
    wording(caught.value)


def test_a_group_with_the_last_images_of_each_class_is_not_split_off(wording):
    names = [f"{label}/{v}_{label}.jpg" for v in "xy" for label in range(2)]
    names = [name for name in names if name != "1/y_1.jpg"] + ["2/y_2.jpg"]
    split = named(names, [int(name[0]) for name in names])
    with pytest.raises(UserError, match="^--val-split") as caught:
        split_off(split, settings(val_split=0.4, group_by="[xy]"), 0)
    wording(caught.value)


def test_a_pattern_that_is_no_regular_expression_is_refused(wording):
    with pytest.raises(UserError, match="^--group-by") as caught:
        check(Config(group_by="patient("))
    wording(caught.value)


def test_a_pattern_without_a_share_has_no_effect_and_is_said(wording):
    for line in ineffective(Config(group_by="x", split_seed=1)):
        wording(line)
    assert not any("group-by" in line for line in ineffective(Config(group_by="x", test_split=0.1)))


@pytest.mark.parametrize("seed", range(5))
def test_every_class_of_images_with_several_labels_keeps_a_training_image(seed):
    values = np.zeros((60, 4), dtype=np.uint8)
    values[:, 0] = 1
    values[:30, 1] = 1
    values[[0, 40], 2] = 1  # never the rarest label of its images
    values[[0, 40, 41], 3] = [1, 1, 0]
    labels = np.where(values[:, 1] > 0, 1, 0)
    split = Split(
        labels, Files.unread([f"/data/{i}.jpg" for i in range(60)]), annotations=MultiLabels(values)
    )
    found = split_off(split, settings(val_split=0.5), seed)
    assert isinstance(found.train.annotations, MultiLabels)
    assert found.train.annotations.values.any(axis=0).all()
    assert len(found.val) == 30
