"""U-Net as published and padded, and its decoder on every network."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.models import MODELS, SEGMENTATION, ConvNet, Stage, build, constructor
from fastcnn.models.base import FeatureSequence
from fastcnn.models.parts import image_sizes, layer_groups, reset_classifier
from fastcnn.models.unet import BackboneUNet, Expansion, UNet, unet_paper
from fastcnn.transfer.adapt import load_weights
from fastcnn.transfer.freeze import Frozen, describe_frozen, frozen_layers, lr_scales
from networks import FAMILIES, each

PADDED = ("unet", "unet_bilinear", "unet_small")
ONE_OF_EACH_FAMILY = (
    *("lenet5", "alexnet_torchvision", "vgg11_cifar", "googlenet", "resnet18", "resnet20", "densenet121"),
    *("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "vit_s_16"),
)
"""Networks that are run for real."""


def shell(name: str, num_classes: int = 5, in_chans: int = 3) -> ConvNet:
    """The network without memory or numbers."""
    with torch.device("meta"):
        return build(name, num_classes, in_chans)


def small(name: str, num_classes: int = 5) -> ConvNet:
    torch.manual_seed(0)
    return build(name, num_classes, 3).eval()


def blank(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# The published network


@pytest.mark.parametrize("name", SEGMENTATION)
def test_the_docstring_states_the_number_of_parameters(name):
    stated = re.search(r"([\d,]+) parameters", SEGMENTATION[name].__doc__ or "")
    assert stated is not None
    with torch.device("meta"):
        assert count(SEGMENTATION[name]()) == int(stated[1].replace(",", ""))


def test_the_paper_s_maps_have_the_sizes_of_figure_1():
    with torch.device("meta"):
        network = unet_paper()
    assert count(network) == 31_030_658
    seen = []
    for block in (*network.encoder, *network.decoder):
        block.register_forward_hook(lambda module, args, output: seen.append(output.shape[1:3]))
    assert network(blank(1, 1, 572, 572)).shape == (1, 2, 388, 388)
    down = [(64, 568), (128, 280), (256, 136), (512, 64), (1024, 28)]
    assert seen == [*down, (512, 52), (256, 100), (128, 196), (64, 388)]


def paper_by_functions(x: Tensor, weights: list[Tensor]) -> Tensor:
    """Figure 1, read from left to right, with weights and biases in the order of use."""
    given = iter(weights)

    def twice(x: Tensor) -> Tensor:
        for _ in range(2):
            x = F.conv2d(x, next(given), next(given)).clamp(min=0)
        return x

    skips = []
    for _ in range(4):
        x = twice(x)
        skips.append(x)
        x = F.max_pool2d(x, 2)
    x = twice(x)
    for skip in reversed(skips):
        x = F.conv_transpose2d(x, next(given), next(given), stride=2)
        lost = (skip.shape[2] - x.shape[2]) // 2, (skip.shape[3] - x.shape[3]) // 2
        x = twice(torch.cat([F.pad(skip, (-lost[1], -lost[1], -lost[0], -lost[0])), x], 1))
    x = F.conv2d(x, next(given), next(given))
    assert next(given, None) is None
    return x


def test_the_paper_s_network_is_what_plain_functions_compute():
    torch.manual_seed(0)
    network = UNet(3, in_chans=2, width=4, padded=False)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    x = torch.randn(2, 2, 188, 204)
    output, expected = network(x), paper_by_functions(x, list(network.parameters()))
    assert output.shape == (2, 3, 4, 20)
    torch.testing.assert_close(output, expected)


def test_convolutions_start_at_sqrt_2_over_the_values_that_an_output_sees():
    torch.manual_seed(0)
    network = UNet(21, width=32, padded=False)
    for name, seen in {"encoder.3.1": 128 * 9, "decoder.0.up": 512, "decoder.0.convs.0": 512 * 9}.items():
        weight = network.get_parameter(f"{name}.weight")
        assert weight.std().item() == pytest.approx(math.sqrt(2 / seen), rel=0.02)
        assert network.get_parameter(f"{name}.bias").eq(0).all()


def test_bilinear_upsampling_comes_before_the_convolution_in_effect():
    torch.manual_seed(0)
    block = Expansion(8, 4, padded=True, bilinear=True).eval()
    x, skip = torch.randn(2, 8, 3, 4), torch.randn(2, 4, 7, 8)
    up = block.up(F.interpolate(x, (7, 8), mode="bilinear"))
    torch.testing.assert_close(block(x, skip), block.convs(torch.cat([skip, up], 1)))


# Sizes


@pytest.mark.parametrize("name", [*PADDED, "unet/resnet18", "unet/resnet50_short", "unet/vgg11_bn"])
@pytest.mark.parametrize("size", [(37, 50), (64, 33)])
def test_each_pixel_has_its_logits_whatever_the_size(name, size):
    assert shell(name)(blank(2, 3, *size)).shape == (2, 5, *size)


@pytest.mark.parametrize(("name", "size"), [("unet/alexnet", (67, 82)), ("unet/lenet5", (21, 38))])
def test_each_pixel_has_its_logits_where_the_backbone_does_not_pad(name, size):
    assert shell(name)(blank(2, 3, *size)).shape == (2, 5, *size)


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize(("padded", "left"), [(True, 16), (False, 4)])
def test_the_smallest_image_works_and_a_smaller_one_does_not(padded, bilinear, left):
    with torch.device("meta"):
        network = UNet(5, width=4, padded=padded, bilinear=bilinear)
    side = network.minimum_image_size
    assert network(blank(2, 3, side, side)).shape == (2, 5, left, left)
    with pytest.raises(RuntimeError):
        network(blank(2, 3, side - 1, side - 1))


def test_a_row_that_pooling_leaves_over_does_not_shift_the_map():
    torch.manual_seed(0)
    block, x = Expansion(8, 4, padded=True, bilinear=False).eval(), torch.randn(1, 8, 3, 3)
    even, odd = block(x, torch.zeros(1, 4, 6, 6)), block(x, torch.zeros(1, 4, 7, 7))
    assert odd.shape == (1, 4, 7, 7)
    torch.testing.assert_close(even[..., :4, :4], odd[..., :4, :4])


def test_a_decoder_is_bound_to_image_sizes_as_its_backbone_but_for_the_classifier():
    assert image_sizes("unet/vit_b_32") == image_sizes("vit_b_32") == (224, False, 32, 32)
    assert image_sizes("unet/densenet121") == image_sizes("densenet121") == (224, False, 29, 1)
    assert image_sizes("lenet5") == (32, True, 16, 1)
    assert image_sizes("unet/lenet5") == (32, False, 16, 1)
    assert image_sizes("unet_paper") == (572, False, 188, 1)
    assert image_sizes("unet_small") == (64, False, 16, 1)


# On every network


@pytest.mark.parametrize("name", each(MODELS, (*FAMILIES, "googlenet")))
def test_a_decoder_works_on_every_network_and_leaves_no_parameter_without_a_gradient(name):
    network = shell(f"unet/{name}", in_chans=1).train()
    sides = {network.default_image_size, network.minimum_image_size}
    for side in sorted(sides - {1}):
        logits = network(blank(2, 1, side, side))
        assert logits.shape == (2, 5, side, side)
    names, parameters = zip(*((key, p) for key, p in network.named_parameters() if p.requires_grad))
    gradients = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
    assert [key for key, gradient in zip(names, gradients) if gradient is None] == []


@pytest.mark.parametrize("name", each(ONE_OF_EACH_FAMILY, ["lenet5", "resnet18", "vit_s_16"]))
def test_a_decoder_on_a_network_of_each_family_trains(name):
    torch.manual_seed(0)
    network = build(f"unet/{name}", 3, 3).train()
    side = max(32, network.minimum_image_size)
    x, targets = torch.randn(2, 3, side, side), torch.randint(3, (2, side, side))
    names, parameters = zip(*network.named_parameters())
    gradients = torch.autograd.grad(F.cross_entropy(network(x), targets), parameters)
    assert all(gradient.isfinite().all() for gradient in gradients)
    # a residual branch that starts at zero keeps the gradient from what is before it, in the backbone
    still = [key for key, gradient in zip(names, gradients) if not gradient.any()]
    assert [key for key in still if not key.startswith("backbone.")] == []


class Plain(FeatureSequence):
    """Two stages of stride 2, one of stride 8."""

    stages = (Stage("features.0", 4, 2), Stage("features.1", 5, 2), Stage("features.2", 6, 8))

    def __init__(self) -> None:
        super().__init__()
        strided = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(5, 6, 3, stride=4, padding=1)
        self.features = nn.Sequential(strided[0], nn.Conv2d(4, 5, 1), strided[1])
        self.classifier_name, self.classifier = "classifier", nn.Linear(6, 10)


def test_a_decoder_has_16_channels_for_each_pixel_of_stride_and_skips_from_the_last_stage_of_one():
    network = BackboneUNet(Plain(), 7).eval()
    inputs = []
    for block in network.decoder:
        block.get_submodule("convs").register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    x = torch.randn(1, 3, 16, 16)
    assert network.forward_features(x).shape == (1, 16, 16, 16)
    assert [tuple(i.shape[1:]) for i in inputs] == [(6, 4, 4), (64 + 5, 8, 8), (32, 16, 16)]
    skip = network.forward_stages(x)[1]
    assert torch.equal(inputs[1][:, :5], skip)
    assert torch.equal(inputs[0][..., ::2, ::2], network.forward_stages(x)[2])  # the nearest neighbour


# What every network keeps to


@pytest.mark.parametrize("name", ["unet_small", "unet/resnet18", "unet/convnext_tiny", "unet/googlenet"])
@torch.no_grad()
def test_stages_are_those_of_the_encoder_and_the_head_sees_the_decoder_s_last_map(name):
    network, seen = small(name), {}
    for stage in network.stages:
        network.get_submodule(stage.name).register_forward_hook(
            lambda module, args, output, key=stage.name: seen.update({key: output})
        )
    x = torch.randn(2, 3, 64, 64)
    maps = network.forward_stages(x)
    assert [tuple(m.shape) for m in maps] == [
        (2, stage.channels, 64 // stage.stride, 64 // stage.stride) for stage in network.stages
    ]
    assert all(seen[stage.name] is map for stage, map in zip(network.stages, maps))
    features = network.forward_features(x)
    assert features.shape == (2, 16, 64, 64)
    assert torch.equal(network(x), network.forward_head(features))


@pytest.mark.parametrize("name", ["unet_small", "unet_bilinear", "unet_paper", "unet/resnet20"])
def test_a_new_classifier_changes_the_number_of_classes_and_nothing_else(name):
    network = shell(name, num_classes=5)
    before = dict(network.named_parameters())
    network.reset_classifier(4)
    after = dict(network.named_parameters())
    assert {key for key in after if after[key] is not before[key]} == {"head.weight", "head.bias"}
    assert after["head.weight"].is_meta
    assert network(blank(2, 3, 188, 188)).shape[1] == 4


def test_a_hidden_layer_before_the_classifier_is_refused(wording):
    with pytest.raises(ValueError, match="^--head mlp:") as caught:
        reset_classifier(shell("unet_small"), 4, hidden=16)
    wording(caught.value)


@pytest.mark.parametrize("name", [*SEGMENTATION, *(f"unet/{name}" for name in ONE_OF_EACH_FAMILY)])
def test_layer_groups_hold_every_parameter_once_from_the_input_to_the_classifier(name):
    network = shell(name)
    parameters = dict(network.named_parameters())
    groups = [
        [key for key in parameters for name in group if f"{key}.".startswith(f"{name}.")]
        for group in layer_groups(network)
    ]
    assert all(groups)
    assert sorted(key for group in groups for key in group) == sorted(parameters)
    assert next(iter(parameters)) in groups[0]
    assert groups[-1][-2:] == ["head.weight", "head.bias"]


def test_the_last_group_is_the_classifier_or_with_a_backbone_all_of_the_decoder():
    ends = [f"encoder.{i}" for i in range(5)], [f"decoder.{i}" for i in range(4)]
    assert shell("unet_small").layer_groups() == [[name] for part in ends for name in part] + [["head"]]
    groups = shell("unet/resnet18").layer_groups()
    assert groups[0] == ["backbone.conv1", "backbone.bn1"]
    assert groups[-2:] == [["backbone.layer4.1"], ["decoder", "head"]]


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "googlenet", "lenet5", "vit_s_16", "densenet121"])
def test_freezing_the_backbone_freezes_just_that(name):
    network = shell(f"unet/{name}").train()
    names = frozen_layers(network, "backbone", None)
    frozen = Frozen(network, names)
    frozen.hold()
    for key, parameter in network.named_parameters():
        assert parameter.requires_grad == (not key.startswith("backbone."))
    modules = dict(network.named_modules())
    assert not any(m.training for key, m in modules.items() if key in names)
    assert all(m.training for m in network.get_submodule("decoder").modules())
    assert describe_frozen(network, names, None).startswith("frozen up to backbone.")
    frozen.release()
    assert all(p.requires_grad for p in network.parameters())


def test_an_encoder_is_frozen_up_to_a_level(wording):
    network = shell("unet_small")
    assert frozen_layers(network, "none", "encoder") == [f"encoder.{i}" for i in range(5)]
    assert frozen_layers(network, "none", "encoder.1.2") == ["encoder.0", "encoder.1"]
    with pytest.raises(ValueError, match="^--freeze-until decoder:") as caught:
        frozen_layers(shell("unet/resnet18"), "none", "decoder")
    wording(caught.value)


def test_the_decoder_learns_at_the_whole_rate_and_the_backbone_at_its_share():
    scales = lr_scales(shell("unet/resnet18"), backbone=0.1, decay=1.0)
    assert {key for key, scale in scales.items() if scale == 1} == {
        key for key in scales if not key.startswith("backbone.")
    }
    assert set(scales.values()) == {0.1, 1.0}
    decayed = lr_scales(shell("unet_small"), backbone=1.0, decay=0.5)
    assert (decayed["head.weight"], decayed["decoder.3.up.weight"]) == (1.0, 0.5)
    assert decayed["encoder.0.0.0.weight"] == 0.5**9


@pytest.mark.parametrize("name", ["unet_small", "unet/resnet20", "unet/vgg11_cifar"])
def test_weights_for_other_classes_are_loaded_but_for_the_head(name, wording):
    theirs, ours = small(name, num_classes=3).state_dict(), small(name, num_classes=4)
    head = ours.get_parameter("head.weight").clone()
    (remark,) = load_weights(ours, theirs)
    wording(remark)
    assert torch.equal(ours.get_parameter("head.weight"), head)
    assert all(torch.equal(v, theirs[k]) for k, v in ours.state_dict().items() if not k.startswith("head."))
    assert load_weights(small(name, num_classes=3), theirs) == []


def test_weights_for_other_channels_are_adapted(wording):
    ours = build("unet/resnet20", 3, in_chans=1)
    (remark,) = load_weights(ours, small("unet/resnet20", 3).state_dict())
    wording(remark)


def test_weights_of_a_classifier_are_loaded_into_the_backbone(wording):
    theirs = build("resnet20", 10).state_dict()
    ours = build("unet/resnet20", 3).get_submodule("backbone")
    (remark,) = load_weights(ours, theirs)
    wording(remark)
    assert all(torch.equal(v, theirs[k]) for k, v in ours.state_dict().items())


# As the engine uses them


def in_another_layout(network: nn.Module, *shape: int) -> list[tuple[int, ...]]:
    """Strides of the maps that are not channels-last, where image and weights are."""
    other: list[tuple[int, ...]] = []

    def look(module: nn.Module, args: object, output: object) -> None:
        maps = [output] if isinstance(output, Tensor) and output.ndim == 4 else []
        other.extend(m.stride() for m in maps if not m.is_contiguous(memory_format=torch.channels_last))

    for module in network.to(memory_format=torch.channels_last).modules():
        module.register_forward_hook(look)
    network(torch.randn(shape).contiguous(memory_format=torch.channels_last))
    return other


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: UNet(3, width=4), (37, 50)),
        (lambda: UNet(3, width=4, bilinear=True), (37, 50)),
        (lambda: UNet(3, width=4, padded=False), (189, 190)),
        (lambda: build("unet/resnet18", 3), (37, 50)),
        (lambda: build("unet/vit_s_16", 3), (32, 48)),
    ],
    ids=["padded", "bilinear", "paper", "resnet18", "vit"],
)
def test_channels_last_memory_stays_so(make, size):
    assert in_another_layout(make(), 2, 3, *size) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet_small", "unet/resnet18"])
@pytest.mark.parametrize("training", [True, False])
def test_a_network_compiles_without_a_graph_break(name, training):
    torch._dynamo.reset()
    network = small(name).train(training)
    x = torch.randn(2, 3, 37, 50)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = torch.compile(network, backend="eager", fullgraph=True)(x)
    assert outputs.shape == (2, 5, 37, 50)
    assert outputs.isfinite().all()


# Names


def test_a_network_by_name_has_3_channels_and_21_classes_unless_told():
    with torch.device("meta"):
        lenet, resnet = constructor("unet/lenet5")(), constructor("unet/resnet18")(num_classes=4, in_chans=2)
    assert lenet.get_parameter("backbone.conv1.weight").shape[1] == 3
    assert lenet.get_parameter("head.weight").shape[0] == 21
    assert resnet.get_parameter("backbone.conv1.weight").shape[1] == 2
    assert resnet.get_parameter("head.weight").shape[0] == 4


@pytest.mark.parametrize("name", ["unet/resnet-18", "unet/zzzz", "unet-small", "net/resnet18"])
def test_an_unknown_name_suggests_the_nearest(name, wording):
    with pytest.raises(ValueError, match=f"^--arch {name}: ") as caught:
        build(name)
    wording(caught.value)
    assert "\n" not in str(caught.value)
