"""`--drop` and `--drop-path`: the rates of a network's dropout layers and of its stochastic depth."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from fastcnn.errors import UserError
from fastcnn.models import build
from fastcnn.transfer import build_network

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


def network_of(arch: str, drop: float | None = None, drop_path: float | None = None) -> nn.Module:
    with torch.device("meta"):
        return build_network(arch, 10, 3, "linear", 0, drop=drop, drop_path=drop_path)


@pytest.mark.parametrize("arch", WITH_DROPOUT)
def test_all_dropout_layers_get_the_rate(arch):
    rates = [m.p for m in network_of(arch, drop=0.3).modules() if isinstance(m, nn.Dropout)]
    assert rates
    assert set(rates) == {0.3}


@pytest.mark.parametrize("arch", WITH_DEPTH)
def test_stochastic_depth_rises_linearly_to_the_rate(arch):
    rates = [m.p for m in network_of(arch, drop_path=0.2).modules() if isinstance(m, StochasticDepth)]
    assert rates == pytest.approx([0.2 * i / len(rates) for i in range(1, len(rates) + 1)])


@pytest.mark.parametrize("arch", sorted({*WITH_DROPOUT, *WITH_DEPTH}))
def test_nothing_else_of_the_network_changes(arch):
    plain, dropping = network_of(arch), network_of(arch, 0.3 if arch in WITH_DROPOUT else None)
    assert plain.state_dict().keys() == dropping.state_dict().keys()
    kinds = StochasticDepth, nn.Dropout
    own = [m.p for m in build(arch, 10).modules() if isinstance(m, kinds)]
    assert [m.p for m in plain.modules() if isinstance(m, kinds)] == own


def test_a_resnet_drops_in_training_and_not_in_evaluation():
    torch.manual_seed(0)
    network = build_network("resnet20", 10, 3, "linear", 0, drop=0.5, drop_path=0.5)
    plain = build_network("resnet20", 10, 3, "linear", 0)
    plain.load_state_dict(network.state_dict())
    images = torch.randn(4, 3, 32, 32)
    network.train()
    assert not torch.equal(network(images), network(images))
    plain.load_state_dict(network.state_dict())  # the statistics of these passes
    torch.testing.assert_close(network.eval()(images), plain.eval()(images))


def test_a_network_that_drops_nothing_says_so():
    with pytest.raises(UserError, match=r"--drop 0\.2: lenet5 has no dropout; leave it out"):
        build_network("lenet5", 10, 1, "linear", 0, drop=0.2)
    with pytest.raises(UserError, match=r"--drop-path 0\.2: vgg11 has no stochastic depth; leave it out"):
        network_of("vgg11", drop_path=0.2)


def test_timms_networks_are_built_with_the_rates():
    pytest.importorskip("timm")
    network = network_of("timm/convnext_atto", drop=0.25, drop_path=0.5)
    rates = [float(getattr(m, "drop_prob", 0)) for m in network.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.5)
    assert any(isinstance(m, nn.Dropout) and m.p == 0.25 for m in network.modules())
    with pytest.raises(UserError, match="leave it out"):
        network_of("timm/vgg11", drop_path=0.5)
