"""What `fastcnn summary` and `fastcnn models` count, time and print."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastcnn.analysis.layer_times import time_layers
from fastcnn.analysis.summary import Layer, Summary, summarize
from fastcnn.analysis.tables import all_models, layer_table, short
from fastcnn.cli.commands.models import NETWORKS
from fastcnn.cli.main import main
from fastcnn.models import DETECTION, MODELS, SEGMENTATION, ConvNet, build
from fastcnn.transfer.weights import has_pretrained
from fastcnn_kernels.depthwise_conv import FLOPS, DepthwiseConv2d
from networks import each


def outline(name: str) -> ConvNet:
    """The network without memory or numbers."""
    with torch.device("meta"):
        return build(name, in_chans=3).eval()


def images(size: int, count: int = 1, device: str = "meta") -> Tensor:
    return torch.ones(count, 3, size, size, device=device)


@pytest.fixture(scope="module")
def resnet50() -> Summary:
    return summarize(outline("resnet50"), images(224))


def layer(summary: Summary, name: str) -> Layer:
    """The only call of a module."""
    (found,) = [layer for layer in summary.layers if layer.name == name]
    return found


# Counts


def test_the_network_comes_first_with_the_totals(resnet50):
    total = resnet50.layers[0]
    assert (total.name, total.kind, total.depth, total.shape) == ("", "ResNet", 0, (1, 1000))
    assert total.parameters == 25_557_032
    assert resnet50.parameter_bytes == 4 * 25_557_032
    assert short(total.multiply_adds) == "4.09G"  # as torchvision states
    assert total.milliseconds is None


def test_a_layer_has_its_own_figures(resnet50):
    conv = layer(resnet50, "conv1")
    assert (conv.kind, conv.depth, conv.shape) == ("Conv2d", 1, (1, 64, 112, 112))
    assert conv.parameters == 64 * 3 * 7 * 7
    assert conv.multiply_adds == 112 * 112 * 64 * 3 * 7 * 7
    assert str(conv.field) == "7/2/-3"
    assert layer(resnet50, "layer2.1.conv2").depth == 3
    assert str(layer(resnet50, "layer4").field) == "427/32/-213"


def test_a_block_has_the_sums_of_its_layers(resnet50):
    block = layer(resnet50, "layer3.0")
    inside = [inner for inner in resnet50.layers if inner.name.startswith("layer3.0.") and inner.depth == 3]
    assert block.multiply_adds == sum(inner.multiply_adds for inner in inside) > 0
    assert block.parameters == sum(inner.parameters for inner in inside) > 0
    assert block.saved_bytes == sum(inner.saved_bytes for inner in inside) > 0


def test_layers_are_listed_as_they_are_called(resnet50):
    names = [inner.name.removeprefix("layer1.1.") for inner in resnet50.layers if "layer1.1." in inner.name]
    assert names == ["conv1", "bn1", "relu", "conv2", "bn2", "relu", "conv3", "bn3", "relu"]


def test_the_batch_multiplies_work_and_memory(resnet50):
    four = summarize(outline("resnet50"), images(224, count=4)).layers[0]
    assert four.multiply_adds == 4 * resnet50.layers[0].multiply_adds
    factor = four.saved_bytes / resnet50.layers[0].saved_bytes
    assert 3.99 < factor <= 4  # batch norm's statistics do not grow


def test_our_depthwise_convolution_counts_like_that_of_torch():
    ours, theirs = (
        nn.Sequential(cls, nn.ReLU())
        for cls in (DepthwiseConv2d(8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1, groups=8))
    )
    x = torch.ones(2, 8, 16, 16, requires_grad=True)
    for network, direct in ((ours, 2), (theirs, 2)):
        with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
            output = network(x)
        assert counter.get_total_flops() == direct * 2 * 8 * 8 * 8 * 9
        if network is ours:  # each gradient takes as many
            with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
                output.sum().backward()
            assert counter.get_total_flops() == 2 * direct * 2 * 8 * 8 * 8 * 9


def test_attention_is_counted():
    attention = layer(
        summarize(outline("vit_s_16"), images(224)), "encoder.layers.encoder_layer_0.self_attention"
    )
    tokens, width = 14 * 14 + 1, 384
    assert attention.multiply_adds == 4 * tokens * width * width + 2 * tokens * tokens * width


def test_what_is_kept_is_what_the_backward_pass_needs():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 5)
    )
    for device in ("meta", "cpu"):
        summary = summarize(network.to(device), images(8, count=2, device=device))
        image, rectified, pooled, places = 2 * 3 * 64 * 4, 2 * 8 * 64 * 4, 2 * 128 * 4, 2 * 128 * 8
        assert [inner.saved_bytes for inner in summary.layers[1:]] == [image, rectified, places, 0, pooled]
        assert summary.layers[0].saved_bytes == image + rectified + places + pooled
        network = network.to_empty(device="cpu")


def test_a_module_that_is_called_twice_has_its_parameters_once():
    shared = nn.Conv2d(3, 3, 1, bias=False)
    summary = summarize(nn.Sequential(shared, nn.ReLU(), shared), images(4, device="cpu"))
    assert [(inner.name, inner.parameters) for inner in summary.layers] == [
        *(("", 9), ("0", 9), ("1", 0), ("0", 0)),
    ]
    assert summary.layers[3].multiply_adds == summary.layers[1].multiply_adds == 16 * 9


def test_modules_that_are_not_called_are_named():
    network = outline("googlenet")
    summary = summarize(network, images(224))
    assert summary.uncalled == {
        name: sum(p.numel() for p in network.get_submodule(name).parameters()) for name in ("aux1", "aux2")
    }
    assert "Not called: aux1, 3,188,968 parameters" in layer_table(summary)
    assert summarize(network.train(), images(224, count=2)).uncalled == {}


def test_auxiliary_classifiers_count_in_training():
    network = outline("googlenet")
    in_training = summarize(network.train(), images(224, count=2))
    assert layer(in_training, "aux1").shape == (2, 1000)
    assert in_training.layers[0].shape == (2, 1000)
    assert (
        in_training.layers[0].multiply_adds
        > 2 * summarize(network.eval(), images(224)).layers[0].multiply_adds
    )


def test_layers_that_are_used_without_a_call_are_not_idle():
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.linear.weight

    for network in (Encoder(), Direct()):  # the attention reads the weights of its `out_proj`
        assert summarize(network, torch.ones(1, 5, 8)).uncalled == {}


def test_networks_of_torchvision_are_summarized():
    network = torchvision.models.mobilenet_v3_small().to("meta").eval()
    total = summarize(network, images(224)).layers[0]
    assert total.parameters == 2_542_856
    assert short(total.multiply_adds) == "56.5M"  # of its weights' page: 0.06 GFLOPS


def test_the_network_stays_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(9, 1)).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(RuntimeError):
        summarize(network, images(8, device="cpu"))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


# Times


class Slow(torch.autograd.Function):
    """Waits 20 ms forward and 40 ms backward."""

    @staticmethod
    def forward(ctx, x):
        time.sleep(0.02)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        time.sleep(0.04)
        return grad


class Wait(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Slow.apply(x)


class Residual(nn.Module):
    """The shortcut waits, and so does the sum, which belongs to no layer inside."""

    def __init__(self) -> None:
        super().__init__()
        self.shortcut, self.conv, self.relu = Wait(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        return self.relu(Slow.apply(self.conv(x) + shortcut))


@pytest.mark.timing
def test_time_is_that_of_the_layer_and_of_what_it_is_in():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), Residual())
    x = images(8, device="cpu")
    times = time_layers(network, x, repeats=3, warmup=1)
    names = [inner.name for inner in summarize(network, x).layers]
    assert names == ["", "0", "1", "2", "2.shortcut", "2.conv", "2.relu"]
    slow = {"": 2, "2": 2, "2.shortcut": 1}
    for name, (forward, backward) in zip(names, times):
        waits = slow.get(name, 0)
        assert 20 * waits <= forward < 20 * waits + 19
        assert 40 * waits <= backward < 40 * waits + 39
    assert all(p.grad is None for p in network.parameters())


def test_training_with_auxiliary_classifiers_is_timed():
    network = build("inception_v1", num_classes=3).train()
    x = images(64, device="cpu")
    times = time_layers(network, x, torch.bfloat16, repeats=1, warmup=0)
    assert len(times) == len(summarize(network, x).layers)
    assert all(forward > 0 for forward, _ in times)


@pytest.mark.gpu
def test_time_on_a_gpu_is_the_gpus():
    network = build("resnet18").cuda().train()
    small, large = (time_layers(network, torch.ones(n, 3, 224, 224, device="cuda"))[0] for n in (1, 256))
    assert all(many > 2 * few > 0 for few, many in zip(small, large))


# Tables


@pytest.mark.parametrize("name", each(["resnet50", "efficientnet_b7", "vit_b_16", "densenet121", "lenet5"]))
def test_a_table_fits_into_100_columns(name):
    network = outline(name)
    summary = summarize(network, images(network.default_image_size, count=100))
    for inner in summary.layers:
        inner.milliseconds = (123.45, 1234.56)
    for depth in (1, 2, 9):
        assert max(map(len, layer_table(summary, depth))) <= 100


def test_depth_folds_what_is_inside(resnet50):
    names = [[line.split("  ")[0] for line in layer_table(resnet50, depth) if line] for depth in (1, 2)]
    stages = ["layer1", "layer2", "layer3", "layer4"]
    assert names[0][:10] == ["layer", "conv1", "bn1", "relu", "maxpool", *stages, "fc"]
    lines = layer_table(resnet50)
    assert lines[0].split() == [
        "layer",
        "kind",
        "output",
        "parameters",
        "MACs",
        "kept",
        "MiB",
        "receptive",
        "field",
    ]
    assert lines[1].split() == ["conv1", "Conv2d", "64x112x112", "9,408", "118M", "0.57", "7/2/-3"]
    assert lines[6].startswith("  0      Bottleneck")
    assert not any("conv2" in line for line in lines)
    assert any(line.startswith("    conv2") for line in layer_table(resnet50, 3))


def test_a_table_ends_with_the_totals(resnet50):
    assert layer_table(resnet50)[-2:] == [
        "Receptive field: size/stride/offset in pixels",
        "25,557,032 parameters (97.5 MiB), 4.09G multiply-adds, 82.1 MiB kept for backward",
    ]


def test_a_table_says_what_its_words_mean_and_why_a_field_is_missing():
    class Up(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.interpolate(x, scale_factor=2)

    up = nn.Sequential(nn.Sequential(nn.Identity(), Up()), nn.ReLU())
    network = nn.Sequential(torchvision.ops.SqueezeExcitation(3, 3), up)
    table = "\n".join(layer_table(summarize(network, images(8, device="cpu")), depth=3))
    assert "1/1/0 + gate" in table
    assert "gate: times a factor that sees the whole image" in table
    assert table.count("not defined") == 4
    assert "Not defined from 1.0.1 on: interpolate: 2 positions for a stride of 1 px" in table


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (7, "7"),
        (999, "999"),
        (1_000, "1.00K"),
        (118_013_952, "118M"),
        (999_700, "1.00M"),
        (4_089_184_256, "4.09G"),
    ],
)
def test_large_numbers_have_three_digits(number, text):
    assert short(number) == text


# Commands


def test_summary_prints_the_table_of_a_network(capsys):
    assert main(["summary", "resnet20"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("resnet20 in evaluation mode, images 1x3x32x32\n\nlayer ")
    assert "269,722 parameters" in out
    assert err == ""


def test_summary_takes_size_channels_classes_batch_and_depth(capsys):
    flags = "--img-size 64 --in-chans 1 --num-classes 7 --batch-size 3 --depth 1"
    assert main(["summary", "mobilenet_v2", *flags.split()]) == 0
    out, _ = capsys.readouterr()
    assert "images 3x1x64x64" in out
    assert "1280x2x2" in out
    assert re.search(r"^classifier +Sequential +7 +8,967 ", out, re.M)
    assert len(out.splitlines()) == 8


def test_summary_shows_what_decoders_see(capsys):
    assert main(["summary", "unet_small", "--depth", "1"]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith("unet_small in evaluation mode, images 1x3x64x64")
    assert re.search(r"^encoder\.4 +Sequential +256x4x4 +885,760 .* 140/16/-62$", out, re.M)
    assert re.search(r"^decoder\.3 +Expansion +16x64x64 +9,040 .* 215/1/-107 \+ up$", out, re.M)
    assert re.search(r"^head +Conv2d +21x64x64 +357 ", out, re.M)
    assert "\n  up: after upsampling each position sees a part of the window" in out


def test_summary_takes_a_decoder_on_another_network(capsys):
    assert main(["summary", "unet/resnet18", "--num-classes", "2"]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith("unet/resnet18 in evaluation mode, images 1x3x224x224")
    assert re.search(r"^backbone\.layer4 +Sequential +512x7x7 .* 435/32/-217$", out, re.M)
    assert re.search(r"^head +Conv2d +2x224x224 ", out, re.M)
    assert "Not called" not in out


def test_summary_takes_networks_from_elsewhere(capsys):
    assert main(["summary", "torchvision/squeezenet1_1", "--depth", "1"]) == 0
    assert "1,235,496 parameters" in capsys.readouterr().out


def test_profile_adds_times_and_says_of_what(with_bf16, capsys):
    assert main(["summary", "lenet5", "--profile", "--device", "cpu", "--amp-dtype", "bf16"]) == 0
    out, _ = capsys.readouterr()
    first, second, _, titles, *_ = out.splitlines()
    assert first == "lenet5 in training mode, images 2x1x32x32"
    assert second.startswith("timed on ")
    assert second.endswith(" in bf16, channels-last, without torch.compile; medians")
    assert "fwd ms  bwd ms" in titles
    assert " ms forward, " in out


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_profile_times_nothing_that_the_processor_emulates(without_bf16, capsys, dtype, wording):
    assert main(["summary", "lenet5", "--profile", "--device", "cpu", "--amp-dtype", dtype]) == 2
    message = capsys.readouterr().err
    assert "--amp-dtype" in message
    wording(message)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("resnet-50", "resnet-50: "),
        ("unet/resnet-18", "unet/resnet-18: "),
        ("lenet5 --img-size 30", "--img-size 30: "),
        ("vit_b_16 --img-size 40", "--img-size 40: "),
        ("torchvision/squeezenet1_0 --img-size 8", "torchvision/squeezenet1_0: cannot take images 1x3x8x8: "),
        ("", "the following arguments are required: arch; --help lists the flags"),
        ("resnet18 --img-size 0", "argument --img-size: '0': use at least 1; --help lists the flags"),
        ("resnet18 --size 32", "unrecognized arguments: --size 32; --help lists the flags"),
    ],
    ids=["arch", "backbone", "fixed size", "multiple", "too small", "none", "no size", "flag"],
)
def test_a_mistake_is_one_line_and_status_2(words, named, capsys, wording):
    assert main(["summary", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"fastcnn: error: {named}")
    assert err.count("\n") == 1
    if named.endswith(("0: ", "-18: ")):  # the other words are argparse's and torch's
        wording(err)


def test_a_reader_that_has_enough_ends_the_command_quietly():
    words = [sys.executable, "-m", "fastcnn", "models"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.close()
        assert command.stderr.read() == ""
    assert command.returncode == 128 + signal.SIGPIPE


def test_models_lists_every_network_as_published(capsys):
    assert main(["models"]) == 0
    tables = [table.splitlines() for table in capsys.readouterr().out.split("\n\n")]
    assert tables[-1].pop().startswith("unet/NAME, yolo/NAME, yolov1/NAME: on any network of the first table")
    titles = ["parameters", "MACs", "image", "weights"]
    headings = ("network", "segmentation", "detection")
    assert [table[0].split() for table in tables] == [[heading, *titles] for heading in headings]
    listed = [{line.split()[0]: line.split()[1:] for line in lines} for _, *lines in tables]
    assert [list(rows) for rows in listed] == [list(MODELS), list(SEGMENTATION), list(DETECTION)]
    rows = listed[0] | listed[1] | listed[2]
    for name in (
        "lenet5",
        "resnet50",
        "mobilenet_v3_large",
        "convnext_tiny",
        "vit_s_16",
        "unet_paper",
        "yolo",
    ):
        with torch.device("meta"):
            network = (MODELS | SEGMENTATION | DETECTION)[name]().eval()
        size, channels = network.default_image_size, 1 if name in ("lenet5", "unet_paper") else 3
        total = summarize(network, torch.ones(1, channels, size, size, device="meta")).layers[0]
        assert rows[name][:3] == [f"{total.parameters:,}", short(total.multiply_adds), str(size)]
    assert {name: row[3] == "yes" for name, row in rows.items()} == {
        name: has_pretrained(name) for name in rows
    }


@pytest.mark.gate
@pytest.mark.slow
def test_the_committed_list_of_models_is_what_the_script_makes():
    assert all_models() == NETWORKS.read_text()


def test_the_list_of_models_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; from fastcnn.cli.main import main; main(['models'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (NETWORKS.read_text(), "")


def test_help_needs_no_torch():
    code = "import sys; from fastcnn.cli.main import main; main(sys.argv[1:])"
    for command in ("summary", "models"):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", code, command, "--help"],
            capture_output=True,
            text=True,
        )
        assert done.stdout.startswith(f"usage: fastcnn {command}")
        assert "torch" not in done.stderr
