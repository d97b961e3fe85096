"""The content of a checkpoint: checked in one place, and no code out of it runs."""

from __future__ import annotations

import copy
import dataclasses
import resource
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fastcnn
from fastcnn.cli.main import main
from fastcnn.config import Config
from fastcnn.models.saved import check_content, check_network, check_trusted
from fastcnn.setup.observe import resume_flags
from runs import QUICK


@pytest.fixture(scope="module")
def content(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("run") / "run"
    words = [*QUICK, "--data", demo, "--epochs", "1", "--data-backend", "torch", "--model-ema"]
    assert main(["train", *map(str, words), "--average-last", "1", "--output-dir", str(folder)]) == 0
    return torch.load(folder / "last.pt", weights_only=True)


def changed(content: dict[str, Any], *path: Any, value: Any = None) -> dict[str, Any]:
    """Return a copy with another value at a path of keys; without one, the key is missing."""
    copied = copy.deepcopy(content)
    owner: Any = copied
    for key in path[:-1]:
        owner = owner[key]
    if value is None:
        del owner[path[-1]]
    else:
        owner[path[-1]] = value
    return copied


@pytest.mark.slow
def test_every_key_is_required_and_has_a_type(content):
    check_content(copy.deepcopy(content))
    older = {"val_img_size", "multi_label", "since_best", "average", "steps_per_epoch", "fastcnn"}
    for key in content.keys() - older:
        for wrong in (changed(content, key), changed(content, key, value=object())):
            with pytest.raises(ValueError) as caught:
                check_content(wrong)
            assert "\n" not in str(caught.value)


def test_what_older_versions_did_not_write_is_completed(content):
    for key in ("val_img_size", "multi_label", "since_best", "average"):
        older = changed(content, key)
        check_content(older)
        assert older[key] is not None
    older = changed(changed(content, "ema", "waited"), "order", "--sampler")
    del older["config"]["exif"]
    check_content(older)
    assert (older["ema"]["waited"], older["order"]["--sampler"], older["config"]["exif"]) == (
        *(0, "shuffle", "ignore"),
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("step",), -1),
        (("epoch",), float("nan")),
        (("loader", "consumed"), -8),
        (("mean",), [0.5]),
        (("std",), [0.0, 1.0, 1.0]),
        (("class_names",), ["x"] * 11),
        (("best",), {"acc1": 3.0}),
        (("scaler",), {"scale": 1.0}),
        (("order",), {"--seed": 0}),
        (("arch",), "lenet5\nx"),
        (("img_size",), 64),
        (("config", "img_size"), 10**9),
        (("config", "momentum"), "x"),
        (("config", "decay_milestones"), [1.0, "x"]),
        (("ranks", 0, "random", "cpu"), torch.zeros(5, dtype=torch.uint8)),
        (("ranks", 0, "random", "cpu"), torch.zeros(5056, dtype=torch.uint8)),
        (("optimizer", "state"), {"0": {}}),
    ],
    ids=str,
)
def test_values_out_of_range_are_named(content, path, value):
    with pytest.raises(ValueError) as caught:
        check_content(changed(content, *path, value=value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_classes": 10_000_000}, "10,000,000 classes"),
        ({"in_chans": 1, "mean": [0.5], "std": [0.5]}, "by its settings"),
        ({"arch": "vit_l_16"}, "which the network does not have|lacks"),
        ({"head": "mlp", "head_hidden": 1_000_000}, "by its settings|does not have"),
    ],
    ids=["classes", "channels", "large", "head"],
)
def test_sizes_are_compared_with_the_tensors_before_anything_is_allocated(content, change, named):
    wrong = copy.deepcopy(content)
    for name, value in change.items():
        for owner in (wrong, wrong["config"]):
            if name in owner and name not in ("mean", "std"):
                owner[name] = value
    wrong.update({name: value for name, value in change.items() if name in ("mean", "std")})
    check_content(wrong)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=named):
        check_network(wrong)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start < 100_000  # KiB


@pytest.mark.parametrize("name", ["model", "weights"])
def test_tensors_of_another_shape_or_kind_are_named(content, name):
    key, value = next(iter(content["model"].items()))
    for wrong in (value.flatten(), value.long(), value.to(torch.complex64)):
        with pytest.raises(ValueError, match=f"{name}: {key}"):
            check_network(changed(content, name, key, value=wrong))
    with pytest.raises(ValueError, match="lacks tensors"):
        check_network(changed(content, name, key))


def test_code_is_trusted_only_by_its_whole_name():
    check_trusted("lenet5", None, "")
    check_trusted("mine:make", "mine:make", "")
    for written in (None, "resnet50", "mine:other", "mine"):
        with pytest.raises(ValueError, match="mine:make is code of the module mine; if you trust it, say so"):
            check_trusted("mine:make", written, "say so")


# The same through every entry point


@pytest.fixture
def evil(content, tmp_path, monkeypatch, demo) -> Path:
    """A checkpoint that names a module of the working folder, which leaves a file when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "evilmod", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("evilmod.py").write_text(
        "open('ran', 'w')\nfrom fastcnn.models import build\n"
        "def make(num_classes, in_chans=3):\n    return build('lenet5', num_classes, in_chans)\n"
    )
    wrong = changed(changed(content, "arch", value="evilmod:make"), "config", "arch", value="evilmod:make")
    Path("run").mkdir()
    torch.save(wrong, "run/last.pt")
    Path("images").symlink_to(demo / "val" / "red_star")
    return tmp_path


COMMANDS = (
    ("predict", "run/last.pt", "images"),
    ("train", "--resume", "run/last.pt", "--epochs", "1"),
    ("train", "--resume", "auto", "--output-dir", "run", "--epochs", "1"),
    ("train", "--resume", "run/last.pt", "--test-only"),
)


def test_a_missing_average_of_the_weights_is_named(content):
    with pytest.raises(ValueError, match="ema is missing"):
        check_content({**copy.deepcopy(content), "ema": None})


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_code_that_a_checkpoint_names_does_not_run_unless_the_user_names_it(evil, command, capsys, one_core):
    assert main(list(command)) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    advice = (
        "its network evilmod:make is code of the module evilmod; if you trust it, add --arch evilmod:make\n"
    )
    assert captured.err.endswith(advice)
    assert not Path("ran").exists()
    assert main([*command, "--arch", "evilmod:make"]) == 0
    assert Path("ran").exists()


def test_code_that_a_checkpoint_names_does_not_run_in_python_either(evil):
    with pytest.raises(ValueError, match='if you trust it, pass arch="evilmod:make"$'):
        fastcnn.load("run/last.pt")
    assert not Path("ran").exists()
    assert isinstance(fastcnn.load("run/last.pt", arch="evilmod:make"), torch.nn.Module)


def test_tensors_that_do_not_fit_code_are_one_line_too(evil, one_core, capsys):
    content = torch.load("run/last.pt", weights_only=True)
    for name in ("model", "weights"):
        content[name] = {f"x.{key}": value for key, value in content[name].items()}
    content.update(ema=None, average={"epochs": 0, "weights": {}})
    content["config"]["model_ema"] = False
    torch.save(content, "run/last.pt")
    for command in COMMANDS[:2]:
        assert main([*command, "--arch", "evilmod:make"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "does not fit its network: model has 'x." in error


def test_weights_of_a_checkpoint_never_import_its_network(evil, demo, train):
    assert train(*QUICK, "--data", demo, "--epochs", "1", "--weights", "run/last.pt") == 0
    assert not Path("ran").exists()


@pytest.mark.parametrize("arch", ["timm/resnet18", "torchvision/resnet18", "timm/hf_hub:a/b"])
def test_no_network_out_of_a_checkpoint_is_downloaded(content, arch, tmp_path, monkeypatch):
    if arch.startswith("timm"):
        pytest.importorskip("timm")

    def connect(*_: object) -> None:
        raise AssertionError("a connection to the network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    wrong = changed(changed(content, "arch", value=arch), "config", "arch", value=arch)
    torch.save(wrong, tmp_path / "a.pt")
    with pytest.raises(ValueError):
        fastcnn.load(tmp_path / "a.pt")


def test_downloads_go_to_no_folder_that_a_checkpoint_alone_names(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = changed(changed(content, "config", "data", value="cifar10"), "config", "data_root", value="there")
    torch.save(wrong, "last.pt")
    with pytest.raises(ValueError, match="add --data-root there, or another folder$"):
        fastcnn.fit(resume="last.pt", output_dir="out")
    assert not Path("there").exists()
    config = Config(arch="lenet5", data="cifar10", data_root="a folder")
    assert resume_flags(config) == " --data-root 'a folder'"
    assert resume_flags(dataclasses.replace(config, data="photos")) == ""
    assert resume_flags(Config(arch="own:make", data="photos")) == " --arch own:make"
