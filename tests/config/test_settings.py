"""Settings from flags, YAML files and Python: what is read, what wins and what is refused."""

from __future__ import annotations

import ast
import dataclasses
import io
import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import annotated_types
import pytest

from fastcnn.config import FIELDS, Config, flag, to_yaml
from fastcnn.config.limits import as_limit, broken
from fastcnn.config.parse import from_settings, parse
from fastcnn.config.recipes import RECIPES
from fastcnn.config.validate import ineffective
from fastcnn.train import main

CHANGED: dict[str, Any] = {
    "arch": "resnet20",
    "val_split": 0.2,
    "num_classes": 7,
    "in_chans": 1,
    "img_size": 48,
    "data_backend": "torch",
    "batch_size": 16,
    "workers": 0,
    "scale": (0.25, 0.75),
    "hflip": 0.0,
    "crop_pct": 1.0,
    "epochs": 40,
    "opt": "adamw",
    "lr": 1e-05,
    "weight_decay": 0.0,
    "sched": "multistep",
    "warmup_epochs": 2.5,
    "decay_milestones": (1.0, 2.0, 3.5, 8.0),
    "clip_grad": 1.0,
    "model_ema": True,
    "pretrained": True,
    "head": "mlp",
    "head_hidden": 64,
    "freeze_until": "layer3",
    "unfreeze_epoch": 3,
    "backbone_lr_scale": 0.1,
    "layer_decay": 0.75,
    "device": "cpu",
    "amp_dtype": "fp32",
    "channels_last": "off",
    "compile": "off",
    "seed": 3,
    "output_dir": "runs/with a space",
    "resume": "auto",
    "checkpoint_steps": 9,
    "log_interval": 1,
}


@pytest.fixture
def yaml(tmp_path):
    """`yaml(text)` writes a settings file and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


def refusal(settings: dict) -> str:
    """The message of the ValueError that these settings raise, which must be one line."""
    with pytest.raises(ValueError) as caught:
        from_settings(settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Flags


def test_no_flags_give_the_defaults():
    assert parse([]) == Config()


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("-a", "arch", "resnet18"),
        ("--model", "arch", "resnet18"),
        ("--arch", "arch", "resnet18"),
        ("-b", "batch_size", 64),
        ("-j", "workers", 3),
        ("--wd", "weight_decay", 0.01),
        ("--smoothing", "label_smoothing", 0.1),
    ],
)
def test_a_short_name_is_the_flag(alias, name, value):
    assert parse([alias, str(value)]) == Config(**{name: value})


@pytest.mark.parametrize("argv", [["--lr", "1e-3"], ["--lr=0.001"], ["--lr", ".001"]])
def test_numbers_are_read_as_people_write_them(argv):
    assert parse(argv).lr == 0.001


def test_auto_can_be_written_out():
    assert parse(["--lr", "auto", "--batch-size", "auto", "--compile", "auto"]) == Config()


def test_several_values_follow_one_flag():
    config = parse(["--scale", "0.5", "1", "--decay-milestones", "1", "2", "3", "4"])
    assert config.scale == (0.5, 1.0)
    assert config.decay_milestones == (1.0, 2.0, 3.0, 4.0)


def test_switches_have_a_no():
    assert parse(["--no-channels-last"]).channels_last == "off"
    assert parse(["--channels-last", "--arch", "lenet5"]).channels_last == "on"
    assert parse(["--channels-last", "auto"]).channels_last == "auto"
    assert parse(["--model-ema"]).model_ema is True
    assert parse(["--no-model-ema"]).model_ema is False


@pytest.mark.parametrize(
    ("argv", "resume"),
    [
        (["--resume"], "auto"),
        (["--resume", "--epochs", "3"], "auto"),
        (["--resume", "-b", "3"], "auto"),
        (["--resume", "auto"], "auto"),
        (["--resume", "runs/a/last.pt", "--epochs", "3"], "runs/a/last.pt"),
        (["--resume=runs/a/last.pt"], "runs/a/last.pt"),
        ([], None),
    ],
)
def test_resume_alone_means_auto(argv, resume):
    assert parse(argv).resume == resume


def words(argv: list[str]) -> str:
    """The id of a command line."""
    return " ".join(argv)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    "argv",
    [
        ["--epoch", "3"],
        ["--bogus-flag"],
        ["stray"],
        ["--lr"],
        ["--opt", "adam"],
        ["--img-size", "2.5"],
        ["--batch-size", "many"],
        ["--seed", "x"],
        ["--scale", "1"],
        ["--progressive", "a", "b"],
        ["--val-split", "half"],
    ],
    ids=words,
)
def test_what_cannot_be_read_gives_one_line(argv, encoding, monkeypatch, wording):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with pytest.raises(ValueError) as caught:
        parse(argv)
    message = str(caught.value)
    assert message.startswith(argv[0])
    assert "\n" not in message
    wording(message)


def test_a_short_flag_is_refused_by_its_long_name(wording):
    with pytest.raises(ValueError, match="^--batch-size many: ") as caught:
        parse(["-b", "many"])
    wording(caught.value)


@pytest.mark.parametrize(
    "argv",
    [["--momentum", "1"], ["--lr", "-0.1"], ["--scale", "0.5", "0.2"], ["--test-only"]],
    ids=words,
)
def test_an_impossible_value_of_a_flag_is_one_line_that_says_what_to_write(argv, capsys, wording):
    with pytest.raises(ValueError, match=f"^{argv[0]} ") as caught:
        parse(argv)
    wording(caught.value)
    assert main(argv) == 2
    assert capsys.readouterr().err == f"fastcnn: error: {caught.value}\n"


def test_help_breaks_a_text_only_where_the_line_is_full(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        parse(["--help"])
    texts = re.findall(r"^[│ ] {7}\S", capsys.readouterr().out, re.MULTILINE)
    assert len(texts) == len(FIELDS) + 1  # --help has a text too


def test_help_lists_every_flag_and_ends_with_status_0(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    missing = [name for name in FIELDS if not re.search(rf"{flag(name)}(?![\w-])", text)]
    assert not missing
    assert all(re.search(rf"(?<!\S){alias}(?!\S)", text) for alias in ("-a", "--model", "-b", "-j", "--wd"))


def test_every_setting_is_described():
    assert all(field.type for field in FIELDS.values())
    tree = ast.parse(Path(sys.modules[Config.__module__].__file__ or "").read_text())
    bodies = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
    documented = {
        ast.unparse(field.target)
        for body in bodies
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
    assert documented == {*FIELDS, "written"}


# Written settings


@pytest.mark.parametrize(
    ("argv", "written"),
    [
        (["--mixup", "0"], {"mixup"}),
        (["--mixup=0", "--label_smoothing=0"], {"mixup", "label_smoothing"}),
        (
            ["--smoothing", "0", "-b", "auto", "-a", "resnet50", "-j=auto"],
            {"label_smoothing", "batch_size", "arch", "workers"},
        ),
        (["--no-model-ema", "--no_pretrained"], {"model_ema", "pretrained"}),
        (["--no-channels-last"], {"channels_last"}),
        (["--resume"], {"resume"}),
        (["--output-dir", "mixup"], {"output_dir"}),
        ([], set()),
    ],
)
def test_flags_that_are_written_are_known_also_at_their_defaults(argv, written):
    assert parse(argv).written == written


def test_files_recipes_and_python_write_settings_too(yaml):
    path = yaml("mixup: 0\nmodel_ema: false")
    assert parse(["--config", path, "--epochs", "3"]).written == {"config", "mixup", "model_ema", "epochs"}
    assert from_settings({"mixup": 0.0, "config": path}).written == {"config", "mixup", "model_ema"}
    recipe = RECIPES["transfer-finetune"].settings.keys()
    assert parse(["--recipe", "transfer-finetune"]).written == {"recipe", *recipe}
    assert parse(["--config", yaml("recipe: transfer-finetune")]).written == {"config", "recipe", *recipe}
    assert from_settings({"recipe": "transfer-finetune"}).written == {"recipe", *recipe}


def test_what_is_written_is_no_setting_itself():
    config = dataclasses.replace(Config(), written=frozenset(["mixup"]))
    assert "written" not in to_yaml(config)
    assert config == Config()
    with pytest.raises(ValueError, match="no such flag"):
        parse(["--written", "mixup"])


# YAML files


@pytest.mark.parametrize(
    "config",
    [Config(), Config(**CHANGED), Config(mask_colors=("000000", "012345", "1e1000"))],
    ids=["defaults", "changed", "colors of digits"],
)
def test_settings_survive_being_written_to_a_file_and_read_back(config, yaml):
    path = yaml(to_yaml(config))
    assert parse(["--config", path]) == dataclasses.replace(config, config=path)


@pytest.mark.parametrize("name", CHANGED)
def test_every_setting_of_that_check_differs_from_its_default(name):
    assert CHANGED[name] != FIELDS[name].default


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("compile: on", "compile", "on"),  # which YAML reads as true
        ("compile: off", "compile", "off"),
        ("compile: auto", "compile", "auto"),
        ("lr: 1e-3", "lr", 0.001),  # which YAML reads as text
        ("lr: 1", "lr", 1.0),
        ("batch-size: 32", "batch_size", 32),
        ("scale: [0.5, 1]", "scale", (0.5, 1.0)),
        ("decay_milestones:\n- 5\n- 7", "decay_milestones", (5.0, 7.0)),
        ("decay_milestones: []", "decay_milestones", ()),
        ("clip_grad: null", "clip_grad", None),
        ("clip_grad:", "clip_grad", None),
        ("val_split: 0.1", "val_split", 0.1),
        ("model_ema: yes", "model_ema", True),
        ("channels_last: false", "channels_last", "off"),
        ("output_dir: 2024", "output_dir", "2024"),
        ("data: my photos", "data", "my photos"),
        ("resume: auto", "resume", "auto"),
        ("freeze: none", "freeze", "none"),
        ("weights: null", "weights", None),
        ("weights: mine.pth", "weights", "mine.pth"),
    ],
)
def test_yaml_is_read_as_people_write_it(text, name, value, yaml):
    config = parse(["--config", yaml(text)])
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)


@pytest.mark.parametrize("joined", [False, True], ids=["two words", "one word"])
def test_flags_override_the_file_and_the_file_the_defaults(joined, yaml):
    path = yaml("arch: resnet18\nlr: 0.3\nmodel_ema: true\nscale: [0.5, 1.0]\n")
    file = [f"--config={path}"] if joined else ["--config", path]
    config = parse(["--lr", "0.4", *file, "--no-model-ema", "--scale", "0.1", "0.2"])
    expected = Config(arch="resnet18", lr=0.4, model_ema=False, scale=(0.1, 0.2), config=path)
    assert config == expected


@pytest.mark.parametrize(
    ("text", "argv"),
    [
        ("epochs: 3\nwarmup_epochs: 5", ["--epochs", "30"]),
        ("test_only: true", ["--resume", "last.pt"]),
        ("lr: -1", ["--lr", "0.1"]),
    ],
)
def test_what_is_impossible_in_the_file_alone_may_be_mended_by_a_flag(text, argv, yaml):
    assert parse(["--config", yaml(text), *argv])


def test_an_unknown_setting_in_a_file_names_the_file_and_the_nearest_setting(yaml, wording):
    path = yaml("arch: resnet18\nbatchsize: 3\n")
    with pytest.raises(ValueError, match="'batchsize'.* 'batch_size'") as caught:
        parse(["--config", path])
    wording(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "- 1\n- 2", "arch: [", "model_ema: 1", "zzz: 1"],
    ids=["empty", "a list", "not YAML", "a number for a switch", "an unknown setting"],
)
def test_a_file_that_is_none_is_named_in_one_line(text, yaml, wording):
    path = yaml(text)
    with pytest.raises(ValueError) as caught:
        parse(["--config", path])
    message = str(caught.value)
    assert message.startswith(f"--config {path}: ")
    assert "\n" not in message
    wording(message.partition(": while")[0])  # the rest is PyYAML's


def test_a_missing_file_is_named_in_one_line(tmp_path, wording):
    path = tmp_path / "nowhere.yaml"
    with pytest.raises(ValueError) as caught:
        parse(["--config", str(path)])
    message = str(caught.value)
    assert message.startswith(f"--config {path}: ")
    assert "\n" not in message
    wording(message)


@pytest.mark.parametrize("text", ["lr: fast", "img_size: 2.5", "sched: linear", "scale: [0.1]", "lr: null"])
def test_an_unreadable_value_in_a_file_names_the_flag_and_the_file(text, yaml, capsys):
    path = yaml(text)
    with pytest.raises((SystemExit, ValueError)) as caught:
        parse(["--config", path])
    said = capsys.readouterr().err + str(caught.value)
    assert flag(text.split(":")[0]) in said
    assert Path(path).name in said


# Python


def test_keywords_become_settings(tmp_path):
    config = from_settings({"arch": "lenet5", "scale": [0.5, 1.0], "data": tmp_path, "epochs": 2})
    assert config == Config(arch="lenet5", scale=(0.5, 1.0), data=str(tmp_path), epochs=2)


def test_keywords_override_the_file(yaml):
    path = yaml("arch: resnet18\nepochs: 7\n")
    config = from_settings({"config": Path(path), "epochs": 2})
    assert config == Config(arch="resnet18", epochs=2, config=path)


def test_an_unknown_keyword_suggests_the_nearest(wording):
    message = refusal({"epoch": 2})
    assert "'epochs'" in message
    wording(message)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", "0.1"),
        ("img_size", 2.5),
        ("epochs", "many"),
        ("epochs", None),
        ("arch", 18),
        ("compile", True),
        ("model_ema", "yes"),
        ("scale", (0.1, 0.2, 0.3)),
        ("scale", ("a", "b")),
        ("decay_milestones", 3),
        ("sched", "linear"),
        ("val_split", "0.1"),
    ],
)
def test_a_keyword_of_another_type_is_refused_by_its_name(name, value):
    message = refusal({name: value})
    assert message.startswith(f"{flag(name)} {value!r}: expected ")


# Impossible settings


def shown(value: dict[str, Any] | list[str]) -> str:
    """The id of settings, or of their names."""
    return " ".join(f"{n}={v}" for n, v in value.items()) if isinstance(value, dict) else " ".join(value)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_classes": 0},
        {"batch_size": 0},
        {"val_interval": 0},
        {"grad_accum_steps": 0},
        {"epochs": 0},
        {"progressive": (64,)},
        {"progressive": (64, 32)},
        {"color_jitter": (0.4, 0.4)},
        {"color_jitter": (0.4, 0.4, 0.4, 0.6)},
        {"lr": 0.1, "lr_base": 0.1},
        {"epochs": 3, "time_budget": "10m"},
        {"arch": "unet", "rotate": 10.0},
        {"arch": "yolo", "mixup": 0.2},
        {"mask_values": (0,)},
        {"mask_values": (0, 0)},
        {"mask_values": (-1, 0)},
        {"mask_values": (0, 256)},
        {"mask_colors": ("000000",)},
        {"mask_colors": ("ff0000", "#FF0000")},
        {"mask_colors": ("000000", "red")},
        {"mask_values": (0, 1), "mask_colors": ("000000", "ff0000")},
        {"img_size": 7},
        {"log_interval": 0},
        {"checkpoint_interval": 0},
        {"checkpoint_steps": 0},
        {"batch_size": -5},
        {"workers": -1},
        {"lr": -0.1},
        {"lr": float("nan")},
        {"weight_decay": -0.1},
        {"warmup_epochs": -1.0},
        {"min_lr": -1.0},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"label_smoothing": 1.0},
        {"model_ema_decay": 1.0},
        {"decay_epochs": 0.0},
        {"clip_grad": 0.0},
        {"decay_rate": 0.0},
        {"decay_rate": 1.5},
        {"crop_pct": 0.0},
        {"crop_pct": 1.1},
        {"hflip": 1.5},
        {"hflip": -0.5},
        {"layer_decay": 0.0},
        {"layer_decay": 1.5},
        {"backbone_lr_scale": -1.0},
        {"head_hidden": 0},
        {"unfreeze_epoch": 1},
        {"pretrained": True, "weights": "mine.pth"},
        {"freeze": "backbone", "freeze_until": "layer3"},
        {"val_split": 0.0},
        {"val_split": 1.0},
        {"in_chans": 0},
        {"in_chans": 300},
        {"levels": (5.0, 5.0)},
        {"mean": (0.5, 1.5, 0.5)},
        {"mean": ()},
        {"std": (0.5, 0.0, 0.5)},
        {"scale": (0.5, 0.2)},
        {"scale": (0.0, 0.2)},
        {"scale": (0.5, 1.5)},
        {"ratio": (2.0, 1.0)},
        {"ratio": (0.0, 1.0)},
        {"decay_milestones": (3.0, 2.0)},
        {"test_only": True},
        {"device": "cpu", "amp_dtype": "fp16"},
        {"device": "cpu", "sync_bn": True},
        {"device": "mps", "sync_bn": True},
        {"device": "cpu", "cuda_graph": True},
        {"device": "mps", "cuda_graph": True},
        {"device": "cuda", "amp_dtype": "fp16", "cuda_graph": True},
        {"epochs": 3, "warmup_epochs": 4.0},
    ],
    ids=shown,
)
def test_an_impossible_setting_names_its_flag_and_says_what_to_write(settings, wording):
    message = refusal(settings)
    assert flag(list(settings)[-1]) in message
    wording(message)


def kinds(hint: Any) -> list[Any]:
    """A type and those that it is made of."""
    return [hint, *(kind for inner in get_args(hint) for kind in kinds(inner))]


def unbounded(number: float) -> list[tuple[str, Any]]:
    """Each setting that holds a float, with this one; one of several with this one in each place."""
    found: list[tuple[str, Any]] = []
    for name, hint in get_type_hints(Config).items():
        if float not in kinds(hint):
            continue
        if any(get_origin(kind) is tuple for kind in kinds(hint)):
            found += [(name, (number, 0.5)), (name, (0.5, number))]
            found += [(name, (number,))] if any(... in get_args(kind) for kind in kinds(hint)) else []
        else:
            found.append((name, number))
    return found


@pytest.mark.parametrize("number", [float("inf"), -float("inf"), float("nan")])
def test_no_setting_takes_what_is_not_finite(number):
    cases = unbounded(number)
    assert {"lr", "ratio", "color_jitter", "decay_milestones", "epochs"} <= {name for name, _ in cases}
    for name, value in cases:
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        with pytest.raises(ValueError, match=f"^{flag(name)} {shown}: use [^\n]*$"):
            from_settings({name: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"workers": 0},
        {"lr": 0.0},
        {"momentum": 0.0},
        {"weight_decay": 0.0},
        {"warmup_epochs": 0.0},
        {"hflip": 1.0},
        {"crop_pct": 1.0},
        {"decay_rate": 1.0},
        {"scale": (1.0, 1.0)},
        {"ratio": (1.0, 1.0)},
        {"decay_milestones": ()},
        {"epochs": 3, "warmup_epochs": 3.0},
        {"test_only": True, "resume": "last.pt"},
        {"device": "cuda", "amp_dtype": "fp16", "sync_bn": True},
        {"device": "cuda", "amp_dtype": "bf16", "cuda_graph": True},
        {"device": "cpu", "amp_dtype": "bf16"},
        {"layer_decay": 1.0, "backbone_lr_scale": 0.0},
        {"freeze": "backbone", "unfreeze_epoch": 2},
        {"mask_values": (255, 0)},
        {"mask_colors": ("#000000", "FF0000", "123456")},
    ],
    ids=str,
)
def test_the_outermost_possible_settings_are_taken(settings):
    assert from_settings(settings) == Config(**settings)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, []),
        ({"opt": "adamw", "momentum": 0.5}, ["momentum"]),
        ({"momentum": 0.5}, []),
        ({"model_ema_decay": 0.5}, ["model_ema_decay"]),
        ({"model_ema_decay": 0.5, "model_ema": True}, []),
        ({"decay_epochs": 3.0}, ["decay_epochs"]),
        ({"decay_epochs": 3.0, "sched": "step"}, []),
        ({"decay_milestones": (1.0,), "sched": "step"}, ["decay_milestones"]),
        ({"decay_milestones": (1.0,), "sched": "multistep"}, []),
        ({"decay_rate": 0.5, "sched": "constant"}, ["decay_rate"]),
        ({"decay_rate": 0.5, "sched": "step"}, []),
        ({"decay_rate": 0.5, "sched": "multistep"}, []),
        ({"min_lr": 0.1, "sched": "step"}, ["min_lr"]),
        ({"min_lr": 0.1}, []),
        ({"mask_values": (0, 1)}, ["mask_values"]),
        ({"mask_colors": ("000000", "ff0000"), "arch": "yolo"}, ["mask_colors"]),
        ({"mask_values": (0, 1), "arch": "unet"}, []),
        ({"train_crop": "pad", "scale": (0.5, 1.0), "ratio": (1.0, 1.0)}, ["scale", "ratio"]),
        ({"train_crop": "random-resized", "scale": (0.5, 1.0)}, []),
        ({"head_hidden": 64}, ["head_hidden"]),
        ({"head_hidden": 64, "head": "mlp"}, []),
        ({"unfreeze_epoch": 3}, ["unfreeze_epoch"]),
        ({"unfreeze_epoch": 3, "freeze": "backbone"}, []),
        ({"unfreeze_epoch": 3, "freeze_until": "layer3"}, []),
    ],
    ids=shown,
)
def test_a_setting_without_effect_beside_the_others_is_warned_about(settings, names, wording):
    lines = ineffective(Config(**settings))
    assert len(lines) == len(names)
    for line, name in zip(lines, names):
        assert line.startswith(f"warning: {flag(name)} ")
        wording(line)


# What is loaded


@pytest.mark.parametrize(
    "code",
    [
        "import fastcnn; fastcnn.fit",
        "import fastcnn.cli.main",
        "import fastcnn.train",
        "import fastcnn.config.auto",
        "from fastcnn.config.parse import parse; parse(['--arch', 'resnet18', '--lr', '0.1'])",
        "from fastcnn.config import Config, to_yaml; open('c.yaml', 'w').write(to_yaml(Config())); "
        "from fastcnn.config.parse import parse; "
        "parse(['--config', 'c.yaml'])",
    ],
)
def test_flags_are_read_without_torch(code, tmp_path):
    code += (
        "; import sys; sys.exit(', '.join({'torch', 'nvidia.dali', 'torchvision'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# Limits


def test_an_annotation_without_a_rule_is_an_error_and_not_ignored():
    for annotation in (annotated_types.Le(3), annotated_types.MultipleOf(2), annotated_types.Interval(ge=0)):
        with pytest.raises(TypeError, match="no rule for"):
            as_limit(annotation)


def test_a_large_integer_is_finite():
    assert broken(10**400, (annotated_types.Ge(0),)) is None
