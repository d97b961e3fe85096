"""benchmarks/bench_layers.py: what its sides compute, and the operations and bytes that it counts."""

from __future__ import annotations

import math

import pytest
import torch

import bench_layers
from fastcnn.runtime import machine
from sizes import LAYERS, Layer

CPU = torch.device("cpu")
SMALL = (
    Layer("net", "conv", 8, 7, 12, 3, 2, 1),
    Layer("net", "conv", 3, 9, 4, 7, 2, 3, first=True),
    Layer("net", "depthwise", 8, 7, 8, 5, 1, 2),
    Layer("net", "norm-relu", 8, 5, 8),
    Layer("net", "lrn", 8, 5, 8, 5),
    Layer("net", "pool", 8, 7, 8, 3, 2, 1),
    Layer("net", "linear", 16, 1, 10),
)


@pytest.mark.parametrize("row", SMALL, ids=str)
def test_every_side_computes_the_layer_and_its_gradients(row):
    x, dy = bench_layers.tensors(row, 4, CPU)
    exact = bench_layers.call_of(
        row, bench_layers.build(row, ours=False), x, dy, bench_layers.Way(torch.float64, channels_last=False)
    )()
    assert exact[0].shape == dy.shape
    weights = len(list(bench_layers.build(row, ours=False).parameters()))
    assert len(exact) == 1 + (not row.first) + weights
    for way in bench_layers.WAYS.values():
        ours = way.ours and row.kind in ("depthwise", "lrn")
        layer = bench_layers.build(row, ours=ours)
        found = bench_layers.call_of(row, layer, x, dy, way._replace(compiled=False))()
        # Autocast leaves PyTorch's powers in float32.
        assert found[0].dtype == (torch.float32 if row.kind == "lrn" and not ours else way.dtype)
        off = bench_layers.differences(row, found, exact)
        assert set(off) == ({"output_off"} if row.first else {"output_off", "input_grad_off"})
        assert max(off.values()) < (1e-5 if way.dtype == torch.float32 else 0.1)
        assert all(a.isfinite().all() for a in found)


def test_operations_and_bytes_are_those_of_the_definition():
    # 28 x 28 outputs of 3 x 3 x 128 products for each of 128 channels: forward and two gradients.
    row = Layer("resnet50", "conv", 128, 56, 128, 3, 2, 1, batch_size=2)
    assert bench_layers.operations(row) == 3 * 2 * 2 * 28**2 * 9 * 128**2
    x, y, weights = 2 * 128 * 56**2, 2 * 128 * 28**2, 9 * 128**2
    assert bench_layers.least_bytes(row, 2) == 2 * (3 * x + 2 * y) + 4 * 3 * weights
    # A depthwise convolution's channels are apart, in its gradients too.
    assert bench_layers.operations(row._replace(kind="depthwise")) == 3 * 2 * 2 * 28**2 * 9 * 128
    stem = Layer("resnet50", "conv", 3, 224, 64, 7, 2, 3, batch_size=1, first=True)
    assert bench_layers.operations(stem) == 2 * 2 * 112**2 * 49 * 3 * 64
    linear = Layer("vgg16", "linear", 25088, 1, 4096, batch_size=1)
    assert bench_layers.operations(linear) == 3 * 2 * 25088 * 4096
    assert bench_layers.least_bytes(linear, 4) == 4 * (3 * 25088 + 2 * 4096 + 3 * (25088 * 4096 + 4096))
    pool = Layer("vgg16", "pool", 64, 224, 64, 2, 2, batch_size=1)
    assert bench_layers.operations(pool) == 0
    assert bench_layers.least_bytes(pool, 2) == 2 * 64 * (2 * 224**2 + 2 * 112**2)


def test_every_layer_has_a_name_of_its_own_and_the_side_that_it_says():
    for rows in LAYERS.values():
        assert len({str(row) for row in rows}) == len(rows)
        assert all(row.out_channels == row.channels for row in rows if row.kind not in ("conv", "linear"))
    names = [str(row) for row in LAYERS["cuda"]]
    assert names[:2] == ["resnet50-conv3x3-64-56px-batch256", "resnet50-conv3x3-256-14px-batch256"]
    assert "resnet50-conv1x1-64-256-56px-batch256" in names
    assert "mobilenet_v2-depthwise3x3s2-144-56px-batch256" in names


def test_a_side_that_cannot_be_measured_says_why(with_bf16):
    convolution, depthwise = SMALL[0], SMALL[2]
    assert bench_layers.why_left_out(convolution, bench_layers.OURS, CPU, quick=False) == (
        "fastcnn_kernels has no layer for conv"
    )
    norm = next(row for row in LAYERS["cpu"] if row.kind == "lrn")
    assert bench_layers.why_left_out(norm, bench_layers.OURS, CPU, quick=False) == (
        "without a CUDA GPU fastcnn_kernels runs PyTorch's own implementation"
    )
    assert bench_layers.why_left_out(depthwise, bench_layers.OURS, CPU, quick=False) is None
    assert bench_layers.why_left_out(depthwise, bench_layers.OURS, torch.device("cuda"), quick=False) is None
    assert bench_layers.why_left_out(depthwise, bench_layers.COMPILED, CPU, quick=True) == (
        "nothing is compiled with --quick"
    )
    assert bench_layers.why_left_out(depthwise, bench_layers.COMPILED, CPU, quick=False) is None


def test_sides_in_bf16_need_a_processor_that_has_it(without_bf16):
    for side in ("bf16 channels-last", bench_layers.OURS):
        assert bench_layers.why_left_out(SMALL[2], side, CPU, quick=False) == machine.NO_BF16
        assert bench_layers.why_left_out(SMALL[2], side, torch.device("cuda"), quick=False) is None
    assert bench_layers.why_left_out(SMALL[2], bench_layers.COMPILED, CPU, quick=False) is None


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="sizes for a GPU are another table")
def test_a_side_whose_first_call_takes_long_is_left_out(monkeypatch, without_bf16):
    monkeypatch.setattr(bench_layers, "CALL_LIMIT", 0)
    bench_layers.measure.cache_clear()
    found = bench_layers.measure(SMALL[2], quick=True).as_json()
    bench_layers.measure.cache_clear()
    assert set(found["sides"]) == {"fp32 NCHW"}
    assert found["left_out"]["fp32 channels-last"] == "a call of 2 images took 0 s"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="sizes for a GPU are another table")
def test_a_comparison_has_rates_and_differences_of_each_side(with_bf16):
    found = bench_layers.measure(SMALL[2], quick=True).as_json()
    sides = {"fp32 NCHW", "fp32 channels-last", "bf16 channels-last", "fastcnn_kernels"}
    assert set(found["sides"]) == sides
    assert set(found["left_out"]) == {"compiled"}
    for side in found["sides"].values():
        seconds = side["seconds"]["median"]
        assert side["gflop_per_second"] == pytest.approx(found["settings"]["flops"] / seconds / 1e9)
        assert side["gb_per_second"] == pytest.approx(side["bytes"] / seconds / 1e9)
        assert math.isfinite(side["output_off"])
    measured = found["sides"]
    assert measured["bf16 channels-last"]["bytes"] < measured["fp32 channels-last"]["bytes"]
