"""The kernels on a CUDA device: the grids of random layers, compiled, and what an interpreter cannot show.

`python -m pytest -m gpu`.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

from grid_depthwise_conv import kernels_alone as depthwise_alone  # noqa: F401
from grid_depthwise_conv import (  # noqa: F401
    test_stride_1,
    test_stride_2,
    test_the_weights_gradient_is_the_same_bits_again,
)
from grid_lrn import kernels_alone as norm_alone  # noqa: F401
from grid_lrn import test_a_view_that_begins_anywhere, test_it_agrees_with_float64  # noqa: F401

from fastcnn_kernels import DepthwiseConv2d, LocalResponseNorm, accelerate, depthwise_conv2d

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return (
        nn.Sequential(
            nn.Conv2d(3, 16, 3),
            LocalResponseNorm(5, relu=True),
            DepthwiseConv2d(16, 3, padding=1),
            nn.ReLU(),
            DepthwiseConv2d(16, 5, stride=2, padding=2),
        )
        .cuda()
        .to(memory_format=torch.channels_last)
    )


def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 30, 30, generator=generator).cuda().to(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_compiled_under_autocast_it_is_the_eager_one(dtype):
    results = []
    for compiled in (False, True):
        model = network()
        run = torch.compile(model, fullgraph=True) if compiled else model
        with torch.autocast("cuda", dtype=dtype):
            output = run(images())
        output.float().square().mean().backward()
        results.append([output, *(p.grad for p in model.parameters())])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=5e-2, atol=1e-3)


def test_a_cuda_graph_replays_it():
    model, x = network().eval(), images()
    with torch.no_grad():
        expected = model(x).clone()  # compiles the kernels too
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = model(x)
        output.zero_()
        graph.replay()
    torch.testing.assert_close(output, expected)


def test_a_batch_of_more_than_2_to_the_31_elements():
    x = torch.zeros(2**31 // (64 * 64 * 64) + 8, 64, 64, 64, dtype=torch.bfloat16, device="cuda")
    x = x.to(memory_format=torch.channels_last)
    x[-1] = 1
    weight = torch.ones(64, 1, 3, 3, device="cuda")
    y = depthwise_conv2d(x, weight, padding=1)
    assert y[-1, :, 1:-1, 1:-1].eq(9).all()
    assert not y[-2].any()


def test_a_contiguous_input_whose_output_is_one_pixel_gets_the_right_gradient():
    # One pixel is channels-last and contiguous at once, so the output's gradient says nothing of the input.
    x, weight = torch.randn(2, 6, 3, 3, device="cuda"), torch.randn(6, 1, 3, 3, device="cuda")
    results = []
    for conv in (depthwise_conv2d, lambda x, w: torch.nn.functional.conv2d(x, w, groups=6)):
        taps = weight.clone().requires_grad_()
        conv(x, taps).square().sum().backward()
        results.append(taps.grad)
    torch.testing.assert_close(*results)


def test_float64_falls_back_and_says_so():
    x = images().double()
    with pytest.warns(UserWarning, match="by PyTorch"):
        y = depthwise_conv2d(x, torch.ones(3, 1, 3, 3, dtype=torch.float64, device="cuda"))
    assert y.dtype == torch.float64


def test_accelerate_measures_and_keeps_the_results():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.mobilenet_v2().cuda().to(memory_format=torch.channels_last).eval()
    original = copy.deepcopy(model)
    x = torch.randn(8, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    report = accelerate(model, x)
    assert len(report.rows) == 17
    assert all(row.microseconds for row in report.rows)
    torch.testing.assert_close(model(x), original(x), rtol=1e-2, atol=1e-2)
