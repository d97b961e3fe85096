"""`fastcnn pack`: shrink and pack a folder."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from fastcnn.cli.arguments import Parser, positive, quality
from fastcnn.errors import UserError


def run(argv: Sequence[str]) -> int:
    from fastcnn.config.duration import parse_time
    from fastcnn.config.parse import parse

    parser = Parser(
        "fastcnn pack",
        usage="%(prog)s [-h] [FLAGS] FOLDER SHARDS",
        description="Shrink the images of a folder and pack them into WebDataset shards. A stopped run is "
        "completed by the same command.",
        epilog="Flags of fastcnn train that say how FOLDER is read, such as --val-split 0.1, and --workers "
        "work here too.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="FOLDER", help="images, as for fastcnn train --data")
    parser.add_argument("shards", metavar="SHARDS", type=Path, help="folder of the shards")
    parser.add_argument(
        "--max-size",
        type=positive,
        default=500,
        metavar="PIXELS",
        help="maximum long side; larger images are shrunk (%(default)s)",
    )
    parser.add_argument(
        "--quality",
        type=quality,
        default=90,
        help="maximum JPEG quality; JPEGs within size and quality are copied byte for byte (%(default)s)",
    )
    parser.add_argument(
        "--shard-images", type=positive, default=1000, metavar="N", help="images in a shard (%(default)s)"
    )
    args, others = parser.parse_known_args(argv)
    for word in others:  # a misspelled flag of this command, not of fastcnn train
        near = difflib.get_close_matches(word, ("--max-size", "--quality", "--shard-images"), n=1, cutoff=0.8)
        if near:
            raise UserError(f"{word}: no such flag; did you mean {near[0]}?")
    config = parse(["--data", args.folder, *others], "fastcnn pack")
    from fastcnn.cli.pack import pack
    from fastcnn.data.pack import PackSettings
    from fastcnn.data.reading import time_limit

    settings = PackSettings(max_size=args.max_size, quality=args.quality, shard_images=args.shard_images)
    with time_limit(parse_time(config.read_timeout, "--read-timeout")):
        return 1 if pack(config, args.shards, settings) else 0
