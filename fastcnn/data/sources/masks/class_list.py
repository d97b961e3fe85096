"""Lists of classes for masks: names, with colors or values, in the forms that labeling tools write."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fastcnn.data.mask_files import MAX_COLORS
from fastcnn.data.sources.layout import child
from fastcnn.data.sources.text import lines_of
from fastcnn.errors import UserError

LISTS = (
    *(
        "classes.txt",
        "classes.csv",
        "class_names.txt",
        "labelmap.txt",
        "class_dict.csv",
        "class_dict_seg.csv",
    ),
    *("label_colors.txt", "_classes.csv"),
)
"""Files with a class a line: `NAME`; CVAT's `NAME:R,G,B:PARTS:ACTIONS`; `NAME R G B`, `R G B NAME`,
`NAME #RRGGBB` or `#RRGGBB NAME`, between spaces, tabs, commas or semicolons; Roboflow's `VALUE, NAME`."""
HEADING = frozenset(
    (
        "name",
        "class",
        "label",
        "pixel",
        "value",
        "id",
        "index",
        "r",
        "g",
        "b",
        "red",
        "green",
        "blue",
        "color",
        "hex",
    )
)
"""Words of a first line that is no class."""

HEX = re.compile(r"#?([0-9a-fA-F]{6})")
_SEPARATOR = r"[\s,;]+"
_NUMBERS = rf"(\d+){_SEPARATOR}(\d+){_SEPARATOR}(\d+)"
_COLORED = (
    re.compile(rf"(?P<name>.+?):(?P<rgb>{_NUMBERS}):.*"),
    re.compile(rf"(?P<name>.+?){_SEPARATOR}(?P<rgb>{_NUMBERS})"),
    re.compile(rf"(?P<rgb>{_NUMBERS}){_SEPARATOR}(?P<name>.+)"),
    re.compile(rf"(?P<name>.+?){_SEPARATOR}(?P<hex>#[0-9a-fA-F]{{6}})"),
    re.compile(rf"(?P<hex>#[0-9a-fA-F]{{6}}){_SEPARATOR}(?P<name>.+)"),
)
_VALUED = re.compile(r"(\d+)\s*[,;:\t]\s*(.+)")


@dataclass(frozen=True, kw_only=True)
class ClassList:
    """Classes of masks, as far as they are listed."""

    path: Path | None = None
    names: tuple[str, ...] = ()
    colors: tuple[int, ...] = ()
    """A color for each class, 0xRRGGBB, or none."""
    values: tuple[int, ...] = ()
    """A mask value for each class, or none."""


def find_class_list(folders: list[Path]) -> ClassList:
    """Read the first class list in these folders; one with colors takes precedence over one without."""
    paths = [
        path for folder in folders for name in LISTS if (path := child(folder, [name])) and path.is_file()
    ]
    lists = [read_class_list(path) for path in paths]
    return next((found for found in lists if found.colors), lists[0] if lists else ClassList())


def read_class_list(path: Path) -> ClassList:
    """Read a class list; UserError if it is empty, or a line differs in form from the others."""
    rows = [(number, line.strip()) for number, line in enumerate(lines_of(path), 1) if line.strip()]
    rows = [row for i, row in enumerate(rows) if not _is_heading(row[1], first=i == 0)]
    if not rows:
        raise UserError(f"{path}: empty; write a class name a line, in the order of their numbers")
    if len(rows) > MAX_COLORS:
        raise UserError(f"{path}: {len(rows)} classes; masks can have {MAX_COLORS} at most")
    found = [(number, *_parse(line)) for number, line in rows]
    colored = [color for _, _, color in found if color is not None]
    if colored and len(colored) < len(found):
        number, name = next((number, name) for number, name, color in found if color is None)
        raise UserError(f"{path}, line {number}: {name!r} has no color, as others have; write `{name} R G B`")
    valued = [_VALUED.fullmatch(line) for _, line in rows]
    if not colored and all(valued):
        pairs = sorted((int(match[1]), match[2].strip()) for match in valued if match)
        return _checked(path, [name for _, name in pairs], values=[value for value, _ in pairs])
    return _checked(path, [name for _, name, _ in found], colors=colored)


def _checked(
    path: Path, names: list[str], *, colors: list[int] | None = None, values: list[int] | None = None
) -> ClassList:
    for items in (colors or [], values or []):
        twice = next((i for i, item in enumerate(items) if item in items[:i]), None)
        if twice is not None:
            first = names[items.index(items[twice])]
            kind = "color" if colors else "value"
            raise UserError(f"{path}: {first} and {names[twice]} have the same {kind}; give each its own")
        limit = 0xFFFFFF if colors else 255
        if max(items, default=0) > limit:
            raise UserError(
                f"{path}: {names[items.index(max(items))]} is out of range; use numbers up to 255"
            )
    return ClassList(path=path, names=tuple(names), colors=tuple(colors or ()), values=tuple(values or ()))


def _is_heading(line: str, *, first: bool) -> bool:
    words = re.findall(r"[a-z]+", line.lower())
    comment = line.startswith("#") and not HEX.match(line)
    return comment or (first and len(words) > 1 and HEADING.issuperset(words))


def _parse(line: str) -> tuple[str, int | None]:
    """Return name and color of a line."""
    for form in _COLORED:
        match = form.fullmatch(line)
        if match:
            groups = match.groupdict()
            if groups.get("hex"):
                return groups["name"].strip(), int(groups["hex"][1:], 16)
            red, green, blue = map(int, re.split(_SEPARATOR, groups["rgb"]))
            if max(red, green, blue) > 255:
                return groups["name"].strip(), 1 << 24
            return groups["name"].strip(), red << 16 | green << 8 | blue
    return line.split(":")[0].strip() if line.endswith("::") else line, None
