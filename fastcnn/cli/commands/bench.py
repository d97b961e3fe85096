"""`fastcnn bench`: run an ablation of the training step."""

from __future__ import annotations

from collections.abc import Sequence

from fastcnn.cli.arguments import Parser, minutes, positive, several, share


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        "fastcnn bench",
        description="Measure a training step on random images: eager PyTorch, then one optimization each.",
        allow_abbrev=False,
    )
    parser.add_argument("-a", "--arch", default="resnet50", help="network, as of fastcnn train (%(default)s)")
    parser.add_argument("--img-size", type=positive, help="pixels a side (on a GPU as published, else 64)")
    parser.add_argument("-b", "--batch-size", type=positive, help="images (on a GPU 256, else 32)")
    parser.add_argument("--rounds", type=several, default=10, help="timed steps of each side (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument(
        "--quick", action="store_true", help="about a minute: few rounds, and no compilation on the CPU"
    )
    parser.add_argument(
        "--minutes",
        type=minutes,
        help="time limit after which only the last variant begins (1 with --quick on a CPU)",
    )
    parser.add_argument(
        "--output", metavar="FILE", help="JSON file (benchmarks/results/MACHINE/ladder-....json)"
    )
    parser.add_argument("--baseline", metavar="FILE", help="compare with a JSON file of an earlier run")
    parser.add_argument(
        "--max-regression",
        type=share,
        default=0.05,
        metavar="SHARE",
        help="exit with 1 if a variant lost more of its speed-up (5%%)",
    )
    flags = vars(parser.parse_args(argv))
    args = {name: flags.pop(name) for name in ("output", "baseline", "max_regression")}
    from fastcnn.bench.ablation import Settings
    from fastcnn.cli.bench import show

    return show(Settings(**flags), **args)
