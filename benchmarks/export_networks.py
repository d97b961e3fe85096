"""Exported networks beside eager PyTorch: equal outputs, and the milliseconds of a call.

    python benchmarks/export_networks.py --photos /data/photos

The weights are random, so the outputs are made to differ between images: batch norm gets the statistics of 32
photos, and layers that start at zero get random weights. Each network has its published image size. Writes
JSON to benchmarks/results/MACHINE/.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from comparison import results_file
from fastcnn.bench import timing
from fastcnn.config import Config
from fastcnn.data.sources.dataset import IMAGENET_MEAN, IMAGENET_STD
from fastcnn.data.sources.walk import image_files
from fastcnn.exporter import check
from fastcnn.exporter.comparison import Comparison
from fastcnn.exporter.formats import SUFFIXES, WRITERS, Format
from fastcnn.inference.exported import open_exported
from fastcnn.inference.trained import Trained
from fastcnn.models import build
from fastcnn.models.base import logits_of
from fastcnn.runtime.environment import environment
from fastcnn.tasks.detection.task import Detection

NETWORKS = ("resnet50", "mobilenet_v2", "convnext_tiny", "vit_b_16", "unet", "yolo")
FORMATS: tuple[Format, ...] = ("onnx", "pt2")
CPU = torch.device("cpu")
BATCH = 20
STATISTICS = 32
"""Photos for the statistics of batch norm."""


def random_network(name: str, photos: list[str]) -> tuple[Trained, Tensor]:
    """Return a network whose outputs differ between images, and the photos, uint8 [N, 3, size, size]."""
    torch.manual_seed(0)
    classes = 21 if name.startswith(("unet", "yolo")) else 1000
    network = build(name, num_classes=classes)
    size = network.default_image_size
    for module in network.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, 0, 0.05)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
            module.reset_running_stats()
    for layer in getattr(network, "predictors", ()):  # boxes that differ
        nn.init.normal_(layer.weight, 0, 0.05)
    resize = v2.Compose([v2.Resize(int(size / 0.875)), v2.CenterCrop(size)])
    images = torch.stack([resize(decode_image(path, ImageReadMode.RGB)) for path in photos])
    config = dataclasses.replace(
        Config(),
        arch=name,
        val_img_size=size,
        in_chans=3,
        num_classes=classes,
        cls_loss="ce",
        crop_mode="center",
    )
    trained = Trained(
        path=Path(name),
        network=network,
        config=config,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        class_names=tuple(map(str, range(classes))),
        multi_label=False,
    )
    model = trained.normalized(CPU)
    network.train()
    with torch.no_grad():
        model(images[:: -(-len(images) // STATISTICS)])
    network.eval()
    return trained, images


def compare(name: str, photos: list[str]) -> dict[str, Any]:
    """Return size, predictions, differences and seconds of a network in each format."""
    trained, images = random_network(name, photos)
    task = trained.build_task()
    calls: dict[str, check.Call] = {check.EAGER: check.eager(trained, CPU)}
    with tempfile.TemporaryDirectory() as folder:
        for kind in FORMATS:
            file = Path(folder) / f"{name}{SUFFIXES[kind]}"
            file.write_bytes(WRITERS[kind](trained, CPU))
            calls[kind] = open_exported(file, name, trust_code=True)
        comparisons = {kind: Comparison(multi_label=False) for kind in FORMATS}
        predictions = set()
        for part in images.split(BATCH):
            outputs = {side: call(part) for side, call in calls.items()}
            expected = outputs[check.EAGER]
            for kind, found in comparisons.items():
                if isinstance(task, Detection):
                    for rows, others in zip(task.predict(expected), task.predict(outputs[kind]), strict=True):
                        found.add_boxes(rows, others, trained.size)
                else:
                    exported = outputs[kind]
                    assert isinstance(exported, Tensor)
                    found.add_logits(logits_of(expected), exported)
            predictions |= {rows.tobytes() for rows in task.predict(expected)}
        finish = task.predict if isinstance(task, Detection) else lambda outputs: outputs
        seconds = check.measure(calls, images, CPU, finish)
    return {
        "size": trained.size,
        "distinct_predictions": len(predictions),
        "difference": {kind: found.difference for kind, found in comparisons.items()},
        "agreement": {kind: found.agreement for kind, found in comparisons.items()},
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--output", help="JSON file (results/MACHINE/export.json)")
    args = parser.parse_args()
    found = list(image_files(args.photos))
    photos = found[:: max(1, len(found) // args.images)][: args.images]
    content: dict[str, Any] = {
        "what": "exported networks",
        "environment": environment(CPU),
        "settings": {"photos": len(photos), "batches": check.BATCHES},
        "networks": {},
    }
    path = results_file("export", args.output, CPU)
    for name in args.networks:
        row = content["networks"][name] = compare(name, photos)
        print(f"{name}, {row['size']} px, {row['distinct_predictions']} distinct predictions")
        for side, latency in row["seconds"].items():
            times = "".join(f"{1000 * latency[n]['median']:10.1f}" for n in check.BATCHES)
            equal = ""
            if side in FORMATS:
                share, difference = 100 * row["agreement"][side], row["difference"][side]
                equal = f"  difference {difference:.1e}, {share:.3f}% equal predictions"
            print(f"  {side:6}{times} ms{equal}", flush=True)
        timing.write_json(path, content)
    print(path)


if __name__ == "__main__":
    main()
