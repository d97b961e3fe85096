"""Shared helpers for tests of mask and box sources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastcnn.data.sources.dataset import Source, Split


def message_of(opening: Callable[[], Source]) -> str:
    """Return the one-line message of the error that a source raises."""
    with pytest.raises(ValueError) as caught:
        opening()
    message = str(caught.value)
    assert "\n" not in message
    return message


def names(split: Split) -> list[str]:
    assert split.files is not None
    return [Path(path).stem for path in split.files.paths]
