"""Augmentations by torch give the pixels of torchvision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastcnn.data.transforms.augment import OPERATIONS, Step
from fastcnn.data.transforms.color import (
    GRAY,
    IMAGENET_COMPONENTS,
    LINEAR,
    YIQ,
    hue_matrix,
    principal_components,
)
from fastcnn.data.transforms.torch_ops import BATCHED, apply_to_batch, apply_to_image
from reference_ops import FILL, REFERENCES, VALUES, picture


def step(kind: str, *values: float, count: int = 1) -> Step:
    padded = np.zeros((count, 4), dtype=np.float32)
    padded[:, : len(values)] = values
    return Step((kind,), np.zeros(count, dtype=np.int32), padded)


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [32, 33])
def test_an_operation_is_torchvisions_but_for_rounding(kind, channels, size):
    pixels = picture(size, channels)
    for value in VALUES.get(kind, (0.0,)):
        result = apply_to_image(pixels, [step(kind, value)], 0, FILL[:channels])
        expected = REFERENCES[kind](torch.from_numpy(pixels).permute(2, 0, 1), value).permute(1, 2, 0)
        assert result.dtype == np.uint8
        assert result.shape == pixels.shape
        # torchvision rounds down, of what depends on the grey image twice.
        most = 2 if kind in ("saturation", "contrast") else 1
        assert np.abs(result.astype(int) - expected.numpy()).max() <= most


def test_every_operation_has_a_reference_here():
    assert set(REFERENCES) | {"hue", "solarize_add", "lighting", "erase"} == set(OPERATIONS)
    assert set(LINEAR) | {"identity", "erase"} == BATCHED


@pytest.mark.parametrize("turns", [-0.5, -0.1, 0.0, 0.25])
def test_hue_turns_colours_around_the_grey_axis_and_keeps_their_brightness(turns):
    matrix = hue_matrix(np.array([turns]))[0]
    np.testing.assert_allclose(matrix @ np.ones(3), np.ones(3), atol=1e-9)  # grey stays
    np.testing.assert_allclose(GRAY @ matrix, GRAY, atol=1e-9)  # brightness stays
    y, i, q = YIQ @ matrix @ np.linalg.inv(YIQ) @ np.array([0.5, 1.0, 0.0])
    assert (y, i, q) == pytest.approx((0.5, math.cos(2 * math.pi * turns), -math.sin(2 * math.pi * turns)))
    pixels = picture(16, 3)
    expected = (pixels.reshape(-1, 3) @ matrix.T).round().clip(0, 255).reshape(pixels.shape)
    result = apply_to_image(pixels, [step("hue", turns)], 0, FILL)
    assert np.abs(result - expected).max() <= 1


@pytest.mark.parametrize("kind", ["hue", "saturation"])
def test_grey_images_have_no_colour_to_change(kind):
    pixels = picture(16, 1)
    assert np.array_equal(apply_to_image(pixels, [step(kind, 0.3)], 0, FILL), pixels)


def test_solarize_add_adds_to_the_dark_half():
    pixels = picture(16, 3)
    result = apply_to_image(pixels, [step("solarize_add", 60)], 0, FILL)
    assert np.array_equal(result, np.where(pixels < 128, (pixels.astype(int) + 60).clip(0, 255), pixels))


@pytest.mark.parametrize("channels", [1, 3])
def test_lighting_adds_a_colour(channels):
    pixels = picture(16, channels)
    result = apply_to_image(pixels, [step("lighting", 10, -20, 4)], 0, FILL)
    added = np.array([10, -20, 4]) if channels == 3 else np.array([-2])
    assert np.array_equal(result, (pixels + added).clip(0, 255))


def test_erase_fills_its_rectangle_alone():
    pixels = picture(16, 3)
    result = apply_to_image(pixels, [step("erase", 2, 3, 5, 7)], 0, FILL)
    expected = pixels.copy()
    expected[2:7, 3:10] = FILL
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kinds", [("identity", "erase"), ("brightness", "contrast", "saturation", "hue")])
def test_a_batch_with_several_operations_is_its_images_one_by_one(channels, kinds):
    images = np.stack([picture(16, channels, seed) for seed in range(12)])
    rng = np.random.default_rng(0)
    values = rng.uniform(0.2, 0.5, (12, 4)) if "hue" in kinds else rng.integers(1, 9, (12, 4))
    steps = [Step(kinds, (np.arange(12) % len(kinds)).astype(np.int32), values.astype(np.float32))] * 2
    together = apply_to_batch(torch.from_numpy(images), steps, FILL[:channels]).numpy()
    for i in range(12):
        alone = apply_to_image(images[i], steps, i, FILL[:channels])
        assert np.abs(together[i].astype(int) - alone).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_whole_batches_wait_for_nothing_that_is_on_the_device(channels):
    images = torch.empty(
        (2, 8, 8, channels), dtype=torch.uint8, device="meta"
    )  # there is nothing to wait for
    steps = [step(kind, 1, 2, 3, 4, count=2) for kind in sorted(BATCHED - {"identity"})]
    result = apply_to_batch(images, steps, FILL[:channels])
    assert (result.shape, result.dtype, result.device.type) == (images.shape, torch.uint8, "meta")


def test_principal_components_are_those_of_the_covariance_with_the_largest_first():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (9, 7, 3), dtype=np.uint8) for _ in range(5)]
    images = [
        (image * [1.0, 0.5, 0.2] + image[..., :1] * 0.3).clip(0, 255).astype(np.uint8) for image in images
    ]
    found = principal_components(images) / 255
    colours = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    covariance = (colours - colours.mean(0)).T @ (colours - colours.mean(0)) / (len(colours) - 1)
    lengths = np.linalg.norm(found, axis=1)
    assert list(lengths) == sorted(lengths, reverse=True)
    for component, variance in zip(found, lengths):
        np.testing.assert_allclose(covariance @ component, variance * component, atol=1e-9)


def test_imagenets_components_are_orthogonal_and_the_first_is_brightness():
    directions = IMAGENET_COMPONENTS / np.linalg.norm(IMAGENET_COMPONENTS, axis=1, keepdims=True)
    np.testing.assert_allclose(directions @ directions.T, np.eye(3), atol=1e-3)
    assert np.ptp(directions[0]) < 0.02
