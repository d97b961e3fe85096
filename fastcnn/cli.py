"""The command line: `fastcnn COMMAND ...`. Imports no torch; each command imports what it needs.

fastcnn train --arch resnet50
fastcnn summary resnet50
"""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from fastcnn import __version__
from fastcnn.errors import UserError

USAGE = """usage: fastcnn COMMAND [FLAGS]

commands:
  train    train a network (the same as python -m fastcnn.train)
  summary  list the layers of a network: size, cost, receptive field, and times if asked
  models   list the networks

fastcnn COMMAND --help lists the flags of a command; fastcnn --version prints the version.
"""


def train(argv: Sequence[str]) -> int:
    from fastcnn.train import main

    return main(argv, prog="fastcnn train")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")


def summary(argv: Sequence[str]) -> int:
    parser = Parser("fastcnn summary", description="List the layers of a network.", allow_abbrev=False)
    parser.add_argument("arch", help="network: resnet50, timm/NAME, torchvision/NAME or MODULE:FACTORY")
    parser.add_argument("--img-size", type=_positive, help="pixels a side (as published)")
    parser.add_argument("--in-chans", type=_positive, help="channels of the images (as published)")
    parser.add_argument("--num-classes", type=_positive, help="classes (as published)")
    parser.add_argument("-b", "--batch-size", type=_positive, help="images (1; with --profile 2)")
    parser.add_argument("--depth", type=_positive, default=2, help="levels of modules (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="time each layer, forward and backward")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="of --profile")
    parser.add_argument("--amp-dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of --profile")
    flags = parser.parse_args(argv)
    from fastcnn.tables import show_summary

    try:
        show_summary(**vars(flags))
    except UserError as error:  # it is no flag here
        raise UserError(str(error).removeprefix("--arch ")) from error
    return 0


def models(argv: Sequence[str]) -> int:
    Parser("fastcnn models", description="List the networks.").parse_args(argv)
    from fastcnn.tables import show_models

    show_models()
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: write 1 or more")
    return int(text)


COMMANDS = {"train": train, "summary": summary, "models": models}


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
    try:
        status = COMMANDS[argv[0]](argv[1:])
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # as of `fastcnn models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return 128 + signal.SIGPIPE
    except UserError as error:
        print(f"fastcnn: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
