"""What is done to a sample is a function of (seed, epoch, draw), distributed as torchvision's and timm's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import auto_augment as timms
from torchvision.transforms import v2

from fastcnn.config import Config, policies
from fastcnn.config.policies import POLICIES, Choice, Policy, parse_policy
from fastcnn.config.validate import check, ineffective
from fastcnn.data.batch import ShardedSampler
from fastcnn.data.sources.dataset import Split
from fastcnn.data.sources.sample import some_images
from fastcnn.data.transforms.augment import OPERATIONS, Augment, Step, draw_steps, operations
from fastcnn.data.transforms.color import IMAGENET_COMPONENTS
from fastcnn.data.transforms.geometry import train_geometry
from fastcnn.data.transforms.transform import Transform
from fastcnn.errors import UserError

DRAWS = 20_000
COMPONENTS = tuple(tuple(row) for row in IMAGENET_COMPONENTS.tolist())
EVERYTHING = Augment(
    aa="ra",
    color_jitter=(0.4, 0.3, 0.2, 0.1),
    grayscale_prob=0.2,
    lighting=0.1,
    lighting_components=COMPONENTS,
    rotate=15.0,
    reprob=0.25,
    cutout=8,
)
RAND = "rand-m9-n2-mstd0.5"
ALONE: dict[str, Augment] = {
    **{name: Augment(aa=name) for name in (*POLICIES, RAND, RAND + "-inc1") if name != "none"},
    "color_jitter": Augment(color_jitter=(0.4, 0.3, 0.2, 0.1)),
    "grayscale_prob": Augment(grayscale_prob=0.2),
    "lighting": Augment(lighting=0.1, lighting_components=COMPONENTS),
    "rotate": Augment(rotate=15.0),
    "reprob": Augment(reprob=0.25),
    "cutout": Augment(cutout=8),
}
TORCHVISIONS = {
    "Identity": "identity",
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateX": "translate_x",
    "TranslateY": "translate_y",
    "Rotate": "rotate",
    "Brightness": "brightness",
    "Color": "saturation",
    "Contrast": "contrast",
    "Sharpness": "sharpness",
    "Posterize": "posterize",
    "Solarize": "solarize",
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
    "Invert": "invert",
}
FACTORS = ("brightness", "saturation", "contrast", "sharpness")


def draw(
    augment: Augment, size: int = 32, seed: int = 0, epoch: int = 0, count: int = DRAWS
) -> tuple[Step, ...]:
    return draw_steps(augment, size, seed, epoch, np.arange(count))


def same(a: tuple[Step, ...], b: tuple[Step, ...]) -> bool:
    return all(
        one.kinds == other.kinds
        and np.array_equal(one.code, other.code)
        and np.array_equal(one.values, other.values)
        for one, other in zip(a, b, strict=True)
    )


def names(step: Step) -> np.ndarray:
    return np.array(step.kinds)[step.code]


def bounds(share: float, count: int) -> float:
    """Five standard deviations of the share of `count` draws."""
    return 5 * float(np.sqrt(share * (1 - share) / count))


# What holds for all of them


@pytest.mark.parametrize("name", ALONE)
def test_what_is_drawn_depends_on_the_seed_the_epoch_and_the_draw_alone(name):
    augment, draws = ALONE[name], np.random.default_rng(0).permutation(1000)[:64]
    together = draw_steps(augment, 32, 3, 5, draws)
    assert same(draw_steps(augment, 32, 3, 5, draws), together)
    chosen = np.array([63, 7, 8, 50])
    some = draw_steps(augment, 32, 3, 5, draws[chosen])
    assert same(some, tuple(step.take(chosen) for step in together))
    for seed, epoch, others in ((4, 5, draws), (3, 6, draws), (3, 5, draws + 1000)):
        assert not same(draw_steps(augment, 32, seed, epoch, others), together)


@pytest.mark.parametrize("name", ALONE)
def test_the_kinds_of_all_batches_are_the_same_known_ones(name):
    kinds = [step.kinds for step in draw(ALONE[name], count=50)]
    assert kinds == [step.kinds for step in draw(ALONE[name], seed=9, epoch=4, count=1)]
    assert operations(ALONE[name]) <= set(OPERATIONS)
    for step in draw(ALONE[name], count=200):
        assert step.code.dtype == np.int32
        assert step.values.dtype == np.float32
        assert step.values.shape == (200, 4)
        assert np.isfinite(step.values).all()
        assert (0 <= step.code).all()
        assert (step.code < len(step.kinds)).all()
        assert not step.values[names(step) == "identity"].any()


@pytest.mark.parametrize("name", ALONE)
def test_no_setting_changes_what_another_one_draws(name):
    everything = dataclasses.replace(EVERYTHING, aa=ALONE[name].aa if name in (*POLICIES, RAND) else "ra")
    alone, all_of_them = draw(ALONE[name], count=50), draw(everything, count=50)
    if name == RAND + "-inc1":
        all_of_them = draw(dataclasses.replace(everything, aa=name), count=50)
    kinds = [step.kinds for step in all_of_them]
    places = [i for i in range(len(kinds)) if kinds[i : i + len(alone)] == [step.kinds for step in alone]]
    assert any(same(alone, all_of_them[place : place + len(alone)]) for place in places)


def test_crops_and_flips_stay_as_they_are():
    plain, augmented = Transform(size=32), Transform(size=32, augment=EVERYTHING)
    sizes = np.full((100, 2), 60)
    a, b = (train_geometry(t, sizes, 0, 0, np.arange(100)) for t in (plain, augmented))
    assert all(np.array_equal(x, y) for x, y in zip(vars(a).values(), vars(b).values()))


def test_the_order_is_rotation_policy_colour_grey_lighting_erasing_cutout():
    kinds = [set(step.kinds) - {"identity"} for step in draw(EVERYTHING, count=1)]
    policy = {choice.kind for choice in POLICIES["ra"].slots[0]} - {"identity"}  # type: ignore[union-attr]
    jitter = {"brightness", "contrast", "saturation", "hue"}
    assert kinds[:7] == [{"rotate"}, policy, policy, *[jitter] * 4]
    assert kinds[7:] == [{"saturation"}, {"lighting"}, {"erase"}, {"erase"}]


def test_nothing_is_done_that_was_not_asked_for():
    assert draw(Augment()) == ()
    assert draw(Augment(color_jitter=(0.0,))) == ()
    assert operations(Augment(cutout=8)) == {"erase"}


# Rotation, colour, lighting


def test_rotation_is_uniform_within_its_degrees():
    (step,) = draw(Augment(rotate=15.0))
    degrees = step.values[:, 0]
    shares = np.histogram(degrees, bins=10, range=(-15, 15))[0] / DRAWS
    assert shares.sum() == pytest.approx(1)
    assert np.abs(shares - 0.1).max() < bounds(0.1, DRAWS)


def test_colour_jitter_is_torchvisions_each_once_in_random_order():
    steps = draw(Augment(color_jitter=(0.4, 1.5, 0.2, 0.1)))
    codes = np.stack([step.code for step in steps], axis=1)
    assert (np.sort(codes, axis=1) == np.arange(4)).all()
    orders, counts = np.unique(codes, axis=0, return_counts=True)
    assert len(orders) == 24
    assert np.abs(counts / DRAWS - 1 / 24).max() < bounds(1 / 24, DRAWS)
    reference = v2.ColorJitter(0.4, 1.5, 0.2, 0.1)
    for kind in ("brightness", "contrast", "saturation", "hue"):
        values = np.concatenate([step.values[names(step) == kind, 0] for step in steps])
        low, high = getattr(reference, kind)
        shares = np.histogram(values, bins=8, range=(low - 1e-6, high + 1e-6))[0] / DRAWS
        assert shares.sum() == pytest.approx(1)
        assert np.abs(shares - 1 / 8).max() < bounds(1 / 8, DRAWS)


def test_one_number_of_colour_jitter_is_for_all_but_the_hue():
    for told in ((0.3,), (0.3, 0.3, 0.3)):
        steps = draw(Augment(color_jitter=told), count=9)
        assert [step.kinds for step in steps] == [("brightness", "contrast", "saturation")] * 3
    (only,) = draw(Augment(color_jitter=(0.0, 0.3, 0.0)), count=9)
    assert only.kinds == ("contrast",)


def test_grey_has_its_probability_and_no_saturation():
    (step,) = draw(Augment(grayscale_prob=0.2))
    assert step.kinds == ("identity", "saturation")
    assert abs(step.code.mean() - 0.2) < bounds(0.2, DRAWS)
    assert not step.values.any()


def test_lighting_is_normal_along_the_principal_components():
    (step,) = draw(Augment(lighting=0.1, lighting_components=COMPONENTS))
    along = step.values[:, :3] @ np.linalg.inv(IMAGENET_COMPONENTS)
    assert np.abs(along.mean(axis=0)).max() < 0.1 * 5 / np.sqrt(DRAWS)
    np.testing.assert_allclose(np.cov(along, rowvar=False), 0.01 * np.eye(3), atol=0.01 * 0.05)
    within = [(np.abs(along) < 0.1 * deviations).mean() for deviations in (1, 2)]
    assert within == pytest.approx([0.6827, 0.9545], abs=0.01)


# Erasing


def torchvisions_boxes(size: int, count: int) -> np.ndarray:
    """[count, 4] top, left, height, width of torchvision's RandomErasing; its height is 0 where none fits."""
    torch.manual_seed(0)
    image, erasing = [torch.empty(3, size, size)], v2.RandomErasing(1.0)
    drawn = [erasing.make_params(image) for _ in range(count)]
    boxes = [[d[k] for k in "ijhw"] if d["v"] is not None else [0, 0, 0, 0] for d in drawn]
    return np.array(boxes)


def test_erased_rectangles_are_torchvisions():
    count = 4000
    (step,) = draw(Augment(reprob=1.0), size=64, count=count)
    assert step.kinds == ("identity", "erase")
    ours, theirs = step.values, torchvisions_boxes(64, count)
    assert (ours == np.rint(ours)).all()
    assert (ours[:, :2] + ours[:, 2:] <= 64).all()
    for a, b in zip(ours.T, theirs.T):
        points = np.arange(65)
        below = [np.searchsorted(np.sort(x), points, side="right") / count for x in (a, b)]
        assert np.abs(below[0] - below[1]).max() < 1.95 * np.sqrt(2 / count)  # 1 in 1000 of equal ones
    area = ours[:, 2] * ours[:, 3] / 64**2
    assert 0.015 < area[area > 0].min() < 0.03
    assert 0.3 < area.max() < 0.345


def test_erasing_has_its_probability():
    (step,) = draw(Augment(reprob=0.25))
    assert (
        abs(step.code.mean() - 0.25) < bounds(0.25, DRAWS) + 0.002
    )  # nothing fits in ten tries: hardly ever


def test_cutout_is_a_square_around_any_pixel_cut_off_at_the_border():
    (step,) = draw(Augment(cutout=8))
    top, left, height, width = step.values.T
    assert (step.values >= 0).all()
    assert (top + height <= 32).all()
    assert (left + width <= 32).all()
    assert height.min() == width.min() == 4  # around a pixel of the border
    assert height.max() == width.max() == 8
    rows = np.zeros(33)
    np.add.at(rows, top.astype(int), 1)
    np.add.at(rows, (top + height).astype(int), -1)
    covered = rows.cumsum()[:32] / DRAWS  # as often as a centre is near enough
    near = np.array([min(row + 4, 31) - max(row - 3, 0) + 1 for row in range(32)]) / 32
    np.testing.assert_allclose(covered, near, atol=0.02)


# Policies, against the tables of torchvision and timm


WHOLE: dict[str, Callable[[float], float]] = {"truncated": np.trunc, "rounded": np.rint, "": float}


def outcomes(choice: Choice, size: int, levels: int = policies.LEVELS) -> list[float]:
    """The values that a choice may give, of one level after the other, at its positive sign."""
    scale, told = choice.scale, [choice.level]
    if choice.level is None:
        told = list(np.arange(levels) / (levels - 1))
    slope = scale.slope * (size if scale.of_size else 1)
    return [scale.start + WHOLE[scale.whole](slope * level) for level in told if level is not None]


def torchvisions_value(kind: str, magnitude: float) -> float:
    """What an operation of torchvision's tables means in ours."""
    if kind in FACTORS:
        return 1 + magnitude
    if kind.startswith("translate"):
        return float(int(round(magnitude, 4)))  # their float32 may lie just below a whole number
    return 255 * magnitude if kind == "solarize" else magnitude


def check_space(slot: tuple[Choice, ...], space: dict[str, Any], levels: int, bin_: int | None) -> None:
    theirs = {TORCHVISIONS[name]: entry for name, entry in space.items()}
    assert sorted(choice.kind for choice in slot) == sorted(theirs)
    for choice in slot:
        magnitudes, signed = theirs[choice.kind]
        found = magnitudes(levels, 224, 224)
        assert choice.scale.signed == signed
        expected = [0.0] * levels if found is None else [float(m) for m in found]
        if found is not None:
            expected = [torchvisions_value(choice.kind, magnitude) for magnitude in expected]
        expected = expected if bin_ is None else [expected[bin_]]
        expected = expected[:1] if found is None and bin_ is None else expected
        values = outcomes(choice, 224, levels)
        values = values[:1] if found is None else values
        np.testing.assert_allclose(values, expected, atol=1e-3)


def test_randaugment_is_torchvisions_table():
    policy, reference = parse_policy("ra"), v2.RandAugment()
    assert policy is not None
    assert len(policy.slots) == reference.num_ops == 2
    assert not policy.together
    for slot in policy.slots:
        assert all(choice.probability == 1 for choice in slot)
        check_space(slot, reference._AUGMENTATION_SPACE, reference.num_magnitude_bins, reference.magnitude)


def test_trivialaugment_is_torchvisions_table():
    policy, reference = parse_policy("ta_wide"), v2.TrivialAugmentWide()
    assert policy is not None
    (slot,) = policy.slots
    check_space(slot, reference._AUGMENTATION_SPACE, reference.num_magnitude_bins, None)


@pytest.mark.parametrize("name", ["imagenet", "cifar10", "svhn"])
def test_autoaugment_is_torchvisions_table(name):
    policy, reference = parse_policy(name), v2.AutoAugment(v2.AutoAugmentPolicy(name))
    assert policy is not None
    assert policy.together
    assert len(reference._policies) == 25
    for slot, operations_ in zip(policy.slots, zip(*reference._policies), strict=True):
        for choice, (their_name, probability, level) in zip(slot, operations_, strict=True):
            magnitudes, signed = reference._AUGMENTATION_SPACE[their_name]
            assert choice.kind == TORCHVISIONS[their_name]
            assert choice.probability == probability
            found = magnitudes(10, 224, 224)
            if found is not None:
                expected = torchvisions_value(choice.kind, float(found[level]))
                assert choice.scale.signed == signed
                assert outcomes(choice, 224) == pytest.approx([expected], abs=1e-3)


TIMMS = {
    **{name: kind for name, kind in TORCHVISIONS.items() if not name.startswith("Translate")},
    "SolarizeAdd": "solarize_add",
    "TranslateXRel": "translate_x",
    "TranslateYRel": "translate_y",
}


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("magnitude", [0, 3, 9, 10])
def test_rand_is_timms_table(increasing, magnitude):
    told = f"rand-m{magnitude}-n3" + ("-inc1" if increasing else "")
    policy, reference = parse_policy(told), timms.rand_augment_transform(told, {"translate_pct": 0.45})
    assert policy is not None
    assert len(policy.slots) == reference.num_layers == 3
    for slot in policy.slots:
        theirs = {TIMMS[op.name.removesuffix("Increasing")]: op for op in reference.ops}
        assert len(theirs) == len(reference.ops) == 15
        assert {choice.kind for choice in slot} == set(theirs)
        for choice in slot:
            op = theirs[choice.kind]
            assert choice.probability == op.prob == 0.5
            assert choice.level == pytest.approx(op.magnitude / 10)
            if op.level_fn is None:
                continue
            (value,) = outcomes(choice, 1 if choice.kind.startswith("translate") else 224)
            around = choice.scale.start if choice.scale.signed else value
            expected = {float(op.level_fn(op.magnitude, op.hparams)[0]) for _ in range(40)}
            values = sorted({value, 2 * around - value})
            assert sorted(expected) == pytest.approx(values)


def test_timms_magnitude_is_normal_within_0_and_10():
    policy = parse_policy("rand-m9-n2-mstd0.5-inc1")
    assert policy == dataclasses.replace(parse_policy("rand-m9-n2-inc1"), deviation=0.05)  # type: ignore[type-var]
    values = []
    for step in draw(Augment(aa="rand-m9-n2-mstd0.5-inc1"), size=1):
        values.append(step.values[names(step) == "rotate", 0])
    levels = np.abs(np.concatenate(values)) / 3
    torch.manual_seed(0)
    expected = np.random.default_rng(0).normal(9, 0.5, 100_000).clip(0, 10)
    assert levels.mean() == pytest.approx(expected.mean(), abs=0.08)
    assert levels.std() == pytest.approx(expected.std(), rel=0.1)
    assert levels.max() == pytest.approx(10)
    assert (levels == levels.max()).mean() == pytest.approx((expected == 10).mean(), abs=0.01)


@pytest.mark.parametrize("name", ["ra", "ta_wide", RAND + "-inc1"])
def test_operations_signs_and_levels_of_a_policy_are_as_likely_as_its_table_says(name):
    policy = parse_policy(name)
    assert isinstance(policy, Policy)
    for step, slot in zip(draw(Augment(aa=name)), policy.slots, strict=True):
        found, drawn = names(step), step.values[:, 0]
        for choice in slot:
            if choice.kind == "identity":
                continue
            share = choice.probability / len(slot)
            chosen = found == choice.kind
            assert abs(chosen.mean() - share) < bounds(share, DRAWS)
            if choice.scale.signed:
                above = drawn[chosen & (drawn != choice.scale.start)] > choice.scale.start
                assert abs(above.mean() - 0.5) < bounds(0.5, len(above))
            if choice.level is None and choice.kind == "solarize":
                bins, counts = np.unique(drawn[chosen], return_counts=True)
                assert len(bins) == policies.LEVELS
                assert np.abs(counts / chosen.sum() - 1 / 31).max() < bounds(1 / 31, int(chosen.sum()))


def test_both_operations_of_autoaugment_are_of_one_sub_policy():
    first, second = (names(step) for step in draw(Augment(aa="cifar10")))
    pairs = {(a, b) for a, b in zip(first.tolist(), second.tolist())}
    of_table = {(a[0], b[0]) for a, b in policies.CIFAR10}
    assert {pair for pair in pairs if "identity" not in pair} <= of_table
    rotated = (first == "rotate").mean()  # one sub-policy of 25, with probability 0.7
    assert abs(rotated - 0.7 / 25) < bounds(0.7 / 25, DRAWS)
    both = ((first == "rotate") & (second == "translate_x")).mean()
    assert abs(both - 0.7 * 0.3 / 25) < bounds(0.7 * 0.3 / 25, DRAWS)


def test_translations_grow_with_the_image():
    far = []
    for size in (32, 224):
        (step, _) = draw(Augment(aa="ra"), size=size)
        far.append(np.abs(step.values[names(step) == "translate_x", 0]).max())
    assert far == [int(150 / 331 * size * 9 / 30) for size in (32, 224)]


@pytest.mark.parametrize(
    "aa", ["randaugment", "rand-m9-x2", "rand-n0", "rand-m", "ra-m9", "rand-m11", "rand-m9-mstd101"]
)
def test_an_unknown_policy_is_refused_with_the_known_ones(aa, wording):
    with pytest.raises(UserError) as caught:
        check(Config(aa=aa))
    message = str(caught.value)
    assert message.startswith(f"--aa {aa}: ")
    wording(message)
    assert "\n" not in message
    assert all(name in message for name in (*POLICIES, "rand-m9-n2-mstd0.5-inc1"))


# Settings that do not go together


def test_random_crops_and_borders_are_refused(wording):
    with pytest.raises(UserError) as caught:
        check(Config(train_crop="random", crop_mode="border"))
    wording(caught.value)


def test_a_reflection_of_more_than_there_is_is_refused(wording):
    check(Config(pad_mode="reflect", crop_padding=31, img_size=32, train_crop="pad"))
    with pytest.raises(UserError, match="^--crop-padding 32:") as caught:
        check(Config(pad_mode="reflect", crop_padding=32, img_size=32, train_crop="pad"))
    wording(caught.value)
    check(Config(crop_padding=32, img_size=32, train_crop="pad"))


@pytest.mark.parametrize("name", ["aa", "rotate", "reprob", "cutout", "pad_mode"])
def test_what_does_not_move_masks_and_boxes_is_refused_for_them(name, wording):
    settings: dict[str, Any] = {"aa": "ra", "rotate": 5.0, "reprob": 0.2, "cutout": 4, "pad_mode": "reflect"}
    for arch in ("unet", "yolo"):
        with pytest.raises(UserError, match=f"^--{name.replace('_', '-')} ") as caught:
            check(Config(arch=arch, **{name: settings[name]}))
        wording(caught.value)


@pytest.mark.parametrize("name", ["scale", "ratio", "crop_padding", "pad_mode"])
def test_settings_of_other_crops_have_no_effect_on_random_ones(name, wording):
    values: dict[str, Any] = {
        "scale": (0.5, 1.0),
        "ratio": (1.0, 1.0),
        "crop_padding": 3,
        "pad_mode": "reflect",
    }
    (warning,) = ineffective(Config(train_crop="random", **{name: values[name]}))
    wording(warning)


# Crops and flips


def test_samples_that_are_never_flipped_are_not_flipped_in_turn():
    t = Transform(size=32, hflip=0.0, hflip_mode="alternating")
    for epoch in range(2):
        assert not train_geometry(t, np.full((50, 2), 40), 0, epoch, np.arange(50)).flip.any()


def test_alternating_flips_are_drawn_once_and_then_turned_round():
    t = Transform(size=32, hflip=0.3, hflip_mode="alternating")
    flips = [train_geometry(t, np.full((4000, 2), 40), 0, epoch, np.arange(4000)).flip for epoch in range(4)]
    assert abs(flips[0].mean() - 0.3) < bounds(0.3, 4000)
    assert (flips[1] == ~flips[0]).all()
    assert (flips[2] == flips[0]).all()
    assert (flips[3] == flips[1]).all()


def test_random_crops_are_as_likely_at_every_place_of_the_resized_image():
    t = Transform(size=32, train_crop="random", crop_pct=32 / 36)
    g = train_geometry(t, np.full((DRAWS, 2), (72, 90)), 0, 0, np.arange(DRAWS))
    places = (g.start + g.roi_start) / 2  # it is resized to half
    for axis, count in ((0, 5), (1, 14)):
        found, counts = np.unique(places[:, axis].round(4), return_counts=True)
        np.testing.assert_allclose(found, np.arange(count), atol=1e-3)
        assert np.abs(counts / DRAWS - 1 / count).max() < bounds(1 / count, DRAWS)
    np.testing.assert_allclose(g.roi_end - g.roi_start, 64, atol=1e-3)


# Repeated augmentation


def test_without_repeats_the_order_is_a_permutation():
    assert sorted(ShardedSampler(count=10, batch_size=2, rank=0, world_size=1, train=True).order(0)) == list(
        range(10)
    )


@pytest.mark.parametrize("repeats", [2, 3, 20])
def test_repeats_follow_each_other_and_the_epoch_keeps_its_length(repeats):
    sampler = ShardedSampler(count=10, batch_size=2, rank=0, world_size=1, train=True, repeats=repeats)
    order = sampler.order(0)
    assert len(order) == 10
    assert sampler.steps == 5
    assert len(set(order.tolist())) == 10  # each time another draw
    once = ShardedSampler(count=10, batch_size=2, rank=0, world_size=1, train=True).order(0)
    assert (order % 10).tolist() == np.repeat(once, repeats)[:10].tolist()
    assert (order // 10).tolist() == (np.arange(10) % repeats).tolist()


def test_ranks_share_the_repeats_and_others_go_on_where_they_were():
    whole = ShardedSampler(count=30, batch_size=3, rank=0, world_size=1, train=True, repeats=3).order(4)
    parts = [
        ShardedSampler(count=30, batch_size=3, rank=rank, world_size=3, train=True, repeats=3).order(4)
        for rank in range(3)
    ]
    assert np.stack(parts, axis=1).ravel().tolist() == whole.tolist()
    rest = [
        ShardedSampler(count=30, batch_size=3, rank=rank, world_size=2, train=True, repeats=3).order(
            4, consumed=9
        )
        for rank in range(2)
    ]
    assert sorted(np.concatenate(rest)) == sorted(whole[9:])


def test_each_repeat_gets_another_crop_and_other_operations():
    order = ShardedSampler(count=30, batch_size=3, rank=0, world_size=1, train=True, repeats=2).order(0)[:20]
    g = train_geometry(Transform(size=32), np.full((20, 2), 80), 0, 0, order)
    assert (g.start[::2] != g.start[1::2]).any(axis=1).all()
    (step,) = draw_steps(Augment(rotate=15.0), 32, 0, 0, order)
    assert (step.values[::2, 0] != step.values[1::2, 0]).all()


# What is looked at and filled in


def test_grey_images_have_three_equal_colours_where_colours_are_looked_at():
    split = Split(np.zeros(4, dtype=np.int64), images=np.arange(4 * 9, dtype=np.uint8).reshape(4, 3, 3, 1))
    for image in some_images(split, 10, 0):
        assert image.shape == (3, 3, 3)
        assert (image == image[..., :1]).all()


def test_what_is_erased_has_a_value_for_each_channel():
    assert Transform(size=32, channels=3, augment=Augment(fill=(1, 2, 6))).fill == (1, 2, 6)
    assert Transform(size=32, channels=1, augment=Augment(fill=(1, 2, 6))).fill == (3,)
    assert Transform(size=32, channels=3, augment=Augment(fill=(7,))).fill == (7, 7, 7)
