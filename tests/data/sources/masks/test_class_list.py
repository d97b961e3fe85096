"""Lists of classes: names, colors and values in the forms of labeling tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcnn.data.sources.masks.class_list import ClassList, find_class_list, read_class_list
from fastcnn.errors import UserError

NAMES = ("background", "side walk", "car")
COLORS = (0x000000, 0xF423E8, 0x00008E)

COLORED = {
    "spaces": "background 0 0 0\nside walk 244 35 232\ncar 0 0 142\n",
    "commas": "background,0,0,0\nside walk,244,35,232\ncar,0,0,142\n",
    "commas and spaces": "background, 0, 0, 0\nside walk, 244, 35, 232\ncar, 0, 0, 142\n",
    "class_dict.csv": "name,r,g,b\nbackground,0,0,0\nside walk,244,35,232\ncar,0,0,142\n",
    "Windows": "\ufeffname,r,g,b\r\nbackground,0,0,0\r\nside walk,244,35,232\r\ncar,0,0,142\r\n",
    "semicolons": "name;r;g;b\nbackground;0;0;0\nside walk;244;35;232\ncar;0;0;142\n",
    "tabs": "background\t0\t0\t0\nside walk\t244\t35\t232\ncar\t0\t0\t142\n",
    "CamVid": "0 0 0\tbackground\n244 35 232\tside walk\n0 0 142\t\tcar\n",
    "hexadecimal": "background #000000\nside walk #f423e8\ncar #00008E\n",
    "hexadecimal with commas": "background,#000000\nside walk,#f423e8\ncar,#00008e\n",
    "hexadecimal first": "#000000 background\n#f423e8 side walk\n#00008e car\n",
    "CVAT": (
        "# label:color_rgb:parts:actions\n"
        "background:0,0,0::\nside walk:244,35,232::\ncar:0,0,142:wheel:drive\n"
    ),
    "blank lines": "\nbackground 0 0 0\n\nside walk 244 35 232\ncar 0 0 142\n\n",
}


@pytest.mark.parametrize("form", COLORED)
def test_colors_are_read_in_every_usual_form(form, tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes(COLORED[form].encode())
    assert read_class_list(path) == ClassList(path=path, names=NAMES, colors=COLORS)


@pytest.mark.parametrize(
    "text",
    ["background\nside walk\ncar\n", "background:::\nside walk:::\ncar:::\n", "  background\nside walk\ncar"],
)
def test_names_alone_are_read(text, tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    assert read_class_list(path) == ClassList(path=path, names=NAMES)


@pytest.mark.parametrize(
    "text", ["Pixel Value, Class\n0, background\n2, car\n1, side walk\n", "1:side walk\n2:car\n0:background"]
)
def test_values_are_read_in_their_order(text, tmp_path):
    path = tmp_path / "_classes.csv"
    path.write_text(text)
    assert read_class_list(path) == ClassList(path=path, names=NAMES, values=(0, 1, 2))


def test_a_list_with_colors_wins_and_none_is_empty(tmp_path):
    assert find_class_list([tmp_path]) == ClassList()
    (tmp_path / "Classes.txt").write_text("a\nb\n")
    assert find_class_list([tmp_path]).names == ("a", "b")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "labelmap.txt").write_text("c:1,2,3::\nd:4,5,6::\n")
    found = find_class_list([tmp_path, tmp_path / "in"])
    assert (found.names, found.colors) == (("c", "d"), (0x010203, 0x040506))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", ""),
        ("\n \n", ""),
        ("a 0 0 0\nb\n", ", line 2"),
        ("a 0 0 0\nb 0 0 0\n", ""),
        ("a 0 0 0\nb 0 0 256\n", ""),
        ("0:a\n0:b\n", ""),
        ("0:a\n256:b\n", ""),
        ("\n".join(f"c{i}" for i in range(256)), ""),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(text, place, tmp_path, wording):
    path: Path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_class_list(path)
    assert str(caught.value).startswith(f"{path}{place}: ")
    wording(caught.value)
