"""The command, end to end on small files."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import fastcnn
from fastcnn.data import has_dali
from fastcnn.models import build

QUICK = ("--arch", "lenet5", "--amp-dtype", "fp32", "--batch-size", "16", "--workers", "1")
BACKENDS = [
    pytest.param("dali", marks=pytest.mark.skipif(not has_dali(), reason="DALI is not installed")),
    "torch",
    "cached",
]


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_folder_of_jpegs_trains_and_leaves_everything_in_its_run_folder(train, demo, capsys, backend):
    flags = (*QUICK, "--data", demo, "--data-backend", backend)
    assert train(*flags, "--epochs", "3", "--lr", "0.1", "--momentum", "0.8") == 0
    run = Path("runs/lenet5-shapes")
    names = {path.name for path in run.iterdir()}
    assert {"last.pt", "best.pt", "config.yaml", "metrics.jsonl", "curves.png"} <= names
    epochs = records(run, "epoch")
    assert [record["epoch"] for record in epochs] == [1, 2, 3]
    assert [record["step"] for record in epochs] == [10, 20, 30]
    assert all(record["val"]["samples"] == 50 for record in epochs)
    assert epochs[-1]["train"]["loss"] < epochs[0]["train"]["loss"]
    with Image.open(run / "curves.png") as curves:
        assert curves.size[0] > 1000
    out = capsys.readouterr().out.splitlines()
    best = max(record["val"]["acc1"] for record in epochs)
    assert re.fullmatch(rf"best acc1 {best:.2f}% of 50 images \(epoch \d\), [\d,]+ img/s, {run}", out[-1])
    assert sum(line.startswith("epoch 1/3  train loss") for line in out) == 1
    assert "\r" not in "".join(out)
    assert out[0] == (
        f"lenet5 on {demo}: --data-backend {backend}, --batch-size 16, --workers 1, "
        "--epochs 3, --lr 0.1, --momentum 0.8, --amp-dtype fp32"
    )


def test_tensorboard_gets_what_the_log_gets(train, demo):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert train(*QUICK, "--data", demo, "--epochs", "2") == 0
    events = accumulator.EventAccumulator("runs/lenet5-shapes").Reload()
    logged = records(Path("runs/lenet5-shapes"), "epoch")
    drawn = events.Scalars("epoch/val/acc1")
    assert [event.step for event in drawn] == [record["step"] for record in logged]
    assert [event.value for event in drawn] == pytest.approx([record["val"]["acc1"] for record in logged])
    assert {"train/lr", "train/metrics/loss", "train/data_wait"} <= set(events.Tags()["scalars"])


def test_the_saved_settings_repeat_the_run(train, demo):
    assert train(*QUICK, "--data", demo, "--epochs", "1", "--label-smoothing", "0.1") == 0
    assert train("--config", "runs/lenet5-shapes/config.yaml") == 0
    first, second = (
        records(Path("runs") / name, "epoch")[0] for name in ("lenet5-shapes", "lenet5-shapes-2")
    )
    assert first["train"] == second["train"]
    assert first["val"] == second["val"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("extra", [(), ("--model-ema", "--opt", "adamw", "--grad-accum-steps", "2")])
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_in_the_same_bits(train, demo, backend, extra):
    flags = (*QUICK, "--data", demo, "--data-backend", backend, "--epochs", "2", "--lr", "0.05", *extra)
    flags += ("--deterministic", "--log-interval", "2")
    assert train(*flags, "--output-dir", "whole") == 0
    saved = 3 if extra else 7  # of 5 and 10 steps an epoch
    interrupt_after(saved, lambda: train(*flags, "--output-dir", "parts", "--checkpoint-steps", saved))
    assert torch.load("parts/last.pt")["step"] == saved
    assert train(*flags, "--output-dir", "parts", "--resume") == 0
    whole, parts = torch.load("whole/last.pt"), torch.load("parts/last.pt")
    assert all(torch.equal(tensor, parts["model"][name]) for name, tensor in whole["model"].items())
    if whole["ema"]:
        averages = parts["ema"]["average"]
        assert all(torch.equal(tensor, averages[name]) for name, tensor in whole["ema"]["average"].items())
    a, b = records(Path("whole"), "epoch"), records(Path("parts"), "epoch")
    assert [(r["step"], r["train"], r["val"]) for r in a] == [(r["step"], r["train"], r["val"]) for r in b]


class Killed(BaseException):
    """Stands for a kill: nothing in the program catches it."""


def interrupt_after(step: int, run: Any) -> None:
    from fastcnn import checkpoint

    real = checkpoint.save

    def save_then_die(path: Path, content: dict[str, Any], best: Path | None = None) -> None:
        real(path, content, best)
        if content["step"] == step:
            raise Killed

    checkpoint.save = save_then_die
    try:
        with pytest.raises(Killed):
            run()
    finally:
        checkpoint.save = real


def test_resume_auto_starts_when_there_is_nothing_and_goes_on_when_there_is(train, demo, capsys):
    flags = (*QUICK, "--data", demo, "--lr", "0.05", "--warmup-epochs", "0", "--resume", "auto")
    assert train(*flags, "--epochs", "1") == 0
    assert "no checkpoint in runs/lenet5-shapes yet" in capsys.readouterr().out
    assert train(*flags, "--epochs", "2") == 0
    assert "going on from runs/lenet5-shapes/last.pt, step 10" in capsys.readouterr().out
    assert [record["epoch"] for record in records(Path("runs/lenet5-shapes"), "epoch")] == [1, 2]


def test_a_checkpoint_alone_says_how_to_go_on(train, demo, capsys):
    assert train(*QUICK, "--data", demo, "--epochs", "1", "--model-ema", "--momentum", "0.7") == 0
    last = Path("runs/lenet5-shapes/last.pt")
    assert train("--resume", last, "--epochs", "2", "--wd", "0.03") == 0
    epochs = records(last.parent, "epoch")
    assert [record["epoch"] for record in epochs] == [1, 2]
    content = torch.load(last)
    assert content["ema"] is not None
    assert content["config"]["batch_size"] == 16
    groups = content["optimizer"]["param_groups"]
    assert [(group["weight_decay"], group["momentum"]) for group in groups] == [(0.03, 0.7), (0.0, 0.7)]
    capsys.readouterr()
    assert train("--resume", last, "--test-only") == 0
    assert f"acc1 {epochs[-1]['val']['acc1']:.2f}%" in capsys.readouterr().out


@pytest.mark.parametrize(("batch_size", "steps"), [(8, 6), (16, 3), (40, 1), (100, 0)])
def test_a_resumed_epoch_goes_on_at_the_same_fraction_with_another_batch_size(train, demo, batch_size, steps):
    flags = (*QUICK, "--data", demo, "--epochs", "2", "--output-dir", "run", "--log-interval", "1")
    interrupt_after(7, lambda: train(*flags, "--checkpoint-steps", "7"))  # of 10: 48 of 160 images are left
    other = "torch" if has_dali() else "cached"
    changes = ("--batch-size", batch_size, "--data-backend", other, "--log-interval", "1")
    assert train("--resume", "run/last.pt", *changes) == 0
    per_epoch = 160 // batch_size
    resumed = [r for r in records(Path("run"), "train") if r["progress"] > 0.7]
    in_first = [r["step"] for r in resumed if r["progress"] <= 1]
    assert in_first == list(range(per_epoch - steps + 1, per_epoch + 1))
    first, second = records(Path("run"), "epoch")
    assert first["train"]["samples"] == 7 * 16 + steps * batch_size
    assert second["step"] == 2 * per_epoch


def test_in_the_middle_of_an_epoch_the_order_may_not_change(train, demo, capsys):
    flags = (*QUICK, "--data", demo, "--output-dir", "mid", "--epochs", "1")
    interrupt_after(7, lambda: train(*flags, "--checkpoint-steps", "7"))
    capsys.readouterr()
    assert train("--resume", "mid/last.pt", "--seed", "3") == 2
    error = capsys.readouterr().err
    assert "saved in the middle of an epoch with --seed 0, now 3: go on with the same\n" in error
    assert train("--resume", "mid/last.pt", "--seed", "3", "--test-only") == 0


def test_minutes_between_checkpoints(train, demo, monkeypatch):
    clock = itertools.count(step=10.0)  # seconds, at each look
    monkeypatch.setattr("fastcnn.loop.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    saved: list[int] = []
    monkeypatch.setattr("fastcnn.checkpoint.save", lambda path, content, best: saved.append(content["step"]))
    flags = (*QUICK, "--data", demo, "--epochs", "1", "--log-interval", "1", "--data-backend", "torch")
    assert train(*flags, "--checkpoint-minutes", "0.5") == 0
    assert len(saved) >= 3
    assert set(saved) > {10}


def test_bad_files_are_named_counted_and_listed_and_never_end_the_run(train, tmp_path, demo, capsys):
    shutil.copytree(demo, tmp_path / "photos")
    for phase, name in (("train", "blue_cross"), ("val", "red_star")):
        folder = tmp_path / "photos" / phase / name
        first, second, *_ = sorted(folder.iterdir())
        first.write_text("not an image")
        second.write_bytes(second.read_bytes()[:500])
    flags = (*QUICK, "--data", tmp_path / "photos", "--epochs", "1")
    assert train(*flags) == 2
    error = capsys.readouterr().err
    assert "--max-bad-fraction 0.01: 2 of 160 training images cannot be decoded" in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()
    assert train(*flags, "--max-bad-fraction", "0.05") == 0
    out = capsys.readouterr().out
    assert "2 of 160 training images are bad and replaced by others of their class" in out
    assert re.search(r"bad validation image: .*not an image", out)
    assert re.search(r"best acc1 .* of 48 images without 2 bad ones", out)
    listed = (Path("runs/lenet5-photos") / "bad-files.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == ["training"] * 2 + ["validation"] * 2
    assert records(Path("runs/lenet5-photos"), "epoch")[0]["val"]["bad"] == 2


def test_the_fastest_loader_is_chosen_and_the_figures_are_said(train, demo, capsys):
    assert train(*QUICK, "--data", demo, "--epochs", "1") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "--data-backend" in line)
    found = re.search(r"--data-backend +(\w+) +img/s alone: (.*)", line)
    assert found is not None
    speeds = {name: int(speed.replace(",", "")) for name, speed in re.findall(r"(\w+) ([\d,]+)", found[2])}
    assert speeds[found[1]] == max(speeds.values())
    assert set(speeds) == {"torch", "cached", *(["dali"] if has_dali() else [])}


def test_test_only_validates_a_checkpoint_and_changes_nothing(train, demo, capsys):
    assert train(*QUICK, "--data", demo, "--epochs", "2", "--lr", "0.1") == 0
    run = Path("runs/lenet5-shapes")
    before = {path: path.read_bytes() for path in run.iterdir()}
    capsys.readouterr()
    assert train(*QUICK, "--data", demo, "--test-only", "--resume", run / "last.pt") == 0
    acc1 = records(run, "epoch")[-1]["val"]["acc1"]
    assert f"acc1 {acc1:.2f}%  50 images" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_checkpoints_hold_plain_types_and_the_networks_own_names(train, demo):
    assert train(*QUICK, "--data", demo, "--epochs", "1", "--model-ema") == 0
    content = torch.load("runs/lenet5-shapes/best.pt", weights_only=True)
    network = build("lenet5", 10)
    network.load_state_dict(content["model"])
    network.load_state_dict(content["weights"])
    assert torch.equal(network.get_parameter("fc7.bias"), content["ema"]["average"]["fc7.bias"])
    assert set(content["ema"]["average"]) == set(content["model"])
    assert content["class_names"][0] == "blue_cross"
    assert content["mean"] == [0.485, 0.456, 0.406]
    assert content["config"]["arch"] == "lenet5"


def test_fit_is_the_command_from_python(tmp_path, monkeypatch, demo):
    monkeypatch.chdir(tmp_path)
    result = fastcnn.fit(
        arch="lenet5", data=demo, epochs=2, lr=0.1, batch_size=16, workers=1, amp_dtype="fp32"
    )
    assert result.folder == Path("runs/lenet5-shapes")
    assert result.best["epoch"] in (1, 2)
    assert result.val["samples"] == 50
    assert result.images_per_second > 0
    assert result.network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_the_demo_set_and_synthetic_data_need_no_data(train, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))
    from fastcnn.data import shapes

    shapes.write(shapes.demo_root(), train_per_class=8, val_per_class=2)
    assert train("--arch", "lenet5", "--epochs", "1", "--amp-dtype", "fp32") == 0
    assert "runs/lenet5-demo" in capsys.readouterr().out
    synthetic = ("--data", "synthetic", "--batch-size", "512", "--epochs", "1")
    assert train("--arch", "lenet5", "--amp-dtype", "fp32", *synthetic) == 0
    assert "runs/lenet5-synthetic" in capsys.readouterr().out


def test_a_lr_that_explodes_stops_with_the_step_and_keeps_the_last_checkpoint(train, demo, capsys):
    flags = (*QUICK, "--arch", "resnet20", "--data", demo, "--log-interval", "2", "--sched", "constant")
    assert train(*flags, "--epochs", "1", "--lr", "0.01", "--output-dir", "run") == 0
    before = Path("run/last.pt").read_bytes()
    capsys.readouterr()
    assert train(*flags, "--epochs", "2", "--lr", "1e30", "--output-dir", "run", "--resume") == 1
    error = capsys.readouterr().err
    assert re.fullmatch(
        r"fastcnn: error: the loss became infinite or NaN at step 1\d, epoch 2, .*--lr.*\n", error
    )
    assert Path("run/last.pt").read_bytes() == before


def test_too_many_bad_files_found_while_training_stop_all_processes_with_one_line(
    tmp_path, monkeypatch, demo
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(demo, "photos")
    for path in sorted(Path("photos/train/blue_cross").iterdir())[:6]:  # good heads and ends, damaged between
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
        png = bytearray(path.with_suffix(".png").read_bytes())
        png[len(png) // 2] ^= 0xFF
        path.with_suffix(".png").write_bytes(png)
    process = start(*QUICK, "--data", "photos", "--epochs", "9", "--log-interval", "2", ranks=2)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert len(re.findall(r"^warning: bad training image: .*png", err, re.MULTILINE)) >= 2
    assert len(re.findall(r"^fastcnn: error: --max-bad-fraction 0.01: \d of 160 .*", err, re.MULTILINE)) == 1


@pytest.fixture(scope="module")
def good(tmp_path_factory, demo) -> Path:
    folder = tmp_path_factory.mktemp("good") / "run"
    settings = {"arch": "lenet5", "data": demo, "epochs": 1, "batch_size": 16, "workers": 1}
    fastcnn.fit(**settings, amp_dtype="fp32", output_dir=folder)
    return folder / "last.pt"


MISTAKES = [
    (("--epoch", "3"), "--epoch: no such flag; did you mean --epochs?"),
    (("--lr", "abc"), "Error parsing --lr: no type matching FLOAT|{auto} could be instantiated from ['abc']"),
    (("--opt", "adam"), "invalid choice 'adam' for argument '--opt'. Expected one of ('sgd', 'nesterov', "),
    (("--epochs",), "Missing value for argument '--epochs'"),
    (
        ("--config", "bad.yaml"),
        "--config bad.yaml: Error parsing --epochs: no type matching ",
    ),
    (("--resume", "pickle.pt"), "--resume pickle.pt: not a checkpoint"),
    (("--data", ""), "--data : write a folder"),
    (("--arch", "resnet-50"), "--arch resnet-50: no such network; did you mean resnet50?"),
    (("--data", "nowhere"), "--data nowhere: no such folder"),
    (("--batch-size", "161"), "--batch-size 161: more than the 160 training images; write 160 or less"),
    (("--grad-accum-steps", "11"), "--grad-accum-steps 11: more than the 10 batches"),
    (("--img-size", "64"), "--img-size 64: lenet5 takes 32 px only"),
    (("--num-classes", "9"), "--num-classes 9: the data has 10"),
    (("--val-split", "0.5"), "--val-split: "),
    (("--device", "cpu", "--amp-dtype", "fp16"), "--amp-dtype fp16 needs a GPU"),
    (("--device", "cpu", "--sync-bn"), "--sync-bn needs CUDA GPUs"),
    (
        ("--data", "synthetic", "--data-backend", "torch"),
        "--data-backend torch: synthetic data has no images",
    ),
    (("--test-only",), "--test-only validates a checkpoint: add --resume"),
    (("--resume", "good.pt", "--arch", "resnet20"), "--resume good.pt: its arch is lenet5"),
    (("--resume", "good.pt", "--opt", "adamw"), "--resume good.pt: its opt is sgd, this run's is adamw"),
    (("--resume", "none.pt"), "--resume none.pt: no such checkpoint"),
    (("--resume", "broken.pt"), "--resume broken.pt: not a checkpoint"),
    (("--resume", "foreign.pt"), "--resume foreign.pt: not a fastcnn checkpoint"),
    (("--output-dir", "file"), "--output-dir file: "),
    (("--config", "nowhere.yaml"), "--config nowhere.yaml: No such file"),
    (("--workers", "0", "--data-backend", "dali"), "--data-backend dali: DALI needs a thread"),
    (("--epochs", "0"), "--epochs 0: write 1 or more"),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES, ids=[" ".join(flags) for flags, _ in MISTAKES])
def test_a_mistake_gives_one_line_and_status_2_and_leaves_nothing(train, demo, good, capsys, flags, message):
    shutil.copy(good, "good.pt")
    Path("broken.pt").write_bytes(b"PK nonsense")
    Path("pickle.pt").write_text("hello world")
    Path("bad.yaml").write_text("epochs: three")
    Path("file").write_text("")
    torch.save({"weights": 1}, "foreign.pt")
    assert train(*QUICK, "--data", demo, *flags) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"fastcnn: error: {message}")
    assert captured.err.count("\n") == 1
    made = {"bad.yaml", "broken.pt", "file", "foreign.pt", "good.pt", "pickle.pt"}
    assert {path.name for path in Path().iterdir()} == made


def test_a_second_run_does_not_overwrite_the_first(train, demo, capsys):
    flags = (*QUICK, "--data", demo, "--epochs", "1")
    assert train(*flags, "--output-dir", "run") == 0
    assert train(*flags, "--output-dir", "run") == 2
    assert "--output-dir run: holds a run already; add --resume" in capsys.readouterr().err
    assert train(*flags, "--output-dir", "run", "--resume", "--arch", "lenet5_relu") == 2
    assert "its arch is lenet5, this run's is lenet5_relu" in capsys.readouterr().err


def start(*flags: str, ranks: int = 1) -> subprocess.Popen[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    command = [sys.executable, *(launch if ranks > 1 else ["-m"]), "fastcnn.train", *flags]
    command += ["--data-backend", "torch"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize(
    ("number", "ranks", "status"),
    [(signal.SIGTERM, 1, 143), (signal.SIGINT, 1, 130), (signal.SIGTERM, 2, 1)],  # torchrun has its own: 1
    ids=["SIGTERM", "SIGINT", "SIGTERM to torchrun"],
)
def test_a_signal_saves_and_leaves(tmp_path, monkeypatch, demo, number, ranks, status):
    monkeypatch.chdir(tmp_path)
    endless = ("--data", str(demo), "--epochs", "100000", "--output-dir", "run", "--log-interval", "5")
    process = start(*QUICK, *endless, ranks=ranks)
    deadline = time.monotonic() + 100
    while not Path("run/last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert f"stopped by {signal.Signals(number).name}: go on with --resume run/last.pt" in out
    content = torch.load("run/last.pt")
    assert content["step"] >= max(record["step"] for record in records(Path("run"), "train"))
    assert len(content["ranks"]) == ranks
    with pytest.raises(ProcessLookupError):  # no process of its session is left
        os.killpg(process.pid, 0)


def test_a_resumed_epoch_goes_on_at_the_same_fraction_with_another_number_of_processes(
    train, tmp_path, monkeypatch, demo
):
    flags = (*QUICK, "--data", demo, "--epochs", "2", "--output-dir", "run", "--deterministic")
    interrupt_after(4, lambda: train(*flags, "--checkpoint-steps", "4"))  # of 10
    process = start("--resume", "run/last.pt", "--log-interval", "1", ranks=2)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert "going on from run/last.pt, step 2" in out  # of 5
    first, second = records(Path("run"), "epoch")
    assert first["train"]["samples"] == second["train"]["samples"] == 160
    assert [first["step"], second["step"]] == [5, 10]


def test_two_processes_validate_every_image_once_and_only_the_first_speaks(tmp_path, monkeypatch, demo):
    monkeypatch.chdir(tmp_path)
    process = start(*QUICK, "--data", str(demo), "--epochs", "2", "--output-dir", "run", ranks=2)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    epochs = records(Path("run"), "epoch")
    assert [record["val"]["samples"] for record in epochs] == [50, 50]
    assert [record["train"]["samples"] for record in epochs] == [160, 160]
    assert out.count("chosen for this data") == 1
    content = torch.load("run/last.pt")
    assert len(content["ranks"]) == 2
    assert not any(name.startswith(("module.", "_orig_mod.")) for name in content["model"])


@pytest.mark.slow
def test_two_compiled_processes_train(tmp_path, monkeypatch, demo):
    monkeypatch.chdir(tmp_path)
    flags = ("--data", str(demo), "--epochs", "2", "--output-dir", "run", "--compile", "on", "--lr", "0.1")
    process = start(*QUICK, *flags, ranks=2)
    _, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    losses = [record["train"]["loss"] for record in records(Path("run"), "epoch")]
    assert losses[1] < losses[0]


@pytest.mark.slow
def test_a_network_learns_shapes_beside_colours(train, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path))
    assert train("--arch", "resnet20") == 0
    best = max(record["val"]["acc1"] for record in records(Path("runs/resnet20-demo"), "epoch"))
    assert best > 60  # colour alone: at most 50
