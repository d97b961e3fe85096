"""`fastcnn export`: write a trained network to a file that runs without fastcnn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastcnn.cli.arguments import Parser, positive


def run(argv: Sequence[str]) -> int:
    from fastcnn.config.duration import parse_time
    from fastcnn.config.parse import parse

    args, others = _parser().parse_known_args(argv)
    flags = parse(others, "fastcnn export")
    from fastcnn.data.reading import time_limit
    from fastcnn.exporter.run import Options, export
    from fastcnn.runtime.distributed import Ranks, choose_device

    options = Options(
        format=args.format,
        output=args.output,
        int8=args.int8,
        images=args.images,
        calibration_images=args.calibration_images,
        tolerance=args.tolerance,
        device=choose_device(args.device, Ranks()),
    )
    with time_limit(parse_time(flags.read_timeout, "--read-timeout")):
        result = export(args.checkpoint, options, flags)
    print(result.describe())
    print(f"wrote {result.file} and {result.json_file.name}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        "fastcnn export",
        usage="%(prog)s [-h] CHECKPOINT [--format onnx|pt2|aoti|safetensors] [FLAGS]",
        description="Write a trained network to a file that takes uint8 images, in batches of any size. The "
        "file is opened in its own runtime, and compared and timed beside PyTorch.",
        epilog="Flags of fastcnn train that say how images are found and read, such as --data, work here "
        "too. By default they are those of the training.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="such as runs/resnet18/best.pt")
    parser.add_argument(
        "--format", choices=("onnx", "pt2", "aoti", "safetensors"), default="onnx", help="(%(default)s)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="(beside the checkpoint: best.onnx)")
    parser.add_argument("--int8", action="store_true", help="quantize ONNX, with scales from training images")
    parser.add_argument(
        "--images",
        type=positive,
        default=200,
        metavar="N",
        help="validation images to compare on, at most (%(default)s)",
    )
    parser.add_argument(
        "--calibration-images",
        type=positive,
        default=256,
        metavar="N",
        help="training images for --int8, at most (%(default)s)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        metavar="SHARE",
        help="largest difference from PyTorch, of the largest output (%(default)s)",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cuda", "cpu"),
        default="cpu",
        help="of the check and of aoti (%(default)s)",
    )
    return parser
