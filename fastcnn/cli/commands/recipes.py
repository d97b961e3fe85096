"""`fastcnn recipes`: list the recipes."""

from __future__ import annotations

from collections.abc import Sequence

from fastcnn.cli.arguments import Parser


def run(argv: Sequence[str]) -> int:
    Parser("fastcnn recipes", description="List the recipes.").parse_args(argv)
    from fastcnn.config.recipes import show

    show()
    return 0
