"""What every network keeps to, and that each is the published one: sizes, parameters, torchvision's keys."""

from __future__ import annotations

import functools
import math
import re

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import StochasticDepth

from fastcnn.config import OptimizerSettings
from fastcnn.data.batch import Batch
from fastcnn.engine.state import Normalized, StepOptions, build_state, stop_if_not_finite
from fastcnn.engine.step import train_step
from fastcnn.models import MODELS, ConvNet, Outputs, Stage, alexnet, build, convnext, layers, vit
from fastcnn.models.cifar_resnet import CifarResNet, PadShortcut
from fastcnn.models.lenet import LeNet5
from fastcnn.models.resnet import BasicBlock, Bottleneck, ResNet, resnet18
from fastcnn.models.vgg import VGG, Head
from fastcnn.optim.build import build_optimizer
from fastcnn.optim.schedules import Schedule
from fastcnn.runtime import machine
from fastcnn.tasks.classification import Classification
from fastcnn_kernels import DepthwiseConv2d
from networks import FAMILIES, STRUCTURES, each
from ranks import command

LENETS = ("lenet5", "lenet5_relu")
TORCHVISION = {name: name for name in MODELS if hasattr(torchvision.models, name) and name != "alexnet"}
TORCHVISION["alexnet_torchvision"] = "alexnet"
"""Networks that torchvision has, by our names."""
VITS = tuple(name for name in MODELS if name.startswith("vit"))
CHEAP = (
    *(*LENETS, "vgg11_cifar", "googlenet", "inception_v1", "resnet18", "resnet20", "densenet121"),
    *("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "vit_s_16"),
)
"""Networks that are run for real; the others' shapes are computed without numbers."""
SIZE = 64
"""Pixels a side where a network is run for real, if it takes them."""


def shell(name: str, num_classes: int | None = 10, in_chans: int = 3) -> ConvNet:
    """The network without memory or numbers, for shapes and counts."""
    with torch.device("meta"):
        return build(name, num_classes, in_chans)


outline = functools.cache(shell)
"""A shell that is only looked at, made once."""


def small(name: str, num_classes: int = 10) -> ConvNet:
    torch.manual_seed(0)
    return build(name, num_classes).eval()


def images(network: ConvNet, count: int = 2, size: int | None = None, channels: int = 3) -> torch.Tensor:
    side = max(size or network.default_image_size, network.minimum_image_size)
    side = network.default_image_size if network.fixed_image_size else side
    shape = (count, channels, side, side)
    if next(network.parameters()).is_meta:
        return torch.empty(shape, device="meta")
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# Every network


@pytest.mark.parametrize(
    ("name", "in_chans"),
    [
        *(pytest.param(*name.values, 3, marks=name.marks) for name in each(MODELS)),
        *(pytest.param(*name.values, 1, marks=name.marks) for name in each(MODELS, FAMILIES)),
    ],
)
def test_images_of_the_published_size_become_one_logit_for_each_class(name, in_chans):
    network = shell(name, num_classes=7, in_chans=in_chans).eval()
    assert network(images(network, channels=in_chans)).shape == (2, 7)


@pytest.mark.parametrize("name", each(MODELS))
def test_the_docstring_states_the_number_of_parameters(name):
    doc = LeNet5.__doc__ if name in LENETS else MODELS[name].__doc__
    stated = re.search(r"([\d,]+) parameters", doc or "")
    assert stated is not None, f"{name}'s docstring states no number of parameters"
    num_classes = 10 if outline(name).default_image_size == 32 else 1000
    network = shell(name, num_classes, in_chans=1 if name in LENETS else 3)
    assert count(network) == int(stated[1].replace(",", ""))


@pytest.mark.parametrize("name", each(MODELS))
def test_stages_state_the_channels_and_the_stride_of_forward_stages(name):
    network = outline(name)
    shapes = [x.shape for x in network.forward_stages(images(network))]
    assert [shape[:2] for shape in shapes] == [(2, stage.channels) for stage in network.stages]
    # By how much the map grows with the image, so that convolutions without padding count alike.
    side = network.default_image_size + 64
    larger = network.forward_stages(torch.empty(2, 3, side, side, device="meta"))
    grown = [after.shape[2] - before[2] for after, before in zip(larger, shapes)]
    assert [64 // growth for growth in grown] == [stage.stride for stage in network.stages]


@pytest.mark.parametrize("name", each(name for name in MODELS if name not in VITS))
def test_stages_name_the_modules_whose_outputs_they_are(name):
    network, seen = shell(name), {}
    for stage in network.stages:
        network.get_submodule(stage.name).register_forward_hook(
            lambda module, args, output, key=stage.name: seen.update({key: output})
        )
    outputs = network.forward_stages(images(network))
    assert all(seen[stage.name] is output for stage, output in zip(network.stages, outputs))


@pytest.mark.parametrize("name", each(CHEAP, FAMILIES))
@torch.no_grad()
def test_features_are_the_last_stage_and_the_head_makes_them_logits(name):
    network = small(name)
    x = images(network, size=SIZE)
    features = network.forward_features(x)
    if name not in VITS:
        assert torch.equal(features, network.forward_stages(x)[-1])
    assert torch.equal(network(x), network.forward_head(features))


@pytest.mark.parametrize("name", each(MODELS))
def test_a_new_classifier_changes_the_number_of_logits_and_nothing_else(name):
    network = shell(name, num_classes=10)
    before = dict(network.named_parameters())
    network.reset_classifier(4)
    after = dict(network.named_parameters())
    fresh = {key for key in after if after[key] is not before[key]}
    classifiers = [network.classifier_name, *(f"aux{i}.fc2" for i in (1, 2) if hasattr(network, f"aux{i}"))]
    assert fresh == {f"{layer}.{kind}" for layer in classifiers for kind in ("weight", "bias")}
    assert {tuple(after[key].shape[:1]) for key in fresh} == {(4,)}
    assert all(after[key].is_meta for key in fresh), "the new layer left the device of the old one"
    assert network.eval()(images(network)).shape == (2, 4)


@pytest.mark.parametrize("name", each(MODELS))
def test_layer_groups_hold_every_parameter_once_from_the_input_to_the_classifier(name):
    network = outline(name, num_classes=7)
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


@pytest.mark.parametrize("name", each(MODELS))
def test_a_classifier_with_a_hidden_layer_is_one_group(name):
    network = shell(name)
    network.reset_classifier(4, hidden=16)
    assert network.layer_groups()[-1] == [network.classifier_name]
    shapes = [p.shape for p in network.get_submodule(network.classifier_name).parameters() if p.ndim > 1]
    assert [shape[0] for shape in shapes] == [16, 4]
    assert network.eval()(images(network)).shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resnet-50", "resnet50"), ("ResNet18", "resnet18"), ("lenet", "lenet5"), ("resnet5", "resnet56")],
)
def test_an_unknown_name_suggests_the_nearest(name, nearest, wording):
    with pytest.raises(ValueError) as caught:
        build(name, 10)
    message = str(caught.value)
    assert message.startswith(f"--arch {name}: ")
    assert nearest in message
    assert "\n" not in message
    wording(message)


def test_a_name_like_no_other_says_where_they_are_listed(wording):
    with pytest.raises(ValueError) as caught:
        build("zzzz", 10)
    assert str(caught.value).startswith("--arch zzzz: ")
    wording(caught.value)


# As published


PUBLISHED = {
    "lenet5": 61_706,
    "alexnet": 62_378_344,
    "alexnet_torchvision": 61_100_840,
    "vgg16": 138_357_544,
    "resnet50": 25_557_032,
    "densenet121": 7_978_856,
    "mobilenet_v1": 4_231_976,
    "mobilenet_v2": 3_504_872,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b7": 66_347_960,
    "convnext_tiny": 28_589_128,
    "vit_b_16": 86_567_656,
    "vit_s_16": 22_050_664,
}


@pytest.mark.parametrize("name", each(PUBLISHED, [*STRUCTURES, "vgg16"]))
def test_the_number_of_parameters_is_the_published_one(name):
    assert count(shell(name, None, in_chans=1 if name in LENETS else 3)) == PUBLISHED[name]


def test_googlenet_without_its_auxiliary_classifiers_has_the_published_number_of_parameters():
    with torch.device("meta"):
        assert count(build("googlenet", aux=False)) == 6_624_904
        assert count(build("inception_v1", aux=False)) == 6_998_552


@pytest.mark.parametrize("name", each(TORCHVISION))
def test_state_dict_has_the_keys_and_shapes_of_torchvision(name):
    ours, theirs = shell(name, 1000).state_dict(), torchvisions(name, 1000).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


ONE_OF_EACH_FAMILY = (
    *("alexnet_torchvision", "vgg11_bn", "googlenet", "resnet18", "resnext50_32x4d", "densenet121"),
    *("mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "vit_b_32"),
)


@pytest.mark.parametrize("name", each(TORCHVISION, ["resnet18", "mobilenet_v2"]))
def test_torchvision_weights_give_torchvision_outputs(name):
    """Evaluating and training, and gradients of one network of each family; all weights are random."""
    torch.manual_seed(0)
    theirs, ours = torchvisions(name, 10).to_empty(device="cpu"), shell(name, 10)
    fill(theirs)
    weights = {k: v.clone() if "running" in k else v for k, v in theirs.state_dict().items()}
    ours.load_state_dict(weights, assign=True)
    for network in (ours, theirs):
        without_chance(network)
    x = images(ours, count=4, size=None if name in VITS else SIZE)
    with torch.no_grad():
        assert_close(ours.eval()(x), theirs.eval()(x))
    with torch.set_grad_enabled(name in ONE_OF_EACH_FAMILY):
        output, expected = ours.train()(x), theirs.train()(x)
    if isinstance(output, Outputs):
        logits, aux2, aux1 = expected
        assert_close(output.aux[0], aux1)
        assert_close(output.aux[1], aux2)
        output, expected = output.logits, logits
    assert_close(output, expected)
    for key, buffer in theirs.named_buffers():
        if "running" in key:
            assert_close(ours.get_buffer(key), buffer)
    if name in ONE_OF_EACH_FAMILY:
        mine = torch.autograd.grad(output.square().sum(), list(ours.parameters()), allow_unused=True)
        other = torch.autograd.grad(expected.square().sum(), list(theirs.parameters()), allow_unused=True)
        largest = max(g.abs().max() for g in other if g is not None)
        for (key, _), a, b in zip(ours.named_parameters(), mine, other):
            assert (a is None) == (b is None), key
            if a is not None and b is not None:
                assert (a - b).abs().max() <= 1e-5 * largest, key


def torchvisions(name: str, num_classes: int) -> nn.Module:
    options = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        return getattr(torchvision.models, TORCHVISION[name])(num_classes=num_classes, **options)


def fill(network: nn.Module) -> None:
    """Random weights and statistics: not the fresh 0 and 1, which hide where they are used."""
    for key, value in network.state_dict().items():
        if value.ndim > 1 and "layer_scale" not in key:
            value.normal_(0, 1 / math.sqrt(value[0].numel()))
        elif value.is_floating_point():
            value.uniform_(0.5, 1)


def without_chance(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.0


def assert_close(output: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.isfinite().all()
    assert (output - expected).abs().max() <= 1e-5 * expected.abs().max()


# As the engine uses them


@pytest.mark.parametrize(
    "name", each(MODELS, ("lenet5", "googlenet", "resnet18", "mobilenet_v2", "vit_s_16"))
)
def test_a_network_trains_a_step_and_evaluates_in_channels_last(name):
    """In bf16, where the processor does not emulate it or the network is small."""
    dtype = torch.bfloat16 if name in LENETS or machine.is_native("bf16") else torch.float32
    torch.manual_seed(0)
    network = build(name, 10).to(memory_format=torch.channels_last)
    pixels = images(network, 4, SIZE).mul(50).add(128).clamp(0, 255).byte()
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    batch = Batch(pixels, torch.arange(4), torch.ones(4, dtype=torch.bool))
    optimizer = build_optimizer(network, OptimizerSettings(weight_decay=1e-4), lr=0.01)
    schedule, options = Schedule(peak=0.01, steps_per_epoch=1, epochs=1), StepOptions(amp_dtype=dtype)
    state = build_state(network, optimizer, schedule, options, mean=(0.5,) * 3, std=(0.25,) * 3)
    task = Classification(10)
    metrics = task.metrics(state.device)
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    state.train_model.train()
    train_step(state, task, [batch], metrics)
    stop_if_not_finite(state)
    assert metrics.compute()["loss"] > 0
    unchanged = {key for key, value in network.named_parameters() if torch.equal(value, before[key])}
    # a classifier or a residual branch that starts at zero keeps the gradient from what is before it
    assert not unchanged & {f"{network.classifier_name}.weight", f"{network.classifier_name}.bias"}
    state.eval_model.eval()
    with torch.no_grad(), state.autocast():
        logits = state.eval_model(batch.images)
    assert logits.shape == (4, 10)
    assert logits.isfinite().all()


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *(
            "lenet5",
            "alexnet",
            "vgg11_cifar",
            "inception_v1",
            "resnet18",
            "resnext50_32x4d",
            "resnet50_short",
        ),
        *("densenet121", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "vit_s_16"),
    ],
)
def test_a_network_of_each_family_trains_by_the_command(name, photos, tmp_path):
    flags = ["--arch", name, "--data", str(photos), "--batch-size", "8", "--epochs", "1"]
    flags += ["--amp-dtype", "fp32", "--channels-last", "on", "--compile", "off"]
    size = 32 if outline(name).default_image_size == 32 else 96
    flags += ["--img-size", str(size), "--output-dir", "run", "--data-backend", "torch"]
    with command(tmp_path, *flags) as process:
        process.join(250)
        out = (tmp_path / "out.txt").read_text()
        assert process.exitcode == 0, out
    assert "of 7 images (epoch 1)" in out
    assert (tmp_path / "run" / "best.pt").is_file()


@pytest.mark.parametrize("name", each(MODELS, []))
def test_a_network_compiles_without_a_graph_break(name):
    """Training and evaluating, under autocast; traced without numbers."""
    network = build(name, 10)
    x = images(network, 2, SIZE).byte()
    for training in (True, False):
        torch._dynamo.reset()
        normalized = Normalized(network, (0.5,) * 3, (0.25,) * 3).train(training)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = torch.compile(normalized, backend="eager", fullgraph=True)(x)
        assert isinstance(outputs, Outputs) == (training and hasattr(network, "aux1"))


@pytest.mark.parametrize("name", each(MODELS))
def test_the_smallest_image_works_and_a_smaller_one_does_not(name):
    network = outline(name).eval()
    smallest = network.default_image_size if network.fixed_image_size else network.minimum_image_size
    x = torch.empty(2, 3, smallest, smallest, device="meta")
    assert network(x).shape == (2, 10)
    if smallest > 1:
        with pytest.raises((RuntimeError, ValueError)):
            network(x[:, :, 1:, 1:])


@pytest.mark.parametrize("name", each((name for name in CHEAP if name not in LENETS), FAMILIES))
@torch.no_grad()
def test_other_sizes_than_the_published_one_work(name):
    network = small(name)
    x = torch.randn(2, 3, 96, 64 + network.image_size_multiple)
    assert network(x).shape == (2, 10)


# ResNets


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
        (lambda: ResNet((2, 1, 1, 1), 10), 5),
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
def test_a_cifar_depth_that_is_not_6n_plus_2_is_refused(depth, wording):
    with pytest.raises(ValueError) as caught:
        CifarResNet(depth)
    wording(caught.value)


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


@pytest.mark.slow
def test_only_lenet_is_bound_to_one_image_size():
    assert [name for name in MODELS if outline(name).fixed_image_size] == list(LENETS)


# AlexNet and VGG


def test_alexnet_normalizes_relu_of_the_first_two_convolutions_as_the_paper_does():
    norm = layers.response_norm(relu=True)
    x = torch.randn(1, 8, 2, 2)
    a = x.relu()
    sums = torch.stack([a[:, max(0, i - 2) : i + 3].square().sum(1) for i in range(8)], 1)
    torch.testing.assert_close(norm(x), a / (2 + 1e-4 * sums) ** 0.75)
    assert [n for n, m in shell("alexnet").named_modules() if isinstance(m, nn.LocalResponseNorm)] == [
        *("features.norm1", "features.norm2")
    ]


def test_alexnet_starts_as_in_the_paper():
    torch.manual_seed(0)
    network = alexnet.alexnet()
    ones = {n for n, p in network.named_parameters() if n.endswith("bias") and p.eq(1).all()}
    assert ones == {f"features.conv{i}.bias" for i in (2, 4, 5)} | {f"classifier.fc{i}.bias" for i in (6, 7)}
    assert network.get_parameter("classifier.fc6.weight").std().item() == pytest.approx(0.01, rel=0.01)


def test_alexnet_in_two_columns_has_the_paper_s_connections():
    with torch.device("meta"):
        assert count(build("alexnet", groups=2)) == 60_965_224


def test_vgg_takes_any_configuration():
    network = VGG([8, "M", 16, 16, "M"], num_classes=3, head=Head(map_size=4, hidden=(20,)), image_size=16)
    assert network.stages == (
        Stage("features.1", 8, 1),
        Stage("features.6", 16, 2),
        Stage("features.7", 16, 4),
    )
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 3)


@pytest.mark.parametrize("cfg", [[], ["M", 8], [8, "P"], [8, 0], [8.5]])
def test_vgg_refuses_what_is_no_configuration(cfg, wording):
    with pytest.raises(ValueError) as caught:
        VGG(cfg)
    wording(caught.value)


def test_vgg_for_cifar_has_a_512_512_10_head_with_batch_norm_and_a_wide_one_on_a_4x4_map():
    head = shell("vgg16_cifar").get_submodule("classifier")
    linear = [(m.in_features, m.out_features) for m in head.modules() if isinstance(m, nn.Linear)]
    assert linear == [(512, 512), (512, 10)]
    assert any(isinstance(m, nn.BatchNorm1d) for m in head.modules())
    wide = [
        m for m in shell("vgg16_cifar_wide").get_submodule("classifier").modules() if isinstance(m, nn.Linear)
    ]
    assert [(m.in_features, m.out_features) for m in wide] == [(512 * 4 * 4, 4096), (4096, 4096), (4096, 10)]


# The others


def test_googlenet_returns_the_auxiliary_logits_in_training_alone():
    network = shell("inception_v1", 7)
    outputs = network.train()(images(network))
    assert isinstance(outputs, Outputs)
    assert [tuple(x.shape) for x in (outputs.logits, *outputs.aux)] == [(2, 7)] * 3
    with torch.device("meta"):
        assert isinstance(build("inception_v1", aux=False)(images(network)), torch.Tensor)


def test_frozen_auxiliary_classifiers_are_left_out():
    network = shell("googlenet", 7).train()
    for name in ("aux1", "aux2"):
        network.get_submodule(name).eval()
    assert isinstance(network(images(network)), torch.Tensor)


def test_convnext_s_norms_belong_to_the_layers_before_them():
    groups = shell("convnext_tiny").layer_groups()
    assert groups[0] == ["features.0.0", "features.0.1"]
    assert ["features.1.2", "features.2.0"] in groups
    assert len(groups) == 1 + 18 + 3 + 1  # the stem, blocks, what halves the map, the classifier


def test_inception_v1_has_5x5_convolutions_and_torchvision_s_googlenet_has_none():
    def sizes(name):
        return {m.kernel_size[0] for m in shell(name).modules() if isinstance(m, nn.Conv2d)}

    assert sizes("inception_v1") == sizes("inception_v1_bn") == {1, 3, 5, 7}
    assert sizes("googlenet") == {1, 3, 7}


@pytest.mark.parametrize(
    "name", each(n for n in MODELS if n.startswith(("mobilenet", "efficientnet", "convnext")))
)
def test_depthwise_layers_are_those_of_fastcnn_kernels(name):
    depthwise = [
        m for m in outline(name).modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1
    ]
    assert depthwise
    assert all(isinstance(m, DepthwiseConv2d) for m in depthwise)


@pytest.mark.parametrize(
    ("name", "width", "millions"),
    [
        *(("mobilenet_v1", 0.75, 2.6), ("mobilenet_v1", 0.5, 1.3), ("mobilenet_v1", 0.25, 0.5)),
        *(("mobilenet_v2", 0.5, 2.0), ("mobilenet_v2", 0.75, 2.6), ("mobilenet_v2", 1.4, 6.1)),
        *(("mobilenet_v3_large", 0.75, 4.0), ("mobilenet_v3_small", 0.75, 2.0)),
    ],
)
def test_a_width_multiplier_gives_the_published_number_of_parameters(name, width, millions):
    with torch.device("meta"):
        assert count(build(name, width_mult=width)) / 1e6 == pytest.approx(millions, abs=0.08)


def test_efficientnet_variants_are_of_the_paper_s_sizes():
    sizes = {name: outline(name).default_image_size for name in MODELS if name.startswith("efficientnet")}
    assert list(sizes.values()) == [224, 240, 260, 300, 380, 456, 528, 600]
    rates = [m.p for name in sizes for m in outline(name).modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5]


def test_convnext_s_norms_copy_nothing_in_channels_last_memory():
    norm = convnext.LayerNorm2d(8)
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    copies = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            copies.extend(
                [function] if function.name() in ("aten::clone", "aten::copy_", "aten::_to_copy") else []
            )
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        y = norm(x)
    assert not copies
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_vit_attention_is_that_of_torch():
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    ours = vit.SelfAttention(12, 3)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


@torch.no_grad()
def test_vit_interpolates_its_positions_for_other_sizes():
    variant = vit.Variant(patch=16, width=8, depth=2, heads=2)
    encoder = vit.Encoder(1 + 4 * 4, variant, drop_rate=0.0, drop_path_rate=0.0)
    assert vit.resize_positions(encoder.pos_embedding, (4, 4)) is encoder.pos_embedding
    encoder.pos_embedding[:, 1:] = (
        torch.arange(4.0).repeat(4, 1).flatten()[None, :, None]
    )  # grows to the right
    positions = vit.resize_positions(encoder.pos_embedding, (6, 8))
    assert positions.shape == (1, 1 + 6 * 8, 8)
    assert torch.equal(positions[:, 0], encoder.pos_embedding[:, 0])
    rows = positions[0, 1:, 0].view(6, 8)
    torch.testing.assert_close(rows, rows[:1].expand(6, 8))
    assert (rows.diff(dim=1) > 0).all()
    assert rows.mean().item() == pytest.approx(1.5)


def test_vit_says_which_sizes_it_takes(wording):
    network = shell("vit_b_32")
    with pytest.raises(ValueError) as caught:
        network(torch.empty(1, 3, 224, 200, device="meta"))
    wording(caught.value)


@pytest.mark.parametrize("name", each(VITS))
def test_vit_s_stage_is_the_map_of_its_tokens(name):
    network = shell(name)
    (features,) = network.forward_stages(images(network))
    side = 224 // network.image_size_multiple
    assert features.shape == (2, network.stages[0].channels, side, side)
    assert network.forward_features(images(network)).shape == (2, 1 + side**2, features.shape[1])


def test_an_unknown_option_is_named_with_those_there_are(wording):
    with pytest.raises(ValueError) as caught:
        build("resnet18", depth=3)
    wording(caught.value)


def test_blurred_strides_have_the_parameters_of_the_network_and_smooth_before_each_stride():
    plain, blurred = build("resnet50"), build("resnet50_blur")
    assert {k: v.shape for k, v in plain.state_dict().items()} == {
        k: v.shape for k, v in blurred.state_dict().items()
    }
    convs = [m for m in blurred.modules() if isinstance(m, layers.BlurConv2d)]
    assert len(convs) == 6  # a 3x3 convolution and a shortcut in each of three stages
    x = torch.randn(1, 128, 8, 8)
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    channels = [F.conv2d(x[:, c : c + 1], kernel[None, None], padding=1) for c in range(128)]
    expected = F.conv2d(torch.cat(channels, 1), convs[0].weight, stride=2, padding=convs[0].padding)
    torch.testing.assert_close(convs[0](x), expected)
