"""What a plan looks at, and who does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastcnn.config import Config
from fastcnn.data.transforms.color import IMAGENET_COMPONENTS
from fastcnn.runtime.distributed import Ranks
from fastcnn.setup import plan as planning
from fastcnn.setup import transforms
from fastcnn.setup.build import build
from fastcnn.setup.plan import make_plan
from small_boxes import picture, text

CPU = torch.device("cpu")


def config_of(data: str, **settings: Any) -> Config:
    quick: dict[str, Any] = {"amp_dtype": "fp32", "channels_last": "on", "compile": "off", "workers": 1}
    return Config(arch="lenet5", data=data, lighting=0.1, lighting_pca="data", **quick, **settings)


def test_the_colours_of_training_images_are_looked_at_once_by_the_first_rank(
    demo: Path, one_core: None, monkeypatch: pytest.MonkeyPatch
):
    on_main: list[bool] = [False]
    looks: list[bool] = []
    real = transforms.some_images

    def from_main(compute: Callable[[], Any]) -> Any:
        on_main.append(True)
        try:
            return compute()
        finally:
            on_main.pop()

    def some_images(*told: Any) -> list[np.ndarray]:
        looks.append(on_main[-1])
        return real(*told)

    monkeypatch.setattr(transforms, "from_main", from_main)
    monkeypatch.setattr(transforms, "some_images", some_images)
    monkeypatch.setattr("fastcnn.data.loaders.autoselect.SECONDS", 0.01)
    plan = make_plan(config_of(str(demo)), Ranks(), CPU)
    _, *loaders = build(plan, Ranks(), CPU)
    for loader in loaders:
        loader.close()
    assert looks == [True]
    assert not np.allclose(plan.transform.augment.lighting_components, IMAGENET_COMPONENTS)


def test_synthetic_images_have_no_colours_to_look_at(one_core: None):
    plan = make_plan(config_of("synthetic"), Ranks(), CPU)
    assert np.allclose(plan.transform.augment.lighting_components, IMAGENET_COMPONENTS)


@pytest.mark.parametrize(
    "boxes", [["0 0.5 0.5 0.0015 0.0015"], ["0 0.5 0.5 0.002 0.9", "0 0.5 0.5 0.9 0.002"]]
)
def test_anchors_of_the_smallest_boxes_are_never_0(tmp_path: Path, one_core: None, boxes: list[str]):
    for phase in ("train", "val"):
        for i in range(2):
            picture(tmp_path / "images" / phase / f"{i}.jpg", (1000, 1000))
            text(tmp_path / "labels" / phase / f"{i}.txt", *boxes)
    text(tmp_path / "classes.txt", "speck")
    settings: dict[str, Any] = {"amp_dtype": "fp32", "channels_last": "on", "compile": "off", "workers": 1}
    config = Config(
        arch="yolo/lenet5", strides=(4,), data=str(tmp_path), img_size=32, data_backend="torch", **settings
    )
    plan = make_plan(config, Ranks(), CPU)
    assert isinstance(plan.config.anchors, tuple)
    assert len(plan.config.anchors) == 6
    assert min(plan.config.anchors) > 0


@pytest.fixture
def cublas(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str | None]]:
    """The variable of cuBLAS as its first call reads it, in the search for a batch size on a GPU."""
    read: list[str | None] = []

    def search(build: Callable[[], nn.Module], config: Config, *rest: Any) -> int:
        read.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG"))
        raise KeyboardInterrupt  # a plan for a GPU goes no further here

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(planning, "find_batch_size", search)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    before = torch.are_deterministic_algorithms_enabled()
    yield read
    torch.use_deterministic_algorithms(before)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.parametrize("deterministic", [True, False])
def test_cublas_is_deterministic_from_its_first_call_on(cublas: list[str | None], deterministic: bool):
    config = Config(arch="lenet5", data="synthetic", batch_size="max", deterministic=deterministic)
    with pytest.raises(KeyboardInterrupt):
        make_plan(config, Ranks(), torch.device("cuda", 0))
    assert cublas == [":4096:8" if deterministic else None]
    assert torch.are_deterministic_algorithms_enabled() is deterministic
