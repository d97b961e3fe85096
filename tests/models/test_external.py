"""Networks of timm, of torchvision and of the user's own: by name, with their own keys, refused in a line."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fastcnn.models import Outputs, build, parts
from fastcnn.models.external import ImageSizes, as_outputs, check_outputs, with_sync_bn

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.usefixtures("one_core")

OWN = """
from torch import nn

def tiny(num_classes, in_chans=3):
    pooled = nn.Sequential(nn.Conv2d(in_chans, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(pooled, nn.Linear(4, num_classes))

tiny.default_image_size = 16

def ten():
    return tiny(10)

def text():
    return "a network"

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module `my_networks` in the current folder, which is not on Python's path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(Path.cwd()))])
    Path("my_networks.py").write_text(OWN)
    importlib.invalidate_caches()
    yield
    sys.modules.pop("my_networks", None)


def shell(arch: str, num_classes: int = 7, in_chans: int = 3) -> nn.Module:
    """The network without memory or numbers."""
    with torch.device("meta"):
        return build(arch, num_classes, in_chans)


def refusal(arch: str) -> str:
    with pytest.raises(ValueError) as caught:
        build(arch)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Building


def test_a_network_of_timm_has_timms_keys():
    network = build("timm/test_resnet", 7, in_chans=1)
    expected = timm.create_model("test_resnet", num_classes=7, in_chans=1).state_dict()
    assert {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in expected.items()}


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "googlenet"])
def test_a_network_of_torchvision_has_torchvisions_keys(name):
    network = shell(f"torchvision/{name}")
    with torch.device("meta"):
        options = {"init_weights": True} if name == "googlenet" else {}  # else it warns
        expected = torchvision.models.get_model(name, num_classes=7, **options).state_dict()
    assert {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in expected.items()}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_a_network_of_torchvision_takes_grey_images_by_its_first_convolution(name):
    rgb, grey = shell(f"torchvision/{name}"), shell(f"torchvision/{name}", in_chans=1)
    differing = [k for k, v in grey.state_dict().items() if v.shape != rgb.state_dict()[k].shape]
    assert len(differing) == 1
    assert grey(torch.empty(2, 1, 64, 64, device="meta")).shape == (2, 7)


def test_a_network_of_ones_own_is_called_with_what_it_asks_for(own):
    assert build("my_networks:tiny", 7, in_chans=1)(torch.zeros(1, 1, 8, 8)).shape == (1, 7)
    assert build("my_networks:ten", 7)(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize(
    "arch",
    [
        "timm/resnet81",
        "timm/resnet18.a9_in1k",
        "torchvision/resnet81",
        "keras/resnet50",
        "nowhere:net",
        "my_networks.deep:net",
        "my_networks:tinny",
        "my_networks:number",
        "my_networks:text",
    ],
)
def test_what_is_no_network_is_one_line_with_the_nearest(own, arch, wording):
    message = refusal(arch)
    assert message.startswith(f"--arch {arch}: ")
    if arch.startswith(("timm/", "torchvision/")):  # the nearest there depends on the version
        message, found, nearest = message.partition("did you mean ")
        assert found
        assert nearest.startswith("resn")
    wording(message)


def test_a_package_that_is_not_installed_is_one_line(monkeypatch, wording):
    monkeypatch.setitem(sys.modules, "timm", None)
    message = refusal("timm/resnet18")
    assert message.startswith("--arch timm/resnet18: ")
    wording(message)


def test_an_error_inside_ones_own_module_is_not_hidden(own):
    Path("my_networks.py").write_text("import not_installed_anywhere")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        build("my_networks:tiny")


# Images


@pytest.mark.parametrize(
    ("arch", "sizes"),
    [
        ("timm/resnet18", ImageSizes(224)),
        ("timm/vit_base_patch16_384", ImageSizes(384, fixed_image_size=True)),
        ("torchvision/efficientnet_v2_s", ImageSizes(384)),
        ("torchvision/resnet18", ImageSizes(224)),
        ("my_networks:tiny", ImageSizes(16)),
        ("my_networks:ten", ImageSizes(224)),
        ("resnet18", ImageSizes(224)),
        ("vit_b_32", ImageSizes(224, False, 32, 32)),
    ],
)
def test_image_sizes_are_known_by_name(own, arch, sizes):
    assert parts.image_sizes(arch) == sizes


def test_images_that_a_network_cannot_take_and_other_outputs_are_one_line(own):
    network = build("my_networks:tiny", 7)
    check_outputs(network, "my_networks:tiny", 7, 3, 8)
    assert network.training
    for shape, expected in (
        ((7, 1, 8), "--arch my_networks:tiny: cannot take images of 1 x 8 x 8: "),
        ((7, 3, 2), "--arch my_networks:tiny: cannot take images of 3 x 2 x 2: "),
        (
            (5, 3, 8),
            "--arch my_networks:tiny: makes [1, 7] of an image of 3 x 8 x 8, not logits [1, 5]; let ",
        ),
    ):
        with pytest.raises(ValueError) as caught:
            check_outputs(network, "my_networks:tiny", *shape)
        assert str(caught.value).startswith(expected)
        assert "\n" not in str(caught.value)


# Outputs


def test_auxiliary_logits_of_torchvision_come_in_the_order_of_the_layers():
    logits, aux1, aux2 = torch.zeros(1), torch.ones(1), torch.ones(2)
    named = torchvision.models.GoogLeNetOutputs(logits, aux_logits2=aux2, aux_logits1=aux1)
    outputs = as_outputs(nn.Identity(), (), named)
    assert outputs is not None
    assert outputs.logits is logits
    assert [a is b for a, b in zip(outputs.aux, (aux1, aux2), strict=True)] == [True, True]


@pytest.mark.parametrize(("name", "size", "count"), [("googlenet", 224, 2), ("inception_v3", 299, 1)])
def test_auxiliary_classifiers_of_torchvision_are_outputs_in_training_only(name, size, count):
    network = shell(f"torchvision/{name}")
    images = torch.empty(2, 3, size, size, device="meta")
    outputs = network.train()(images)
    assert isinstance(outputs, Outputs)
    assert [logits.shape for logits in (outputs.logits, *outputs.aux)] == [(2, 7)] * (1 + count)
    assert isinstance(network.eval()(images), Tensor)


# Layers


@pytest.mark.parametrize(
    ("arch", "classifier"),
    [
        ("timm/test_resnet", ["fc"]),
        ("timm/test_convnext", ["head.fc"]),
        ("timm/test_vit", ["head"]),
        ("timm/deit_tiny_distilled_patch16_224", ["head", "head_dist"]),
        ("torchvision/vgg11", ["classifier.6"]),
        ("torchvision/vit_b_16", ["heads.head"]),
        ("torchvision/squeezenet1_0", ["classifier.1"]),
        ("torchvision/googlenet", ["fc"]),
        ("my_networks:tiny", ["1"]),
        ("resnet18", ["fc"]),
    ],
)
def test_layer_groups_hold_every_parameter_once_and_the_classifier_last(own, arch, classifier):
    network = shell(arch)
    groups = parts.layer_groups(network)
    assert groups[-1] == classifier == list(parts.classifier_names(network))
    parameters = dict(network.named_parameters())
    held = [k for group in groups for name in group for k in parameters if f"{k}.".startswith(f"{name}.")]
    assert sorted(held) == sorted(parameters)
    assert all(groups)


def test_sequences_are_taken_apart_norms_join_what_is_before_them_and_bare_parameters_what_is_after():
    groups = parts.layer_groups(shell("timm/test_vit"))
    assert groups[0] == ["cls_token", "pos_embed", "patch_embed"]
    assert groups[1] == ["blocks.0"]
    assert groups[-2] == ["blocks.5", "norm"]


def test_a_classifier_is_replaced_by_a_small_network_and_stays_the_classifier():
    network = build("timm/test_resnet", 7).eval()
    parts.reset_classifier(network, 5, hidden=8)
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    assert parts.layer_groups(network)[-1] == ["fc"]
    assert {"fc.0.weight", "fc.3.weight"} <= set(network.state_dict())


@pytest.mark.parametrize("arch", ["torchvision/squeezenet1_0", "timm/deit_tiny_distilled_patch16_224"])
def test_a_classifier_that_is_not_one_linear_layer_cannot_be_replaced(arch, wording):
    with pytest.raises(ValueError, match="^--head mlp:") as caught:
        parts.reset_classifier(shell(arch), 7, hidden=8)
    wording(str(caught.value).partition("but in ")[0])  # then the names of others' layers


# Training

QUICK = (
    *("--amp-dtype", "fp32", "--batch-size", "32", "--epochs", "1", "--img-size", "32"),
    *("--data-backend", "torch", "--workers", "1"),
)


@pytest.mark.slow
def test_a_network_of_timm_trains(train, demo, capsys):
    assert train("--arch", "timm/test_resnet", "--data", demo, *QUICK, "--freeze", "backbone") == 0
    assert Path("runs/timm-test_resnet-shapes/last.pt").is_file()
    assert "frozen up to layer4.0: " in capsys.readouterr().out
    assert train("--resume", "runs/timm-test_resnet-shapes/last.pt", "--epochs", "2") == 0


def test_a_network_of_ones_own_trains(own, train, demo):
    assert train("--arch", "my_networks:tiny", "--data", demo, *QUICK) == 0
    assert Path("runs/my_networks-tiny-shapes/last.pt").is_file()


def test_a_network_of_ones_own_with_other_classes_is_one_line(own, train, photos, capsys, wording):
    assert train("--arch", "my_networks:ten", "--data", photos, *QUICK) == 2
    error = capsys.readouterr().err
    assert "--arch my_networks:ten: " in error
    wording(error)
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_batch_norm_over_all_processes_keeps_the_activations_that_timm_puts_into_it():
    torch.manual_seed(0)
    network: nn.Module = build("timm/mobilenetv3_small_050", 5).eval()
    x = torch.randn(1, 3, 32, 32)
    before = network(x)
    network = with_sync_bn(network, "timm/mobilenetv3_small_050").eval()
    assert any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
    torch.testing.assert_close(network(x), before)


def test_batch_norm_over_all_processes_is_refused_where_it_would_lose_something(wording):
    class NormAct(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    with pytest.raises(ValueError, match="^--sync-bn:") as caught:
        with_sync_bn(nn.Sequential(NormAct(3)), "mine:net")
    wording(caught.value)
    plain = with_sync_bn(nn.Sequential(nn.BatchNorm2d(3)), "mine:net")
    assert isinstance(plain.get_submodule("0"), nn.SyncBatchNorm)


def test_blocks_inside_other_modules_are_groups_of_their_own():
    groups = parts.layer_groups(shell("torchvision/vit_b_16"))
    assert ["encoder.layers.encoder_layer_3"] in groups
    assert len(groups) >= 14
    assert ["features.1.0"] in parts.layer_groups(shell("torchvision/efficientnet_b0"))
