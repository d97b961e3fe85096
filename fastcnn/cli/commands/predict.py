"""`fastcnn predict`: print and draw the predictions of a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastcnn.cli.arguments import Parser, positive, share


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        "fastcnn predict",
        description="Print and draw the predictions of a trained network.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", type=Path, help="such as runs/yolo-demo/best.pt")
    parser.add_argument("images", type=Path, help="an image, or a folder of them")
    parser.add_argument("--output-dir", type=Path, help="of pictures (predictions, then predictions-2, ...)")
    parser.add_argument("-b", "--batch-size", type=positive, default=16, help="images (%(default)s)")
    parser.add_argument("-j", "--workers", type=positive, default=2, help="loading threads (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    parser.add_argument(
        "--arch", metavar="MODULE:FACTORY", help="the checkpoint's network, if it is your code"
    )
    parser.add_argument(
        "--threshold",
        type=share,
        metavar="SHARE",
        help="lowest probability of a printed label, if an image may have several (0.5)",
    )
    parser.add_argument(
        "--read-timeout", default="1m", metavar="TIME", help="limit for reading a file (%(default)s)"
    )
    flags = parser.parse_args(argv)
    from fastcnn.config.duration import parse_time

    limit = parse_time(flags.read_timeout, "--read-timeout")
    from fastcnn.cli.predict import Loading, predict
    from fastcnn.data.reading import time_limit

    with time_limit(limit):
        bad = predict(
            flags.checkpoint,
            flags.images,
            output=flags.output_dir,
            loading=Loading(flags.batch_size, flags.workers, flags.device),
            threshold=flags.threshold,
            arch=flags.arch,
        )
    return 1 if bad else 0
