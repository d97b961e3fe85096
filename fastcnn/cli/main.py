"""The command line: `fastcnn COMMAND ...`. Imports no torch; each command imports what it needs.

fastcnn train --arch resnet50
fastcnn summary resnet50
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from fastcnn import files
from fastcnn.errors import LocalError, UserError, escape_unprintable
from fastcnn.runtime.signals import end_on_interrupt
from fastcnn.version import __version__

COMMANDS = {
    "train": "train a network (the same as python -m fastcnn.train)",
    "evaluate": "judge a trained network: metrics for each class, pictures, a file for machines",
    "predict": "print and draw the predictions of a trained network",
    "export": "write a trained network to a file that runs without fastcnn: ONNX, pt2, AOTInductor",
    "explain": "draw what a network looks at: filters, feature maps, Grad-CAM, convolutions",
    "report": "write a page about a run: curves, bottleneck, settings, results",
    "compare": "compare runs: settings, results, curves",
    "runs": "list a folder of runs",
    "preview": "draw training images as they are augmented",
    "pack": "shrink the images of a folder and pack them into WebDataset shards",
    "summary": "list the layers of a network: size, cost, receptive field, optionally times",
    "models": "list the networks",
    "recipes": "list named settings with their published results",
    "bench": "run an ablation of the training step, from eager PyTorch on",
    "doctor": "check the installation and the machine",
}
"""What each command does, which is the module of that name in `fastcnn.cli.commands`."""
CLEANING = "pack", "bench", "doctor"
"""Commands that end their threads and processes after Ctrl-C."""


def usage() -> str:
    """Return the list of the commands."""
    width = max(map(len, COMMANDS))
    lines = "".join(f"  {name:<{width}}  {what}\n" for name, what in COMMANDS.items())
    return (
        f"usage: fastcnn COMMAND [FLAGS]\n\ncommands:\n{lines}\n"
        "fastcnn COMMAND --help lists the flags of a command; fastcnn --version prints the version.\n"
    )


def command() -> int:
    """Run the program `fastcnn`."""
    end_on_interrupt()
    return main()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; 2 for an unknown command."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if argv[0] == "--version":
        print(f"fastcnn {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        advice = f"use {near[0]}, or see fastcnn --help" if near else "fastcnn --help lists them"
        print(f"fastcnn: error: {argv[0]}: no such command; {advice}", file=sys.stderr)
        return 2
    if argv[0] in CLEANING and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    escape_unprintable()
    try:
        status = importlib.import_module(f"fastcnn.cli.commands.{argv[0]}").run(argv[1:])
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # as of `fastcnn models | head`
        files.drop_stdout()
        return 128 + signal.SIGPIPE
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(error, LocalError):
            print(f"fastcnn: error: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        return files.report_stdout(error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    raise SystemExit(command())
