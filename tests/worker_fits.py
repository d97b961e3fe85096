"""What the processes of tests/test_train.py run, under torchrun: trainings and validations, one after the
other."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import fastcnn
from fastcnn.distributed import Ranks, process_group


def main(file: Path) -> None:
    """Reads the settings of each from `file`, and writes what each validated beside it."""
    ranks = Ranks.from_environment()
    with process_group(ranks, torch.device("cpu")):
        found = [fastcnn.fit(**settings).val for settings in json.loads(file.read_text())]
    file.with_name(f"{ranks.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
