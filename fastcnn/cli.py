"""The command line: `fastcnn COMMAND ...`. Imports no torch; each command imports what it needs.

fastcnn train --arch resnet50
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

from fastcnn import __version__

USAGE = """usage: fastcnn COMMAND [FLAGS]

commands:
  train    train a network (the same as python -m fastcnn.train)

fastcnn COMMAND --help lists the flags of a command; fastcnn --version prints the version.
"""


def train(argv: Sequence[str]) -> int:
    from fastcnn.train import main

    return main(argv, prog="fastcnn train")


COMMANDS = {"train": train}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status of the command; 2 if there is no such command."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if argv[0] == "--version":
        print(f"fastcnn {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        print(
            f"fastcnn: error: {argv[0]}: no such command; write "
            f"{near[0] if near else ' or '.join(COMMANDS)}, or fastcnn --help",
            file=sys.stderr,
        )
        return 2
    return COMMANDS[argv[0]](argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
