"""`fastcnn.loaders`: batches alone, epochs by iteration, and the loops of docs/own-loop.md."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import fastcnn
from fastcnn.data.sources.demo import VERSION
from fastcnn.errors import UserError
from ranks import run_ranks
from worker_loaders import samples

PAGE = Path(__file__).parents[2] / "docs" / "own-loop.md"
SETTINGS = {"arch": "lenet5", "img_size": 32, "batch_size": 16, "workers": 1, "device": "cpu"}
LOADER = {"data_backend": "torch"}


def ids(batches: object) -> list[bytes]:
    return [image.numpy().tobytes() for batch in batches for image in batch.images]  # type: ignore[attr-defined]


def test_each_iteration_is_an_epoch(demo):
    with fastcnn.loaders(data=str(demo), **SETTINGS, **LOADER) as loaders:
        assert loaders.class_names[0] == "blue_cross"
        assert (len(loaders.train), len(loaders.val)) == (10, 4)
        first, second = ids(loaders.train), ids(loaders.train)
        assert len(first) == len(second) == 160
        assert first != second
        next(iter(loaders.train))  # an epoch that is left is not continued
        loaders.train.set_epoch(0)
        assert ids(loaders.train) == first
        assert ids(loaders.train) == second
        assert sum(int(batch.mask.sum()) for batch in loaders.val) == 50
        assert ids(loaders.val) == ids(loaders.val)


def test_a_position_is_continued(demo):
    with fastcnn.loaders(data=str(demo), **SETTINGS, **LOADER) as loaders:
        whole = ids(loaders.train)
        loaders.train.set_epoch(0)
        batches = iter(loaders.train)
        begun = ids([next(batches) for _ in range(3)])
        state = loaders.train.state_dict()
    with fastcnn.loaders(data=str(demo), **{**SETTINGS, "batch_size": 8}, **LOADER) as loaders:
        loaders.train.load_state_dict(state)
        assert begun + ids(loaders.train) == whole
        assert len(ids(loaders.train)) == 160


def test_a_batch_fits_a_network(demo):
    with fastcnn.loaders(data=str(demo), **SETTINGS, **LOADER) as loaders:
        batch = next(iter(loaders.train))
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        pixels = loaders.normalized(nn.Identity())(batch.images)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (loaders.mean, loaders.std))
        assert torch.allclose(pixels, (batch.images / 255 - mean) / std, atol=1e-5)


@pytest.mark.parametrize(("arch", "shape"), [("unet/lenet5", (16, 32, 32)), ("yolo/lenet5", (16, 1, 6))])
def test_the_network_decides_the_targets(annotated, arch, shape):
    settings = {**SETTINGS, "arch": arch, **({"strides": [4]} if arch.startswith("yolo") else {})}
    with fastcnn.loaders(data=str(annotated), **settings, **LOADER) as loaders:
        assert next(iter(loaders.train)).targets.shape == shape


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup": 0.2}, "mixup is applied by the training step"),
        ({"batch_size": "max"}, "batch_size: its limit depends on your network"),
        ({"bach_size": 4}, "did you mean 'batch_size'"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(demo, settings, message):
    with pytest.raises(UserError, match=message) as refusal:
        fastcnn.loaders(data=str(demo), **{**SETTINGS, **settings})
    assert str(refusal.value).startswith("loaders()")


def test_ranks_without_a_group_are_refused(demo, monkeypatch):
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match=r"call torch\.distributed\.init_process_group\(\) first"):
        fastcnn.loaders(data=str(demo), **SETTINGS)


@pytest.mark.slow
def test_two_ranks_share_the_images(demo):
    settings = {"data": str(demo), **SETTINGS, **LOADER}
    (first, some), (second, rest) = run_ranks(samples, settings)
    assert len(first) == len(second) == 80
    assert some + rest == 50
    with fastcnn.loaders(**settings) as loaders:
        assert sorted(first + second) == sorted(ids(loaders.train))


def test_accelerate_is_that_of_the_kernels():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, padding=1)).to(memory_format=torch.channels_last)
    report = fastcnn.accelerate(model, torch.randn(2, 8, 16, 16).to(memory_format=torch.channels_last))
    assert [row.kind for row in report.rows] == ["depthwise 3x3 s1 C=8"]


def run_block(number: int, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Run a block of the page as written, with a small demo set in place of the whole one."""
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))
    shutil.copytree(demo, tmp_path / "cache" / f"shapes-v{VERSION}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastcnn.data.loaders.autoselect.SECONDS", 0.01)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(blocks[number], str(PAGE), "exec"), names)
    return names


@pytest.mark.slow
def test_the_plain_loop_of_the_page_runs(demo, tmp_path, monkeypatch, capsys):
    run_block(0, demo, tmp_path, monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"epoch 2: \d+\.\d% of 50 images", lines[-1])
    assert len(lines) == 2


@pytest.mark.slow
def test_the_lightning_module_of_the_page_runs(demo, tmp_path, monkeypatch):
    names = run_block(2, demo, tmp_path, monkeypatch)
    trainer = names["trainer"]
    assert trainer.current_epoch == 2  # type: ignore[attr-defined]
    assert 0 <= float(trainer.callback_metrics["accuracy"]) <= 1  # type: ignore[attr-defined]
    model = trainer.lightning_module  # type: ignore[attr-defined]
    assert model.loaders.train.epoch == 1
