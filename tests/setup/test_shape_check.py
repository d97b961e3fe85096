"""What cannot work for the shapes of a run is one line before the first step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fastcnn.config import Config
from fastcnn.errors import UserError
from fastcnn.models import MODELS
from fastcnn.models.create import build_network
from fastcnn.models.parts import image_sizes
from fastcnn.setup import shape_check
from fastcnn.setup.shape_check import check_shapes
from runs import QUICK


def settings(arch: str = "resnet18", **changes: Any) -> Config:
    usual: dict[str, Any] = {"img_size": 32, "val_img_size": 32, "batch_size": 2}
    return Config(arch=arch, num_classes=3, in_chans=3, **{**usual, **changes})


def check(config: Config, network: nn.Module | None = None, world_size: int = 1) -> None:
    check_shapes(network or build_network(config), config, world_size)


OTHERS = "mobilenet_v2", "efficientnet_b0", "densenet121", "timm/resnet18"
NORMED = ["resnet18", "unet/resnet18", *(pytest.param(arch, marks=pytest.mark.slow) for arch in OTHERS)]
HEADS: dict[str, Any] = {
    "yolo": {"anchors": tuple(map(float, range(1, 19))), "strides": (8, 16, 32)},
    "yolov1": {"strides": (32,)},
}


@pytest.mark.parametrize("arch", NORMED)
def test_batch_norm_of_one_value_is_refused_and_the_advice_works(arch, wording):
    with pytest.raises(UserError, match="^--batch-size 1: batch norm .* --batch-size 2 ") as caught:
        check(settings(arch, batch_size=1))
    if arch == "resnet18":
        wording(caught.value)
    check(settings(arch, batch_size=2))
    check(settings(arch, batch_size=1, img_size=64))


def test_where_nothing_is_trained_one_image_is_enough():
    check(settings(batch_size=1, test_only=True, resume="best.pt"))


def test_the_smallest_of_progressive_sizes_counts():
    check(settings(batch_size=1, img_size=64))
    with pytest.raises(UserError, match="at --img-size 32"):
        check(settings(batch_size=1, img_size=64, progressive=(32, 64)))


def test_synchronized_batch_norm_counts_the_images_of_all_processes():
    check(settings(batch_size=1, sync_bn=True), world_size=2)
    with pytest.raises(UserError, match="batch norm"):
        check(settings(batch_size=1, sync_bn=True), world_size=1)
    with pytest.raises(UserError, match="batch norm"):
        check(settings(batch_size=1), world_size=2)


def test_networks_without_batch_norm_take_one_image():
    check(settings("lenet5", batch_size=1))


class Pools(nn.Module):
    """Fails on images below 16 px, in a layer with a name."""

    def __init__(self, needs_data: bool = False) -> None:
        super().__init__()
        self.needs_data = needs_data
        self.stem = nn.Conv2d(3, 4, 1)
        self.body = nn.Sequential(nn.MaxPool2d(16), nn.Flatten())
        self.head = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        if self.needs_data and float(x.sum()) > 0:
            x = x + 1
        out: Tensor = self.head(self.body(self.stem(x)))
        return out


@pytest.mark.parametrize("needs_data", [False, True])
@pytest.mark.parametrize("val_only", [False, True])
def test_a_layer_that_fails_is_named_with_the_size(needs_data, val_only, wording):
    network = Pools(needs_data)
    network(torch.zeros(1, 3, 16, 16))  # fixes the size of the head
    small = {"val_img_size": 8} if val_only else {"img_size": 8}
    sizes: dict[str, Any] = {"img_size": 16, "val_img_size": 16, **small}
    with pytest.raises(UserError, match=r"^--img-size 8: layer body\.0 fails on 2 images of 3 x 8") as caught:
        check(settings(**sizes), network)
    wording(str(caught.value).partition(" fails")[0])
    check(settings(img_size=16, val_img_size=16), network)


def test_a_network_that_needs_data_is_not_refused():
    network = Pools(needs_data=True)
    network(torch.zeros(1, 3, 16, 16))
    check(settings(img_size=16, val_img_size=16), network)


def test_the_check_leaves_no_trace(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shape_check.copy, "deepcopy", pytest.fail)  # arithmetic is for failures alone
    config = settings("mobilenet_v2")
    network = build_network(config).train()
    next(network.children()).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    state = torch.get_rng_state()
    check(config, network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.slow
@pytest.mark.parametrize("arch", MODELS)
def test_every_network_is_checked_without_arithmetic(arch, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shape_check.copy, "deepcopy", pytest.fail)
    size = image_sizes(arch).default_image_size
    config = settings(arch, img_size=size, val_img_size=size, batch_size=4, **HEADS.get(arch, {}))
    check(config, build_network(config))


@pytest.mark.slow
def test_two_photos_and_batches_of_one_are_one_line_with_status_2(tmp_path, train, capsys):
    for phase in ("train", "val"):
        for name, color in (("cat", (200, 0, 0)), ("dog", (0, 0, 200))):
            (tmp_path / "two" / phase / name).mkdir(parents=True)
            Image.new("RGB", (40, 40), color).save(tmp_path / "two" / phase / name / "0.png")
    flags = (*QUICK, "--arch", "resnet18", "--img-size", "32", "--data", "two", "--epochs", "1")
    assert train(*flags, "-b", "1") == 2
    assert capsys.readouterr().err.startswith("fastcnn: error: --batch-size 1: batch norm ")
    assert train(*flags, "-b", "2") == 0
