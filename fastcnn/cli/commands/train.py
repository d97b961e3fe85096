"""`fastcnn train`: train a network."""

from __future__ import annotations

from collections.abc import Sequence


def run(argv: Sequence[str]) -> int:
    from fastcnn.train import main

    return main(argv, prog="fastcnn train")
