"""What a plan looks at, and who does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcnn.config import Config
from fastcnn.data.transforms.color import IMAGENET_COMPONENTS
from fastcnn.runtime.distributed import Ranks
from fastcnn.setup import transforms
from fastcnn.setup.build import build
from fastcnn.setup.plan import make_plan

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
