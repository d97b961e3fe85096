"""Outlines of objects as masks: polygons and run lengths, drawn when a mask is loaded.

An object is kept as run lengths within its bounds, so that a million of them fit into memory. Polygons cover
the pixels that COCO's own tools give them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

SLACK_PX, SLACK_SHARE = 1, 0.01
"""Tolerated overhang of a polygon, which is clipped silently: pixels, or a fraction of the image's side."""
CHUNK = 10_000
"""Number of objects that are compared with their images at once."""

_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda values: np.rot90(values, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda values: np.rot90(values, -1),
    7: lambda values: np.rot90(values, 2).T,
    8: np.rot90,
}
"""How the pixels of an image of each EXIF orientation are turned upright."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """The pixels of one object."""

    label: int
    """Class number, or `fastcnn.data.targets.IGNORE`."""
    bounds: tuple[int, int, int, int]
    """Top, left, height and width in pixels."""
    runs: bytes
    """COCO's compressed run lengths within the bounds."""
    area: int
    """Number of pixels."""


class Polygons(NamedTuple):
    """One object."""

    label: int
    """Class number, or `fastcnn.data.targets.IGNORE`."""
    parts: Sequence[np.ndarray]
    """Corners x, y in pixels of one or several polygons, float64 [P, 2] each."""


def polygon_regions(objects: Sequence[Polygons], frames: np.ndarray) -> list[Region | str | None]:
    """Return the pixels of K objects; the reason for an invalid one, and None for one without pixels.

    Args:
        frames: height and width of each object's image, int64 [K, 2].
    """
    found: list[Region | str | None] = [_too_few(item.parts) for item in objects]
    good = np.array([k for k, reason in enumerate(found) if reason is None], dtype=np.int64)
    for chunk in np.array_split(good, len(good) // CHUNK + 1):
        if len(chunk):
            regions = _polygon_regions([objects[k].parts for k in chunk.tolist()], frames[chunk])
            for k, region in zip(chunk.tolist(), regions):
                found[k] = _region(objects[k].label, *region) if isinstance(region, tuple) else region
    return found


def _too_few(polygons: Sequence[np.ndarray]) -> str | None:
    few = min(map(len, polygons))
    return f"a polygon of {few} points; it needs three" if few < 3 else None


def _polygon_regions(
    objects: Sequence[Sequence[np.ndarray]], frames: np.ndarray
) -> Iterator[tuple[dict[str, Any], tuple[int, int]] | str | None]:
    """Yield the runs and the corner of each object, or the reason for an invalid one, or None."""
    from faster_coco_eval.core import mask

    points = [sum(map(len, polygons)) for polygons in objects]
    starts = np.cumsum([0, *points[:-1]])
    corners = np.concatenate([polygon for polygons in objects for polygon in polygons])
    low, high = np.minimum.reduceat(corners, starts), np.maximum.reduceat(corners, starts)
    sides = frames[:, ::-1]
    slack = np.maximum(SLACK_PX, SLACK_SHARE * sides)
    is_finite = np.isfinite(low + high).min(axis=1)
    is_inside = ((low >= -slack) & (high <= sides + slack)).min(axis=1)
    with np.errstate(invalid="ignore"):
        origins = np.floor(low).clip(0)
        spans = (np.minimum(np.ceil(high) + 1, sides) - origins).clip(0)
    shifted = (corners - origins.repeat(points, axis=0)).ravel()

    at = 0
    for k, polygons in enumerate(objects):
        ends = [at, *(at := at + 2 * len(polygon) for polygon in polygons)]
        if not is_finite[k]:
            yield "a polygon with points that are not finite numbers"
        elif not is_inside[k]:
            yield (
                f"a polygon from ({low[k, 0]:.6g}, {low[k, 1]:.6g}) to ({high[k, 0]:.6g}, {high[k, 1]:.6g}) "
                f"reaches over the border of {sides[k, 0]} x {sides[k, 1]} pixels"
            )
        elif not spans[k].all():
            yield None
        else:
            width, height = map(int, spans[k])
            runs = mask.frPyObjects(
                [shifted[a:b].tolist() for a, b in itertools.pairwise(ends)], height, width
            )
            whole = runs[0] if len(runs) == 1 else mask.merge(runs)
            yield whole, (int(origins[k, 1]), int(origins[k, 0]))


def runs_region(label: int, runs: dict[str, Any]) -> Region | None:
    """Return the pixels of COCO's run lengths of a whole image, compressed or not; None if there are none.

    Raises:
        ValueError: they do not fill the size that they state.
    """
    from faster_coco_eval.core import mask

    height, width = (int(side) for side in runs["size"])
    if height <= 0 or width <= 0:
        raise ValueError("run lengths of no size")
    counts = runs.get("counts")
    if isinstance(counts, list):
        if not all(isinstance(count, int) for count in counts):
            raise ValueError("run lengths that are not whole numbers")
        if sum(counts) != height * width or min(counts, default=0) < 0:
            raise ValueError(f"run lengths of {sum(counts):,} pixels, for {width} x {height}")
        runs = mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    elif not isinstance(counts, str):
        raise ValueError("run lengths without counts")
    try:
        pixels = mask.decode({"size": [height, width], "counts": runs["counts"]})
    except RuntimeError as error:
        raise ValueError(f"run lengths that cannot be read ({error})") from error
    return pixels_region(label, pixels > 0, (0, 0))


def pixels_region(label: int, pixels: np.ndarray, corner: tuple[int, int]) -> Region | None:
    """Return the pixels of a mask, bool [H, W], with its top left at `corner` (y, x); None without any."""
    from faster_coco_eval.core import mask

    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if not len(rows):
        return None
    inner = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    runs = mask.encode(np.asfortranarray(inner, dtype=np.uint8))
    return _region(label, runs, (corner[0] + int(rows[0]), corner[1] + int(columns[0])))


def _region(label: int, runs: dict[str, Any], corner: tuple[int, int]) -> Region | None:
    from faster_coco_eval.core import mask

    area, (height, width) = int(mask.area(runs)), runs["size"]
    if not area:
        return None
    return Region(label=label, bounds=(*corner, height, width), runs=runs["counts"], area=area)


@dataclass(frozen=True, kw_only=True)
class Outlines:
    """N masks, drawn from the regions of their objects on class 0."""

    images: np.ndarray
    """Numbers of the images in the other fields, int64 [N]."""
    frames: np.ndarray
    """Height and width in which the regions of each image lie, int64 [M, 2]."""
    sizes: np.ndarray
    """Height and width of each image, upright, int64 [M, 2]."""
    orientations: np.ndarray
    """EXIF orientation by which each mask is turned upright, uint8 [M]; 1: not."""
    first: np.ndarray
    """Number of the first region of each image, int64 [M + 1]."""
    bounds: np.ndarray
    """Class, top, left, height and width of the regions, int32 [K, 5]; later ones cover earlier ones."""
    ends: np.ndarray
    """End of each region's runs, int64 [K]."""
    runs: bytes
    """Run lengths of all regions, see `Region`."""

    @staticmethod
    def of(
        regions: Sequence[Sequence[Region]], frames: np.ndarray, sizes: np.ndarray, orientations: np.ndarray
    ) -> Outlines:
        """Build from the regions of each image, in the order in which they are drawn."""
        flat = [region for own in regions for region in own]
        return Outlines(
            images=np.arange(len(regions)),
            frames=frames,
            sizes=sizes,
            orientations=orientations,
            first=np.cumsum([0, *map(len, regions)]),
            bounds=np.array([(r.label, *r.bounds) for r in flat], dtype=np.int32).reshape(-1, 5),
            ends=np.cumsum([len(region.runs) for region in flat], dtype=np.int64),
            runs=b"".join(region.runs for region in flat),
        )

    def take(self, indices: np.ndarray) -> Outlines:
        return dataclasses.replace(self, images=self.images[indices])

    def read(self, index: int) -> np.ndarray:
        """Draw a mask, uint8 [H, W]."""
        from faster_coco_eval.core import mask

        image = int(self.images[index])
        values = np.zeros(self.frames[image], dtype=np.uint8)
        for k in range(self.first[image], self.first[image + 1]):
            label, top, left, height, width = self.bounds[k].tolist()
            runs = self.runs[self.ends[k - 1] if k else 0 : self.ends[k]]
            inside = mask.decode({"size": [height, width], "counts": runs}).astype(bool)
            values[top : top + height, left : left + width][inside] = label
        turn = _TURNS.get(int(self.orientations[image]))
        values = values if turn is None else turn(values)
        height, width = self.sizes[image].tolist()
        if values.shape != (height, width):
            resized = Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST)
            return np.asarray(resized)
        return values
