"""The reference operations against torch.nn.functional, in float64: values and gradients."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcnn_kernels import depthwise_conv2d_reference, local_response_norm_reference

ROOT = Path(__file__).resolve().parents[2]


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def assert_same_values_and_gradients(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs)
    upstream = random(*theirs.shape, seed=9).detach()  # not ones: those hide mistakes that cancel out
    expected = torch.autograd.grad(theirs, inputs, upstream)
    for gradient, correct in zip(torch.autograd.grad(ours, inputs, upstream), expected):
        torch.testing.assert_close(gradient, correct)


@pytest.mark.parametrize("shape", [(2, 6, 3, 4), (2, 1, 3, 3), (2, 5, 7)], ids=["2d", "one channel", "1d"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 20])
def test_local_response_norm_is_that_of_torch(size, shape):
    x = random(*shape)
    settings = {"size": size, "alpha": 0.3, "beta": 0.6, "k": 2.0}
    ours, theirs = local_response_norm_reference(x, **settings), F.local_response_norm(x, **settings)
    assert_same_values_and_gradients(ours, theirs, [x])


def test_local_response_norm_has_the_defaults_of_torch():
    x = 100 * random(2, 8, 2, 2).detach()  # large, so that alpha = 1e-4 shows
    torch.testing.assert_close(local_response_norm_reference(x, 5), F.local_response_norm(x, 5))


@pytest.mark.parametrize("size", [0, -1])
def test_local_response_norm_refuses_an_empty_window(size, wording):
    with pytest.raises(ValueError) as caught:
        local_response_norm_reference(random(1, 3, 2, 2), size)
    wording(caught.value)


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 0), (3, 1), (5, 0), (5, 2), (7, 3), (7, 1)])
def test_depthwise_convolution_is_that_of_torch(kernel, padding, stride, dilation, bias):
    x, weight = random(2, 3, 13, 15), random(3, 1, kernel, kernel, seed=1)
    offsets = random(3, seed=2) if bias else None
    settings = {"stride": stride, "padding": padding, "dilation": dilation}
    ours = depthwise_conv2d_reference(x, weight, offsets, **settings)
    theirs = F.conv2d(x, weight, offsets, **settings, groups=3)
    assert_same_values_and_gradients(ours, theirs, [x, weight] + ([offsets] if offsets is not None else []))


@pytest.mark.parametrize("height", [8, 9])
@pytest.mark.parametrize("width", [8, 9])
def test_depthwise_convolution_drops_what_the_stride_leaves_over(height, width):
    x, weight = random(1, 2, height, width), random(2, 1, 3, 5, seed=1)  # a kernel that is not square
    ours = depthwise_conv2d_reference(x, weight, stride=2, padding=1)
    assert_same_values_and_gradients(ours, F.conv2d(x, weight, None, 2, 1, groups=2), [x, weight])


@pytest.mark.parametrize("shape", [(4, 1, 3, 3), (3, 3, 3, 3), (3, 2, 3, 3)])
def test_depthwise_convolution_refuses_weights_of_other_channels(shape, wording):
    with pytest.raises(ValueError) as caught:
        depthwise_conv2d_reference(random(1, 3, 5, 5), random(*shape))
    assert str(caught.value).startswith(f"weight {shape}: ")
    wording(caught.value)


def test_the_kernels_folder_is_no_package():
    # Installed, a package called `kernels` would overwrite the distribution of that name.
    assert (ROOT / "kernels" / "fastcnn_kernels" / "__init__.py").is_file()
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.slow
def test_the_kernels_load_torch_alone():
    code = (
        "import sys, fastcnn_kernels; unwanted = {'nvidia.dali', 'fastcnn', 'triton'} & set(sys.modules);"
        "sys.exit(', '.join(unwanted) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "kernels", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
