"""Small data made on the spot: no test needs a network, a GPU or files from elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastcnn.data import shapes


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """For tiny tensors a second thread costs more than it brings; a run of the command sets its own."""
    torch.set_num_threads(1)


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of the command set one thread too."""
    monkeypatch.setattr("fastcnn.machine.cores_per_process", lambda ranks: 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.option.markexpr == "gpu" and not torch.cuda.is_available():
        terminalreporter.write_line("no CUDA device here: the tests marked gpu were skipped")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo set of 16 + 5 images a class."""
    root = tmp_path_factory.mktemp("demo") / "shapes"
    shapes.write(root, train_per_class=16, val_per_class=5)
    return root


@pytest.fixture(scope="session")
def annotated(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo set's images with masks of the same names, and COCO's files of their boxes."""
    root = tmp_path_factory.mktemp("annotated") / "shapes"
    boxes = json.loads((demo / "boxes.json").read_text())
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(shapes.CLASS_NAMES)]
    (root / "annotations").mkdir(parents=True)
    for phase in ("train", "val"):
        shutil.copytree(demo / phase, root / "images" / phase)
        shutil.copytree(demo / "masks" / phase, root / "masks" / phase)
        images, annotations = [], []
        for i, path in enumerate(sorted((demo / phase).rglob("*.jpg"))):
            found = boxes[path.relative_to(demo).as_posix()]
            left, top, right, bottom = found["box"]
            images.append({"id": i, "file_name": path.relative_to(demo / phase).as_posix()})
            annotation = {"id": i, "image_id": i, "category_id": found["label"] + 1}
            annotations.append({**annotation, "bbox": [left, top, right - left, bottom - top], "iscrowd": 0})
        content = {"images": images, "categories": categories, "annotations": annotations}
        (root / "annotations" / f"{phase}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of smooth images of varied sizes: 23 to train on, 7 to validate, uneven on purpose."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", 23), ("val", 7)):
        for i in range(count):
            width, height = rng.integers(40, 90, 2)
            coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.BICUBIC)
            folder = root / split / ("cat" if i % 2 else "dog")
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{i:03}.jpg", quality=95)
    return root


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_core: None) -> Callable[..., int]:
    """`train("--arch", "lenet5", ...)` runs the command in an empty folder and returns its exit status."""
    from fastcnn.train import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastcnn.data.choose.SECONDS", 0.01)
    return lambda *flags: main([str(flag) for flag in flags])
