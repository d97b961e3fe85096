"""`--drop` and `--drop-path`: the rates of a network's dropout layers and of its stochastic depth."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from fastcnn.config import NetworkSettings
from fastcnn.errors import UserError
from fastcnn.models import MODELS, build
from fastcnn.models.create import build_network
from fastcnn.transfer.freeze import Frozen, frozen_layers
from networks import STRUCTURES, each

WITH_DROPOUT = [
    "resnet18",
    "resnet20",
    "vgg11_cifar",
    "efficientnet_b0",
    "mobilenet_v2",
    "densenet121",
    "vit_s_16",
]
WITH_DEPTH = ["resnet18", "resnet20", "efficientnet_b0", "convnext_tiny", "vit_s_16"]


def settings(arch: str, **others: Any) -> NetworkSettings:
    return NetworkSettings(**{"arch": arch, "num_classes": 10, "in_chans": 3, **others})


def network_of(arch: str, drop: float | None = None, drop_path: float | None = None) -> nn.Module:
    with torch.device("meta"):
        return build_network(settings(arch, drop=drop, drop_path=drop_path))


@pytest.mark.parametrize("arch", WITH_DROPOUT)
def test_all_dropout_layers_get_the_rate(arch):
    rates = [m.p for m in network_of(arch, drop=0.3).modules() if isinstance(m, nn.Dropout)]
    assert rates
    assert set(rates) == {0.3}


def depth_rates(network: nn.Module) -> list[float]:
    return [m.p for m in network.modules() if isinstance(m, StochasticDepth)]


@pytest.mark.parametrize(
    ("arch", "blocks"), [("resnet20", 9), ("resnet18", 8), ("resnet50_short", 13), ("unet/resnet18", 8)]
)
def test_stochastic_depth_of_a_resnet_rises_linearly_to_the_rate(arch, blocks):
    """Huang et al. 2016, equation 4."""
    expected = [0.2 * (i + 1) / blocks for i in range(blocks)]
    assert depth_rates(network_of(arch, drop_path=0.2)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arch", "blocks", "intervals"),
    [("efficientnet_b0", 16, 16), ("convnext_tiny", 18, 17), ("vit_s_16", 12, 11)],
)
def test_stochastic_depth_of_later_networks_rises_from_0_as_in_their_authors_code(arch, blocks, intervals):
    expected = [0.2 * i / intervals for i in range(blocks)]
    assert depth_rates(network_of(arch, drop_path=0.2)) == pytest.approx(expected)


def test_the_rate_that_a_network_has_anyway_changes_nothing():
    assert depth_rates(network_of("convnext_tiny", drop_path=0.1)) == depth_rates(network_of("convnext_tiny"))


def test_the_dropout_of_auxiliary_classifiers_stays_the_paper_s():
    network = network_of("googlenet", drop=0.3)
    rates = {name: m.p for name, m in network.named_modules() if isinstance(m, nn.Dropout)}
    assert rates == {"aux1.dropout": 0.7, "aux2.dropout": 0.7, "dropout": 0.3}


@pytest.mark.parametrize("arch", ["resnet20", "vgg11_cifar", "googlenet", "mobilenet_v3_small"])
def test_dropout_right_before_the_classifier_is_on_while_the_backbone_is_frozen(arch):
    network = network_of(arch, drop=0.3)
    frozen = Frozen(network, frozen_layers(network, "backbone", None))
    network.train()
    frozen.hold()
    dropout = [m for m in network.modules() if isinstance(m, nn.Dropout) and m.p == 0.3]
    assert dropout[-1].training


@pytest.mark.parametrize("arch", each(sorted({*WITH_DROPOUT, *WITH_DEPTH}), ["resnet20", "mobilenet_v2"]))
def test_nothing_else_of_the_network_changes(arch):
    plain, dropping = network_of(arch), network_of(arch, 0.3 if arch in WITH_DROPOUT else None)
    assert plain.state_dict().keys() == dropping.state_dict().keys()
    kinds = StochasticDepth, nn.Dropout
    own = [m.p for m in build(arch, 10).modules() if isinstance(m, kinds)]
    assert [m.p for m in plain.modules() if isinstance(m, kinds)] == own


def test_a_resnet_drops_in_training_and_not_in_evaluation():
    torch.manual_seed(0)
    network = build_network(settings("resnet20", drop=0.5, drop_path=0.5))
    plain = build_network(settings("resnet20"))
    plain.load_state_dict(network.state_dict())
    images = torch.randn(4, 3, 32, 32)
    network.train()
    assert not torch.equal(network(images), network(images))
    plain.load_state_dict(network.state_dict())  # the statistics of these passes
    torch.testing.assert_close(network.eval()(images), plain.eval()(images))


@pytest.mark.parametrize("arch", ["resnet20", "vgg11_cifar", "mobilenet_v2"])
def test_what_is_dropped_does_not_reach_the_classifier(arch):
    torch.manual_seed(0)
    network = build_network(settings(arch, drop=1 - 1e-7)).train()
    bias = network.get_parameter(f"{network.classifier_name}.bias")
    assert torch.equal(network(torch.randn(4, 3, 32, 32)), bias.expand(4, -1))


def test_a_block_that_is_skipped_is_its_shortcut():
    network = build_network(settings("resnet20", drop_path=1 - 1e-7)).train()
    block, x = network.get_submodule("layer3.2"), torch.rand(2, 64, 8, 8)
    assert torch.equal(block(x), x)
    assert not torch.equal(block.eval()(x), x)


def test_a_resnet_without_rates_draws_no_random_numbers():
    network = build_network(settings("resnet20")).train()
    before = torch.get_rng_state()
    network(torch.zeros(2, 3, 32, 32))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "arch", ["unet/resnet18", "yolo", "yolov1/vgg11", "unet/googlenet", "unet/mobilenet_v2"]
)
def test_a_backbone_has_no_dropout_once_its_classifier_is_taken_away(arch, wording):
    with pytest.raises(UserError, match="^--drop 0.2:") as caught:
        network_of(arch, drop=0.2)
    wording(caught.value)


@pytest.mark.parametrize(
    ("arch", "option"),
    [
        pytest.param(arch, option, marks=() if arch in STRUCTURES else pytest.mark.slow)
        for arch, make in MODELS.items()
        for option in ("drop_rate", "drop_path_rate")
        if option in inspect.signature(make).parameters
    ],
)
def test_every_constructor_hands_on_the_rates_that_it_takes(arch, option):
    with torch.device("meta"):
        network = build(arch, 5, 3, **{option: 0.26})
    kind = nn.Dropout if option == "drop_rate" else StochasticDepth
    assert any(0.24 < m.p <= 0.26 for m in network.modules() if isinstance(m, kind))


def test_a_network_that_drops_nothing_says_so(wording):
    with pytest.raises(UserError, match=r"^--drop 0\.2:") as caught:
        build_network(settings("lenet5", in_chans=1, drop=0.2))
    wording(caught.value)
    with pytest.raises(UserError, match=r"^--drop-path 0\.2:") as caught:
        network_of("vgg11", drop_path=0.2)
    wording(caught.value)


def test_timms_networks_are_built_with_the_rates(wording):
    pytest.importorskip("timm")
    network = network_of("timm/convnext_atto", drop=0.25, drop_path=0.5)
    rates = [float(getattr(m, "drop_prob", 0)) for m in network.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.5)
    assert any(isinstance(m, nn.Dropout) and m.p == 0.25 for m in network.modules())
    with pytest.raises(UserError, match=r"^--drop-path 0\.5:") as caught:
        network_of("timm/vgg11", drop=0.2, drop_path=0.5)
    wording(caught.value)
