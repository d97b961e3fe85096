"""`fastcnn explain`: draw filters, feature maps, Grad-CAM and single convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastcnn.cli.arguments import Parser


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        "fastcnn explain",
        usage="%(prog)s [-h] [CHECKPOINT] IMAGES [FLAGS]",
        description="Draw what a network looks at: its first filters, and for each image feature maps and "
        "Grad-CAM. With --kernel also what a single convolution does; then the checkpoint may be missing.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "words", nargs="+", metavar="CHECKPOINT IMAGES", help="a file .pt; images, folders or patterns"
    )
    parser.add_argument("--layer", help="layer of the maps, such as layer3.0.conv1 (the last stage)")
    parser.add_argument(
        "--class",
        dest="class_name",
        metavar="NAME",
        help="class of Grad-CAM, or its number (the predicted one)",
    )
    parser.add_argument(
        "--kernel", metavar="KERNEL", help="edge, sharpen, blur, emboss, or a file with rows of numbers"
    )
    parser.add_argument(
        "--output-dir", type=Path, help="folder of pictures (explanations, then explanations-2, ...)"
    )
    parser.add_argument(
        "--arch", metavar="MODULE:FACTORY", help="the checkpoint's network, if it is your code"
    )
    flags = parser.parse_args(argv)
    from fastcnn.cli.explain import explain

    return 1 if explain(flags.words, **{k: v for k, v in vars(flags).items() if k != "words"}) else 0
