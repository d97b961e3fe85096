"""What "auto" becomes for which data, network and machine, and that nothing else is touched."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from fastcnn.config import FIELDS, Config, flag, task_of, to_plain
from fastcnn.config.auto import NOT_CARRIED, describe, ignored_on_resume, merge_resumed_config, resolve
from small_facts import facts, resolved

AUTO = {name for name, field in FIELDS.items() if field.default == "auto"}
TOLD: dict[str, Any] = {
    "cls_loss": "focal",
    "levels": (0, 4095),
    "mean": (0.5,),
    "std": (0.25,),
    "num_classes": 200,
    "in_chans": 1,
    "img_size": 96,
    "val_img_size": 128,
    "crop_padding": 3,
    "data_backend": "torch",
    "batch_size": 10,
    "workers": 5,
    "train_crop": "pad",
    "hflip": 0.25,
    "epochs": 4,
    "lr": 0.7,
    "weight_decay": 0.3,
    "warmup_epochs": 1.5,
    "device": "cuda",
    "amp_dtype": "fp32",
    "channels_last": "off",
    "compile": "off",
    "output_dir": "runs/mine",
    "log_interval": 3,
    "scale": (0.3, 0.9),
    "crop_mode": "border",
    "anchors": (8.0, 9.0),
    "strides": (4,),
}
"""A value of the user's own for all that can be "auto"."""


def test_one_process_alone_records_its_steps(wording):
    assert resolved(Config(cuda_graph=True)).cuda_graph
    with pytest.raises(ValueError, match="^--cuda-graph: ") as caught:
        resolved(Config(cuda_graph=True), world_size=2)
    wording(caught.value)


def test_the_last_of_progressive_sizes_is_the_image_size():
    config = resolved(Config(progressive=(160, 192)))
    assert (config.img_size, config.val_img_size, config.crop_padding) == (192, 192, 24)


SMALL = {"native_size": 32, "train_images": 50_000}


def shown(value: Any) -> str:
    """The id of settings and facts."""
    return " ".join(f"{n}={v}" for n, v in value.items()) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # The data
        ({}, {"num_classes": 100, "in_chans": 3, "img_size": 224}),
        ({"channels": 1, "num_classes": 10}, {"num_classes": 10, "in_chans": 1}),
        ({}, {"train_crop": "random-resized", "hflip": 0.5}),
        (SMALL, {"train_crop": "pad", "img_size": 32}),
        ({"native_size": 28, "model_size": 32, "fixed_size": True}, {"train_crop": "pad", "img_size": 32}),
        ({"mirror": False}, {"hflip": 0.0}),
        # The network's least size and its patches
        ({**SMALL, "minimum_size": 63}, {"train_crop": "pad", "img_size": 224}),
        ({**SMALL, "minimum_size": 32}, {"img_size": 32}),
        ({**SMALL, "size_multiple": 16}, {"img_size": 32}),
        ({"native_size": 28, "minimum_size": 16, "size_multiple": 16}, {"img_size": 32}),
        ({}, {"val_img_size": 224, "crop_padding": 28}),
        (SMALL, {"val_img_size": 32, "crop_padding": 4}),
        # The loader
        ({}, {"data_backend": "auto", "workers": 8}),  # timed later
        ({"data_name": "synthetic"}, {"data_backend": "synthetic"}),
        # The batch
        ({}, {"batch_size": 256}),
        (SMALL, {"batch_size": 256}),
        ({**SMALL, "device": "cpu"}, {"batch_size": 128}),
        ({"device": "cpu"}, {"batch_size": 32}),
        ({"train_images": 9_999}, {"batch_size": 32}),
        ({"train_images": 10_000}, {"batch_size": 256}),
        ({"train_images": 20}, {"batch_size": 20}),
        ({"train_images": 100, "world_size": 4}, {"batch_size": 25}),
        ({"train_images": 1}, {"batch_size": 1}),
        # The loss
        ({}, {"cls_loss": "ce"}),
        ({"multi_label": True}, {"cls_loss": "bce"}),
        # The length
        ({}, {"epochs": 30, "warmup_epochs": 3.0}),
        ({"train_images": 1_281_167}, {"epochs": 90, "warmup_epochs": 5.0}),
        ({"data_name": "demo", "train_images": 9_000}, {"epochs": 12, "warmup_epochs": 1.2}),
        # The machine
        ({}, {"device": "cuda", "amp_dtype": "bf16", "compile": "on", "log_interval": 50}),
        ({"bf16_gpu": False}, {"device": "cuda", "amp_dtype": "fp16", "compile": "on"}),
        ({"device": "mps"}, {"device": "mps", "amp_dtype": "fp32", "compile": "off", "log_interval": 10}),
        ({"device": "cpu"}, {"device": "cpu", "compile": "auto", "log_interval": 10}),
        ({"device": "cpu", "has_compiler": False}, {"compile": "off"}),
        ({}, {"channels_last": "on"}),
        ({"device": "cpu"}, {"amp_dtype": "auto", "channels_last": "auto"}),  # a probe decides
    ],
)
def test_auto_becomes(changes, expected):
    config = resolved(**changes)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("world_size", "accumulated", "images"), [(1, 1, 64), (8, 1, 512), (1, 4, 256), (2, 8, 1024)]
)
def test_the_learning_rate_follows_the_images_of_a_step(world_size, accumulated, images):
    config = Config(batch_size=64, grad_accum_steps=accumulated)
    sgd = resolved(config, world_size=world_size)
    assert sgd.lr == pytest.approx(0.1 * images / 256)
    adamw = resolved(dataclasses.replace(config, opt="adamw"), world_size=world_size)
    assert adamw.lr == pytest.approx(1e-3 * math.sqrt(images / 1024))


def test_small_images_start_from_the_rate_of_the_cifar_networks_and_the_demo_set_from_its_own():
    config = Config(batch_size=128)
    assert resolved(config, native_size=32).lr == pytest.approx(0.1)
    assert resolved(config, native_size=64, data_name="demo").lr == pytest.approx(0.15)


@pytest.mark.parametrize(("opt", "decay"), [("sgd", 1e-4), ("nesterov", 1e-4), ("adamw", 0.05)])
def test_the_weight_decay_is_that_of_the_optimizer(opt, decay):
    assert resolved(Config(opt=opt)).weight_decay == decay


def test_muon_s_rate_and_decay_are_those_of_airbench_for_the_square_root_of_its_batch(wording):
    config, reasons = resolve(Config(opt="muon", batch_size=500), facts(native_size=32))
    assert config.lr == pytest.approx(0.24 / 2)
    # of 2,000 images a step takes a share of 0.24 / 60 = 2e-6 * 2000 away
    assert config.weight_decay == pytest.approx(2e-6 * 2000 / 0.24 / 2)
    wording(reasons["lr"])


def test_the_learning_rate_and_the_warm_up_follow_what_the_user_told():
    config = resolved(Config(batch_size=512, epochs=8))
    assert config.lr == pytest.approx(0.2)
    assert config.warmup_epochs == pytest.approx(0.8)


@pytest.mark.parametrize(("has_dali", "backend"), [(True, "dali"), (False, "torch")])
def test_deterministic_runs_do_not_choose_their_loader_by_the_clock(has_dali, backend):
    assert resolved(Config(deterministic=True), has_dali=has_dali).data_backend == backend


# Every field that can be "auto", alone: the others may still be chosen.
@pytest.mark.parametrize("name", sorted(AUTO))
def test_what_the_user_told_is_never_changed(name):
    config, reasons = resolve(Config(**{name: TOLD[name]}), facts())
    assert getattr(config, name) == TOLD[name]
    assert name not in reasons


def test_there_is_nothing_to_choose_where_everything_is_told():
    config = Config(**TOLD)
    assert resolve(config, facts()) == (config, {})


def test_deterministic_runs_on_the_cpu_do_not_choose_their_arithmetic_by_the_clock():
    config = resolved(Config(deterministic=True), device="cpu")
    assert (config.amp_dtype, config.channels_last, config.compile) == ("fp32", "on", "off")


@pytest.mark.parametrize("arch", ["resnet50", "unet", "yolo"])
@pytest.mark.parametrize("device", ["cuda", "mps", "cpu"])
def test_every_choice_and_nothing_else_has_a_reason(device, arch):
    config, reasons = resolve(Config(arch=arch), facts(device=device))
    left = {name for name in AUTO if getattr(config, name) == "auto"}
    later = {"output_dir", "data_backend", "anchors", "levels", "mean", "std"}
    later |= {"strides"} if arch != "yolo" else set()
    later |= {"cls_loss"} if task_of(arch) != "classification" else set()
    probed = {"amp_dtype", "channels_last", "compile"} if device == "cpu" else set()
    assert left == later | probed
    assert set(reasons) == AUTO - left
    unchanged = [name for name in FIELDS if name not in reasons and name != "arch"]
    assert all(getattr(config, name) == FIELDS[name].default for name in unchanged)


def test_masks_and_boxes_are_seen_whole_and_cropped_less():
    for arch in ("unet", "unet/resnet50", "yolo", "yolov1/resnet50"):
        config = resolved(Config(arch=arch))
        assert (config.crop_mode, config.scale) == ("border", (0.5, 1.0))
    config = resolved(Config(arch="resnet50"))
    assert (config.crop_mode, config.scale) == ("center", (0.08, 1.0))


@pytest.mark.parametrize(
    ("arch", "size", "known", "strides"),
    [
        ("yolo", 416, (4, 8, 16, 32), (8, 16, 32)),
        ("yolo/resnet50", 64, (4, 8, 16, 32), (8,)),
        ("yolo/lenet5", 416, (2, 4), (4,)),
        ("yolo/vit_s_16", 416, (16,), (16,)),
        ("yolov1", 448, (4, 8, 16, 32), (32,)),
        ("yolov1", 64, (4, 8, 16, 32), (8,)),
    ],
)
def test_small_images_get_a_fine_map_alone(arch, size, known, strides):
    assert resolved(Config(arch=arch, img_size=size), strides=known).strides == strides


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"train_images": 20}, "batch_size"),
        ({"train_images": 5_000}, "batch_size"),
        ({"bf16_gpu": False}, "amp_dtype"),
        ({"data_name": "synthetic"}, "data_backend"),
        ({"mirror": False}, "hflip"),
        ({"data_name": "demo"}, "epochs"),
        (SMALL, "img_size"),
        ({**SMALL, "minimum_size": 63}, "img_size"),
        ({**SMALL, "size_multiple": 14}, "img_size"),
        ({}, "img_size"),
        ({}, "lr"),
    ],
    ids=shown,
)
def test_the_reason_names_what_decided(changes, name, wording):
    wording(resolve(Config(), facts(**changes))[1][name])


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"arch": "lenet5", "img_size": 64}, {"fixed_size": True, "model_size": 32}),
        ({"img_size": 32}, {"minimum_size": 63}),
        ({"img_size": 225}, {"size_multiple": 16}),
        ({"img_size": 8}, {"size_multiple": 32}),
        ({"num_classes": 5}, {}),
        ({"warmup_epochs": 50.0}, {}),
    ],
    ids=shown,
)
def test_what_this_data_or_network_cannot_take_is_refused(settings, changes, wording):
    with pytest.raises(ValueError, match=f"^{flag(list(settings)[-1])} ") as caught:
        resolve(Config(**settings), facts(**changes))
    wording(caught.value)


def test_a_warm_up_is_not_held_against_epochs_that_a_time_budget_is_still_to_tell():
    assert resolved(Config(warmup_epochs=50.0, time_budget="10h")).warmup_epochs == 50


def test_more_classes_than_the_data_has_are_taken():
    assert resolved(Config(num_classes=1000)).num_classes == 1000


# Resuming

SAVED: dict[str, Any] = {**to_plain(Config(**TOLD)), "seed": 5, "scale": [0.5, 1.0], "model_ema": True}


def resumed(config: Config | None = None, device: str = "cuda", same_ranks: bool = True) -> Config:
    chosen = ["lr", "weight_decay", "warmup_epochs", "img_size", "val_img_size", "crop_padding"]
    return merge_resumed_config(config or Config(), SAVED, chosen, same_ranks=same_ranks, device=device)[0]


def test_a_resumed_run_has_the_saved_settings_but_for_the_machines_and_this_starts():
    config = resumed()
    for name in FIELDS:
        expected = FIELDS[name].default if name in NOT_CARRIED else SAVED[name]
        assert getattr(config, name) == (tuple(expected) if isinstance(expected, list) else expected), name
    assert {"device", "workers", "output_dir", "resume", "test_only"} <= set(NOT_CARRIED)


SEARCHED: dict[str, Any] = {"lr": "find", "batch_size": "max"}
CARRIED = sorted(FIELDS.keys() - set(NOT_CARRIED) - {"time_budget"})


@pytest.mark.parametrize("name", CARRIED)
def test_every_written_setting_wins_on_resume_also_at_its_default(name):
    default = FIELDS[name].default
    saved = {"device": "cpu", name: object()}
    written = dataclasses.replace(Config(), written=frozenset([name]))
    merged, kept = merge_resumed_config(written, saved, [name], same_ranks=True, device="cpu")
    assert getattr(merged, name) == default
    assert name not in kept
    merged, kept = merge_resumed_config(Config(), saved, [name], same_ranks=True, device="cpu")
    assert getattr(merged, name) is saved[name]
    assert kept == {name: "from the checkpoint"}


@pytest.mark.parametrize("name", SEARCHED)
def test_a_search_that_is_written_keeps_what_the_checkpoint_found(name):
    config = dataclasses.replace(Config(), **{name: SEARCHED[name]}, written=frozenset([name]))
    merged, _ = merge_resumed_config(config, {"device": "cpu", name: 7}, (), same_ranks=True, device="cpu")
    assert getattr(merged, name) == 7


def test_a_resumed_run_does_what_it_is_told():
    config = resumed(Config(lr=0.9, epochs=99))
    assert (config.lr, config.epochs, config.batch_size) == (0.9, 99, TOLD["batch_size"])


@pytest.mark.parametrize(("device", "expected"), [("cuda", True), ("cpu", False)])
def test_a_recorded_step_is_kept_on_the_same_kind_of_device(device, expected):
    saved = to_plain(Config(device="cuda", cuda_graph=True))
    assert merge_resumed_config(Config(), saved, (), same_ranks=True, device=device)[0].cuda_graph is expected


@pytest.mark.parametrize(
    ("told", "saved"),
    [
        ({"freeze_until": "layer2"}, {"freeze": "backbone"}),
        ({"freeze": "backbone"}, {"freeze_until": "layer2"}),
        ({"weights": "mine.pt"}, {"pretrained": True}),
    ],
)
def test_a_resumed_run_takes_one_of_two_settings_that_exclude_each_other(told, saved):
    config, _ = merge_resumed_config(
        Config(**told), {**vars(Config(device="cpu")), **saved}, (), same_ranks=True, device="cpu"
    )
    assert config == dataclasses.replace(Config(**told), device=config.device)


def test_a_switch_that_has_become_a_choice_is_read():
    saved = {**SAVED, "channels_last": True}
    assert merge_resumed_config(Config(), saved, [], same_ranks=True, device="cuda")[0].channels_last == "on"


def test_settings_that_no_longer_exist_are_left_out():
    assert (
        merge_resumed_config(Config(), {**SAVED, "gone_since": 1}, [], same_ranks=True, device="cuda")[0].seed
        == 5
    )


@pytest.mark.parametrize(("device", "dtype"), [("cuda", "fp32"), ("cpu", "auto"), ("mps", "auto")])
def test_the_arithmetic_is_kept_on_the_same_kind_of_device_only(device, dtype):
    assert resumed(device=device).amp_dtype == dtype


@pytest.mark.parametrize(
    ("config", "same_ranks", "recomputed"),
    [
        (Config(), True, set()),
        (Config(), False, {"lr"}),
        (Config(batch_size=7), True, {"lr"}),
        (Config(lr_base=0.2), True, {"lr"}),
        (Config(opt="adamw"), True, {"lr", "weight_decay"}),
        (Config(epochs=9), True, {"warmup_epochs"}),
        (Config(sched="onecycle"), True, {"warmup_epochs"}),
        (Config(lr=0.3), False, set()),
        (Config(img_size=64), True, {"val_img_size", "crop_padding"}),
        (Config(progressive=(64, 96)), True, {"img_size", "val_img_size", "crop_padding"}),
    ],
)
def test_what_was_chosen_is_chosen_anew_when_its_reason_has_changed(config, same_ranks, recomputed):
    again = resumed(config, same_ranks=same_ranks)
    names = ("lr", "weight_decay", "warmup_epochs", "img_size", "val_img_size", "crop_padding")
    assert {name for name in names if getattr(again, name) == "auto"} == recomputed


def test_nothing_is_chosen_anew_where_the_same_is_told_again():
    names = "opt", "batch_size", "epochs", "img_size", "lr_base"
    again = Config(**{name: SAVED[name] for name in names}, lr="find")
    chosen = ["lr", "weight_decay", "warmup_epochs", "val_img_size", "crop_padding"]
    config, reasons = merge_resumed_config(again, SAVED, chosen, same_ranks=True, device="cuda")
    assert [getattr(config, name) for name in chosen] == [SAVED[name] for name in chosen]
    assert list(reasons) == chosen


def test_what_was_told_then_is_kept_whatever_has_changed(wording):
    config, reasons = merge_resumed_config(
        Config(batch_size=7), SAVED, ["epochs"], same_ranks=False, device="cuda"
    )
    assert config.lr == TOLD["lr"]
    assert list(reasons) == ["epochs"]
    wording(reasons["epochs"])


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({}, []),
        ({"lr": 0.3, "epochs": 9, "batch_size": 7}, []),
        ({"lr": "find"}, ["--lr find"]),
        ({"lr": "find", "batch_size": 7}, ["--lr find"]),
        ({"batch_size": "max"}, ["--batch-size max"]),
        ({"time_budget": "10m"}, ["--time-budget 10m"]),
    ],
    ids=shown,
)
def test_what_was_found_out_as_a_run_began_is_said_where_it_is_told_again(told, named, wording):
    saved = {**SAVED, "lr": 0.25, "batch_size": 12, "epochs": 6.5}
    config, _ = merge_resumed_config(Config(**told), saved, [], same_ranks=True, device="cuda")
    lines = ignored_on_resume(Config(**told), config)
    assert [line.partition(":")[0] for line in lines] == named
    for line in lines:
        wording(line)


def test_a_learning_rate_is_sought_again_where_what_it_was_found_for_has_changed():
    told = Config(lr="find", batch_size=7)
    config, _ = merge_resumed_config(told, SAVED, ["lr"], same_ranks=True, device="cuda")
    assert config.lr == "find"
    assert ignored_on_resume(told, config) == []


# What a person reads


def test_the_description_gives_each_choice_with_its_reason():
    config, reasons = resolve(Config(), facts())
    lines = describe(config, reasons).splitlines()
    assert lines[:2] == ["resnet50 on demo", "auto-selected settings:"]
    assert len(lines) == 2 + len(reasons)
    assert any(line.split() == ["--img-size", "224", *reasons["img_size"].split()] for line in lines)
    assert any(line.split()[:2] == ["--lr", "0.1"] for line in lines)


def test_the_description_gives_what_was_told():
    config, reasons = resolve(Config(lr=0.2, scale=(0.5, 1.0), arch="resnet18", data="cats"), facts())
    head, *lines = describe(config, reasons).splitlines()
    assert head == "resnet18 on cats: --scale 0.5 1, --lr 0.2"
    assert not any("--lr" in line.split() for line in lines)


def test_the_description_of_a_run_without_choices_is_one_line():
    assert describe(Config(lr=0.5), {}) == "resnet50 on demo: --lr 0.5"


def test_a_checkpoint_from_before_there_were_orientation_and_levels_goes_on_as_it_was():
    saved = {name: value for name, value in SAVED.items() if name not in ("exif", "levels", "dct_scaling")}
    config, _ = merge_resumed_config(Config(), saved, (), same_ranks=True, device="cuda")
    assert (config.exif, config.levels, config.dct_scaling) == ("ignore", (0, 65_535), False)
    config, _ = merge_resumed_config(Config(), SAVED, (), same_ranks=True, device="cuda")
    assert (config.exif, config.levels, config.dct_scaling) == ("upright", (0, 4095), True)
    overrides = Config(levels=(0, 9))
    assert merge_resumed_config(overrides, saved, (), same_ranks=True, device="cuda")[0].levels == (0, 9)


@pytest.mark.parametrize(
    ("channels", "told"),
    [(3, {"in_chans": 4}), (3, {"in_chans": 2}), (1, {"in_chans": 5}), (8, {"in_chans": 3})],
    ids=str,
)
def test_channels_that_the_images_do_not_have_are_refused(channels, told, wording):
    with pytest.raises(ValueError) as caught:
        resolve(Config(**told), facts(channels=channels))
    wording(caught.value)


@pytest.mark.parametrize(
    "told",
    [
        {"aa": "ra"},
        {"color_jitter": (0.4,)},
        {"color_jitter": (0.4, 0.3, 0.2)},
        {"color_jitter": (0.4, 0.3, 0.0, 0.1)},
        {"grayscale_prob": 0.2},
        {"lighting": 0.1},
    ],
    ids=str,
)
def test_augmentation_of_color_is_refused_for_other_channels(told, wording):
    assert resolve(Config(**told), facts(channels=3))
    with pytest.raises(ValueError) as caught:
        resolve(Config(**told), facts(channels=8))
    wording(caught.value)


def test_the_advised_jitter_and_what_is_not_about_color_are_accepted_for_any_channels():
    settings: dict[str, Any] = {"color_jitter": (0.4, 0.4, 0.0), "rotate": 9.0, "reprob": 0.5, "mixup": 0.1}
    assert resolve(Config(**settings), facts(channels=8))[0].in_chans == 8
    assert resolve(Config(in_chans=8), facts(channels=8))[0].in_chans == 8
    assert resolve(Config(in_chans=8), facts(data_name="synthetic", channels=3))[0].in_chans == 8
