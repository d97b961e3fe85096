"""Mutated images end no run, in any loader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastcnn.data.loaders.registry import has_dali

SCRIPT = Path(__file__).with_name("images.py")
BACKENDS = ["torch", "cached", *(["dali"] if has_dali() else [])]
COUNT = 120
"""Mutated images of each backend and seed."""


def run(folder: Path, seed: int, count: int) -> list[dict[str, object]]:
    """Load mutated images in a process of its own, as a decoder may end it; return the counts."""
    command = [sys.executable, str(SCRIPT), str(folder), str(seed), str(count), *BACKENDS]
    environment = {**os.environ, "FASTCNN_CACHE": str(folder / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, f"seed {seed}: status {done.returncode}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_mutated_images_are_decoded_or_bad_in_every_loader(tmp_path, request):
    """`--fuzz-minutes N` goes on with other seeds."""
    end = time.monotonic() + 60 * float(request.config.getoption("--fuzz-minutes", 0) or 0)
    seed = 0
    while seed == 0 or time.monotonic() < end:
        counts = run(tmp_path / str(seed), seed, COUNT)
        assert [found["backend"] for found in counts] == BACKENDS
        assert len({(found["images"], found["bad"]) for found in counts}) == 1, counts
        seed += 1


@pytest.mark.slow
def test_a_thousand_mutated_images_of_each_loader(tmp_path):
    counts = run(tmp_path, 1000, 1000)
    assert {found["images"] for found in counts} == {1019}
