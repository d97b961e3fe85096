"""`fastcnn summary`: list the layers of a network."""

from __future__ import annotations

from collections.abc import Sequence

from fastcnn.cli.arguments import Parser, positive
from fastcnn.errors import UserError


def run(argv: Sequence[str]) -> int:
    parser = Parser("fastcnn summary", description="List the layers of a network.", allow_abbrev=False)
    parser.add_argument("arch", help="network: resnet50, timm/NAME, torchvision/NAME or MODULE:FACTORY")
    parser.add_argument("--img-size", type=positive, help="pixels a side (as published)")
    parser.add_argument("--in-chans", type=positive, help="channels of the images (as published)")
    parser.add_argument("--num-classes", type=positive, help="classes (as published)")
    parser.add_argument("-b", "--batch-size", type=positive, help="images (1; with --profile 2)")
    parser.add_argument("--depth", type=positive, default=2, help="levels of modules (%(default)s)")
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
    except UserError as error:  # the network is not a flag here
        raise UserError(str(error).removeprefix("--arch ")) from error
    return 0
