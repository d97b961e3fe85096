"""Crops and flips: functions of (seed, epoch, sample) alone, distributed as torchvision's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from fastcnn.data.transforms.geometry import Geometry, eval_geometry, train_geometry
from fastcnn.data.transforms.random_numbers import uniforms
from fastcnn.data.transforms.transform import Transform

DRAWS = 20_000
ELONGATED = [(1, 5000), (5000, 1), (2, 900), (901, 3), (10, 7000), (1, 2), (3, 1)]


def sizes_of(*sizes: tuple[int, int]) -> np.ndarray:
    return np.array(sizes, dtype=np.int32).reshape(-1, 2)


def crops(t: Transform, size: tuple[int, int], count: int = DRAWS, seed: int = 0) -> Geometry:
    return train_geometry(t, sizes_of(size).repeat(count, axis=0), seed, 0, np.arange(count))


def fields(geometry: Geometry) -> dict[str, list[Any]]:
    return {name: values.tolist() for name, values in vars(geometry).items()}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The greatest difference of two samples' distribution functions (Kolmogorov and Smirnov's)."""
    points = np.concatenate([a, b])
    below = [np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


def distance_from_uniform(u: np.ndarray) -> float:
    steps = np.arange(len(u) + 1) / len(u)
    ordered = np.sort(u)
    return float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))


# The numbers


def splitmix64(state: int, count: int) -> list[int]:
    """The generator as Steele, Lea and Flood wrote it, one number after the other."""
    out, mask = [], 2**64 - 1
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


def as_fraction(bits: int) -> float:
    return (bits >> 11) / 2**53


def test_the_reference_generator_gives_the_published_numbers():
    assert splitmix64(0, 3) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_the_numbers_are_splitmix64s(monkeypatch):
    class Zero:
        def __init__(self, entropy: object, spawn_key: object) -> None:
            pass

        def generate_state(self, words: int, kind: type) -> np.ndarray:
            return np.zeros(words, dtype=kind)

    monkeypatch.setattr(np.random, "SeedSequence", Zero)
    expected = [as_fraction(bits) for bits in (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)]
    assert uniforms(5, 6, np.array([0]), 3).tolist() == [expected]
    assert uniforms(5, 6, np.array([2, 0, 1]), 1).ravel().tolist() == [expected[2], *expected[:2]]


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (3, 5), (2**40, 10**6)])
def test_every_sample_has_its_place_in_the_stream_of_its_seed_and_epoch(seed, epoch):
    key = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0])
    stream = np.array([as_fraction(bits) for bits in splitmix64(key, 7 * 100)]).reshape(100, 7)
    samples = np.array([99, 0, 13, 50, 13])
    assert np.array_equal(uniforms(seed, epoch, samples, 7), stream[samples])


def test_the_numbers_of_a_sample_do_not_depend_on_the_others():
    together = uniforms(1, 2, np.arange(50), 23)
    for chosen in ([7], [49, 0], list(range(20, 30)), []):
        assert np.array_equal(uniforms(1, 2, np.array(chosen, dtype=np.int64), 23), together[chosen])


@pytest.mark.parametrize("first", [0, 1, 3, 23])
def test_the_first_numbers_alone_are_the_same(first):
    samples = np.array([5, 0, 49])
    assert np.array_equal(uniforms(1, 2, samples, 23, first=first), uniforms(1, 2, samples, 23)[:, :first])


def test_seeds_epochs_and_samples_have_numbers_of_their_own():
    numbers = [
        uniforms(seed, epoch, np.arange(1000), 23).ravel() for seed in (0, 1, 2) for epoch in (0, 1, 2)
    ]
    assert len(np.unique(np.concatenate(numbers))) == 9 * 1000 * 23


def test_the_last_sample_of_a_huge_set_has_numbers_too():
    u = uniforms(0, 0, np.array([10**12, 2**62]), 23)
    assert ((0 <= u) & (u < 1)).all()
    assert len(np.unique(u)) == 46


def test_the_numbers_are_uniform_in_whatever_order_they_are_taken():
    count = 50_000
    bound = 2.5 / np.sqrt(count)  # 1 in 10^5 of true ones go beyond
    one_epoch = uniforms(0, 0, np.arange(count), 4)
    assert one_epoch.min() >= 0
    assert one_epoch.max() < 1
    sequences = [
        *one_epoch.T,
        one_epoch.ravel()[:count],
        uniforms(0, 0, np.arange(0, count * 1024, 1024), 1)[:, 0],
        np.concatenate([uniforms(0, epoch, np.arange(50), 10).ravel() for epoch in range(100)]),
        np.concatenate([uniforms(seed, 0, np.arange(50), 10).ravel() for seed in range(100)]),
        np.concatenate([uniforms(seed, 9, np.array([3]), 1).ravel() for seed in range(2000)]),
    ]
    for u in sequences:
        assert distance_from_uniform(u) < bound * np.sqrt(count / len(u))
        assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 5 / np.sqrt(len(u))
    assert np.abs(np.corrcoef(one_epoch.T) - np.eye(4)).max() < 5 / np.sqrt(count)


# Random-resized crops


def torchvisions(t: Transform, size: tuple[int, int], count: int = DRAWS) -> np.ndarray:
    """[count, 4]: top, left, height and width."""
    torch.manual_seed(0)
    crop, image = v2.RandomResizedCrop(t.size, t.scale, t.ratio), torch.empty(1, *size, device="meta")
    drawn = (crop.make_params([image]) for _ in range(count))
    return np.array([[p["top"], p["left"], p["height"], p["width"]] for p in drawn])


@pytest.mark.parametrize(
    ("size", "options"),
    [
        pytest.param((500, 375), {}, marks=pytest.mark.slow),
        pytest.param((30, 150), {}, marks=pytest.mark.slow),  # some fit in no try
        pytest.param((9, 7), {}, marks=pytest.mark.slow),  # what is rounded matters
        ((200, 64), {"scale": (0.3, 0.9), "ratio": (0.4, 1.2)}),
    ],
    ids=str,
)
def test_random_resized_crops_are_distributed_as_torchvisions(size, options):
    t = Transform(size=32, **options)
    g, theirs = crops(t, size), torchvisions(t, size)
    ours = np.column_stack([g.start, g.shape])

    def quantities(c: np.ndarray) -> dict[str, np.ndarray]:
        top, left, height, width = c.T.astype(float)
        return {
            "area": height * width,
            "ratio": width / height,
            "height": height,
            "width": width,
            "top": top,
            "left": left,
            "bottom": top + height,
            "right": left + width,
            "corner": top + left,  # together, they show what depends on what
        }

    a, b = quantities(ours), quantities(theirs)
    for name in a:
        assert distance(a[name], b[name]) < 0.025, name  # 1 in 10^5 of equal ones go beyond
        assert abs(a[name].mean() - b[name].mean()) <= 0.06 * b[name].std(), name
        ours_ends, their_ends = (np.quantile(x[name], [0, 1]) for x in (a, b))
        assert np.allclose(ours_ends, their_ends, rtol=0.05, atol=2), name


@pytest.mark.parametrize(("size", "least"), [((30, 150), 0.1), ((150, 30), 0.1), ((60, 64), 0.0)])
def test_as_many_crops_as_torchvisions_fit_in_no_try(size, least):
    t = Transform(size=32)
    height, width = min(size[0], round(size[1] / t.ratio[0])), min(size[1], round(size[0] * t.ratio[1]))
    fallback = [(size[0] - height) // 2, (size[1] - width) // 2, height, width]
    count = 4000
    g = crops(t, size, count)
    ours = (np.column_stack([g.start, g.shape]) == fallback).all(axis=1).mean()
    theirs = (torchvisions(t, size, count) == fallback).all(axis=1).mean()
    assert theirs >= least
    assert abs(ours - theirs) < 0.05  # five standard deviations


@pytest.mark.parametrize("size", [*ELONGATED, (1, 1)], ids=str)
def test_crops_that_fit_in_no_try_are_torchvisions(size):
    t = Transform(size=32, scale=(3.0, 3.0))  # nothing fits
    g = crops(t, size, 5)
    expected = torchvisions(t, size, 1)
    if min(expected[0, 2:]) > 0:  # torchvision makes empty ones
        assert (np.column_stack([g.start, g.shape]) == expected).all()
    assert (g.shape >= 1).all()


def test_an_image_of_an_allowed_shape_is_taken_whole_where_nothing_fits():
    g = crops(Transform(size=32, scale=(3.0, 3.0)), (50, 60), 5)
    assert (g.start == 0).all()
    assert (g.shape == [50, 60]).all()


def test_crops_lie_in_the_image_and_are_never_empty():
    rng = np.random.default_rng(0)
    sizes = np.concatenate([rng.integers(1, 40, (5000, 2)), rng.integers(1, 3000, (5000, 2))])
    sizes = np.concatenate([sizes, sizes_of((1, 1), *ELONGATED).repeat(500, axis=0)])
    ratios = (3 / 4, 4 / 3), (0.01, 100.0), (0.1, 0.3), (4.0, 9.0)
    for t in (Transform(size=32, scale=(0.001, 1.0), ratio=ratio) for ratio in ratios):
        g = train_geometry(t, sizes, 0, 0, np.arange(len(sizes)))
        assert (g.start >= 0).all()
        assert (g.shape >= 1).all()
        assert (g.start + g.shape <= sizes).all()
        assert (g.roi_start == 0).all()
        assert np.array_equal(g.roi_end, g.shape)
        assert (g.shift == 0).all()


def test_crops_reach_every_edge():
    g = crops(Transform(size=32), (9, 7))
    assert g.start.min(axis=0).tolist() == [0, 0]
    assert (g.start + g.shape).max(axis=0).tolist() == [9, 7]


# Flips


@pytest.mark.parametrize("crop", ["random-resized", "pad"])
@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
def test_flips_have_their_probability_and_nothing_to_do_with_the_crop(probability, crop):
    g = crops(Transform(size=32, channels=3, train_crop=crop, hflip=probability), (40, 50))
    assert g.flip.dtype == bool
    assert abs(g.flip.mean() - probability) < 0.02
    if 0 < probability < 1:
        for other in (g.start, g.shape) if crop == "random-resized" else (g.shift,):
            for values in other.T:
                assert distance(values[g.flip], values[~g.flip]) < 0.05
    else:
        assert g.flip.mean() == probability


# Both


@pytest.mark.parametrize("crop", ["random-resized", "pad"])
def test_a_crop_depends_on_the_seed_the_epoch_the_sample_and_the_size_alone(crop):
    t = Transform(size=32, channels=3, train_crop=crop)
    rng = np.random.default_rng(0)
    sizes, samples = rng.integers(30, 300, (100, 2)), rng.permutation(1000)[:100]
    together = train_geometry(t, sizes, 3, 5, samples)
    chosen = [99, 7, 8, 50]
    some = train_geometry(t, sizes[chosen], 3, 5, samples[chosen])
    assert fields(some) == {name: values[chosen].tolist() for name, values in vars(together).items()}
    assert fields(train_geometry(t, sizes, 3, 5, samples)) == fields(together)
    moved = "start" if crop == "random-resized" else "shift"
    for changed in ((4, 5, samples), (3, 6, samples), (3, 5, samples + 1)):
        assert (getattr(train_geometry(t, sizes, *changed), moved) == getattr(together, moved)).mean() < 0.3


def test_the_types_are_what_the_loaders_hand_on():
    for t in (Transform(size=32), Transform(size=32, channels=3, train_crop="pad")):
        for g in (crops(t, (40, 50), 2), eval_geometry(t, sizes_of((40, 50)))):
            kinds = {name: values.dtype for name, values in vars(g).items()}
            assert {kinds[name] for name in ("start", "shape", "shift")} == {np.dtype(np.int32)}
            assert {kinds[name] for name in ("roi_start", "roi_end")} == {np.dtype(np.float32)}
            assert kinds["flip"] == np.dtype(bool)


# Pad-crop


def test_every_shift_up_to_the_padding_is_as_likely():
    t = Transform(size=32, channels=3, train_crop="pad")
    g = crops(t, (32, 32))
    places, counts = np.unique(g.shift, axis=0, return_counts=True)
    assert places.tolist() == [[y, x] for y in range(-4, 5) for x in range(-4, 5)]
    expected = DRAWS / 81
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 80 + 5 * np.sqrt(2 * 80)


def test_what_is_padded_is_the_evaluated_image():
    t, sizes = Transform(size=32, channels=3, train_crop="pad"), sizes_of((32, 32), (40, 50), (33, 90))
    train, val = train_geometry(t, sizes, 0, 0, np.arange(3)), eval_geometry(t, sizes)
    for name in ("start", "shape", "roi_start", "roi_end"):
        assert np.array_equal(getattr(train, name), getattr(val, name))


# The evaluation crop


def torchvisions_eval(t: Transform, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Upper left and lower right corner, in the image's pixels, of what Resize and CenterCrop keep."""
    height, width = v2.Resize(t.resize)(torch.empty(1, *size, device="meta")).shape[-2:]
    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    kept = v2.CenterCrop(t.size)(places)
    assert kept.shape[-2:] == (t.size, t.size)
    scale = np.array(size) / (height, width)
    return kept[:, 0, 0].numpy() * scale, (kept[:, -1, -1].numpy() + 1) * scale


@pytest.mark.parametrize(
    ("size", "crop_pct"), [(224, 0.875), (224, 0.95), (32, 0.875), (31, 0.9), (65, 1.0)], ids=str
)
def test_evaluation_keeps_what_torchvisions_resize_and_centre_crop_keep(size, crop_pct):
    t = Transform(size=size, crop_pct=crop_pct)
    sides = np.random.default_rng(0).integers(1, 700, (60, 2))
    odd = [(1, 1), (1, 8), (9, 1), (255, 257), (257, 255), (256, 256), (375, 500), (500, 375), (640, 427)]
    for height, width in [*odd, *sides.tolist()]:
        if max(height, width) > 8 * min(height, width):
            continue  # torchvision would make gigabytes of it
        g = eval_geometry(t, sizes_of((height, width)))
        start, end = torchvisions_eval(t, (height, width))
        assert np.allclose(g.start + g.roi_start, start, atol=1e-3), (height, width)
        assert np.allclose(g.start + g.roi_end, end, atol=1e-3), (height, width)


def test_what_is_cut_for_evaluation_has_the_surroundings_that_the_filter_looks_at():
    rng = np.random.default_rng(0)
    sizes = np.concatenate([rng.integers(1, 2000, (2000, 2)), sizes_of((1, 1), *ELONGATED)])
    for t in (
        Transform(size=224),
        Transform(size=32, channels=3, train_crop="pad"),
        Transform(size=32, crop_pct=1.0),
    ):
        g = eval_geometry(t, sizes)
        assert (g.start >= 0).all()
        assert (g.start + g.shape <= sizes).all()
        assert (g.roi_start >= 0).all()
        assert (g.roi_end <= g.shape + 1e-3).all()
        assert (g.roi_end > g.roi_start).all()
        scale = sizes.min(axis=1, keepdims=True) / t.resize
        radius = np.maximum(scale, 1) - 1e-3  # of the triangle filter
        assert ((g.start == 0) | (g.roi_start >= radius)).all()
        assert ((g.start + g.shape == sizes) | (g.shape - g.roi_end >= radius)).all()


def test_less_than_a_large_image_is_cut_for_evaluation():
    g = eval_geometry(Transform(size=32), sizes_of((1000, 9000)))
    assert g.shape[0, 0] < 1000
    assert g.shape[0, 1] < 1100


def test_an_image_of_the_right_size_is_evaluated_whole():
    g = eval_geometry(Transform(size=32, channels=3, train_crop="pad"), sizes_of((32, 32)))
    assert fields(g) == {
        "start": [[0, 0]],
        "shape": [[32, 32]],
        "roi_start": [[0, 0]],
        "roi_end": [[32, 32]],
        "resized": [[32, 32]],
        "shift": [[0, 0]],
        "flip": [False],
    }


def test_evaluation_neither_moves_nor_mirrors():
    g = eval_geometry(Transform(size=32, hflip=1.0), sizes_of((40, 50), (99, 41)))
    assert not g.shift.any()
    assert not g.flip.any()
