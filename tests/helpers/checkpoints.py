"""Checkpoints of each task, of networks with random weights, for the classes of the demo set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastcnn.data.sources.demo import CLASS_NAMES
from fastcnn.models.create import build_network
from fastcnn.models.saved import network_settings

SAVED = Path(__file__).parents[1] / "saved" / "last.pt"
NETWORKS: dict[str, dict[str, Any]] = {
    "classification": {"arch": "lenet5", "img_size": 32, "crop_mode": "center"},
    "segmentation": {"arch": "unet/lenet5", "img_size": 32, "crop_mode": "border"},
    "detection": {
        "arch": "yolo/lenet5",
        "img_size": 32,
        "crop_mode": "border",
        "strides": [4],
        "anchors": [12.0, 12.0],
    },
}


def write_checkpoint(
    path: Path, task: str = "classification", classes: tuple[str, ...] = (), **settings: Any
) -> Path:
    """Write a checkpoint, as of a run with these settings.

    Args:
        classes: names of the classes; by default the demo set's.
    """
    content = torch.load(SAVED, weights_only=True)
    names = list(classes) or sorted(name.replace(" ", "_") for name in CLASS_NAMES)
    chosen: dict[str, Any] = {"num_classes": len(names), "in_chans": 3, "exif": "upright"}
    chosen |= {"train_crop": "random-resized", "model_ema": False}
    chosen |= {**NETWORKS[task], **settings}
    chosen.setdefault("val_img_size", chosen["img_size"])
    content["config"] = {**content["config"], **chosen}
    content.update({name: chosen[name] for name in ("arch", "num_classes", "in_chans")})
    content.update({name: chosen[name] for name in ("img_size", "val_img_size")})
    content.update(class_names=names, multi_label=False, mean=[0.5] * 3, std=[0.25] * 3, ranks=[], ema=None)
    torch.manual_seed(0)
    state = build_network(network_settings(content)).state_dict()
    if task == "detection":  # boxes that are sure and differ: by default none is above any threshold
        state["predictors.0.weight"] *= 50
        state["predictors.0.bias"].view(-1, 5 + len(names))[:, 4] = 2
    content.update(model=state, weights=state, average={"epochs": 0, "weights": {}})
    torch.save(content, path)
    return path
