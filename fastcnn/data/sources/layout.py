"""Usual names of the parts of a data set: folders of the phases, and leftovers that no person put there.

Every reader finds its folders here, so that case and usual names are the same for images, masks and boxes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from fastcnn.data.reading import entries_of, refuse
from fastcnn.errors import UserError

Phase = Literal["train", "val", "test"]
PHASES: tuple[Phase, ...] = ("train", "val", "test")

PHASE_WORDS: dict[str, Phase] = {
    **dict.fromkeys(("train", "training", "trn", "trainset", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "valset"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "testset"), "test"),
}
"""Words that name a phase."""
FILLER_WORDS = frozenset(
    ("set", "data", "dataset", "image", "images", "img", "imgs", "seg", "split", "folder", "photos")
)
"""Words that may stand beside one: `seg_train`, `train_images`."""
LEFTOVERS = frozenset(
    (
        *("__macosx", "network trash folder", "temporary items"),  # macOS
        *("$recycle.bin", "recycler", "system volume information", "found.000"),  # Windows
        *("thumbs.db", "ehthumbs.db", "desktop.ini"),
        *("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # storage devices
        *("lost+found", "thumbnails", "__pycache__"),  # Linux, picture viewers, Python
    )
)
"""Names of what operating systems, storage devices and tools put into folders, in lower case."""


def is_leftover(name: str) -> bool:
    """Return whether no person put this file or folder there: hidden, or of an operating system or a tool."""
    return name.startswith(".") or name.lower() in LEFTOVERS


def phase_of(name: str) -> Phase | None:
    """Return the phase that a name stands for: `Training`, `seg_train`, `val2017`; None for other names."""
    words = re.findall(r"[a-z]+|\d+", name.lower())
    phases = {PHASE_WORDS[word] for word in words if word in PHASE_WORDS}
    others = [w for w in words if w not in PHASE_WORDS and w not in FILLER_WORDS and not _is_year(w)]
    return phases.pop() if len(phases) == 1 and not others else None


def _is_year(word: str) -> bool:
    return word.isdecimal() and 1990 <= int(word) < 2100


def folders(root: Path) -> list[Path]:
    """Return the folders within `root` that a person put there, sorted by name."""
    entries = entries_of(root)
    return sorted(Path(entry.path) for entry in entries if not is_leftover(entry.name) and entry.is_dir())


def phases(root: Path) -> dict[Phase, Path]:
    """Return the folders of the phases within `root`, whatever their case and usual name.

    An exact name (`val`) wins over a synonym (`validation`), and that over a compound (`val_images`).
    """
    found: dict[Phase, Path] = {}
    for folder in sorted(
        folders(root), key=lambda f: (f.name not in ("train", "val", "test"), len(f.name), f.name)
    ):
        phase = phase_of(folder.name)
        if phase is not None:
            found.setdefault(phase, folder)
    return found


def check_unique(root: Path, used: Iterable[Path]) -> None:
    """Check that no other folder within `root` is of the same phase as a folder in use, or one around it.

    Raises:
        UserError: both folders hold files, such as `train2007` and `train2012`.
    """
    for folder in used:
        inner = folder.relative_to(root).parts if folder.is_relative_to(root) else ()
        for depth, name in enumerate(inner, 1):
            own = root.joinpath(*inner[:depth])
            phase = phase_of(name)
            for other in folders(own.parent) if phase is not None else ():
                if other != own and phase_of(other.name) == phase and _holds_files(other):
                    raise UserError(
                        f"{own}: {other.name}/ beside it is of the same part ({phase}), and only one would "
                        f"be read; move the files of both into one folder, or move one of them out of {root}"
                    )


def _holds_files(folder: Path) -> bool:
    return any(not is_leftover(name) for _, _, names in os.walk(folder, onerror=refuse) for name in names)


def child(root: Path, names: Iterable[str]) -> Path | None:
    """Return the first entry of `root` with one of these names, whatever its case; None without one."""
    try:
        found = sorted((entry.name for entry in entries_of(root)), reverse=True)
    except OSError:
        return None
    present = {name.lower(): os.path.join(root, name) for name in found}
    return next((Path(present[name.lower()]) for name in names if name.lower() in present), None)
