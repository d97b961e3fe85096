"""One-stage detectors on any backbone.

YOLO has anchors on several maps, as YOLOv3: Redmon, Farhadi, "YOLOv3: An Incremental Improvement", 2018.
YOLOv1 has one grid: Redmon et al., "You Only Look Once", CVPR 2016.

    python -c "from fastcnn.models import build; print(build('yolo/resnet50', num_classes=20))"

A feature pyramid between the backbone and the heads replaces the layers of Darknet.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.errors import UserError
from fastcnn.models.base import ConvNet, Stage, strip_head
from fastcnn.models.layers import ConvNormAct
from fastcnn.models.resnet import resnet18

WIDTH = 256
"""Channels of the pyramid and of the heads (Lin et al. 2017, section 3)."""
ANCHORS = (10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326)
"""Widths and heights of the nine anchors of YOLOv3, for COCO at 416 px (section 2.3)."""
PRIOR = 0.01
"""Objectness before training, so that the many background predictions do not dominate the first steps (Lin et
al., "Focal Loss for Dense Object Detection", ICCV 2017, section 4.1)."""


class AnchorOutputs(NamedTuple):
    """Outputs of `YOLO` for N images, with P predictions each.

    Order of the predictions: maps from the finest to the coarsest, in a map row by row, in a cell anchor by
    anchor.
    """

    raw: Tensor
    """[N, P, 5 + num_classes]: x, y, width, height, objectness, classes, before any scaling."""
    cells: Tensor
    """[P, 5] float32: column and row of the cell, then stride, anchor width and anchor height in pixels."""
    maps: tuple[tuple[int, int], ...]
    """Rows and columns of each map."""
    size: tuple[int, int]
    """Height and width of the images, in pixels."""


class GridOutputs(NamedTuple):
    """Outputs of `YOLOv1` for N images."""

    raw: Tensor
    """[N, S, S, B * 5 + num_classes]: for each cell its B boxes, then the classes. A box is x and y of its
    center within the cell, square roots of width and height relative to the image, confidence."""
    size: tuple[int, int]
    """Height and width of the images, in pixels."""


class Pyramid(nn.Module):
    """Feature pyramid: maps of one width, each with the features of the coarser ones.

    Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, section 3. It extends from the
    coarsest stage to the finest output stride.

    Args:
        stages: stages of the backbone.
        strides: output strides, ascending.

    Raises:
        UserError: no stage has such a stride.
    """

    def __init__(self, stages: Sequence[Stage], strides: Sequence[int], width: int = WIDTH) -> None:
        super().__init__()
        last = {stage.stride: i for i, stage in enumerate(stages)}
        for stride in strides:
            if stride not in last:
                raise UserError(
                    f"--strides {' '.join(map(str, strides))}: the backbone has no map of stride {stride}; "
                    f"use some of {' '.join(map(str, last))}"
                )
        self.inputs = [i for stride, i in last.items() if stride >= strides[0]]
        used = [stages[i] for i in self.inputs]
        self.is_output = [stage.stride in strides for stage in used]
        self.laterals = nn.ModuleList(nn.Conv2d(stage.channels, width, 1) for stage in used)
        self.smooth = nn.ModuleList(ConvNormAct(width, width, 3) for _ in strides)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Map the backbone's stages to [N, width, H / stride, W / stride], the finest first."""
        merged = [lateral(features[i]) for i, lateral in zip(self.inputs, self.laterals)]
        for i in reversed(range(len(merged) - 1)):
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=merged[i].shape[2:], mode="nearest")
        outputs = [x for x, is_output in zip(merged, self.is_output) if is_output]
        return [smooth(x) for smooth, x in zip(self.smooth, outputs)]


class Detector(ConvNet):
    """Base class: backbone, pyramid, and on each of its maps a 3x3 convolution and a 1x1 convolution.

    `stages` are those of the backbone. Its head is removed.

    Args:
        strides: strides of the maps with a head, in pixels.
    """

    classifier_name = "predictors"

    def __init__(self, backbone: ConvNet, strides: Sequence[int]) -> None:
        super().__init__()
        self.backbone_groups = strip_head(backbone)
        self.stages = tuple(stage._replace(name=f"backbone.{stage.name}") for stage in backbone.stages)
        self.minimum_image_size = backbone.minimum_image_size
        self.image_size_multiple = backbone.image_size_multiple
        self.strides = tuple(strides)
        self.backbone = backbone
        self.neck = Pyramid(backbone.stages, self.strides)
        self.heads = nn.ModuleList(ConvNormAct(WIDTH, WIDTH, 3) for _ in self.strides)

    @abstractmethod
    def predictor(self, num_classes: int) -> nn.Conv2d:
        """Return a freshly initialized last layer."""

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        return self.backbone.forward_stages(x)

    def forward_head(self, features: Tensor) -> Tensor:
        raise TypeError("a detector's heads see more than the last map: call the network itself")

    def layer_groups(self) -> list[list[str]]:
        return [*self.backbone_groups, ["neck", "heads", "predictors"]]

    def reset_classifier(self, num_classes: int, hidden: int | None = None) -> None:
        if hidden is not None:
            raise UserError("--head mlp: a detector has a last layer on each map; omit it")
        weight = next(self.heads.parameters())
        fresh = [self.predictor(num_classes).to(weight.device, weight.dtype) for _ in self.strides]
        self.predictors = nn.ModuleList(fresh)


class YOLO(Detector):
    """Boxes from anchors: images [N, C, H, W] to `AnchorOutputs`.

    With a backbone without padding, maps and cells do not cover the border of the image.

    Args:
        backbone: source of the maps; its head is removed.
        anchors: widths and heights in pixels, W H W H ... Each stride gets the same number of anchors, the
            finest one the smallest.
        strides: strides of the maps, in pixels.

    Raises:
        UserError: the backbone has no such map, or the anchors cannot be divided evenly.
    """

    default_image_size = 416
    anchors: Tensor

    def __init__(
        self, backbone: ConvNet, num_classes: int, anchors: Sequence[float], strides: Sequence[int]
    ) -> None:
        strides = sorted(set(strides))
        given = " ".join(f"{side:g}" for side in anchors)
        if len(anchors) % 2 or not anchors or min(anchors) <= 0:
            raise UserError(f"--anchors {given}: use width and height of each in pixels, such as 10 13 16 30")
        shapes = sorted(zip(anchors[::2], anchors[1::2]), key=lambda shape: shape[0] * shape[1])
        if not strides or len(shapes) % len(strides):
            raise UserError(
                f"--anchors {given}: {len(shapes)} anchors cannot be divided evenly over the "
                f"{len(strides)} of --strides {' '.join(map(str, strides))}; use as many for each"
            )
        super().__init__(backbone, strides)
        self.register_buffer("anchors", torch.tensor(shapes, dtype=torch.float32).view(len(strides), -1, 2))
        self.reset_classifier(num_classes)

    def predictor(self, num_classes: int) -> nn.Conv2d:
        per_cell = self.anchors.shape[1]
        layer = nn.Conv2d(WIDTH, per_cell * (5 + num_classes), 1)
        nn.init.normal_(layer.weight, 0, 0.01)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
        with torch.no_grad():
            layer.bias.view(per_cell, -1)[:, 4] = -math.log((1 - PRIOR) / PRIOR)
        return layer

    def forward(self, x: Tensor) -> AnchorOutputs:  # type: ignore[override]
        raw, cells, maps = [], [], []
        for i, y in enumerate(self.neck(self.forward_stages(x))):
            y = self.predictors[i](self.heads[i](y)).permute(0, 2, 3, 1)
            rows, columns = y.shape[1], y.shape[2]
            raw.append(y.reshape(x.shape[0], rows * columns * self.anchors.shape[1], -1))
            cells.append(cells_of(rows, columns, self.strides[i], self.anchors[i]))
            maps.append((rows, columns))
        return AnchorOutputs(torch.cat(raw, 1), torch.cat(cells), tuple(maps), (x.shape[2], x.shape[3]))


class YOLOv1(Detector):
    """Boxes from a grid of cells: images [N, C, H, W] to `GridOutputs`.

    Redmon et al. flatten the last map into two fully connected layers: each cell depends on the whole image,
    of one fixed size. Here the map is averaged to one pixel per cell. A 3x3 and a 1x1 convolution follow, so
    any image size works.

    Args:
        backbone: source of the map; its head is removed.
        stride: stride of the map, in pixels.
        grid: cells per side.
        boxes: boxes per cell.

    Raises:
        UserError: the backbone has no such map.
    """

    default_image_size = 448

    def __init__(
        self, backbone: ConvNet, num_classes: int, stride: int, grid: int = 7, boxes: int = 2
    ) -> None:
        super().__init__(backbone, [stride])
        self.grid, self.boxes = grid, boxes
        self.reset_classifier(num_classes)

    def predictor(self, num_classes: int) -> nn.Conv2d:
        """Return a freshly initialized last layer.

        Initial boxes are centered in their cell, with sides of a quarter of the image. They overlap the
        objects, so that the better box of a cell is defined.
        """
        layer = nn.Conv2d(WIDTH, self.boxes * 5 + num_classes, 1)
        nn.init.normal_(layer.weight, 0, 0.01)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
        with torch.no_grad():
            layer.bias[: self.boxes * 5].view(self.boxes, 5)[:, :4] = 0.5
        return layer

    def forward(self, x: Tensor) -> GridOutputs:  # type: ignore[override]
        (y,) = self.neck(self.forward_stages(x))
        y = self.predictors[0](self.heads[0](F.adaptive_avg_pool2d(y, self.grid)))
        return GridOutputs(y.permute(0, 2, 3, 1), (x.shape[2], x.shape[3]))


def cells_of(rows: int, columns: int, stride: int, anchors: Tensor) -> Tensor:
    """Return the cells of a map with A anchors, [rows * columns * A, 5] as in `AnchorOutputs`."""
    shape = (rows, columns, len(anchors), 1)
    column = torch.arange(columns, dtype=torch.float32, device=anchors.device).view(1, -1, 1, 1)
    row = torch.arange(rows, dtype=torch.float32, device=anchors.device).view(-1, 1, 1, 1)
    parts = [column.expand(shape), row.expand(shape), anchors.new_full(shape, stride)]
    return torch.cat([*parts, anchors.expand(rows, columns, -1, -1)], -1).view(-1, 5)


def yolo(
    num_classes: int = 20,
    in_chans: int = 3,
    anchors: Sequence[float] | None = None,
    strides: Sequence[int] | None = None,
    backbone: Callable[..., ConvNet] = resnet18,
) -> YOLO:
    """`YOLO` on a freshly initialized backbone.

    Args:
        anchors: see `YOLO`; None: the nine of YOLOv3, or the smallest of them that divide evenly.
        strides: see `YOLO`; None: 8, 16 and 32 as far as the backbone has them, else its coarsest.
    """
    network = backbone(num_classes=1, in_chans=in_chans)
    strides = strides or usual_strides([stage.stride for stage in network.stages])
    anchors = anchors or ANCHORS[: 2 * (len(ANCHORS) // 2 // len(strides) * len(strides))]
    return YOLO(network, num_classes, anchors, strides)


def yolov1(
    num_classes: int = 20,
    in_chans: int = 3,
    strides: Sequence[int] | None = None,
    backbone: Callable[..., ConvNet] = resnet18,
) -> YOLOv1:
    """`YOLOv1` on a freshly initialized backbone.

    Args:
        strides: one stride; None: the coarsest of the backbone.

    Raises:
        UserError: more than one stride.
    """
    network = backbone(num_classes=1, in_chans=in_chans)
    strides = strides or [network.stages[-1].stride]
    if len(strides) != 1:
        raise UserError(f"--strides {' '.join(map(str, strides))}: YOLOv1 has one grid; use one, such as 32")
    return YOLOv1(network, num_classes, strides[0])


def usual_strides(known: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of YOLOv3 among `known`, or the coarsest one."""
    return tuple(stride for stride in (8, 16, 32) if stride in known) or (known[-1],)
