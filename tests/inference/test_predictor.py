"""`fastcnn.Predictor`: the validation's pixels, images of any kind, results in pixels of the original."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastcnn
from checkpoints import NETWORKS, write_checkpoint
from fastcnn.cli.main import main
from fastcnn.config import Config
from fastcnn.data.targets import restore_boxes, restore_mask
from fastcnn.errors import BadImageError, UserError
from fastcnn.inference.description import KEY, describe
from fastcnn.inference.samples import prepare
from fastcnn.inference.trained import open_trained
from fastcnn.inference.validation import data_settings, evaluation_loader, open_validation
from fastcnn.runtime.distributed import Ranks
from odd_images import RECTANGLE, iou, red_box, scene, turned

CROPS: dict[str, dict[str, Any]] = {
    "center": {"train_crop": "random-resized", "crop_pct": 0.875, "crop_mode": "center"},
    "short side": {"train_crop": "pad", "crop_mode": "center"},
    "border": {"train_crop": "random-resized", "crop_mode": "border"},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {task: write_checkpoint(folder / f"{task}.pt", task) for task in NETWORKS}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A JPEG of a size that the network has not, with noise that any difference would change."""
    pixels = np.random.default_rng(0).integers(0, 256, (70, 110, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=95)
    return tmp_path / "photo.jpg"


def same(first: object, second: object) -> bool:
    """Return whether two predictions agree in all but the name of the image."""
    a, b = ({k: v for k, v in vars(p).items() if k != "image"} for p in (first, second))
    return all(np.array_equal(a[key], b[key]) for key in a) and a.keys() == b.keys()


@pytest.mark.parametrize("crop", CROPS)
def test_pixels_are_those_of_the_validation(photos, tmp_path, crop):
    path = write_checkpoint(tmp_path / "best.pt", classes=("cat", "dog"), **CROPS[crop])
    trained = open_trained(path, "test")
    config = data_settings(trained, Config(data=str(photos), written=frozenset({"data"})))
    source = open_validation(trained, config, Ranks())
    loader = evaluation_loader(
        source.val, trained, config, ranks=Ranks(), device=torch.device("cpu"), phase="validation"
    )
    validated = torch.cat([batch.images[batch.mask] for batch in loader])
    loader.close()
    assert source.val.files is not None
    with fastcnn.Predictor(path, workers=1) as predictor:
        pixels = [predictor.pixels(name) for name in source.val.files.paths]
    assert torch.equal(torch.stack(pixels), validated)


@pytest.mark.parametrize("task", ["classification", "segmentation", "detection"])
def test_all_kinds_of_images_give_one_result(checkpoints, photo, task):
    picture = Image.open(photo)
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    kinds = [str(photo), photo, photo.read_bytes(), picture, array, tensor, tensor.float() / 255]
    with fastcnn.Predictor(checkpoints[task], workers=1, batch_size=1) as predictor:
        expected = predictor(photo)
        results = predictor(kinds)
        assert all(same(result, expected) for result in results)
        assert [result.image for result in results[:4]] == [str(photo), str(photo), "image 2", "image 3"]
        stacked = predictor(np.stack([array, array]))
        assert [same(result, expected) for result in stacked] == [True, True]
        assert same(predictor(array), expected)
    assert (expected.width, expected.height) == (110, 70)
    if task == "detection":
        assert expected.boxes
        assert all(
            0 <= box.left <= box.right <= 110 and 0 <= box.top <= box.bottom <= 70 for box in expected.boxes
        )
    elif task == "segmentation":
        assert expected.mask.shape == (70, 110)
        assert sum(region.pixels for region in expected.regions) == (expected.mask != 255).sum()
    else:
        scores = [label.score for label in expected.labels]
        assert scores == sorted(expected.probabilities.tolist())[:-4:-1]


def test_a_generator_is_read_as_needed(checkpoints, photo):
    taken = []

    def images() -> Iterator[Path]:
        for i in range(40):
            taken.append(i)
            yield photo

    with fastcnn.Predictor(checkpoints["classification"], workers=1, batch_size=2) as predictor:
        results = predictor(images())
        next(results)
        assert len(taken) < 10
        assert len(list(results)) == 39


def test_threads_share_a_predictor(checkpoints, demo):
    paths = sorted(demo.glob("val/*/*.jpg"))
    with fastcnn.Predictor(checkpoints["classification"], workers=2, batch_size=4) as predictor:
        expected = predictor(paths)
        results: dict[int, list[object]] = {}

        def work(number: int) -> None:
            results[number] = predictor(paths)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 6
    for found in results.values():
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_results_are_those_of_the_command(checkpoints, demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = demo / "val"
    words = [str(checkpoints["classification"]), str(folder), "--no-pictures", "--jsonl", "out.jsonl"]
    assert main(["predict", *words]) == 0
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    with fastcnn.Predictor(checkpoints["classification"]) as predictor:
        results = predictor([folder / line["image"] for line in lines])
    for line, result in zip(lines, results, strict=True):
        assert [p["name"] for p in line["predictions"]] == [label.name for label in result.labels]
        scores = [p["score"] for p in line["predictions"]]
        assert scores == pytest.approx([label.score for label in result.labels], abs=1e-5)


@pytest.mark.parametrize("exif", ["upright", "ignore"])
@pytest.mark.parametrize("crop", ["border", "short side"])
def test_boxes_and_masks_return_to_the_original(tmp_path, crop, exif):
    path = write_checkpoint(
        tmp_path / "best.pt", "detection", exif=exif, img_size=96, val_img_size=96, **CROPS[crop]
    )
    with fastcnn.Predictor(path, workers=1) as predictor:
        for orientation in range(1, 9):
            data = turned(scene(), orientation, "PNG")
            original = (
                scene() if exif == "upright" else Image.open(io.BytesIO(turned(scene(), orientation, "PNG")))
            )
            sample = prepare(data, predictor.preprocessing, "scene")
            assert sample.size == original.size[::-1]
            row = np.array([[3, *red_box(sample.pixels), 0.5]])
            restored = restore_boxes(row, sample.geometry, 0, sample.size)
            true_box = np.array(RECTANGLE if exif == "upright" else red_box(np.asarray(original)))
            if crop != "border":  # the network sees the square in the middle
                cut = [max(0, side - min(original.size)) / 2 for side in original.size] * 2
                true_box = true_box.clip(cut, [*original.size, *original.size] - np.array(cut))
            assert (restored[0, 0], restored[0, 5]) == (3, 0.5)
            assert iou(restored[0, 1:5], true_box) > 0.9
            left, top, right, bottom = (round(side) for side in row[0, 1:5])
            mask = np.zeros((96, 96), dtype=np.uint8)
            mask[top:bottom, left:right] = 1
            whole = restore_mask(mask, sample.geometry, 0, 96, sample.size)
            assert whole.shape == sample.size
            rows, columns = np.nonzero(whole == 1)
            found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert iou(found, true_box) > 0.9
            assert (whole == 255).any() == (crop == "short side")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """An ONNX file whose logits are the means of the channels, of the classes red, green and blue."""
    onnx, _ = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    colors = ("red", "green", "blue")
    path = write_checkpoint(tmp_path / "best.pt", classes=colors, crop_mode="border")
    helper, kinds = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["pixels"], to=kinds.FLOAT),
            helper.make_node("ReduceMean", ["pixels"], ["logits"], axes=[2, 3], keepdims=0),
        ],
        "means",
        [helper.make_tensor_value_info("images", kinds.UINT8, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", kinds.FLOAT, ["N", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, {KEY: describe(open_trained(path, "test")).to_json()})
    onnx.save(model, tmp_path / "means.onnx")
    return tmp_path / "means.onnx"


def test_an_exported_file_predicts_like_a_checkpoint(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("red", "green", "blue")):
        pixels = np.full((20, 50, 3), 40, dtype=np.uint8)
        pixels[..., i] = 90
        Path("set", name).mkdir(parents=True)
        Image.fromarray(pixels).save(f"set/{name}/x.png")
    with fastcnn.Predictor(exported, top_k=1) as predictor:
        (label,) = predictor("set/blue/x.png").labels
        assert (label.name, label.score) == ("blue", pytest.approx(1, abs=1e-3))
    assert main(["predict", str(exported), "set", "--csv", "-"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 + 3 * 3
    assert err == "accuracy 100.00% of 3 images\nwrote predictions\n"
    assert Path("predictions/grid.png").exists()


def test_top_k_and_threshold_limit_what_is_returned(checkpoints, photo):
    with fastcnn.Predictor(checkpoints["classification"], top_k=5) as predictor:
        assert len(predictor(photo).labels) == 5
    with fastcnn.Predictor(checkpoints["classification"], threshold=0.999) as predictor:
        assert predictor(photo).labels == ()
    with fastcnn.Predictor(checkpoints["detection"], top_k=2) as predictor:
        assert len(predictor(photo).boxes) == 2
    with pytest.raises(UserError, match="--threshold: each pixel has one class"):
        fastcnn.Predictor(checkpoints["segmentation"], threshold=0.5)


def test_an_image_that_is_none_is_named(checkpoints, tmp_path):
    (tmp_path / "text.jpg").write_text("text")
    with fastcnn.Predictor(checkpoints["classification"], workers=1) as predictor:
        with pytest.raises(BadImageError, match=r"text\.jpg: cannot be decoded: not an image"):
            predictor([tmp_path / "text.jpg"])
        with pytest.raises(BadImageError, match=r"missing\.jpg: cannot be decoded: No such file"):
            predictor("missing.jpg")
        for image in (7, np.zeros((4, 4), dtype=np.float32), torch.full((3, 4, 4), 255.0), torch.zeros(4, 4)):
            with pytest.raises(UserError, match="image 0: .*use a path, an image of Pillow"):
                predictor([image])
