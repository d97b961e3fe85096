"""Fit boxes to images whose size is not the one that their label file states: resized or stored rotated."""

from __future__ import annotations

import numpy as np

from fastcnn.data.decode import TRANSPOSED
from fastcnn.data.sources.boxes.rows import LabeledImages
from fastcnn.data.sources.headers import Files
from fastcnn.data.sources.label_files import BadLabels

ROUNDING_PX = 1
"""Tolerated difference of a resized image's sides."""


def fit_to_images(
    labeled: LabeledImages, table: np.ndarray, files: Files, bad: BadLabels, *, upright: bool
) -> list[str]:
    """Turn and scale boxes in place to the size of their images; return remarks.

    Boxes of an image as stored are turned upright by its EXIF orientation. Boxes of an image that was resized
    are scaled. Images of another shape are added to `bad` and to the misfits of the rows.

    Args:
        table: the rows of `labeled`, see `Rows.table`.
        files: the images.
        upright: images are turned upright; else their orientations are unknown.
    """
    if labeled.stated is None or not len(table):
        return []
    image = table[:, 0].astype(np.int64)
    stated, sizes = labeled.stated.astype(np.float64), files.sizes.astype(np.float64)
    compared = np.zeros(len(sizes), dtype=bool)
    compared[image] = True
    compared &= (stated > 0).all(axis=1) & (sizes > 0).all(axis=1)
    orientations = np.ones(len(sizes)) if files.orientations is None else files.orientations
    swaps = orientations >= TRANSPOSED
    agree = compared & _same_shape(stated, sizes)
    stored = compared & ~agree & swaps & _same_shape(stated[:, ::-1], sizes)
    misfit = compared & ~agree & ~stored
    for i in np.flatnonzero(misfit).tolist():
        labeled.rows.misfits.add(i)
        labeled.rows.unread.add(i)
        bad.add(labeled.place(i), _misfit(files.name(i), stated[i], sizes[i], upright=upright))

    # Turn: all images of a set whose sizes are those of stored images, else those few.
    tall = sizes[:, 0] != sizes[:, 1]
    turned = stored
    if stored.any() and not (agree & swaps & tall).any():
        turned = (orientations > 1) & ~misfit
    stored_sizes = np.where(swaps[:, None], sizes[:, ::-1], sizes)
    frame = np.where(compared[:, None], stated, stored_sizes)
    _turn(table, np.where(turned, orientations, 1)[image], frame[image])
    frame = np.where((turned & swaps)[:, None], frame[:, ::-1], frame)

    # Scale.
    scaled = compared & ~misfit & (np.abs(frame - sizes) > ROUNDING_PX).any(axis=1)
    factors = np.where(scaled[:, None], sizes / frame.clip(1), 1)
    table[:, 3:7] *= np.tile(factors[image][:, ::-1], 2)
    remarks = []
    if turned.any():
        remarks.append(
            f"{labeled.looked}: labeled as stored; the boxes of {turned.sum():,} images were turned upright "
            f"by their EXIF orientation"
        )
    if scaled.any():
        means = factors[scaled].mean(axis=1)
        low, high = f"{means.min():.3g}", f"{means.max():.3g}"
        remarks.append(
            f"{labeled.looked}: labeled at another size; the boxes of {scaled.sum():,} images were scaled by "
            + (low if low == high else f"{low} to {high}")
        )
    return remarks


def _same_shape(stated: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return whether one factor for both sides leads from the stated to the real sizes, [N]."""
    factor = sizes.max(axis=1, keepdims=True) / stated.max(axis=1, keepdims=True).clip(1)
    return (np.abs(stated * factor - sizes) <= ROUNDING_PX).all(axis=1)


def _misfit(name: str, stated: np.ndarray, size: np.ndarray, *, upright: bool) -> str:
    (height, width), (h, w) = stated.tolist(), size.tolist()
    reason = f"boxes are for {width:g} x {height:g} pixels, but {name} has {w:g} x {h:g}"
    if not _same_shape(stated[None, ::-1], size[None])[0]:
        return f"{reason}; correct the size, or remove it there if the boxes fit"
    if not upright:
        return f"{reason}; omit --exif ignore if the image is upright by its EXIF orientation"
    return f"{reason}; rotate the image back, or label it again"


def _turn(table: np.ndarray, orientations: np.ndarray, frame: np.ndarray) -> None:
    """Turn boxes of stored images upright, in place.

    Args:
        table: K rows.
        orientations: EXIF orientation of each row's image, [K].
        frame: height and width of each row's image as stored, [K, 2].
    """
    left, top, right, bottom = table[:, 3:7].T.copy()
    height, width = frame.T
    mirrored, flipped = np.isin(orientations, (2, 3, 7, 8)), np.isin(orientations, (3, 4, 6, 7))
    left, right = np.where(mirrored, width - right, left), np.where(mirrored, width - left, right)
    top, bottom = np.where(flipped, height - bottom, top), np.where(flipped, height - top, bottom)
    upright, swapped = np.stack([left, top, right, bottom], 1), np.stack([top, left, bottom, right], 1)
    table[:, 3:7] = np.where((orientations >= TRANSPOSED)[:, None], swapped, upright)
