"""Test-time augmentation is the mean that was published, and changes validation alone."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.engine.evaluate import evaluate
from fastcnn.engine.tta import mean_over_views
from runs import QUICK
from training import TASK, batches, loader_of, losses, state_of


def published(model: Any, images: Tensor, views: str) -> Tensor:
    """As airbench computes it, from images of any type."""

    def mirror(x: Tensor) -> Tensor:
        return 0.5 * model(x) + 0.5 * model(x.flip(-1))

    if views == "none":
        return model(images)
    if views == "flip":
        return mirror(images)
    side = images.shape[-1]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    moved = [padded[:, :, i : i + side, i : i + side] for i in (0, 2)]
    return 0.5 * mirror(images) + 0.5 * torch.stack([mirror(x) for x in moved]).mean(0)


@pytest.mark.parametrize("views", ["none", "flip", "translate"])
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_are_the_mean_over_the_views(views, channels):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 5, 5, channels), dtype=torch.uint8, generator=generator)
    images = pixels.permute(0, 3, 1, 2)
    weights = torch.randn(channels * 25, 4, generator=generator)
    expected = published(lambda x: (x.flatten(1) / 255) @ weights, images.float(), views)
    seen = []

    class Network(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((x.dtype, x.shape, x.stride()))
            return (x.flatten(1) / 255) @ weights

    found = mean_over_views(Network(), images, views)
    torch.testing.assert_close(found, expected)
    assert len(seen) == {"none": 1, "flip": 2, "translate": 6}[views]
    assert set(seen) == {(torch.uint8, images.shape, images.stride())}  # so the graph is the same


@pytest.mark.parametrize("views", ["flip", "translate"])
def test_validation_takes_the_mean_and_training_does_not(views):
    data = batches(2)
    data[1] = data[1]._replace(mask=torch.arange(8) < 3)
    state, plain = state_of(tta=views), state_of()
    assert losses(state, batches(2, seed=1)) == losses(plain, batches(2, seed=1))
    got = evaluate(state, TASK, loader_of(data))
    images, targets = (
        torch.cat([getattr(data[0], name), getattr(data[1], name)[:3]]) for name in ("images", "targets")
    )
    with torch.no_grad():
        moved = published(lambda x: plain.eval_model(x.to(torch.uint8)), images.float(), views)
    assert got["loss"] == pytest.approx(F.cross_entropy(moved, targets).item(), rel=1e-5)
    assert got["samples"] == 11
    assert got["loss"] != pytest.approx(evaluate(plain, TASK, loader_of(data))["loss"], rel=1e-5)


def test_only_the_best_checkpoint_validates_as_the_run_did(train, demo, capsys):
    flags = (*QUICK, "--data", demo, "--data-backend", "torch", "--lr", "0.1", "--epochs", "1")
    assert train(*flags, "--tta", "translate", "--output-dir", "run") == 0
    (told,) = re.findall(r"val (loss \S+  acc1 \S+)", capsys.readouterr().out)
    assert train("--test-only", "--resume", "run/best.pt") == 0
    assert told in capsys.readouterr().out
    assert train("--test-only", "--resume", "run/best.pt", "--tta", "flip") == 0
    assert told not in capsys.readouterr().out


@pytest.mark.parametrize("arch", ["unet", "yolo"])
def test_masks_and_boxes_are_not_averaged(train, arch, capsys, wording):
    assert train("--arch", arch, "--data", "synthetic", "--tta", "flip") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--tta" in line
    wording(line)
