"""The kernels on a CUDA device as users meet them: `python -m pytest -m gpu`.

The grids of random layers are in test_gpu_grids.py.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

from fastcnn_kernels import (
    DepthwiseConv2d,
    LocalResponseNorm,
    accelerate,
    depthwise_conv2d,
    dispatch,
    local_response_norm,
)
from fastcnn_kernels.support import warn_once

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch, tmp_path):
    """This machine's measurements are neither read nor written, and no fallback was said before."""
    monkeypatch.setenv("FASTCNN_KERNELS_CACHE", str(tmp_path))
    monkeypatch.setattr(dispatch, "SHIPPED", tmp_path)
    dispatch.times.cache_clear()
    warn_once.cache_clear()
    yield
    dispatch.times.cache_clear()


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


def batch_of_more_than_2_to_the_31_elements() -> Tensor:
    """4 GiB, of which the last image alone is not zero."""
    shape = 2**31 // 64**3 + 8, 64, 64, 64
    x = torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=torch.channels_last).zero_()
    x[-1] = torch.arange(64, device="cuda").remainder(3)[:, None, None]
    return x


def test_the_last_image_of_a_huge_batch_is_convolved_as_it_is_alone(recwarn):
    x = batch_of_more_than_2_to_the_31_elements()
    results = []
    for images in (x, x[-1:]):
        images, weight = (
            images.detach().requires_grad_(),
            torch.ones(64, 1, 3, 3, device="cuda").requires_grad_(),
        )
        y = depthwise_conv2d(images, weight, padding=1)
        grads = torch.autograd.grad(y, (images, weight), images.detach())
        results.append((y[-1].clone(), grads[0][-1].clone(), grads[1]))
        assert not y[:-1].any()
        assert not grads[0][:-1].any()
    for mine, alone in zip(*results):
        assert torch.equal(mine, alone)  # small whole numbers, whose sums are exact
        assert mine.any()
    assert not any("by PyTorch" in str(warning.message) for warning in recwarn)


def test_the_last_image_of_a_huge_batch_is_normalized_as_it_is_alone(recwarn):
    x = batch_of_more_than_2_to_the_31_elements()
    results = []
    for images in (x, x[-1:]):
        images = images.detach().requires_grad_()
        y = local_response_norm(images, 5, alpha=1.0)
        (grad,) = torch.autograd.grad(y, images, images.detach())
        results.append((y[-1].clone(), grad[-1].clone()))
        assert not y[:-1].any()
        assert not grad[:-1].any()
    for mine, alone in zip(*results):
        assert torch.equal(mine, alone)
        assert mine.any()
    assert not any("by PyTorch" in str(warning.message) for warning in recwarn)


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
