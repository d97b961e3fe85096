"""What every network keeps to, and that each is the published one: sizes, parameters, torchvision's keys."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torchvision
from torch import nn

from fastcnn.models import MODELS, ConvNet, build
from fastcnn.models.lenet import LeNet5
from fastcnn.models.resnet import BasicBlock, Bottleneck, CifarResNet, PadShortcut, ResNet, resnet18

LENETS = ("lenet5", "lenet5_relu")
IMAGENET_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
CHEAP = (*LENETS, "resnet20", "resnet18")
"""Networks that are run for real; the others' shapes are computed without their numbers."""


def shell(name: str, num_classes: int = 10, in_chans: int = 3) -> ConvNet:
    """The network without memory or numbers, for shapes and counts."""
    with torch.device("meta"):
        return build(name, num_classes, in_chans)


def small(name: str, num_classes: int = 10) -> ConvNet:
    torch.manual_seed(0)
    return build(name, num_classes).eval()


def images(network: ConvNet, count: int = 2, size: int | None = None, channels: int = 3) -> torch.Tensor:
    side = size or network.default_image_size
    shape = (count, channels, side, side)
    if next(network.parameters()).is_meta:
        return torch.empty(shape, device="meta")
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# Every network


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_images_of_the_published_size_become_one_logit_for_each_class(name, in_chans):
    network = (build if name in CHEAP else shell)(name, num_classes=7, in_chans=in_chans).eval()
    with torch.no_grad():
        assert network(images(network, channels=in_chans)).shape == (2, 7)


@pytest.mark.parametrize("name", MODELS)
def test_the_docstring_states_the_number_of_parameters(name):
    doc = LeNet5.__doc__ if name in LENETS else MODELS[name].__doc__
    stated = re.search(r"([\d,]+) parameters", doc or "")
    assert stated is not None, f"{name}'s docstring states no number of parameters"
    num_classes = 10 if shell(name).default_image_size == 32 else 1000
    network = shell(name, num_classes, in_chans=1 if name in LENETS else 3)
    assert count(network) == int(stated[1].replace(",", ""))


@pytest.mark.parametrize("name", MODELS)
def test_stages_state_the_channels_and_the_stride_of_forward_stages(name):
    network = shell(name)
    shapes = [x.shape for x in network.forward_stages(images(network))]
    assert [shape[:2] for shape in shapes] == [(2, stage.channels) for stage in network.stages]
    # By how much the map grows with the image, so that convolutions without padding count alike.
    larger = network.forward_stages(images(network, size=network.default_image_size + 64))
    grown = [after.shape[2] - before[2] for after, before in zip(larger, shapes)]
    assert [64 // growth for growth in grown] == [stage.stride for stage in network.stages]


@pytest.mark.parametrize("name", MODELS)
def test_stages_name_the_modules_whose_outputs_they_are(name):
    network, seen = shell(name), {}
    for stage in network.stages:
        network.get_submodule(stage.name).register_forward_hook(
            lambda module, args, output, key=stage.name: seen.update({key: output})
        )
    outputs = network.forward_stages(images(network))
    assert all(seen[stage.name] is output for stage, output in zip(network.stages, outputs))


@pytest.mark.parametrize("name", CHEAP)
@torch.no_grad()
def test_features_are_the_last_stage_and_the_head_makes_them_logits(name):
    network = small(name)
    x = images(network, size=None if network.fixed_image_size else 32)
    features = network.forward_features(x)
    assert torch.equal(features, network.forward_stages(x)[-1])
    assert torch.equal(network(x), network.forward_head(features))


@pytest.mark.parametrize("name", MODELS)
def test_a_new_classifier_changes_the_number_of_logits_and_nothing_else(name):
    network = shell(name, num_classes=10)
    before = dict(network.named_parameters())
    network.reset_classifier(4)
    after = dict(network.named_parameters())
    fresh = {key for key in after if after[key] is not before[key]}
    assert {tuple(after[key].shape[:1]) for key in fresh} == {(4,)}
    assert len(fresh) == 2  # weight and bias
    assert all(after[key].is_meta for key in fresh), "the new layer left the device of the old one"
    assert network(images(network)).shape == (2, 4)


@pytest.mark.parametrize("name", MODELS)
def test_layer_groups_hold_every_parameter_once_from_the_input_to_the_classifier(name):
    network = shell(name, num_classes=7)
    parameters = dict(network.named_parameters())
    groups = [
        [key for key in parameters for name in group if f"{key}.".startswith(f"{name}.")]
        for group in network.layer_groups()
    ]
    assert all(groups)
    assert sorted(key for group in groups for key in group) == sorted(parameters)
    assert next(iter(parameters)) in groups[0]
    assert groups[-1] == [f"{network.classifier_name}.weight", f"{network.classifier_name}.bias"]
    assert parameters[groups[-1][0]].shape[0] == 7


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resnet-50", "resnet50"), ("ResNet18", "resnet18"), ("lenet", "lenet5"), ("resnet5", "resnet56")],
)
def test_an_unknown_name_suggests_the_nearest(name, nearest):
    with pytest.raises(ValueError) as caught:
        build(name, 10)
    message = str(caught.value)
    assert message.startswith(f"--arch {name}: ")
    assert re.search(rf"did you mean {nearest}\d?\?", message)
    assert "\n" not in message


def test_a_name_like_no_other_lists_them_all():
    with pytest.raises(ValueError) as caught:
        build("zzzz", 10)
    assert "did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in MODELS)


# ImageNet ResNets


@pytest.mark.parametrize("name", IMAGENET_RESNETS)
def test_state_dict_has_the_keys_and_shapes_of_torchvision(name):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)().state_dict()
    ours = shell(name, num_classes=1000).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_torchvision_weights_give_torchvision_logits(name):
    torch.manual_seed(0)
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(num_classes=10)
    theirs.to_empty(device="cpu").eval()
    for value in theirs.state_dict().values():  # not the fresh 0 and 1, which hide where they are used
        if value.ndim > 1:
            value.normal_(0, 1 / math.sqrt(value[0].numel()))
        elif value.is_floating_point():
            value.uniform_(0.5, 1)
    ours = shell(name, 10).eval()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    x = images(ours, size=64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_bottlenecks_have_their_stride_in_the_3x3_convolution():
    strided = [
        m for m in shell("resnet50").modules() if isinstance(m, Bottleneck) and m.conv2.stride == (2, 2)
    ]
    assert len(strided) == 3
    assert all(m.conv1.stride == (1, 1) for m in strided)


def test_convolutions_start_as_he_et_al_say():
    torch.manual_seed(0)
    weight = resnet18().get_parameter("layer4.0.conv1.weight")  # 256 -> 512, so that in and out differ
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (512 * 9)), rel=0.01)


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: ResNet(Bottleneck, (2, 1, 1, 1), 10), 5),
        (lambda: CifarResNet(14, zero_init_residual=True), 6),
    ],
    ids=["bottleneck", "basic"],
)
@torch.no_grad()
def test_every_residual_branch_starts_at_zero(make, count):
    blocks = [m for m in make().modules() if isinstance(m, BasicBlock | Bottleneck)]
    assert len(blocks) == count
    for block in blocks:
        x = torch.rand(2, block.conv1.in_channels, 4, 4)
        shortcut = x if block.downsample is None else block.downsample(x)
        torch.testing.assert_close(block(x), shortcut.relu(), rtol=0, atol=0)


def test_the_cifar_networks_start_as_in_the_paper():
    network = CifarResNet(14)
    assert all(m.last_norm.weight.eq(1).all() for m in network.modules() if isinstance(m, BasicBlock))


# CIFAR ResNets


def test_cifar_shortcuts_have_no_parameters():
    shortcuts = [m.downsample for m in shell("resnet20").modules() if isinstance(m, BasicBlock)]
    kept = [s for s in shortcuts if s is not None]
    assert [type(s) for s in kept] == [PadShortcut, PadShortcut]
    assert all(count(s) == 0 for s in kept)


def test_a_cifar_shortcut_takes_every_second_pixel_and_adds_channels_of_zeros():
    x = torch.arange(1.0, 1 + 2 * 4 * 4).view(1, 2, 4, 4)
    output = PadShortcut(2, 5, stride=2)(x)
    assert output.shape == (1, 5, 2, 2)
    assert torch.equal(output[:, 1:3], x[:, :, ::2, ::2])
    assert output.count_nonzero() == 2 * 2 * 2


@pytest.mark.parametrize("depth", [2, 18, 21, 34])
def test_a_cifar_depth_that_is_not_6n_plus_2_is_refused(depth):
    with pytest.raises(ValueError, match=rf"depth {depth}: .*6n \+ 2 layers: 20, 32, 44, 56, 110"):
        CifarResNet(depth)


@pytest.mark.parametrize("depth", [20, 110])
def test_a_cifar_resnet_has_as_many_layers_as_its_name_says(depth):
    weighted = [m for m in shell(f"resnet{depth}").modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == depth


# LeNet-5


def test_lenet_has_61706_parameters():
    assert count(shell("lenet5", 10, in_chans=1)) == 61_706


@pytest.mark.parametrize("name", LENETS)
def test_lenet_layers_have_the_published_sizes(name):
    published: dict[str, tuple[int, ...]]
    published = {"conv1": (6, 28, 28), "pool2": (6, 14, 14), "conv3": (16, 10, 10), "pool4": (16, 5, 5)}
    published |= {"conv5": (120, 1, 1), "fc6": (84,), "fc7": (10,)}
    network, seen = shell(name, 10, in_chans=1), {}
    for key in published:
        network.get_submodule(key).register_forward_hook(
            lambda module, args, output, key=key: seen.update({key: tuple(output.shape[1:])})
        )
    network(images(network, channels=1))
    assert seen == published


@pytest.mark.parametrize(("name", "activation"), [("lenet5", nn.Tanh), ("lenet5_relu", nn.ReLU)])
def test_lenet_activations_are_those_its_name_says(name, activation):
    found = [type(m) for m in shell(name).modules() if isinstance(m, nn.Tanh | nn.ReLU)]
    assert found == [activation] * 4


def test_only_lenet_is_bound_to_one_image_size():
    assert [name for name in MODELS if shell(name).fixed_image_size] == list(LENETS)
