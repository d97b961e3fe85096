"""`fastcnn preview`: draw training images as they are augmented."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastcnn.cli.arguments import Parser


def run(argv: Sequence[str]) -> int:
    from fastcnn.config.duration import parse_time
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
    from fastcnn.data.reading import time_limit

    with time_limit(parse_time(config.read_timeout, "--read-timeout")):
        draw(config, args.output)
    print(f"wrote {args.output}")
    return 0
