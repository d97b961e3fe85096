"""Detectors: maps, cells, what starts how, on every backbone that has the strides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fastcnn.errors import UserError
from fastcnn.models import DETECTION, MODELS, ConvNet, build
from fastcnn.models.parts import image_sizes
from fastcnn.models.yolo import YOLO, Pyramid
from fastcnn.transfer.freeze import frozen_layers, lr_scales
from networks import FAMILIES, each


def shell(name: str, num_classes: int = 3, **options: Any) -> ConvNet:
    with torch.device("meta"):
        return build(name, num_classes, **options)


def strides_of(backbone: str) -> list[int]:
    """The three coarsest, or fewer."""
    return sorted({stage.stride for stage in shell(backbone).stages})[-3:]


def meta(height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.empty(2, channels, height, width, device="meta")


@pytest.mark.parametrize("name", each(MODELS, FAMILIES))
def test_every_backbone_gives_outputs_from_all_of_its_parameters(name):
    strides = strides_of(name)
    anchors = range(1, 1 + 4 * len(strides))  # two for each stride
    network = shell(f"yolo/{name}", strides=strides, anchors=anchors)
    outputs = network(meta(96, 128))
    assert outputs.raw.shape == (2, 2 * sum(rows * columns for rows, columns in outputs.maps), 5 + 3)
    assert outputs.cells.shape == (outputs.raw.shape[1], 5)
    assert outputs.size == (96, 128)
    grid = shell(f"yolov1/{name}", strides=strides[-1:])
    grid_outputs = grid(meta(96, 128))
    assert grid_outputs.raw.shape == (2, 7, 7, 2 * 5 + 3)
    (outputs.raw.sum() + grid_outputs.raw.sum()).backward()
    for detector in (network, grid):
        assert [key for key, p in detector.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", ["yolo", "yolov1", "yolo/vgg11", "yolo/googlenet", "yolov1/mobilenet_v2"])
def test_layer_groups_hold_every_parameter_once_and_end_with_neck_and_heads(name):
    network = shell(name)
    parameters = [key for key, _ in network.named_parameters()]
    groups = [
        [key for key in parameters for name in group if f"{key}.".startswith(f"{name}.")]
        for group in network.layer_groups()
    ]
    assert all(groups)
    assert sorted(key for group in groups for key in group) == sorted(parameters)
    assert all(key.startswith("backbone.") for group in groups[:-1] for key in group)
    assert {key.partition(".")[0] for key in groups[-1]} == {"neck", "heads", "predictors"}
    frozen = frozen_layers(network, "backbone", None)
    assert all(name.startswith("backbone.") for name in frozen)
    scales = lr_scales(network, 0.1, 1.0)
    assert all(scales[key] == (0.1 if key.startswith("backbone.") else 1) for key in parameters)


@pytest.mark.parametrize(("name", "size", "outputs"), [("yolo", 416, 25), ("yolov1", 448, 30)])
def test_the_published_sizes_are_the_default(name, size, outputs):
    network = shell(name, 20)
    assert network.default_image_size == size
    assert network(meta(size, size)).raw.shape[-1] == outputs
    assert shell(name, 20, in_chans=1)(meta(size, size, channels=1)).raw.shape[0] == 2
    assert DETECTION[name].__name__ == name


@pytest.mark.parametrize(
    ("name", "sizes"), [("yolo/lenet5", (416, False, 16, 1)), ("yolov1", (448, False, 1, 1))]
)
def test_images_are_those_of_the_backbone_whichever_strides_it_has(name, sizes):
    assert image_sizes(name) == sizes


def test_yolo_makes_three_predictions_in_each_cell_of_three_maps():
    outputs = shell("yolo", 20)(meta(416, 416))
    assert outputs.maps == ((52, 52), (26, 26), (13, 13))
    assert outputs.raw.shape == (2, 10647, 25)  # as YOLOv3


def test_cells_are_those_of_the_predictions_also_where_images_are_not_square():
    torch.manual_seed(0)
    network = build("yolo/resnet20", 1, strides=(2, 4), anchors=(3, 5, 1, 2, 30, 50, 10, 20)).eval()
    assert isinstance(network, YOLO)
    seen: list[torch.Tensor] = []
    for layer in network.predictors:
        layer.register_forward_hook(lambda module, args, output: seen.append(output))
    outputs = network(torch.randn(2, 3, 24, 40))
    assert outputs.maps == ((12, 20), (6, 10))
    number = 0
    for y, stride, anchors in zip(seen, (2, 4), ([(1, 2), (3, 5)], [(10, 20), (30, 50)])):
        for row in range(y.shape[2]):
            for column in range(y.shape[3]):
                for i, (width, height) in enumerate(anchors):
                    expected = [column, row, stride, width, height]
                    assert outputs.cells[number].tolist() == expected
                    assert torch.equal(outputs.raw[:, number], y[:, 6 * i : 6 * i + 6, row, column])
                    number += 1
    assert number == len(outputs.cells)


def test_a_grid_cell_is_the_mean_over_that_part_of_the_map():
    torch.manual_seed(0)
    network = build("yolov1/resnet20", 2, strides=(4,)).eval()
    seen: dict[str, torch.Tensor] = {}
    for key in ("neck", "heads.0", "predictors.0"):
        network.get_submodule(key).register_forward_hook(
            lambda module, args, output, key=key: seen.update({key: output, f"into {key}": args[0]})
        )
    outputs = network(torch.randn(2, 3, 56, 112))  # a map of 14 x 28
    (neck,) = seen["neck"]
    torch.testing.assert_close(seen["into heads.0"][:, :, 1, 3], neck[:, :, 2:4, 12:16].mean((2, 3)))
    assert torch.equal(outputs.raw[:, 1, 3], seen["predictors.0"][:, :, 1, 3])


def test_few_predictions_are_objects_at_the_start():
    torch.manual_seed(0)
    network = build("yolo/resnet20", 3, strides=(4,), anchors=(8, 8))
    assert network(torch.randn(2, 3, 32, 32)).raw[..., 4].sigmoid().mean().item() == pytest.approx(
        0.01, rel=0.3
    )


def test_the_pyramid_adds_coarser_maps_to_finer_ones():
    with torch.device("meta"):
        stages = build("resnet20").stages  # strides 1, 2, 4
    pyramid = Pyramid(stages, [2], width=8).eval()
    assert len(pyramid.laterals) == 2
    features = [torch.randn(1, stage.channels, 9 // stage.stride, 12 // stage.stride) for stage in stages]
    fine, coarse = (pyramid.laterals[i](features[i + 1]) for i in (0, 1))
    rows, columns = torch.arange(4) * 2 // 4, torch.arange(6) * 3 // 6  # the nearest of 2 x 3
    (output,) = pyramid(features)
    torch.testing.assert_close(output, pyramid.smooth[0](fine + coarse[:, :, rows][..., columns]))


@pytest.mark.parametrize("name", ["yolo/resnet20", "yolov1/resnet20"])
def test_a_new_classifier_changes_the_last_layers_alone(name, wording):
    options: dict[str, Any] = {"anchors": (8, 8, 16, 16)} if name.startswith("yolo/") else {}
    network = shell(name, strides=(4,), **options)
    before = dict(network.named_parameters())
    network.reset_classifier(7)
    after = dict(network.named_parameters())
    fresh = {key for key in after if after[key] is not before[key]}
    assert fresh == {f"{network.classifier_name}.0.weight", f"{network.classifier_name}.0.bias"}
    assert all(after[key].is_meta for key in fresh)
    assert network(meta(32, 32)).raw.shape[-1] == (5 + 7 if options else 10 + 7)
    with pytest.raises(UserError, match="^--head") as caught:
        network.reset_classifier(7, hidden=8)
    wording(caught.value)


def test_anchors_are_sorted_by_area_and_saved():
    network = build("yolo/resnet20", 3, strides=(4, 2), anchors=(30, 30, 1, 9, 2, 2, 20, 20))
    assert network.strides == (2, 4)
    assert network.state_dict()["anchors"].tolist() == [[[2, 2], [1, 9]], [[20, 20], [30, 30]]]


def test_strides_and_anchors_that_are_not_told_are_those_the_backbone_has_maps_for():
    assert shell("yolo").strides == (8, 16, 32)
    assert shell("yolo").anchors.shape == (3, 3, 2)
    assert shell("yolo/vit_s_16").strides == (16,)
    assert shell("yolo/lenet5").strides == (4,)
    assert shell("yolo", strides=(8, 16)).anchors.shape == (2, 4, 2)
    assert shell("yolov1").strides == (32,)
    assert shell("yolov1/lenet5").strides == (4,)


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("yolo", {"strides": (8, 32), "anchors": (9, 8) * 9}, "--anchors"),
        ("yolo", {"strides": (8, 16, 64)}, "--strides 8 16 64"),
        ("yolo/vit_s_16", {"strides": (8,)}, "--strides 8"),
        ("yolo", {"anchors": (1, 2, 3)}, "--anchors 1 2 3"),
        ("yolo", {"anchors": (1, -2)}, "--anchors 1 -2"),
        ("yolov1", {"strides": (8, 16)}, "--strides 8 16"),
        ("yolov1", {"strides": (64,)}, "--strides 64"),
    ],
    ids=["too many anchors", "no such stride", "another", "odd", "negative", "two strides", "too coarse"],
)
def test_what_does_not_fit_says_what_to_write(name, options, named, wording):
    with pytest.raises(UserError, match=f"^{named}.*: ") as caught:
        shell(name, **options)
    wording(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_backbone_suggests_the_nearest(wording):
    with pytest.raises(UserError, match="^--arch yolo/resnet-50:") as caught:
        build("yolo/resnet-50")
    wording(caught.value)
    with pytest.raises(UserError) as caught:
        build("yolov1", grid=3)
    wording(caught.value)


@pytest.mark.parametrize("name", each(["yolo/resnet20", "yolov1/resnet20", "yolo"], []))
def test_a_detector_compiles_without_a_graph_break_and_says_the_same(name):
    torch._dynamo.reset()
    torch.manual_seed(0)
    options: dict[str, dict[str, Any]] = {
        "yolo/resnet20": {"strides": (2, 4), "anchors": (4, 4, 9, 9)},
        "yolov1/resnet20": {"strides": (4,)},
    }
    network: nn.Module = build(name, 2, **options.get(name, {}))
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False)
    x = torch.randn(2, 3, 32, 48)
    outputs, expected = compiled(x), network(x)
    assert type(outputs) is type(expected)
    assert outputs.size == expected.size == (32, 48)
    torch.testing.assert_close(outputs, expected)
    outputs.raw.sum().backward()
