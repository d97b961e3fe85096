"""What validation and `fastcnn predict` show: images with masks or boxes drawn into them, side by side."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALLEST_SIDE = 224
"""Pixels that a smaller image is enlarged to, so that boxes and words in it can be seen."""
OPACITY = 0.55
"""Of masks over the image."""
TEXT, GROUND, GAP = "#20252b", "#ffffff", 8
FONT_SIZE = 13


def colour(number: int) -> tuple[int, int, int]:
    """Of a class; neighbours by number differ most."""
    hue = number * 0.618034 % 1  # the golden ratio never comes near where it was
    r, g, b = colorsys.hsv_to_rgb(hue, 0.85 if number % 2 else 0.6, 0.95 if number % 3 else 0.75)
    return round(255 * r), round(255 * g), round(255 * b)


def with_mask(image: np.ndarray, mask: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """An image under the colours of its classes; the first one, the background, has none.

    Args:
        image: uint8 [H, W, 3].
        mask: class numbers, uint8 [h, w]; where it is smaller it belongs to the centre. What is no class
            becomes grey.
        class_names: named below the image, those that it shows.
    """
    (height, width), rows = image.shape[:2], mask.shape
    top, left = (height - rows[0]) // 2, (width - rows[1]) // 2
    whole = np.zeros((height, width), dtype=np.uint8)
    whole[top : top + rows[0], left : left + rows[1]] = mask
    colours = np.full((256, 3), 128.0)
    colours[: len(class_names)] = [colour(number) for number in range(len(class_names))]
    share = np.where(whole == 0, 0.0, OPACITY)[..., None]
    blended = (1 - share) * image + share * colours[whole]
    picture = enlarged(Image.fromarray(blended.round().astype(np.uint8)))
    shown = [number for number in np.unique(mask).tolist() if 0 < number < len(class_names)]
    return with_caption(picture, [(class_names[number], colour(number)) for number in shown])


def with_boxes(image: np.ndarray, boxes: np.ndarray, class_names: Sequence[str], scored: bool) -> Image.Image:
    """An image with boxes and their classes.

    Args:
        image: uint8 [H, W, 3].
        boxes: [k, 6] class, left, top, right, bottom in pixels; and the score if `scored`, else 1 for a
            crowd.
    """
    picture = enlarged(Image.fromarray(image))
    scale = picture.width / image.shape[1]
    drawing, font = ImageDraw.Draw(picture), _font()
    for row in boxes[::-1]:  # the best ones on top
        number, corners = int(row[0]), (row[1:5] * scale).round().tolist()
        name = class_names[number]
        words = f"{name} {row[5]:.2f}" if scored else f"{name} (crowd)" if row[5] else name
        drawing.rectangle(corners, outline=colour(number), width=2)
        wide, high = (side + 4 for side in drawing.textbbox((0, 0), words, font=font)[2:])
        x = min(max(0, corners[0]), max(0, picture.width - wide))
        y = corners[1] - high if corners[1] >= high else corners[1]
        drawing.rectangle((x, y, x + wide, y + high), fill=colour(number))
        drawing.text((x + 2, y + 1), words, font=font, fill=readable_on(colour(number)))
    return picture


def enlarged(image: Image.Image) -> Image.Image:
    """A small image with each pixel repeated."""
    factor = -(-SMALLEST_SIDE // min(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def with_caption(
    picture: Image.Image, words: Sequence[tuple[str, tuple[int, int, int] | None]]
) -> Image.Image:
    """A line below the picture: words, each behind a square of its colour, as many as fit."""
    font, height = _font(), FONT_SIZE + 8
    canvas = Image.new("RGB", (picture.width, picture.height + height), GROUND)
    canvas.paste(picture, (0, 0))
    drawing, x, y = ImageDraw.Draw(canvas), 0, picture.height + 3
    for word, shade in words:
        wide = drawing.textlength(word, font=font) + (FONT_SIZE + 4 if shade else 0)
        if x + wide > canvas.width and x:
            drawing.text((min(x, canvas.width - 12), y), "...", font=font, fill=TEXT)
            break
        if shade is not None:
            drawing.rectangle((x, y + 2, x + FONT_SIZE - 2, y + FONT_SIZE), fill=shade)
            x += FONT_SIZE + 4
        drawing.text((x, y), word, font=font, fill=TEXT)
        x += int(drawing.textlength(word, font=font)) + 10
    return canvas


def side_by_side(pairs: Sequence[tuple[Image.Image, Image.Image]], columns: int = 3) -> Image.Image:
    """Pairs of truth and prediction in a grid, with headings."""
    wide = max(max(a.width, b.width) for a, b in pairs)
    high = max(max(a.height, b.height) for a, b in pairs)
    columns = min(columns, len(pairs))
    rows, heading = -(-len(pairs) // columns), FONT_SIZE + 10
    cell = 2 * wide + GAP // 2
    canvas = Image.new("RGB", (columns * (cell + 2 * GAP), heading + rows * (high + GAP)), GROUND)
    drawing = ImageDraw.Draw(canvas)
    for i, pair in enumerate(pairs):
        x, y = GAP + i % columns * (cell + 2 * GAP), heading + i // columns * (high + GAP)
        for picture, offset, word in zip(pair, (0, wide + GAP // 2), ("truth", "prediction")):
            if i < columns:
                drawing.text((x + offset, 3), word, font=_font(), fill=TEXT)
            canvas.paste(picture, (x + offset, y))
    return canvas


def grid(rows: Sequence[Sequence[Image.Image]], headings: Sequence[str], caption: str) -> Image.Image:
    """Pictures in rows, with a heading above each column and a caption above all."""
    wide = max(picture.width for row in rows for picture in row)
    high = max(picture.height for row in rows for picture in row)
    top, cell = 2 * (FONT_SIZE + 10), wide + GAP
    canvas = Image.new("RGB", (GAP + len(headings) * cell, top + len(rows) * (high + GAP)), GROUND)
    drawing, font = ImageDraw.Draw(canvas), _font()
    drawing.text((GAP, 3), caption, font=font, fill=TEXT)
    for column, heading in enumerate(headings):
        drawing.text((GAP + column * cell, top // 2 + 3), heading, font=font, fill=TEXT)
        for row, pictures in enumerate(rows):
            canvas.paste(pictures[column], (GAP + column * cell, top + row * (high + GAP)))
    return canvas


def readable_on(shade: tuple[int, int, int]) -> str:
    """Black or white, for words on a colour."""
    r, g, b = shade
    return "black" if 0.299 * r + 0.587 * g + 0.114 * b > 140 else "white"


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)
