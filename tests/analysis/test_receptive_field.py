"""Receptive fields: the published ones, those that gradients show, and what is said where there is none."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from fastcnn.analysis.receptive_field import FieldTracker, Local, Undefined, Whole, Window, receptive_fields
from fastcnn.models import MODELS, SEGMENTATION, ConvNet, build
from fastcnn.models.resnet import Bottleneck
from fastcnn.models.unet import UNet
from fastcnn.models.vit import EncoderBlock
from fastcnn_kernels import DepthwiseConv2d, LocalResponseNorm
from networks import each


def outline(name: str) -> ConvNet:
    """The network without memory or numbers."""
    with torch.device("meta"):
        return build(name, in_chans=3).eval()


def image(size: int, channels: int = 3, device: str = "meta") -> Tensor:
    return torch.empty(1, channels, size, size, device=device)


def features_field(network: ConvNet) -> Local:
    """Of the last feature map."""
    field = receptive_fields(network, image(network.default_image_size))[network.stages[-1].name]
    assert isinstance(field, Local)
    return field


def field_after(function, size: int = 32):
    """Of what a function makes of an image."""
    x = image(size)
    following = FieldTracker(x)
    with following:
        output = function(x)
    return following.field(output)


# Published figures


@pytest.mark.parametrize(
    ("name", "size", "stride"),
    [("alexnet", 195, 32), ("vgg16", 212, 32), ("mobilenet_v1", 315, 32)],
)
def test_fields_are_those_of_araujo_et_al(name, size, stride):
    for window in features_field(outline(name)).windows:
        assert (window.size, window.stride) == (size, stride)


def test_inception_v3_of_torchvision_has_the_field_of_araujo_et_al():
    with torch.device("meta"):
        network = torchvision.models.inception_v3(init_weights=False).eval()
    assert str(receptive_fields(network, image(299))["Mixed_7c"]).startswith("1311/32/")


def with_strides_as_in_slim(network: ConvNet) -> ConvNet:
    """Stride 2 is not in the first block of a stage but in the one before, shortcut and all."""
    stages: list[Any] = [network.get_submodule(stage.name) for stage in network.stages]
    for *_, last in stages[:-1]:
        last.conv2.stride, last.downsample = (2, 2), nn.MaxPool2d(1, stride=2)
    for first, *_ in stages[1:]:
        first.conv2.stride = first.downsample[0].stride = (1, 1)
    return network


def with_strides_as_in_the_paper(network: ConvNet) -> ConvNet:
    """A bottleneck's stride is in its first convolution, 1x1, instead of the 3x3."""
    for module in network.modules():
        if isinstance(module, Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
    return network


@pytest.mark.parametrize(
    ("name", "here", "published"),
    [
        ("resnet50", 427, 483),
        pytest.param("resnet101", 971, 1027, marks=pytest.mark.slow),
        pytest.param("resnet152", 1451, 1507, marks=pytest.mark.slow),
    ],
)
def test_published_resnets_have_their_strides_elsewhere(name, here, published):
    # The 3x3 convolutions with stride 2 see the finer map here, and the coarser one there.
    assert features_field(outline(name)).windows[0].size == here
    for other in (with_strides_as_in_slim, with_strides_as_in_the_paper):
        field = features_field(other(outline(name)))
        assert [(window.size, window.stride) for window in field.windows] == [(published, 32)] * 2


# Gradients


class Branches(nn.Module):
    """Two ways to maps of one stride, cut to one size, added up or side by side."""

    def __init__(self, ways: list[nn.Module], add: bool) -> None:
        super().__init__()
        self.ways, self.add = nn.ModuleList(ways), add

    def forward(self, x: Tensor) -> Tensor:
        maps = [way(x) for way in self.ways]
        height, width = (min(m.shape[axis] for m in maps) for axis in (2, 3))
        first, second = (m[:, :, :height, :width] for m in maps)
        return first + second if self.add else torch.cat([first, second], 1)[:, ::2]


class Every(nn.Module):
    """Some of the positions, as in shortcuts without parameters."""

    def __init__(self, start: int, step: int) -> None:
        super().__init__()
        self.rows, self.columns = slice(start, None, step), slice(None, -1, step)

    def forward(self, x: Tensor) -> Tensor:
        return x[..., self.rows, self.columns]


class Rearranged(nn.Module):
    """A layer over channels that come last, then channels in groups, then all as before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x.permute(0, 2, 3, 1)).movedim(-1, 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).flatten(1, 2)


def random_layer(rng: random.Random, stride: int, deep: bool = True) -> nn.Module:
    kernel, padding = (rng.randint(1, 5), rng.randint(1, 5)), (rng.randint(0, 2), rng.randint(0, 2))
    dilation, side = rng.randint(1, 2), rng.randint(2, 3)
    choices = [
        lambda: nn.Conv2d(4, 4, kernel, stride, padding, dilation),
        lambda: DepthwiseConv2d(4, kernel, stride, padding, dilation),
        lambda: nn.AvgPool2d(side, stride, side // 2),
        lambda: nn.MaxPool2d(side, stride, side // 2, ceil_mode=True),
        lambda: nn.Sequential(nn.ZeroPad2d((0, 2, 3, -1)), Every(rng.randint(0, 2), stride)),
        lambda: nn.Sequential(Rearranged(4), nn.Conv2d(4, 4, side, stride), nn.BatchNorm2d(4), nn.GELU()),
    ]
    if deep:
        ways = [random_layer(rng, stride, False), random_layer(rng, stride, False)]
        choices += [lambda: Branches(ways, add=True), lambda: Branches(ways, add=False)] * 2
    return rng.choice(choices)()


def without_maxima(network: nn.Module) -> nn.Module:
    """Means in place of maxima, whose gradient reaches one pixel alone."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                mean = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, ceil_mode=True)
                setattr(module, name, mean)
    return network


@pytest.mark.parametrize("seed", range(25))
def test_random_networks_have_the_fields_that_gradients_show(seed):
    rng = random.Random(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), *(random_layer(rng, stride) for stride in rng.choices((1, 1, 2), k=5))
    )
    network = network.eval().double()
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.5, 1)
    x = torch.ones(1, 3, 150, 170, dtype=torch.float64, requires_grad=True)
    field = receptive_fields(network, x)[""]
    assert isinstance(field, Local)
    output = without_maxima(network)(x)
    middle = output.shape[2] // 2, output.shape[3] // 2
    (gradient,) = torch.autograd.grad(output[0, :, middle[0], middle[1]].sum(), x)
    seen = gradient[0].sum(0).nonzero()
    for axis, (window, i) in enumerate(zip(field.windows, middle)):
        first, last = window.stride * i + window.first, window.stride * i + window.last
        assert 0 <= first <= last < x.shape[2 + axis], "the window leaves the image: no test"
        assert seen[:, axis].aminmax() == (first, last)


def check_around_neighbours(network: nn.Module, side: int, period: int) -> Local:
    """That the field of `network` is what as many neighbours as upsampling tells apart see together."""
    network = network.eval().double()
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.5, 1)
    x = torch.ones(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    field = receptive_fields(network, x)[""]
    assert isinstance(field, Local)
    output = without_maxima(network)(x)
    middle = (output.shape[2] - period) // 2
    seen = []
    for i in range(middle, middle + period):
        (gradient,) = torch.autograd.grad(output[0, :, i, i].sum(), x, retain_graph=True)
        pixels = gradient[0].sum(0).nonzero()
        seen.append(pixels - i * torch.tensor([window.stride for window in field.windows]))
        assert 0 < pixels.min() <= pixels.max() < side - 1, "a window leaves the image: no test"
    for axis, window in enumerate(field.windows):
        assert torch.cat(seen)[:, axis].aminmax() == (window.first, window.last)
    return field


@pytest.mark.parametrize(
    ("up", "period"),
    [
        (nn.ConvTranspose2d(4, 4, 2, stride=2), 2),
        (nn.ConvTranspose2d(4, 4, (3, 5), stride=(2, 3), padding=(1, 0), output_padding=1), 6),
        (nn.ConvTranspose2d(4, 4, 3, stride=2, padding=2, dilation=2), 2),
        (nn.Upsample(scale_factor=2), 2),
        (nn.Upsample(scale_factor=(3, 2)), 6),
        (nn.Upsample(scale_factor=2, mode="bilinear"), 2),
        (nn.Upsample(scale_factor=3, mode="bilinear"), 3),
    ],
)
def test_upsampled_maps_have_the_fields_that_gradients_of_neighbours_show(up, period):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(6), up, nn.Conv2d(4, 4, 3, padding=1))
    assert check_around_neighbours(network, side=96, period=period).notes == ("up",)


def test_a_transposed_convolution_without_a_stride_is_like_another():
    network = nn.Sequential(nn.AvgPool2d(6), nn.ConvTranspose2d(3, 4, (3, 2), padding=1))
    assert check_around_neighbours(network, side=96, period=1).notes == ()


def test_a_u_net_has_the_field_that_gradients_of_neighbours_show():
    field = check_around_neighbours(UNet(2, width=1, padded=False), side=252, period=16)
    assert str(field) == "215/1/-15 + up"


# Every network of ours


@pytest.mark.parametrize("name", each(MODELS))
def test_every_network_has_a_field_at_every_layer(name):
    network = outline(name)
    fields = receptive_fields(network, image(network.default_image_size))
    assert {key: str(f) for key, f in fields.items() if isinstance(f, Undefined)} == {}
    assert fields[network.classifier_name] == Whole()
    field = fields[network.stages[-1].name]
    if name.startswith("vit"):
        assert field == Whole()
    else:
        assert isinstance(field, Local)
        assert [window.stride for window in field.windows] == [network.stages[-1].stride] * 2
        assert field.notes == ("gate",) * name.startswith(("mobilenet_v3", "efficientnet"))


@pytest.mark.parametrize("name", [*SEGMENTATION, "unet/resnet18", "unet/efficientnet_b0", "unet/vit_s_16"])
def test_every_network_for_segmentation_has_a_field_at_every_layer(name):
    network = outline(name)
    fields = receptive_fields(network, image(network.default_image_size))
    assert {key: str(f) for key, f in fields.items() if isinstance(f, Undefined)} == {}
    if "vit" in name:
        assert fields["head"] == Whole()
    else:
        field = fields["head"]
        assert isinstance(field, Local)
        assert [window.stride for window in field.windows] == [1, 1]


# Words


def test_a_field_reads_as_size_stride_and_offset():
    square = Local((Window(4, -3, 7), Window(4, -3, 7)))
    assert str(square) == "11/4/-3"
    assert str(Local((Window(4, -3, 7), Window(2, -3, 3)), notes=("gate",))) == "11x7/4x2/-3 + gate"
    assert str(Whole()) == "whole image"
    assert str(Undefined("interpolate: why")) == "not defined (interpolate: why)"


# Operations


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_same_padding_puts_the_odd_pixel_at_the_end():
    weight = torch.empty(5, 3, 4, 4, device="meta")
    assert str(field_after(lambda x: F.conv2d(x, weight, padding="same"))) == "4/1/-1"


def test_our_own_operations_are_followed():
    layers = nn.Sequential(LocalResponseNorm(5), DepthwiseConv2d(3, 3, stride=2, padding=1)).to("meta")
    assert str(field_after(layers)) == "3/2/-1"


def test_global_operations_see_the_whole_image():
    linear = nn.Linear(3 * 32 * 32, 10, device="meta")
    for function in (
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: x.mean((2, 3)),
        lambda x: x.permute(0, 2, 3, 1).amax((1, 2), keepdim=True),
        lambda x: linear(x.flatten(1)),
        lambda x: F.adaptive_max_pool2d(x, 1).squeeze(-1).squeeze(-1).sigmoid(),
    ):
        assert field_after(function) == Whole()


def test_parts_of_the_channels_see_what_all_see():
    for function in (
        lambda x: x.chunk(3, 1)[2],
        lambda x: x.split(1, dim=1)[0],
        lambda x: x.unbind(1)[0],
        lambda x: x[:, 1, None],
        lambda x: x.sum(1),
    ):
        assert str(field_after(lambda x, part=function: part(F.max_pool2d(x, 4)))) == "4/4/0"


def test_a_factor_that_sees_the_whole_image_is_told_apart():
    field = field_after(lambda x: F.max_pool2d(x, 2) * x.mean((2, 3), keepdim=True).sigmoid())
    assert str(field) == "2/2/0 + gate"


def test_a_summand_that_sees_the_whole_image_makes_the_sum_see_it():
    assert field_after(lambda x: x + x.mean((2, 3), keepdim=True)) == Whole()
    assert field_after(lambda x: torch.cat([x, x.mean((2, 3), keepdim=True).expand_as(x)], 1)) == Whole()


def test_statistics_over_positions_are_told_apart():
    assert str(field_after(lambda x: F.group_norm(x, 1))) == "1/1/0 + norm"
    assert str(field_after(lambda x: F.layer_norm(x, x.shape[1:]))) == "1/1/0 + norm"
    assert str(field_after(lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (3,)))) == "1/1/0"


def test_a_token_sees_its_patch_until_attention():
    block, token = EncoderBlock(8, 2, 0.0, 0.0).to("meta"), torch.empty(1, 1, 8, device="meta")
    patches = nn.Conv2d(3, 8, 4, stride=4, device="meta")

    def tokens(x: Tensor) -> Tensor:
        return torch.cat([token, patches(x).flatten(2).transpose(1, 2)], 1)

    assert str(field_after(lambda x: block.ln_1(tokens(x)))) == "4/4/0"
    assert field_after(lambda x: block(tokens(x))) == Whole()
    heads = nn.MultiheadAttention(8, 2, batch_first=True, device="meta")
    assert field_after(lambda x: heads(*[tokens(x)] * 3)[0]) == Whole()
    assert field_after(lambda x: block(tokens(x))[:, 0]) == Whole()


def test_an_adaptive_pool_is_a_pool_where_its_windows_are_alike(wording):
    assert str(field_after(lambda x: F.adaptive_avg_pool2d(x, 32))) == "1/1/0"
    assert str(field_after(lambda x: F.adaptive_avg_pool2d(x, (8, 16)))) == "4x2/4x2/0"
    field = field_after(lambda x: F.adaptive_avg_pool2d(x, 7))
    wording(field.reason)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.interpolate(F.max_pool2d(x, 4), (9, 16)),
        lambda x: F.interpolate(F.max_pool2d(x, 4), scale_factor=2, mode="bicubic"),
        lambda x: x[:, :, ::2, ::2] + F.max_pool2d(x, 4)[..., :1, :1],
        lambda x: x + x.transpose(2, 3),
        lambda x: x + x[:, :, :1],
        lambda x: torch.cat([x, x], 2),
        lambda x: x[:, :, 0],
        lambda x: x.flatten(2).chunk(2, 2)[0],
        lambda x: x.flip(2),
        lambda x: x.mean(2),
        lambda x: x.view(1, 3, 4, 8, 32),
        lambda x: F.max_pool2d(x.permute(0, 2, 3, 1), 1),
    ],
    ids=[
        *("larger", "uneven", "bicubic", "strides", "axes", "one for several", "cat", "index", "chunk"),
        *("flip", "mean", "view", "permuted"),
    ],
)
def test_what_has_no_window_says_why_and_all_that_follows_too(function, wording):
    field = field_after(function)
    assert isinstance(field, Undefined)
    wording(field.reason)
    assert field_after(lambda x: F.relu(function(x)).mean()) == field


def test_writing_into_a_map_is_not_followed(wording):
    def write(x: Tensor) -> Tensor:
        y = F.relu(x)
        y[:, 0] = 0
        return y

    wording(field_after(write).reason)


def test_what_does_not_depend_on_the_image_has_no_field():
    assert field_after(lambda x: x.new_zeros(3) + 1) is None
    drop = torchvision.ops.StochasticDepth(0.5, "row").train()
    assert str(field_after(lambda x: x + drop(F.max_pool2d(x, 3, 1, 1)))) == "3/1/-1"


def test_the_network_keeps_no_trace():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(8, 8))
    with pytest.raises(RuntimeError):
        receptive_fields(network, image(9, device="cpu"))
    assert not any(module._forward_hooks for module in network.modules())
