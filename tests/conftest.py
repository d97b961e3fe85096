"""Shared fixtures with small generated data: tests need no network, no GPU and no other files."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import wording as messages
from fastcnn.data.sources import demo as demo_set
from fastcnn.runtime import machine


@pytest.fixture(autouse=True)
def good_neighbor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit threads and side effects: tests share the machine and the process."""
    torch.set_num_threads(1)  # a second one slows down tiny tensors
    monkeypatch.setattr(machine, "keep_freed_memory", lambda: None)  # irreversible in a process
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # seconds on a busy disk
    if hasattr(os, "setpriority"):  # a loading thread of low priority would wait for other tests
        monkeypatch.setattr(os, "setpriority", lambda *priority: None)


def pytest_configure() -> None:
    """Let runs that tests start receive Ctrl-C: a shell's background jobs ignore it, and so would they."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-messages", action="store_true", help="rewrite tests/messages.yaml")


COLLECTED = pytest.StashKey[dict[str, set[str]]]()
PASSED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Iterator[messages.Golden]:
    """Return the messages of tests/messages.yaml."""
    content = messages.load()
    update = request.config.getoption("--update-messages")
    if update and "PYTEST_XDIST_WORKER" in os.environ:
        raise pytest.UsageError("--update-messages: in one process, without -n")
    yield content
    if update:
        messages.save(content, request.config.stash[COLLECTED])


@pytest.fixture
def wording(
    request: pytest.FixtureRequest, golden: messages.Golden, tmp_path: Path
) -> Iterator[messages.Wording]:
    """Compare messages with the golden file: `wording(message)`."""
    update = request.config.getoption("--update-messages")
    file, test = place(request.node)
    compare = messages.Wording(
        golden, file, test, update=update, replaced=dict.fromkeys((str(tmp_path), tmp_path.name), "TMP")
    )
    yield compare
    if request.node.stash.get(PASSED, False):
        compare.close()


def place(item: pytest.Item) -> tuple[str, str]:
    """Return a test's file, relative to tests/, and its name."""
    return Path(os.path.relpath(item.path, messages.TESTS)).as_posix(), item.name


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit runs of the command to one thread too."""
    monkeypatch.setattr("fastcnn.runtime.machine.cores_per_process", lambda ranks: 1)


@pytest.fixture
def with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a processor with native bf16."""
    monkeypatch.setenv(machine.NATIVE_DTYPES, "fp32,bf16")


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a processor that emulates bf16."""
    monkeypatch.setenv(machine.NATIVE_DTYPES, "fp32")


@pytest.hookimpl(tryfirst=True)  # before -m deselects some
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    collected = config.stash[COLLECTED] = {}
    if not any("::" in argument for argument in config.args):
        for item in items:
            file, test = place(item)
            tests = collected.setdefault(file, set())
            tests |= {test} if "wording" in getattr(item, "fixturenames", ()) else set()
    for item in items:
        if "whole_train" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.e2e)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a skipped gate: a skip would hide that it checks nothing."""
    report = yield
    if report.when == "call":
        item.stash[PASSED] = report.passed
    if report.skipped and item.get_closest_marker("gate") is not None:
        report.outcome = "failed"
        report.longrepr = f"a gate was skipped: {report.longrepr}"
    return report


def pytest_collection_finish() -> None:
    """Exclude imported and collected objects from garbage collection, which would take minutes in total."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.option.markexpr == "gpu" and not torch.cuda.is_available():
        terminalreporter.write_line("no CUDA device here: the tests marked gpu were skipped")


@pytest.fixture(scope="module", autouse=True)
def free_memory() -> Iterator[None]:
    """Free the large networks of a test file before the next one runs."""
    yield
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo set of 16 training and 5 validation images per class."""
    root = tmp_path_factory.mktemp("demo") / "shapes"
    demo_set.write(root, train_per_class=16, val_per_class=5)
    return root


@pytest.fixture(scope="session")
def annotated(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo set's images with masks of the same names, and boxes in COCO JSON."""
    root = tmp_path_factory.mktemp("annotated") / "shapes"
    boxes = json.loads((demo / "boxes.json").read_text())
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(demo_set.CLASS_NAMES)]
    (root / "annotations").mkdir(parents=True)
    for phase in ("train", "val"):
        shutil.copytree(demo / phase, root / "images" / phase)
        shutil.copytree(demo / "masks" / phase, root / "masks" / phase)
        images, annotations = [], []
        for i, path in enumerate(sorted((demo / phase).rglob("*.jpg"))):
            entry = boxes[path.relative_to(demo).as_posix()]
            left, top, right, bottom = entry["box"]
            images.append({"id": i, "file_name": path.relative_to(demo / phase).as_posix()})
            annotation = {"id": i, "image_id": i, "category_id": entry["label"] + 1}
            annotations.append({**annotation, "bbox": [left, top, right - left, bottom - top], "iscrowd": 0})
        content = {"images": images, "categories": categories, "annotations": annotations}
        (root / "annotations" / f"{phase}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of smooth images of various sizes: 23 for training, 7 for validation, uneven on purpose."""
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
def whole_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_core: None) -> Callable[..., int]:
    """Return a function of flags that runs the command in an empty folder and returns its exit status."""
    from fastcnn.train import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastcnn.data.loaders.autoselect.SECONDS", 0.01)
    return lambda *flags: main([str(flag) for flag in flags])


@pytest.fixture
def train(whole_train: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`whole_train` in a third of a short run's time: without timed loaders and curves."""
    monkeypatch.setattr("fastcnn.setup.plan.choose_backend", lambda *_, **__: ("torch", "not timed"))
    monkeypatch.setattr("fastcnn.engine.logger.Logger._draw", lambda self: None)
    return whole_train
