"""Work of two ranks for tests/tasks/detection/test_task.py: each validates its share of images."""

from __future__ import annotations

import torch

from fastcnn.data.batch import Batch
from fastcnn.models.yolo import GridOutputs
from fastcnn.runtime.distributed import Ranks
from fastcnn.tasks.detection.task import Detection

CPU = torch.device("cpu")
IMAGES, SIZE = 11, 64


def validate(rank: int, world_size: int, batch_size: int) -> dict[str, float]:
    """Return metrics of random outputs, close enough to the truth for some true positives."""
    torch.manual_seed(0)
    corner = torch.rand(IMAGES, 3, 2) * 40
    targets = torch.cat(
        [torch.randint(0, 2, (IMAGES, 3, 1)), corner, corner + 20, torch.zeros(IMAGES, 3, 1)], 2
    )
    targets[::4, 1:, 0] = -1
    targets[1::4, 0, 5] = 1
    raw = torch.rand(IMAGES, 3, 3, 12)
    for image in range(IMAGES):
        for _, left, top, _, _, _ in targets[image].tolist():
            x, y = (left + 10) / SIZE * 3, (top + 10) / SIZE * 3
            cell = raw[image, int(y), int(x)]
            cell[0], cell[1] = x % 1, y % 1
            cell[2:4] = 0.5 + 0.1 * cell[2:4]
    first, last = IMAGES * rank // world_size, IMAGES * (rank + 1) // world_size
    task = Detection(2)
    metrics = task.metrics(CPU, train=False)
    for low in range(first, last, batch_size):
        index = torch.arange(low, low + batch_size)
        mask, index = index < last, index.clamp(max=last - 1)
        outputs = GridOutputs(raw[index], (SIZE, SIZE))
        batch = Batch(torch.zeros(batch_size, 3, SIZE, SIZE, dtype=torch.uint8), targets[index], mask)
        metrics.update(task.loss(outputs, batch, train=False), outputs, batch)
    return metrics.compute()


def results() -> dict[str, float]:
    ranks = Ranks.from_environment()
    return validate(ranks.rank, ranks.world_size, batch_size=4)
