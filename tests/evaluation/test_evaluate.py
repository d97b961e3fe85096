"""`fastcnn evaluate` of each task: equal to independent libraries on its own predictions, and over ranks."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastcnn
from fastcnn.cli.main import main
from fastcnn.evaluation.output import choose_folder, write
from fastcnn.evaluation.result import Evaluation
from labeled_images import write_tagged
from ranks import run_ranks
from runs import QUICK_SETTINGS

LOADING = "--workers", "1"


def trained(folder: Path, arch: str, data: Path, **settings: Any) -> Path:
    """Train for an instant, and return the checkpoint."""
    fixed = {"data_backend": "torch", "lr": 0.05, "epochs": 0.3, **QUICK_SETTINGS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastcnn.engine.logger.Logger._draw", lambda self: None)
        fastcnn.fit(arch=arch, data=str(data), output_dir=str(folder / "run"), **{**fixed, **settings})
    return folder / "run" / "best.pt"


@pytest.fixture(scope="module")
def classifier(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("classifier"), "lenet5", demo)


@pytest.fixture(scope="module")
def segmenter(annotated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("segmenter"), "unet/lenet5", annotated, epochs=0.1, img_size=32)


@pytest.fixture(scope="module")
def detector(annotated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that has learned nothing, and finds objects everywhere."""
    settings = {"img_size": 32, "strides": (4,), "epochs": 0.2}
    path = trained(tmp_path_factory.mktemp("detector"), "yolo/lenet5", annotated, **settings)
    content = torch.load(path)
    (name,) = (
        name for name in content["weights"] if name.startswith("predictors.") and name.endswith("bias")
    )
    content["weights"][name].view(3, -1)[:, 4] += 5
    torch.save(content, path)
    return path


def validated(path: Path) -> dict[str, float]:
    """Return the metrics of `--test-only` with the validated weights."""
    content = torch.load(path)
    torch.save({**content, "model": content["weights"]}, path)
    return fastcnn.fit(test_only=True, resume=str(path), workers=1).val


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_classification_equals_scikit_learn_and_the_validation_of_its_run(
    classifier, demo, tmp_path, capsys
):
    metrics = pytest.importorskip("sklearn.metrics")
    assert main(["evaluate", str(classifier), "--predictions", f"{tmp_path}/p.csv", *LOADING]) == 0
    said = capsys.readouterr()
    folder = classifier.parent / "evaluation"
    assert f"wrote {folder}" in said.err
    found = json.loads((folder / "metrics.json").read_text())
    assert {*found["files"], "metrics.json"} == {path.name for path in folder.iterdir()}
    assert (found["kind"], found["task"], found["split"], found["images"]) == (
        *("evaluation", "classification", "val", 50),
    )
    for name in ("confusion.png", "calibration.png", "mistakes.png"):
        assert min(Image.open(folder / name).size) > 200

    best = torch.load(classifier)["best"]
    for name in ("acc1", "acc5", "loss"):
        assert found["metrics"][name] == pytest.approx(best[name], rel=1e-5)
    rows = rows_of(tmp_path / "p.csv")
    truth, top1 = [row["truth"] for row in rows], [row["top1"] for row in rows]
    assert [row["file"] for row in rows] == [str(path) for path in sorted(demo.glob("val/*/*.jpg"))]
    assert truth == [Path(row["file"]).parent.name for row in rows]
    assert found["metrics"]["acc1"] == pytest.approx(100 * metrics.accuracy_score(truth, top1))
    top5 = [row["truth"] in [row[f"top{i}"] for i in range(1, 6)] for row in rows]
    assert found["metrics"]["acc5"] == pytest.approx(100 * np.mean(top5))
    labels = [row["name"] for row in found["per_class"]]
    scores = metrics.precision_recall_fscore_support(truth, top1, labels=labels, zero_division=0)
    for key, values in zip(("precision", "recall", "f1"), scores):
        assert [row[key] or 0 for row in found["per_class"]] == pytest.approx((100 * values).tolist())
    table = list(csv.reader((folder / "confusion.csv").open()))
    assert table[0] == ["truth", *labels]
    assert np.array([row[1:] for row in table[1:]], dtype=int).tolist() == (
        metrics.confusion_matrix(truth, top1, labels=labels).tolist()
    )
    wrong = [float(row["p1"]) for row in rows if row["truth"] != row["top1"]]
    assert [row["probability"] for row in found["mistakes"]] == sorted(wrong, reverse=True)[:25]
    for row in found["per_class"]:
        assert f"{row['name']:<15}" in said.out


def test_several_labels_an_image_equal_scikit_learn(tmp_path, monkeypatch):
    metrics = pytest.importorskip("sklearn.metrics")
    root = write_tagged(tmp_path / "tagged", 40)
    table = {"labels": str(root / "tags.csv"), "val_split": 0.5, "epochs": 1}
    path = trained(tmp_path, "lenet5", root / "images", **table)
    predictions = tmp_path / "p.csv"
    found = fastcnn.evaluate(path, predictions=predictions, workers=1, output_dir=tmp_path / "out")
    assert found.task == "multi-label"
    assert found.folder == tmp_path / "out"
    assert (tmp_path / "out" / "precision-recall.png").is_file()
    rows = rows_of(predictions)
    names = [row["name"] for row in found.per_class]
    truths = np.array([[int(row[f"truth {name}"]) for name in names] for row in rows])
    shares = np.array([[float(row[f"p {name}"]) for name in names] for row in rows])
    assert len(rows) == 20
    expected = metrics.average_precision_score(truths, shares, average=None)
    assert [row["ap"] for row in found.per_class] == pytest.approx((100 * expected).tolist())
    assert found.metrics["map"] == pytest.approx(100 * expected.mean())
    assert found.metrics["map"] == pytest.approx(torch.load(path)["best"]["map"], rel=1e-6)
    predicted = shares > 0.5
    f1 = metrics.f1_score(truths, predicted, average=None, zero_division=np.nan)
    assert [np.nan if row["f1"] is None else row["f1"] for row in found.per_class] == pytest.approx(
        (100 * f1).tolist(), nan_ok=True
    )


@pytest.mark.slow
def test_a_segmentation_equals_its_counts_and_the_validation_of_its_run(segmenter, tmp_path):
    predictions = tmp_path / "p.csv"
    assert main(["evaluate", str(segmenter), "--predictions", str(predictions), *LOADING]) == 0
    folder = segmenter.parent / "evaluation"
    found = json.loads((folder / "metrics.json").read_text())
    best = torch.load(segmenter)["best"]
    for name in ("miou", "dice", "pixel_acc"):
        assert found["metrics"][name] == pytest.approx(best[name], rel=1e-12)
    sums: dict[str, np.ndarray] = {}
    for row in rows_of(predictions):
        counts = np.array([int(row[key]) for key in ("truth", "prediction", "both")])
        sums[row["class"]] = sums.get(row["class"], 0) + counts
    for row in found["per_class"]:
        truth, predicted, both = sums.get(row["name"], np.zeros(3))
        assert row["count"] == truth
        assert row["iou"] == pytest.approx(100 * both / (truth + predicted - both))
    ious = [row["iou"] for row in found["worst"]]
    assert len(ious) == 12
    assert ious == sorted(ious)
    assert {path.name for path in folder.iterdir()} == {
        *("metrics.json", "classes.csv", "confusion.csv", "confusion.png", "worst.png")
    }


@pytest.mark.slow
def test_a_detection_equals_pycocotools_on_its_file_of_predictions(detector, tmp_path, capsys):
    coco = pytest.importorskip("pycocotools.coco").COCO
    evaluation_of = pytest.importorskip("pycocotools.cocoeval").COCOeval
    predictions = tmp_path / "p.json"
    assert main(["evaluate", str(detector), "--predictions", str(predictions), *LOADING]) == 0
    folder = detector.parent / "evaluation"
    found = json.loads((folder / "metrics.json").read_text())
    truth = coco(str(predictions))
    assert len(truth.dataset["images"]) == 50
    assert {image["width"] for image in truth.dataset["images"]} == {64}
    evaluation = evaluation_of(truth, truth.loadRes(truth.dataset["predictions"]), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    names = *("map", "map50", "map75", "map_small", "map_medium", "map_large"), "recall_1", "recall_10"
    ours = [found["metrics"][name] for name in (*names, "recall_100")]
    theirs = [None if value < 0 else 100 * value for value in evaluation.stats[:9]]
    assert ours == pytest.approx(theirs, abs=1e-9)
    assert found["metrics"]["map50"] > 0
    validation = validated(detector)
    assert found["metrics"]["map"] == pytest.approx(validation["map"], abs=1e-6)
    assert found["metrics"]["map50"] == pytest.approx(validation["map50"], abs=1e-6)
    for number, row in enumerate(found["per_class"]):
        values = evaluation.eval["precision"][0, :, number, 0, -1]
        assert row["ap50"] == pytest.approx(100 * values.mean(), abs=1e-9)
        assert row["count"] == 5
    assert (folder / "precision-recall.png").is_file()


def evaluate_on_ranks(path: str, settings: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    from fastcnn.runtime import machine

    machine.keep_freed_memory = lambda: None
    found = fastcnn.evaluate(path, **settings)
    return found.to_json(), found.folder


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classifier", "segmenter", "detector"])
def test_two_processes_equal_one_exactly(task, request, tmp_path, one_core):
    path = str(request.getfixturevalue(task))
    suffix = ".json" if task == "detector" else ".csv"
    settings: dict[str, Any] = {"workers": 1, "batch_size": 7, "device": "cpu"}
    one = fastcnn.evaluate(path, **settings, predictions=tmp_path / f"one{suffix}").to_json()
    both = {**settings, "predictions": f"{tmp_path}/two{suffix}", "output_dir": f"{tmp_path}/out"}
    (first, folder), (second, _) = run_ranks(evaluate_on_ranks, path, both)
    assert first == second == one
    assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()
    assert json.loads((folder / "metrics.json").read_text())["metrics"] == one["metrics"]


def test_a_plain_state_dict_equals_its_checkpoint(classifier, demo, tmp_path):
    expected = fastcnn.evaluate(classifier, workers=1)
    content = torch.load(classifier)
    torch.save({"state_dict": content["weights"]}, tmp_path / "plain.pth")
    normalization: dict[str, Any] = {"mean": tuple(content["mean"]), "std": tuple(content["std"])}
    data: dict[str, Any] = {
        "arch": "lenet5",
        "data": str(demo),
        "workers": 1,
        "train_crop": content["config"]["train_crop"],
    }
    plain = fastcnn.evaluate(weights=tmp_path / "plain.pth", **data, **normalization)
    assert plain.metrics == pytest.approx(expected.metrics)
    keys = "fastcnn", "weights", "arch", "mean", "std", "class_names"
    torch.save({key: content[key] for key in keys}, tmp_path / "stripped.pt")
    stripped = fastcnn.evaluate(weights=tmp_path / "stripped.pt", **data)
    assert stripped.metrics == pytest.approx(expected.metrics)
    assert stripped.checkpoint == str(tmp_path / "stripped.pt")


def test_data_with_fewer_classes_in_any_layout_is_matched_by_name(classifier, demo, tmp_path):
    """Only the last two classes, and no parts: all images are judged."""
    names = sorted(path.name for path in (demo / "val").iterdir())
    for name in names[-2:]:
        shutil.copytree(demo / "val" / name, tmp_path / "few" / name)
    few = fastcnn.evaluate(classifier, data=tmp_path / "few", workers=1, predictions=tmp_path / "few.csv")
    fastcnn.evaluate(classifier, workers=1, predictions=tmp_path / "all.csv")
    assert few.images == 10
    assert [row["count"] for row in few.per_class] == [0] * 8 + [5, 5]

    def by_name(path: Path) -> dict[str, tuple[str, ...]]:
        return {"/".join(Path(r["file"]).parts[-2:]): (r["truth"], r["top1"]) for r in rows_of(path)}

    assert by_name(tmp_path / "few.csv").items() <= by_name(tmp_path / "all.csv").items()


@pytest.mark.slow
def test_boxes_are_matched_by_name(annotated, detector, tmp_path):
    """COCO's categories without the first three, numbered backwards."""
    content = json.loads((annotated / "annotations" / "val.json").read_text())
    kept = content["categories"][:2:-1]
    numbers = {category["id"]: i + 1 for i, category in enumerate(kept)}
    boxes = [row for row in content["annotations"] if row["category_id"] in numbers]
    images = {row["image_id"] for row in boxes}
    fewer = {
        "images": [image for image in content["images"] if image["id"] in images],
        "categories": [{"id": numbers[c["id"]], "name": c["name"]} for c in kept],
        "annotations": [{**row, "category_id": numbers[row["category_id"]]} for row in boxes],
    }
    root = tmp_path / "few"
    shutil.copytree(annotated / "images" / "val", root / "images" / "train")
    (root / "annotations").mkdir()
    (root / "annotations" / "train.json").write_text(json.dumps(fewer))
    found = fastcnn.evaluate(detector, data=root, workers=1)
    assert [row["count"] for row in found.per_class] == [0] * 3 + [5] * 7
    assert [row["name"] for row in found.per_class] == torch.load(detector)["class_names"]


def test_undecodable_images_are_counted_and_named(classifier, demo, tmp_path):
    shutil.copytree(demo, tmp_path / "data", ignore=shutil.ignore_patterns("masks"))
    bad = min((tmp_path / "data" / "val").glob("*/0001.jpg"))
    bad.write_bytes(b"none")
    found = fastcnn.evaluate(classifier, data=tmp_path / "data", max_bad_fraction=0.1, workers=1)
    assert [line.partition(": ")[0] for line in found.undecodable] == [str(bad)]
    assert "49 images without 1 undecodable ones" in found.describe().splitlines()[0]


@pytest.mark.slow
def test_views_splits_and_sizes_change_what_is_judged(classifier, monkeypatch):
    plain = fastcnn.evaluate(classifier, workers=1)
    assert plain.folder is None
    flipped = fastcnn.evaluate(classifier, workers=1, tta="flip", amp_dtype="bf16")
    assert flipped.metrics["loss"] != plain.metrics["loss"]
    assert flipped.settings == {"val_img_size": 32, "tta": "flip", "amp_dtype": "bf16", "device": "cpu"}
    assert fastcnn.evaluate(classifier, workers=1, split="train").images == 160


def test_an_evaluation_replaces_only_the_former_one_of_the_same(tmp_path):
    def folder(checkpoint: str, split: str, output_dir: str = "auto") -> Path:
        result = Evaluation(
            task="classification",
            checkpoint=checkpoint,
            arch="lenet5",
            data="demo",
            split=split,
            images=1,
            undecodable=[],
            settings={},
            metrics={"acc1": 100.0},
            per_class=[{"name": "cat", "count": 1}],
        )
        chosen = choose_folder(output_dir, tmp_path, result)
        write(dataclasses.replace(result, folder=chosen), {}, {})
        return chosen.relative_to(tmp_path)

    assert folder("best.pt", "val") == folder("best.pt", "val") == Path("evaluation")
    assert folder("last.pt", "val") == Path("evaluation-2")
    assert folder("best.pt", "train") == Path("evaluation-train")
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["checkpoint"] == "best.pt"
    assert folder("last.pt", "val", str(tmp_path / "evaluation")) == Path("evaluation")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"mine: metrics.json there is not of an evaluation; use another folder"
    ):
        folder("best.pt", "val", str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "metrics.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], "fastcnn evaluate: begin with a checkpoint"),
        (["missing.pt"], "fastcnn evaluate missing.pt: No such file"),
        (["PT", "--split", "test"], "--split test: "),
        (["PT", "--data", "other"], "its classes are not those of PT: no cat, dog among blue_cross"),
        (["PT", "--data", "synthetic"], "--data synthetic: random images"),
        (["PT", "--weights", "w.pth"], "--weights and the checkpoint PT"),
        (["PT", "--arch", "resnet18"], "--arch resnet18: PT holds lenet5"),
        (["PT", "--predictions", "p.json"], "--predictions p.json: for classification it is CSV"),
        (["PT", "--val-img-size", "40"], "--val-img-size 40: lenet5 takes 32 px only"),
        (["PT", "--amp-dtype", "fp16"], "--amp-dtype fp16 needs a CUDA GPU"),
        (["--arch", "lenet5", "--weights", "w.pth"], "--weights w.pth: names no data"),
        (["--arch", "lenet5", "--weights", "PT", "--data", "other"], "no cat, dog among blue_cross"),
        (["--arch", "resnet20", "--weights", "PT", "--data", "other"], "weights of lenet5, not of resnet20"),
        (["--arch", "resnet20", "--weights", "w.pth", "--data", "other"], "made for another network"),
        (["--arch", "lenet5", "--weights", "w.pth", "--data", "other"], "10 classes without names, and"),
        (["PT", "--split", "all"], "invalid choice: 'all'"),
        (["PT", "--bach-size", "2"], "did you mean --batch-size?"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(classifier, photos, tmp_path, monkeypatch, capsys, flags, named):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, "other")
    torch.save(torch.load(classifier)["weights"], "w.pth")
    before = sorted(classifier.parent.iterdir())
    assert main(["evaluate", *(flag.replace("PT", str(classifier)) for flag in flags), *LOADING]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert named.replace("PT", str(classifier)) in err
    assert sorted(classifier.parent.iterdir()) == before
