"""The command line: `fastcnn COMMAND ...`. Imports no torch; each command imports what it needs.

fastcnn train --arch resnet50
fastcnn summary resnet50
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fastcnn.errors import UserError
from fastcnn.version import __version__

USAGE = """usage: fastcnn COMMAND [FLAGS]

commands:
  train    train a network (the same as python -m fastcnn.train)
  predict  print and draw the predictions of a trained network
  summary  list the layers of a network: size, cost, receptive field, optionally times
  models   list the networks
  preview  draw training images as they are augmented
  recipes  list named settings with their published results
  bench    run an ablation of the training step, from eager PyTorch on

fastcnn COMMAND --help lists the flags of a command; fastcnn --version prints the version.
"""
NETWORKS = Path(__file__).parents[1] / "analysis" / "networks.txt"
"""Output of `fastcnn models`, made by `fastcnn.analysis.tables`."""


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
    from fastcnn.analysis.tables import ProfileOptions, show_summary

    profile = ProfileOptions(device=flags.device, amp_dtype=flags.amp_dtype) if flags.profile else None
    try:
        show_summary(
            flags.arch,
            img_size=flags.img_size,
            in_chans=flags.in_chans,
            num_classes=flags.num_classes,
            batch_size=flags.batch_size,
            depth=flags.depth,
            profile=profile,
        )
    except UserError as error:  # it is no flag here
        raise UserError(str(error).removeprefix("--arch ")) from error
    return 0


def predict(argv: Sequence[str]) -> int:
    parser = Parser(
        "fastcnn predict",
        description="Print and draw the predictions of a trained network.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", type=Path, help="such as runs/yolo-demo/best.pt")
    parser.add_argument("images", type=Path, help="an image, or a folder of them")
    parser.add_argument("--output-dir", type=Path, help="of pictures (predictions, then predictions-2, ...)")
    parser.add_argument("-b", "--batch-size", type=_positive, default=16, help="images (%(default)s)")
    parser.add_argument("-j", "--workers", type=_positive, default=2, help="loading threads (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    flags = parser.parse_args(argv)
    from fastcnn.cli.predict import predict as run

    bad = run(
        flags.checkpoint,
        flags.images,
        output=flags.output_dir,
        batch_size=flags.batch_size,
        workers=flags.workers,
        device=flags.device,
    )
    return 1 if bad else 0


def preview(argv: Sequence[str]) -> int:
    from fastcnn.config.parse import parse

    parser = Parser(
        "fastcnn preview",
        usage="%(prog)s [-h] [--output FILE] [FLAGS OF fastcnn train]",
        description="Draw training images as they are augmented.",
        epilog="All other flags are those of fastcnn train; those about data and loading matter:",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--output", type=Path, default=Path("preview.png"), metavar="FILE", help="the picture (%(default)s)"
    )
    if {"-h", "--help"} & set(argv):
        print(parser.format_help())
        parse(["--help"])
    args, others = parser.parse_known_args(argv)
    config = parse(others, "fastcnn preview", idle=("amp_dtype", "sync_bn", "cuda_graph"))
    from fastcnn.cli.preview import preview as draw

    draw(config, args.output)
    print(f"wrote {args.output}")
    return 0


def models(argv: Sequence[str]) -> int:
    Parser("fastcnn models", description="List the networks.").parse_args(argv)
    print(NETWORKS.read_text(), end="")
    return 0


def recipes(argv: Sequence[str]) -> int:
    Parser("fastcnn recipes", description="List the recipes.").parse_args(argv)
    from fastcnn.config.recipes import show

    show()
    return 0


def bench(argv: Sequence[str]) -> int:
    parser = Parser(
        "fastcnn bench",
        description="Measure a training step on random images: eager PyTorch, then one optimization each.",
        allow_abbrev=False,
    )
    parser.add_argument("-a", "--arch", default="resnet50", help="network, as of fastcnn train (%(default)s)")
    parser.add_argument("--img-size", type=_positive, help="pixels a side (on a GPU as published, else 64)")
    parser.add_argument("-b", "--batch-size", type=_positive, help="images (on a GPU 256, else 32)")
    parser.add_argument("--rounds", type=_several, default=10, help="timed steps of each side (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument(
        "--quick", action="store_true", help="about a minute: few rounds, and no compilation on the CPU"
    )
    parser.add_argument(
        "--minutes",
        type=_minutes,
        help="time limit after which only the last variant begins (1 with --quick on a CPU)",
    )
    parser.add_argument(
        "--output", metavar="FILE", help="JSON file (benchmarks/results/MACHINE/ladder-....json)"
    )
    parser.add_argument("--baseline", metavar="FILE", help="compare with a JSON file of an earlier run")
    parser.add_argument(
        "--max-regression",
        type=_share,
        default=0.05,
        metavar="SHARE",
        help="exit with 1 if a variant lost more of its speed-up (5%%)",
    )
    flags = vars(parser.parse_args(argv))
    args = {name: flags.pop(name) for name in ("output", "baseline", "max_regression")}
    from fastcnn.bench.ablation import Settings
    from fastcnn.cli.bench import show

    return show(Settings(**flags), **args)


def _several(text: str) -> int:
    if not text.isdecimal() or int(text) < 3:
        raise argparse.ArgumentTypeError(f"{text!r}: use at least 3, for quartiles")
    return int(text)


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: use more than 0")
    return value


def _share(text: str) -> float:
    try:
        value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: use a share, such as 5% or 0.05")
    return value


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: use at least 1")
    return int(text)


COMMANDS = {
    "train": train,
    "predict": predict,
    "preview": preview,
    "summary": summary,
    "models": models,
    "recipes": recipes,
    "bench": bench,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; 2 if there is no such command."""
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
            f"fastcnn: error: {argv[0]}: no such command; use "
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
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    raise SystemExit(main())
