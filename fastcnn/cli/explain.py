"""`fastcnn explain`: draw what a network looks at, and what a single convolution does.

fastcnn explain runs/resnet50-demo/best.pt photo.jpg
fastcnn explain photo.jpg --kernel edge
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastcnn import files
from fastcnn.cli.folders import new_folder
from fastcnn.errors import BadImageError, UserError
from fastcnn.explain import Cam, FeatureMaps, Trained, convolve, feature_maps, first_filters, grad_cam
from fastcnn.explain.convolution import Convolution, read_kernel
from fastcnn.explain.filters import Filters
from fastcnn.explain.opened import opened
from fastcnn.explain.scores import class_number
from fastcnn.inference.find_images import NamedImage, find_images

CHECKPOINTS = (".pt", ".pth", ".onnx", ".pt2", ".safetensors")
"""Suffixes of files that are networks, not images."""
Drawn = Filters | FeatureMaps | Cam | Convolution


def explain(
    words: Sequence[str],
    *,
    layer: str | None = None,
    class_name: str | None = None,
    kernel: str | None = None,
    output_dir: Path | None = None,
    arch: str | None = None,
) -> int:
    """Draw filters, feature maps, Grad-CAM and the convolution with a kernel into a folder.

    Args:
        words: a checkpoint, unless there is a kernel, and images of `find_images`.
        class_name: name or number of the class.

    Returns:
        The number of undecodable images; they are named on stderr.

    Raises:
        UserError: no such checkpoint, images, layer, class or kernel.
    """
    given, images = _split(words, kernel)
    trained = None if given is None else opened(given, arch)
    if trained is not None:
        class_number(trained, class_name)  # before the first picture
    if kernel is not None:
        read_kernel(kernel)
    found = find_images(images)
    folder = (
        new_folder("explanations") if output_dir is None else files.expand_user(output_dir, "--output-dir")
    )
    if trained is not None:
        _save(first_filters(trained), folder / "filters.png")
    bad = 0
    for image in found:
        try:
            for suffix, drawn in _drawn(trained, image, layer, class_name, kernel):
                _save(drawn, folder / f"{image.name}.{suffix}.png")
                if isinstance(drawn, Cam):
                    print(f"{image.name}: {drawn.class_name}, by {drawn.layer}", flush=True)
        except BadImageError as error:
            bad += 1
            print(f"warning: {error}", file=sys.stderr)
    print(f"wrote {folder}", file=sys.stderr)
    return bad


def _drawn(
    trained: Trained | None, image: NamedImage, layer: str | None, class_name: str | None, kernel: str | None
) -> Iterator[tuple[str, Drawn]]:
    """Yield suffixes of files, and what they show of an image."""
    if trained is not None:
        yield "maps", feature_maps(trained, image.image, layer)
        yield "cam", grad_cam(trained, image.image, class_name, layer)
    if kernel is not None:
        yield Path(kernel).stem, convolve(image.image, kernel)


def _split(words: Sequence[str], kernel: str | None) -> tuple[str | None, Sequence[str]]:
    """Return the checkpoint among the words, if any, and the images."""
    if not words[0].lower().endswith(CHECKPOINTS):
        if kernel is None:
            raise UserError(
                f"{words[0]}: no checkpoint; write a file .pt before the images, or add --kernel edge"
            )
        return None, words
    if not words[1:]:
        raise UserError(f"{words[0]}: no images beside it; add images or a folder")
    return words[0], words[1:]


def _save(drawn: Drawn, path: Path) -> None:
    with files.of_flag("--output-dir"):
        files.make_folder(path.parent, "the folder")
        files.save_picture(drawn.picture(), path, "the picture")
