"""`fastcnn evaluate`: metrics and pictures of a trained network on a data set."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fastcnn.cli.arguments import Parser
from fastcnn.errors import PeerLostError, UserError
from fastcnn.runtime.parent import end_with_parent, is_torchruns
from fastcnn.runtime.signals import end_at_once


def run(argv: Sequence[str]) -> int:
    from fastcnn.config.duration import parse_time
    from fastcnn.config.parse import parse

    if is_torchruns():
        end_with_parent()  # also while torch is imported
    parser = Parser(
        "fastcnn evaluate",
        usage="%(prog)s CHECKPOINT [--split val|test|train] [--predictions FILE] [FLAGS OF fastcnn train]",
        description="Judge a trained network: metrics for each class, pictures, and metrics.json. Without a "
        "checkpoint, --arch NAME --weights FILE --data FOLDER takes any state dict.",
        epilog="All other flags are those of fastcnn train; those about data, loading and computing matter:",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--split", choices=("val", "test", "train"), default="val", help="part of the data (%(default)s)"
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="write the prediction for each image: CSV, for detection COCO JSON",
    )
    if {"-h", "--help"} & set(argv):
        print(parser.format_help())
        parse(["--help"])
    checkpoint = Path(argv[0]) if argv and not argv[0].startswith("-") else None
    args, others = parser.parse_known_args(argv if checkpoint is None else argv[1:])
    flags = parse(others, "fastcnn evaluate", idle=("sync_bn", "cuda_graph"))
    if checkpoint is None and flags.weights is None and not flags.pretrained:
        raise UserError(
            "fastcnn evaluate: begin with a checkpoint, such as fastcnn evaluate runs/resnet50-demo/best.pt, "
            "or use --arch NAME --weights FILE --data FOLDER"
        )
    from fastcnn.data.reading import time_limit
    from fastcnn.evaluation.run import Request, evaluate

    request = Request(checkpoint=checkpoint, split=args.split, predictions=args.predictions)
    try:
        with time_limit(parse_time(flags.read_timeout, "--read-timeout")):
            result = evaluate(request, flags)
    except PeerLostError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"fastcnn: error: {error.args[0]}; start again", file=sys.stderr)
        end_at_once(error.status)
    if os.environ.get("RANK", "0") == "0":
        print("".join(f"undecodable: {line}\n" for line in result.undecodable), end="")
        print(result.describe())
        print(f"wrote {result.folder}", file=sys.stderr)
    return 0
