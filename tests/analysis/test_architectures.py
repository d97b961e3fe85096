"""ARCHITECTURES.md says what the networks are."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcnn.analysis import architectures
from fastcnn.models import MODELS


def test_every_network_has_its_paper():
    assert list(architectures.PUBLISHED) == list(MODELS)


def test_every_note_that_is_referred_to_is_there_and_no_other():
    used = {letter for published in architectures.PUBLISHED.values() for letter in published.notes}
    assert used == set(architectures.NOTES)


@pytest.mark.gate
@pytest.mark.slow
def test_the_committed_table_is_what_the_script_makes():
    file = Path(__file__).parents[2] / "ARCHITECTURES.md"
    assert file.read_text() == architectures.HEAD + architectures.table() + "\n"
