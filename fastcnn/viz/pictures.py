"""Drawings of validation and `fastcnn predict`: images with masks or boxes, and grids of them."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALLEST_SIDE = 224
"""Minimum side in pixels; smaller images are enlarged, for legible boxes and labels."""
OPACITY = 0.55
"""Opacity of masks over the image."""
TEXT, GROUND, GAP = "#20252b", "#ffffff", 8
FONT_SIZE = 13


def class_color(number: int) -> tuple[int, int, int]:
    """Return the color of a class; those of consecutive numbers differ most."""
    hue = number * 0.618034 % 1  # multiples of the golden ratio stay far apart
    r, g, b = colorsys.hsv_to_rgb(hue, 0.85 if number % 2 else 0.6, 0.95 if number % 3 else 0.75)
    return round(255 * r), round(255 * g), round(255 * b)


def with_mask(image: np.ndarray, mask: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """Draw a mask over an image, in the colors of its classes, with their names below.

    Class 0, the background, is transparent.

    Args:
        image: uint8 [H, W, 3].
        mask: class numbers, uint8 [h, w]. A smaller mask is centered. Values without a class become gray.
        class_names: names of all classes.
    """
    (height, width), rows = image.shape[:2], mask.shape
    top, left = (height - rows[0]) // 2, (width - rows[1]) // 2
    whole = np.zeros((height, width), dtype=np.uint8)
    whole[top : top + rows[0], left : left + rows[1]] = mask
    colors = np.full((256, 3), 128.0)
    colors[: len(class_names)] = [class_color(number) for number in range(len(class_names))]
    opacity = np.where(whole == 0, 0.0, OPACITY)[..., None]
    blended = (1 - opacity) * image + opacity * colors[whole]
    picture = enlarged(Image.fromarray(blended.round().astype(np.uint8)))
    present = [number for number in np.unique(mask).tolist() if 0 < number < len(class_names)]
    return with_caption(picture, [(class_names[number], class_color(number)) for number in present])


def with_boxes(
    image: np.ndarray, boxes: np.ndarray, class_names: Sequence[str], *, scored: bool
) -> Image.Image:
    """Draw boxes and their classes into an image.

    Args:
        image: uint8 [H, W, 3].
        boxes: [k, 6]: class, left, top, right, bottom in pixels, and the score if `scored`, else 1 for a
            crowd.
    """
    picture = enlarged(Image.fromarray(image))
    scale = picture.width / image.shape[1]
    drawing, font = ImageDraw.Draw(picture), _font()
    for row in boxes[::-1]:  # the best on top
        number, corners = int(row[0]), (row[1:5] * scale).round().tolist()
        name = printable(class_names[number])
        label = f"{name} {row[5]:.2f}" if scored else f"{name} (crowd)" if row[5] else name
        drawing.rectangle(corners, outline=class_color(number), width=2)
        width, height = (side + 4 for side in drawing.textbbox((0, 0), label, font=font)[2:])
        x = min(max(0, corners[0]), max(0, picture.width - width))
        y = corners[1] - height if corners[1] >= height else corners[1]
        drawing.rectangle((x, y, x + width, y + height), fill=class_color(number))
        drawing.text((x + 2, y + 1), label, font=font, fill=readable_on(class_color(number)))
    return picture


def printable(name: str) -> str:
    """Return a class name in one line, without characters that a terminal obeys or a font lacks."""
    return "".join(character if character.isprintable() else "?" for character in name)


def enlarged(image: Image.Image) -> Image.Image:
    """Enlarge a small image by repeating its pixels."""
    factor = -(-SMALLEST_SIDE // min(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def with_caption(
    picture: Image.Image, labels: Sequence[tuple[str, tuple[int, int, int] | None]]
) -> Image.Image:
    """Add a line of labels below a picture, each with a square of its color, as many as fit."""
    font, height = _font(), FONT_SIZE + 8
    canvas = Image.new("RGB", (picture.width, picture.height + height), GROUND)
    canvas.paste(picture, (0, 0))
    drawing, x, y = ImageDraw.Draw(canvas), 0, picture.height + 3
    for label, color in ((printable(name), color) for name, color in labels):
        width = drawing.textlength(label, font=font) + (FONT_SIZE + 4 if color else 0)
        if x + width > canvas.width and x:
            drawing.text((min(x, canvas.width - 12), y), "...", font=font, fill=TEXT)
            break
        if color is not None:
            drawing.rectangle((x, y + 2, x + FONT_SIZE - 2, y + FONT_SIZE), fill=color)
            x += FONT_SIZE + 4
        drawing.text((x, y), label, font=font, fill=TEXT)
        x += int(drawing.textlength(label, font=font)) + 10
    return canvas


def side_by_side(pairs: Sequence[tuple[Image.Image, Image.Image]], columns: int = 3) -> Image.Image:
    """Arrange pairs of truth and prediction in a grid, with headings."""
    width = max(max(a.width, b.width) for a, b in pairs)
    height = max(max(a.height, b.height) for a, b in pairs)
    columns = min(columns, len(pairs))
    rows, heading = -(-len(pairs) // columns), FONT_SIZE + 10
    cell = 2 * width + GAP // 2
    canvas = Image.new("RGB", (columns * (cell + 2 * GAP), heading + rows * (height + GAP)), GROUND)
    drawing = ImageDraw.Draw(canvas)
    for i, pair in enumerate(pairs):
        x, y = GAP + i % columns * (cell + 2 * GAP), heading + i // columns * (height + GAP)
        for picture, offset, title in zip(pair, (0, width + GAP // 2), ("truth", "prediction")):
            if i < columns:
                drawing.text((x + offset, 3), title, font=_font(), fill=TEXT)
            canvas.paste(picture, (x + offset, y))
    return canvas


def grid(rows: Sequence[Sequence[Image.Image]], headings: Sequence[str], caption: str) -> Image.Image:
    """Arrange pictures in rows, with a heading above each column and a caption above all."""
    width = max(picture.width for row in rows for picture in row)
    height = max(picture.height for row in rows for picture in row)
    top, cell = 2 * (FONT_SIZE + 10), width + GAP
    canvas = Image.new("RGB", (GAP + len(headings) * cell, top + len(rows) * (height + GAP)), GROUND)
    drawing, font = ImageDraw.Draw(canvas), _font()
    drawing.text((GAP, 3), caption, font=font, fill=TEXT)
    for column, heading in enumerate(headings):
        drawing.text((GAP + column * cell, top // 2 + 3), heading, font=font, fill=TEXT)
        for row, pictures in enumerate(rows):
            canvas.paste(pictures[column], (GAP + column * cell, top + row * (height + GAP)))
    return canvas


def readable_on(color: tuple[int, int, int]) -> str:
    """Return "black" or "white" for text on a color."""
    r, g, b = color
    return "black" if 0.299 * r + 0.587 * g + 0.114 * b > 140 else "white"


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)
