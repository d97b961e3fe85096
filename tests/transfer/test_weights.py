"""Weights to start from: which there are, what is read of a file, what fits, and what is said of the rest."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import shutil
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model_weights

import fastcnn
from fastcnn.config import Config
from fastcnn.models import MODELS, build
from fastcnn.models.vit import resize_positions
from fastcnn.runtime.distributed import Ranks
from fastcnn.setup.plan import Plan, make_plan
from fastcnn.transfer.adapt import adapt_channels, load_weights
from fastcnn.transfer.weights import TORCHVISION, download_pretrained, has_pretrained, read_weights
from networks import each

pytestmark = pytest.mark.usefixtures("one_core")

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
QUICK = (
    *("--amp-dtype", "fp32", "--batch-size", "32", "--epochs", "1"),
    *("--data-backend", "torch", "--workers", "1"),
)


def small(num_classes: int = 10, in_chans: int = 3, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return build("resnet20", num_classes, in_chans)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that are the same to the last bit."""
    return {name for name in a if name in b and torch.equal(a[name], b[name])}


def refusal(call: Any, *args: Any) -> str:
    with pytest.raises(ValueError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`hub(name, state)` lays a file where torch.hub keeps torchvision's recommended weights of a network; no
    other can be had."""

    def no_network(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)

    def lay(name: str, state: dict[str, Tensor], **settings: Any) -> Path:
        path = tmp_path / "torch/hub/checkpoints" / Path(get_model_weights(name).DEFAULT.url).name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path, **settings)
        return path

    return lay


def plan(demo: Path, arch: str, **settings: Any) -> Plan:
    settings = {"data_backend": "torch", "amp_dtype": "fp32", "channels_last": "off", **settings}
    return make_plan(Config(arch=arch, data=str(demo), **settings), Ranks(), torch.device("cpu"))


# Which there are


def test_every_network_of_the_table_is_ours_and_has_weights_in_torchvision():
    assert set(TORCHVISION) <= set(MODELS)
    assert all(get_model_weights(name).DEFAULT.url for name in TORCHVISION.values())


@pytest.mark.parametrize("name", each(TORCHVISION))
def test_a_network_of_the_table_has_torchvisions_keys_and_shapes(name):
    options = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        ours = build(name, 1000).state_dict()
        theirs = torchvision.models.get_model(TORCHVISION[name], **options).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize(
    "name",
    ["lenet5", "alexnet", "resnet20", "mobilenet_v1", "inception_v1", "vit_s_16", "vgg16_cifar", "nothing"],
)
def test_other_networks_have_none(name, wording):
    assert not has_pretrained(name)
    message = refusal(download_pretrained, name)
    assert message.startswith("--pretrained: ")
    wording(message)


# From torchvision


@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "before torch 1.6"])
def test_pretrained_weights_are_torchvisions_with_their_normalization(hub, old_format):
    expected = torchvision.models.resnet18().state_dict()
    hub("resnet18", expected, _use_new_zipfile_serialization=not old_format)
    weights = download_pretrained("resnet18")
    assert equal(weights.state, expected) == set(expected)
    assert (weights.mean, weights.std) == IMAGENET
    assert weights.origin == "torchvision's ResNet18_Weights.IMAGENET1K_V1"


def test_pretrained_alexnet_is_the_one_of_torchvision(hub):
    hub("alexnet", {"a": torch.ones(1)})
    assert list(download_pretrained("alexnet_torchvision").state) == ["a"]
    assert list(download_pretrained("torchvision/alexnet").state) == ["a"]


def test_googlenets_normalization_is_what_torchvision_makes_of_imagenets(hub):
    hub("googlenet", {"a": torch.ones(1)})
    weights = download_pretrained("googlenet")
    assert weights.mean is not None
    assert weights.std is not None
    pixels = torch.rand(2, 3, 4, 4)
    mean, std, own_mean, own_std = (
        torch.tensor(values).view(1, 3, 1, 1) for values in (*IMAGENET, weights.mean, weights.std)
    )
    theirs = torchvision.models.GoogLeNet(transform_input=True, aux_logits=False, init_weights=False)
    torch.testing.assert_close(theirs._transform_input((pixels - mean) / std), (pixels - own_mean) / own_std)


def test_the_old_names_of_densenet_become_todays(hub):
    with torch.device("meta"):
        names = list(build("densenet121").state_dict())
    old = {n.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): torch.zeros(1) for n in names}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    hub("densenet121", old)
    assert list(download_pretrained("densenet121").state) == names


def test_without_a_network_the_address_and_the_place_of_the_file_are_said(hub, tmp_path, wording):
    message = refusal(download_pretrained, "resnet18")
    url = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    place = tmp_path / "torch/hub/checkpoints/resnet18-f37072fd.pth"
    assert message.startswith(f"--pretrained: {url} ")
    assert f" {place}, " in message
    wording(message)


def test_a_damaged_download_is_named(hub, wording):
    path = hub("resnet18", {"a": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:200])
    message = refusal(download_pretrained, "resnet18")
    assert message.startswith("--pretrained: https://download")
    wording(re.sub(r"\(.*\)", "(...)", message))  # torch's words


def test_a_pretrained_run_has_the_weights_and_their_normalization_and_a_fresh_classifier(hub, demo, wording):
    state = torchvision.models.resnet18().state_dict()
    hub("resnet18", state)
    made = plan(demo, "resnet18", pretrained=True)
    assert set(state) - equal(made.network.state_dict(), state) == {"fc.weight", "fc.bias"}
    assert (made.source.mean, made.source.std) == IMAGENET
    remarks = made.loaded
    assert len(remarks) == 2
    for remark in remarks:
        wording(remark)


def test_grey_images_are_normalized_by_the_mean_over_the_channels(hub, demo, wording):
    hub("resnet18", torchvision.models.resnet18().state_dict())
    made = plan(demo, "resnet18", pretrained=True, in_chans=1)
    assert made.source.mean == pytest.approx((sum(IMAGENET[0]) / 3,))
    assert made.source.std == pytest.approx((sum(IMAGENET[1]) / 3,))
    for remark in made.loaded:
        wording(remark)


# From timm


def test_pretrained_weights_of_timm_come_with_their_normalization(monkeypatch, wording):
    timm = pytest.importorskip("timm")
    real, asked = timm.create_model, []

    def create_model(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
        asked.append(pretrained)
        return real(name, **settings)

    monkeypatch.setattr(timm, "create_model", create_model)
    weights = download_pretrained("timm/test_resnet")
    assert asked == [True]
    assert weights.mean == tuple(timm.get_pretrained_cfg("test_resnet").mean)
    network = build("timm/test_resnet", 7)
    (remark,) = load_weights(network, weights.state)
    wording(remark)
    assert torch.equal(network.state_dict()["bn1.weight"], weights.state["bn1.weight"])


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError("An error happened\nmore"), RuntimeError("No pretrained weights exist for x")],
    ids=["no file", "no weights"],
)
def test_weights_that_timm_cannot_get_are_one_line(monkeypatch, error, wording):
    timm = pytest.importorskip("timm")

    def create_model(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(timm, "create_model", create_model)
    message = refusal(download_pretrained, "timm/test_resnet")
    assert message.startswith("--pretrained: ")
    wording(re.sub(r"https:\S+", "URL", message))


def test_a_network_of_ones_own_has_no_weights_to_download(wording):
    message = refusal(download_pretrained, "my_networks:tiny")
    assert message.startswith("--pretrained: ")
    wording(message)


# From files


def dressed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "dress",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": state, "best": 0.5},
        lambda state: dressed(state, "module."),
        lambda state: dressed(state, "_orig_mod."),
        lambda state: {"state_dict": dressed(state, "module._orig_mod.")},
    ],
    ids=["plain", "model", "state_dict", "DDP", "torch.compile", "all"],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_the_forms_in_which_state_dicts_are_saved_are_read(dress, suffix, tmp_path):
    state = small().state_dict()
    torch.save(dress(state), tmp_path / f"mine{suffix}")
    weights = read_weights(str(tmp_path / f"mine{suffix}"))
    assert equal(weights.state, state) == set(state) == set(weights.state)
    assert weights.mean is None


def test_safetensors_are_read(tmp_path):
    state = small().state_dict()
    safetensors.torch.save_file(state, tmp_path / "mine.safetensors")
    assert equal(read_weights(str(tmp_path / "mine.safetensors")).state, state) == set(state)


def test_a_file_that_would_run_code_is_refused_in_one_line_and_runs_none(tmp_path, wording):
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "code was run"),)

    torch.save({"model": small().state_dict(), "args": argparse.Namespace(lr=1)}, tmp_path / "reference.pth")
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    message = refusal(read_weights, str(tmp_path / "reference.pth"))
    assert message.startswith(f"--weights {tmp_path}/reference.pth: ")
    wording(message)
    for name in ("evil.pth", "pickle.pth"):
        assert refusal(read_weights, str(tmp_path / name)).startswith(f"--weights {tmp_path}/{name}: ")
    assert not (tmp_path / "code was run").exists()


@pytest.mark.parametrize(
    "name",
    [
        "nowhere.pth",
        "nowhere.safetensors",
        "text.pth",
        "text.safetensors",
        "number.pth",
        "empty.pth",
        "optimizer.pth",
    ],
)
def test_a_file_without_weights_is_one_line(name, tmp_path, monkeypatch, wording):
    monkeypatch.chdir(tmp_path)
    for suffix in ("pth", "safetensors"):
        Path(f"text.{suffix}").write_text("hello world, this is text")
    torch.save(3, "number.pth")
    torch.save({}, "empty.pth")
    torch.save({"param_groups": [1]}, "optimizer.pth")
    message = refusal(read_weights, name)
    assert message.startswith(f"--weights {name}: ")
    if name == "nowhere.safetensors":
        assert "o such file or directory" in message  # the library's words
    else:
        wording(message)


# What fits


def test_weights_that_fit_leave_nothing_to_say():
    state, network = small(seed=1).state_dict(), small(seed=2)
    assert load_weights(network, state) == []
    assert equal(network.state_dict(), state) == set(state)


def test_counters_that_old_files_do_not_have_are_not_missed():
    state = {n: v for n, v in small().state_dict().items() if "num_batches_tracked" not in n}
    assert load_weights(small(seed=2), state) == []


@pytest.mark.parametrize("other", [7, None], ids=["other classes", "none"])
def test_a_classifier_that_does_not_fit_is_kept_as_it_was(other, wording):
    state, network = small(other or 10).state_dict(), small(5, seed=2)
    if other is None:
        state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    fresh = network.state_dict()["fc.weight"].clone()
    (remark,) = load_weights(network, state)
    wording(remark)
    assert torch.equal(network.state_dict()["fc.weight"], fresh)
    assert len(equal(network.state_dict(), state)) == len(small().state_dict()) - 2


def test_a_linear_classifier_does_not_fit_a_small_network_in_its_place(wording):
    network = small(10)
    network.reset_classifier(10, hidden=8)  # type: ignore[operator]
    (remark,) = load_weights(network, small(10).state_dict())
    wording(remark)


def test_auxiliary_classifiers_that_are_not_in_the_file_start_fresh(wording):
    class Net(nn.Module):
        def __init__(self, aux: bool) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.aux1 = nn.Linear(4, 2) if aux else None
            self.fc = nn.Linear(4, 2)

    with_aux, without = Net(True), Net(False)
    (remark,) = load_weights(with_aux, without.state_dict())
    wording(remark)
    assert torch.equal(with_aux.fc.weight, without.fc.weight)
    (remark,) = load_weights(without, with_aux.state_dict())
    wording(remark)


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3)])
def test_a_first_layer_for_other_channels_is_adapted_and_said_so(before, after, wording):
    state, network = small(in_chans=before).state_dict(), small(in_chans=after, seed=2)
    (remark,) = load_weights(network, state)
    wording(remark)
    assert equal(network.state_dict(), state) == set(state) - {"conv1.weight"}


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3), (3, 4), (4, 3), (2, 6)])
def test_an_adapted_layer_sees_the_same_in_images_whose_channels_are_alike(before, after):
    weight, grey = torch.randn(5, before, 3, 3), torch.randn(2, 1, 8, 8)
    adapted = adapt_channels(weight, after)
    assert adapted.shape == (5, after, 3, 3)
    if after == 1 or after % before == 0:
        expected = nn.functional.conv2d(grey.expand(-1, before, -1, -1), weight)
        got = nn.functional.conv2d(grey.expand(-1, after, -1, -1), adapted)
        torch.testing.assert_close(got, expected)


def test_positions_of_another_length_are_interpolated():
    with torch.device("meta"):
        network = build("vit_b_32", 10)
    length = network.get_parameter("encoder.pos_embedding").shape[1]
    assert length == 50
    embedding = torch.cat([torch.full((1, 1, 8), 5.0), torch.ones(1, 49, 8)], 1)
    resized = resize_positions(embedding, (12, 12))
    torch.testing.assert_close(resized, torch.cat([torch.full((1, 1, 8), 5.0), torch.ones(1, 144, 8)], 1))
    ramp = torch.arange(4.0).repeat_interleave(4).view(1, 16, 1)  # grows from row to row
    rows = resize_positions(torch.cat([torch.zeros(1, 1, 1), ramp], 1), (8, 8))[0, 1:, 0].view(8, 8)
    assert (rows.diff(dim=0) > 0).all()
    torch.testing.assert_close(rows, rows[:, :1].expand(8, 8))


def test_positions_of_another_length_are_said(wording):
    class Net(nn.Module):
        def __init__(self, side: int) -> None:
            super().__init__()
            self.encoder = nn.Module()
            self.encoder.pos_embedding = nn.Parameter(torch.ones(1, 1 + side * side, 4))
            self.fc = nn.Linear(4, 2)

    (remark,) = load_weights(Net(3), Net(4).state_dict())
    wording(remark)


def test_weights_of_another_network_are_refused_by_the_names_that_differ(wording):
    state = build("resnet32", 10).state_dict()
    state["conv1.weight"] = state["conv1.weight"][:8]
    del state["layer1.0.conv1.weight"]
    before = small().state_dict()
    network = small()
    message = refusal(load_weights, network, state, "--weights x.pth")
    assert message.startswith("--weights x.pth: ")
    wording(message)
    assert equal(network.state_dict(), before) == set(before)


# In a run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, demo) -> Path:
    """A checkpoint of fastcnn with a normalization of its own."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastcnn.runtime.machine.cores_per_process", lambda ranks: 1)
        fastcnn.fit(
            arch="resnet20",
            data=demo,
            img_size=16,
            data_backend="torch",
            batch_size=32,
            workers=1,
            epochs=1,
            model_ema=True,
            amp_dtype="fp32",
            output_dir=folder,
        )
    content = torch.load(folder / "best.pt")
    torch.save({**content, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}, folder / "best.pt")
    return folder / "best.pt"


def test_a_checkpoint_of_ours_gives_its_weights_and_its_normalization(trained, photos, wording):
    made = plan(photos, "resnet20", weights=str(trained), img_size=16)
    saved = torch.load(trained)
    assert set(saved["weights"]) - equal(made.network.state_dict(), saved["weights"]) == {
        "fc.weight",
        "fc.bias",
    }
    assert equal(saved["weights"], saved["model"]) != set(saved["model"])  # it is the moving average
    assert (made.source.mean, made.source.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    first, second = made.loaded
    assert first.endswith(str(trained))
    wording(first.replace(str(trained), "BEST"))
    wording(second)


def test_weights_are_said_loaded_once_and_the_normalization_stays(train, trained, photos, capsys, wording):
    shutil.copy(trained, "mine.pth")
    flags = ("--arch", "resnet20", "--data", photos, "--img-size", "16", *QUICK, "--batch-size", "8")
    assert train(*flags, "--weights", "mine.pth", "--lr", "0", "--output-dir", "run") == 0
    out = capsys.readouterr().out
    wording.line(out, "from mine.pth")
    wording.line(out, "fc: ")
    first = torch.load("run/last.pt")
    assert equal(first["model"], torch.load(trained)["weights"])
    assert first["mean"] == [0.1, 0.2, 0.3]
    Path("mine.pth").unlink()
    assert train("--resume", "run/last.pt", "--epochs", "2") == 0
    assert "starting from" not in capsys.readouterr().out
    assert torch.load("run/last.pt")["mean"] == [0.1, 0.2, 0.3]


def test_weights_that_do_not_fit_end_the_run_before_it_starts(train, trained, demo, capsys, wording):
    flags = ("--arch", "lenet5", "--data", demo, *QUICK, "--weights", trained)
    assert train(*flags) == 2
    error = capsys.readouterr().err
    assert f"--weights {trained}, " in error
    wording(error.replace(str(trained), "BEST"))
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_a_checkpoint_becomes_a_network_again(trained, wording):
    network = fastcnn.load(trained)
    assert not network.training
    assert equal(network.state_dict(), torch.load(trained)["weights"]) == set(network.state_dict())
    message = refusal(fastcnn.load, "nowhere.pt")
    assert "nowhere.pt" in message
    wording(message)


def test_a_classifier_of_as_many_other_classes_starts_fresh(wording):
    network, weights = small(), small(seed=2).state_dict()
    fresh = network.get_parameter("fc.weight").detach().clone()
    assert load_weights(network, weights) == []
    assert torch.equal(network.get_parameter("fc.weight"), weights["fc.weight"])
    network = small()
    (remark,) = load_weights(network, weights, other_classes=True)
    wording(remark)
    assert torch.equal(network.get_parameter("fc.weight"), fresh)
    assert torch.equal(network.get_parameter("conv1.weight"), weights["conv1.weight"])


def test_a_checkpoint_says_which_classes_its_classifier_is_for(
    train, photos, demo, tmp_path, capsys, wording
):
    assert (
        train(
            "--arch",
            "lenet5_relu",
            "--data",
            photos,
            "--output-dir",
            tmp_path / "a",
            *QUICK,
            "--batch-size",
            "8",
        )
        == 0
    )
    assert read_weights(str(tmp_path / "a" / "best.pt")).class_names == ("cat", "dog")
    again = ("--arch", "lenet5_relu", "--weights", tmp_path / "a" / "best.pt", *QUICK, "--batch-size", "8")
    capsys.readouterr()
    assert train("--data", photos, *again) == 0
    assert "starts fresh" not in capsys.readouterr().out
    for split in ("train", "val"):
        (photos / split / "cat").rename(photos / split / "bird")
    try:
        assert train("--data", photos, *again) == 0
    finally:
        for split in ("train", "val"):
            (photos / split / "bird").rename(photos / split / "cat")
    wording.line(capsys.readouterr().out, "fc7: ")


def test_a_file_that_only_looks_like_a_checkpoint_is_one_line(tmp_path, wording):
    torch.save({"fastcnn": "0.1.0"}, tmp_path / "odd.pt")
    with pytest.raises(ValueError) as caught:
        read_weights(str(tmp_path / "odd.pt"))
    wording(caught.value)


def test_positions_that_are_no_square_are_one_line(wording):
    with torch.device("meta"):
        network = build("vit_b_32", 10)
    state = network.state_dict()
    state["encoder.pos_embedding"] = torch.empty(1, 1 + 6 * 7, 768, device="meta")
    with pytest.raises(ValueError) as caught:
        load_weights(network, state)
    wording(caught.value)
