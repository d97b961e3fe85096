"""`fastcnn predict`: print, draw and write the predictions of a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastcnn.cli.arguments import Parser, positive, share


def run(argv: Sequence[str]) -> int:
    flags = _parser().parse_args(argv)
    from fastcnn.config.duration import parse_time

    limit = parse_time(flags.read_timeout, "--read-timeout")
    from fastcnn.cli.predict import Options, Wanted, predict
    from fastcnn.data.reading import time_limit

    wanted = Wanted(
        pictures=not flags.no_pictures,
        output_dir=flags.output_dir,
        csv=flags.csv,
        jsonl=flags.jsonl,
        coco=flags.coco,
        label_pngs=flags.label_pngs,
    )
    options = Options(**{name: getattr(flags, name) for name in Options._fields})
    with time_limit(limit):
        bad = predict(flags.checkpoint, flags.images, wanted, options)
    return 1 if bad else 0


def _parser() -> Parser:
    parser = Parser(
        "fastcnn predict",
        description="Print, draw and write the predictions of a trained network.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint", type=Path, help="such as runs/yolo-demo/best.pt, or a file of fastcnn export"
    )
    parser.add_argument(
        "images", nargs="+", help="images, folders, patterns such as 'photos/*.jpg', or - for stdin"
    )
    outputs = parser.add_argument_group("outputs")
    outputs.add_argument(
        "--output-dir", type=Path, help="folder of pictures (predictions, then predictions-2, ...)"
    )
    outputs.add_argument("--no-pictures", action="store_true", help="draw no pictures")
    outputs.add_argument(
        "--csv", type=Path, metavar="FILE", help="a row for each class or box; - for standard output"
    )
    outputs.add_argument(
        "--jsonl", type=Path, metavar="FILE", help="a line of JSON for each image; - for standard output"
    )
    outputs.add_argument(
        "--coco", type=Path, metavar="FILE", help="COCO JSON of the boxes, or of the masks in run lengths"
    )
    outputs.add_argument(
        "--label-pngs", type=Path, metavar="FOLDER", help="PNGs of class numbers, for segmentation"
    )
    shown = parser.add_argument_group("predictions")
    shown.add_argument(
        "--top-k",
        type=positive,
        metavar="N",
        help="classes or boxes of an image at most (3 classes, all boxes)",
    )
    shown.add_argument(
        "--threshold",
        type=share,
        metavar="SHARE",
        help="lowest score of a class or box (boxes 0.2; classes 0.5 if an image may have several, else 0)",
    )
    parser.add_argument("-b", "--batch-size", type=positive, default=16, help="images (%(default)s)")
    parser.add_argument("-j", "--workers", type=positive, default=2, help="loading threads (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    parser.add_argument(
        "--arch", metavar="MODULE:FACTORY", help="the checkpoint's network, if it is your code"
    )
    parser.add_argument("--trust-code", action="store_true", help="open a .pt2 file, which contains code")
    parser.add_argument(
        "--read-timeout", default="1m", metavar="TIME", help="limit for reading a file (%(default)s)"
    )
    return parser
