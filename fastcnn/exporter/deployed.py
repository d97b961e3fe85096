"""`Deployed`: a trained network as one module from uint8 images to the outputs of an exported file."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastcnn.exporter.plain import with_plain_layers
from fastcnn.exporter.suppression import Suppress, fixed_boxes, suppress_torch
from fastcnn.inference.trained import Trained
from fastcnn.models.base import logits_of
from fastcnn.models.yolo import AnchorOutputs, GridOutputs
from fastcnn.tasks.detection import anchor_loss, grid_loss
from fastcnn.tasks.detection.task import FixedBoxes

OUTPUTS = {
    "classification": ("logits",),
    "segmentation": ("logits",),
    "detection": FixedBoxes._fields,
}
"""Names of the outputs, by the task."""
EXAMPLE_BATCH = 2
"""Images of the example: torch.export takes sizes of 0 and 1 for constants."""


class Deployed(nn.Module):
    """Normalization, network and, in detectors, decoding and suppression.

    Args:
        trained: is not changed.
        suppress: non-maximum suppression of the format.
    """

    def __init__(self, trained: Trained, suppress: Suppress = suppress_torch) -> None:
        super().__init__()
        self.model = with_plain_layers(trained).normalized(torch.device("cpu"))
        self.num_classes = len(trained.class_names)
        self.suppress = suppress
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of `OUTPUTS` for uint8 images [N, C, H, W]."""
        outputs = self.model(images)
        if isinstance(outputs, AnchorOutputs):
            boxes, scores = anchor_loss.decode(outputs)
        elif isinstance(outputs, GridOutputs):
            boxes, scores = grid_loss.decode(outputs, self.num_classes)
        else:
            return (logits_of(outputs),)
        return tuple(fixed_boxes(boxes, scores, outputs.size, self.suppress))


def export_program(
    deployed: Deployed, trained: Trained, device: torch.device
) -> torch.export.ExportedProgram:
    """Trace a module for any number of images of the trained size, on a device."""
    shape = EXAMPLE_BATCH, trained.channels, trained.size, trained.size
    images = torch.zeros(shape, dtype=torch.uint8, device=device)
    with torch.no_grad():
        return torch.export.export(
            deployed.to(device), (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}}
        )
