"""Every network of the zoo as ONNX and pt2, at a small size, against PyTorch on one batch."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastcnn.config import Config
from fastcnn.exporter.comparison import Comparison
from fastcnn.exporter.formats import SUFFIXES, WRITERS, Format
from fastcnn.inference.exported import open_exported
from fastcnn.inference.trained import Trained
from fastcnn.models import DETECTION, MODELS, SEGMENTATION, build
from fastcnn.models.base import logits_of

CPU = torch.device("cpu")
DEEPER = {
    *("resnet101", "resnet152", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet101_2", "resnet110"),
    *("densenet161", "densenet169", "densenet201", "convnext_small", "convnext_base", "convnext_large"),
    *(f"efficientnet_b{i}" for i in range(2, 8)),
    *("vit_b_16", "vit_l_16", "vgg13", "vgg16", "vgg19", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
}
"""More layers of the same kinds as another network; ONNX of each takes up to a minute."""


def trained_network(name: str, size: int | None = None) -> Trained:
    """Return a network with random weights whose outputs differ between images."""
    torch.manual_seed(0)
    network = build(name, num_classes=10).eval()
    multiple = network.image_size_multiple
    size = size or -(-max(network.minimum_image_size, 32) // multiple) * multiple
    size = network.default_image_size if network.fixed_image_size else size
    for module in network.modules():
        if isinstance(module, nn.Linear):  # some last layers start with zeros
            nn.init.normal_(module.weight, 0, 0.05)
        if isinstance(module, nn.Conv2d) and name.startswith(("googlenet", "inception")):
            nn.init.kaiming_normal_(
                module.weight, nonlinearity="relu"
            )  # else all images have the same outputs
    for layer in getattr(network, "predictors", ()):  # many boxes
        nn.init.normal_(layer.weight, 0, 0.2)
        nn.init.normal_(layer.bias, 0, 0.5)
    if name.startswith("yolov1"):  # boxes whose scores differ
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        with torch.no_grad():
            network.train()(torch.randn(8, 3, size, size))
        network.eval()
    config = dataclasses.replace(
        Config(), arch=name, val_img_size=size, in_chans=3, num_classes=10, cls_loss="ce", crop_mode="center"
    )
    return Trained(
        path=Path("best.pt"),
        network=network,
        config=config,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        class_names=tuple("abcdefghij"),
        multi_label=False,
    )


def assert_equal(trained: Trained, file: Path) -> None:
    images = torch.randint(0, 256, (3, 3, trained.size, trained.size), dtype=torch.uint8)
    exported = open_exported(file, "test", trust_code=True)
    with torch.inference_mode():
        expected = trained.normalized(CPU)(images)
    found = exported(images)
    if isinstance(found, Tensor):
        expected = logits_of(expected)
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert expected.std(0).max() > 0
    else:
        task, comparison = trained.build_task(), Comparison(multi_label=False)
        for rows, others in zip(task.predict(expected), task.predict(found), strict=True):
            comparison.add_boxes(rows, others, trained.size)
        assert comparison.agreement > 0.9  # nearly equal scores may change places
        assert comparison.difference < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MODELS, *SEGMENTATION, *DETECTION])
def test_every_network_can_be_exported(name, tmp_path):
    if name == "unet_paper":
        trained = trained_network(name, 188)
    else:
        trained = trained_network(name)
    formats: list[Format] = ["pt2"] if name in DEEPER else ["pt2", "onnx"]
    for format in formats:
        file = tmp_path / f"model{SUFFIXES[format]}"
        file.write_bytes(WRITERS[format](trained, CPU))
        assert_equal(trained, file)
        file.unlink()
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet5", "yolo/lenet5"])
def test_machine_code_is_compiled_and_needs_trust(name, tmp_path):
    trained = trained_network(name, 32)
    file = tmp_path / "model.aoti.pt2"
    file.write_bytes(WRITERS["aoti"](trained, CPU))
    with pytest.raises(ValueError, match=r"it contains code \(native code\); add --trust-code"):
        open_exported(file, "test")
    assert_equal(trained, file)
