"""Table of the networks, with published and computed figures.

    python -m fastcnn.analysis.architectures > ARCHITECTURES.md

Networks are on the meta device: no weights, no computation, no downloads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastcnn.analysis.summary import summarize
from fastcnn.analysis.tables import short
from fastcnn.models import MODELS, build
from fastcnn.transfer.weights import TORCHVISION


class Paper(NamedTuple):
    """Publication of a family of networks."""

    year: int
    authors: str
    url: str


LENET = Paper(1998, "LeCun et al.", "https://doi.org/10.1109/5.726791")
ALEXNET = Paper(2012, "Krizhevsky et al.", "https://doi.org/10.1145/3065386")
ONE_WEIRD_TRICK = Paper(2014, "Krizhevsky", "https://arxiv.org/abs/1404.5997")
VGG = Paper(2014, "Simonyan, Zisserman", "https://arxiv.org/abs/1409.1556")
VGG_CIFAR = Paper(2015, "Liu, Deng", "https://doi.org/10.1109/ACPR.2015.7486599")
GOOGLENET = Paper(2014, "Szegedy et al.", "https://arxiv.org/abs/1409.4842")
RESNET = Paper(2015, "He et al.", "https://arxiv.org/abs/1512.03385")
BLUR = Paper(2019, "Zhang", "https://arxiv.org/abs/1904.11486")
RESNEXT = Paper(2016, "Xie et al.", "https://arxiv.org/abs/1611.05431")
WIDE = Paper(2016, "Zagoruyko, Komodakis", "https://arxiv.org/abs/1605.07146")
AIRBENCH = Paper(2024, "Jordan", "https://arxiv.org/abs/2404.00498")
DENSENET = Paper(2016, "Huang et al.", "https://arxiv.org/abs/1608.06993")
MOBILENET_V1 = Paper(2017, "Howard et al.", "https://arxiv.org/abs/1704.04861")
MOBILENET_V2 = Paper(2018, "Sandler et al.", "https://arxiv.org/abs/1801.04381")
MOBILENET_V3 = Paper(2019, "Howard et al.", "https://arxiv.org/abs/1905.02244")
EFFICIENTNET = Paper(2019, "Tan, Le", "https://arxiv.org/abs/1905.11946")
CONVNEXT = Paper(2022, "Liu et al.", "https://arxiv.org/abs/2201.03545")
VIT = Paper(2020, "Dosovitskiy et al.", "https://arxiv.org/abs/2010.11929")
DEIT = Paper(2020, "Touvron et al.", "https://arxiv.org/abs/2012.12877")


class Published(NamedTuple):
    """Figures of a network in its paper; None: not in the paper."""

    paper: Paper
    parameters: str | None = None
    multiply_adds: str | None = None
    top1: float | None = None
    """Top-1 accuracy in percent, on ImageNet's validation set or CIFAR-10's test set."""
    notes: str = ""
    """Keys of `NOTES`."""


NOTES = {
    "a": "MNIST. The paper connects C3 to a part of S2's maps, and its output is of radial basis functions; "
    "all connections are counted here, and a linear output.",
    "b": "One column; the paper's two, `groups=2`, have 60,965,224.",
    "c": "Without its auxiliary classifiers, which training alone uses. The paper's sums do not follow "
    "from its own channels; its top-5 is 89.93, and top-1 was not published.",
    "d": "The paper's top-1 is of ten crops.",
    "e": "CIFAR-10; of ResNet-110 the mean of five.",
    "f": "By the paper's repository.",
    "g": "The paper's ViTs were trained on ImageNet at 224 px and fine-tuned at 384.",
    "h": "32 groups of 8 channels are later than the paper.",
    "i": "CIFAR-10; after the paper, whose accuracy is of its own variant of VGG-16.",
    "j": "A ResNet-50 for CIFAR-10 that ends where 32 px have become one; nothing was published.",
    "k": "The paper's figures are up to 5% off; torchvision and timm count as here.",
    "l": "v1.5: the stride is in the 3x3 convolution, where the paper has it in the 1x1 before; hence more "
    "multiply-adds and another receptive field. Araujo et al. 2019 give 483, 1027 and 1507 for networks with "
    "the stride at each stage's end.",
    "m": "The paper's has shortcuts without parameters, torchvision's and this one projections.",
    "n": "As FFCV blurs it, before each convolution with a stride; the paper after it, and the pool too.",
    "o": "Its first convolution is 3x3 and nothing is pooled, as is usual for CIFAR-10; not in the paper.",
    "p": "CIFAR-10, in 8 epochs and over six views of an image; the accuracy and the widths are those of "
    "`airbench94_muon.py` in the paper's repository.",
    "q": "Half the channels, for the CPU; not in the paper.",
}

PUBLISHED = {
    "lenet5": Published(LENET, "60K", None, None, "a"),
    "lenet5_relu": Published(LENET, None, None, None, "a"),
    "alexnet": Published(ALEXNET, "60M", None, 59.3, "b"),
    "alexnet_torchvision": Published(ONE_WEIRD_TRICK),
    "vgg11": Published(VGG, "133M", None, 70.4),
    "vgg11_bn": Published(VGG),
    "vgg13": Published(VGG, "133M", None, 71.3),
    "vgg13_bn": Published(VGG),
    "vgg16": Published(VGG, "138M", None, 74.4),
    "vgg16_bn": Published(VGG),
    "vgg19": Published(VGG, "144M", None, 74.5),
    "vgg19_bn": Published(VGG),
    "vgg11_cifar": Published(VGG_CIFAR, notes="i"),
    "vgg13_cifar": Published(VGG_CIFAR, notes="i"),
    "vgg16_cifar": Published(VGG_CIFAR, None, None, 91.55, "i"),
    "vgg19_cifar": Published(VGG_CIFAR, notes="i"),
    "vgg16_cifar_wide": Published(VGG_CIFAR, notes="i"),
    "googlenet": Published(GOOGLENET, notes="c"),
    "inception_v1": Published(GOOGLENET, "6.8M", "1.5G", None, "c"),
    "inception_v1_bn": Published(GOOGLENET, notes="c"),
    "resnet18": Published(RESNET, None, "1.8G", 72.12, "dm"),
    "resnet34": Published(RESNET, None, "3.6G", 75.48, "d"),
    "resnet50": Published(RESNET, None, "3.8G", 77.15, "dl"),
    "resnet50_blur": Published(BLUR, None, None, 77.04, "nl"),
    "resnet101": Published(RESNET, None, "7.6G", 78.25, "dl"),
    "resnet152": Published(RESNET, None, "11.3G", 78.57, "dl"),
    "resnext50_32x4d": Published(RESNEXT, "25.0M", "4.2G", 77.8),
    "resnext101_32x8d": Published(RESNEXT, notes="h"),
    "resnext101_64x4d": Published(RESNEXT, None, None, 79.6),
    "wide_resnet50_2": Published(WIDE, "68.9M", None, 78.1),
    "wide_resnet101_2": Published(WIDE),
    "resnet20": Published(RESNET, "0.27M", None, 91.25, "e"),
    "resnet32": Published(RESNET, "0.46M", None, 92.49, "e"),
    "resnet44": Published(RESNET, "0.66M", None, 92.83, "e"),
    "resnet56": Published(RESNET, "0.85M", None, 93.03, "e"),
    "resnet110": Published(RESNET, "1.7M", None, 93.39, "e"),
    "resnet18_cifar": Published(RESNET, notes="o"),
    "resnet50_short": Published(RESNET, notes="j"),
    "airbench": Published(AIRBENCH, None, None, 94.01, "p"),
    "airbench_small": Published(AIRBENCH, notes="q"),
    "densenet121": Published(DENSENET, None, None, 74.98),
    "densenet161": Published(DENSENET, None, None, 77.8, "f"),
    "densenet169": Published(DENSENET, None, None, 76.2),
    "densenet201": Published(DENSENET, None, None, 77.42),
    "mobilenet_v1": Published(MOBILENET_V1, "4.2M", "569M", 70.6),
    "mobilenet_v2": Published(MOBILENET_V2, "3.4M", "300M", 72.0, "k"),
    "mobilenet_v3_large": Published(MOBILENET_V3, "5.4M", "219M", 75.2, "k"),
    "mobilenet_v3_small": Published(MOBILENET_V3, "2.5M", "56M", 67.4),
    "efficientnet_b0": Published(EFFICIENTNET, "5.3M", "0.39G", 77.1),
    "efficientnet_b1": Published(EFFICIENTNET, "7.8M", "0.70G", 79.1),
    "efficientnet_b2": Published(EFFICIENTNET, "9.2M", "1.0G", 80.1, "k"),
    "efficientnet_b3": Published(EFFICIENTNET, "12M", "1.8G", 81.6),
    "efficientnet_b4": Published(EFFICIENTNET, "19M", "4.2G", 82.9, "k"),
    "efficientnet_b5": Published(EFFICIENTNET, "30M", "9.9G", 83.6, "k"),
    "efficientnet_b6": Published(EFFICIENTNET, "43M", "19G", 84.0),
    "efficientnet_b7": Published(EFFICIENTNET, "66M", "37G", 84.3),
    "convnext_tiny": Published(CONVNEXT, "29M", "4.5G", 82.1),
    "convnext_small": Published(CONVNEXT, "50M", "8.7G", 83.1),
    "convnext_base": Published(CONVNEXT, "89M", "15.4G", 83.8),
    "convnext_large": Published(CONVNEXT, "198M", "34.4G", 84.3),
    "vit_s_16": Published(DEIT, "22M", "4.6G", 79.8),
    "vit_b_16": Published(VIT, "86M", None, 77.91, "gk"),
    "vit_b_32": Published(VIT, None, None, 73.38, "g"),
    "vit_l_16": Published(VIT, "307M", None, 76.53, "gk"),
}

HEAD = """# Architectures

Table by `python -m fastcnn.analysis.architectures > ARCHITECTURES.md`: parameters, multiply-adds (one image)
and receptive fields (size/stride/offset in pixels, of the last feature map; "gate": squeeze-and-excitation
sees the whole image besides) are computed, and stand beside what was published. Top-1, in percent, is the
paper's, and that of the weights that `--pretrained` downloads. Classes are those of ImageNet, 1,000, or of
CIFAR-10 and MNIST, 10.

"""
COLUMNS = (
    *("network", "year", "paper", "px", "parameters", "published", "multiply-adds", "published"),
    *("field", "top-1", "weights", "notes"),
)


def main() -> None:
    print(HEAD + table())


def table() -> str:
    """Return the table and its notes in Markdown."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(_row(name) for name in MODELS)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"- {letter}: {note}" for letter, note in NOTES.items())])


def _row(name: str) -> list[str]:
    published = PUBLISHED[name]
    paper = published.paper
    options = {"aux": False} if published.paper is GOOGLENET else {}
    channels = 1 if name.startswith("lenet") else 3
    with torch.device("meta"):
        network = build(name, in_chans=channels, **options).eval()
        image = torch.empty(1, channels, network.default_image_size, network.default_image_size)
    summary = summarize(network, image)
    whole, features = summary.layers[0], network.stages[-1].name
    field = next(layer.field for layer in summary.layers if layer.name == features)
    return [
        f"`{name}`",
        str(paper.year),
        f"[{paper.authors}]({paper.url})",
        str(network.default_image_size),
        f"{sum(p.numel() for p in network.parameters()):,}",
        published.parameters or "",
        short(whole.multiply_adds),
        published.multiply_adds or "",
        str(field),
        f"{published.top1:g}" if published.top1 else "",
        _top1_of_weights(name),
        published.notes,
    ]


def _top1_of_weights(name: str) -> str:
    from torchvision.models import get_model_weights

    if name not in TORCHVISION:
        return ""
    return f"{get_model_weights(TORCHVISION[name]).DEFAULT.meta['_metrics']['ImageNet-1K']['acc@1']:.2f}"


if __name__ == "__main__":
    main()
