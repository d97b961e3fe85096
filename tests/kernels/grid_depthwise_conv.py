"""The Triton kernels of depthwise convolution on random layers, against a float64 reference.

On a CUDA device compiled, elsewhere under Triton's interpreter, which must have a process of its own:

    TRITON_INTERPRET=1 python -m pytest tests/kernels/grid_depthwise_conv.py               # a few layers
    TRITON_INTERPRET=1 WHOLE_GRID=1 python -m pytest tests/kernels/grid_depthwise_conv.py  # 312 random ones
"""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

from fastcnn_kernels import depthwise_conv as ops
from fastcnn_kernels import depthwise_conv2d_reference
from fastcnn_kernels import depthwise_conv_launch as launch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Relative rounding of a stored value. The interpreter cuts bits off where a GPU rounds.
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}
CUT = 1 if DEVICE.type == "cuda" else 2
WHOLE = "WHOLE_GRID" in os.environ
RANDOM = WHOLE or DEVICE.type == "cuda"
EXAMPLES = {3: 27, 5: 18, 7: 7} if DEVICE.type == "cpu" else {3: 4, 5: 3, 7: 2}
"""For each kernel size, stride and dtype. A GPU's are compiled, which takes 3, 8 and 16 seconds."""


@pytest.fixture(autouse=True, scope="module")
def kernels_alone():
    """Every pass by Triton, memory that nobody wrote is NaN, and programs and loops fit small maps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "_use_triton", lambda *arguments: True)
        patch.setattr(launch, "IMAGES_PER_LANE", 2)
        if DEVICE.type == "cpu":
            patch.setattr(launch, "LANES", 2048)
        torch.use_deterministic_algorithms(True)
        assert torch.empty(3, device=DEVICE).isnan().all()
        yield
        torch.use_deterministic_algorithms(False)


@st.composite
def layers(draw: st.DrawFn, kernel: int, stride: int, dtype: torch.dtype) -> dict[str, object]:
    padding = [draw(st.one_of(st.just(kernel // 2), st.integers(0, kernel))) for _ in range(2)]
    return {
        "kernel": kernel,
        "stride": stride,
        "padding": tuple(padding),
        "batch": draw(st.integers(1, 4)),
        "channels": draw(st.integers(1, 40)),
        "size": tuple(draw(st.integers(max(1, kernel - 2 * p), 15)) for p in padding),
        "dtype": dtype,
        "weight_dtype": draw(st.sampled_from((dtype, torch.float32))),
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
    }


def check(layer: dict) -> None:
    kernel, stride, padding = layer["kernel"], (layer["stride"],) * 2, layer["padding"]
    channels, dtype, weight_dtype = layer["channels"], layer["dtype"], layer["weight_dtype"]
    generator = torch.Generator().manual_seed(layer["seed"])

    def random(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    def channels_last(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=torch.channels_last)

    x = channels_last(random(layer["batch"], channels, *layer["size"], dtype=dtype))
    weight = random(channels, 1, kernel, kernel, dtype=weight_dtype)
    bias = random(channels, dtype=weight_dtype) if layer["bias"] else None
    output = ops._forward_cuda(x, weight, bias, stride, padding, (1, 1))
    grad_output = channels_last(random(*output.shape, dtype=dtype))
    grad_input = ops._input_grad_cuda(grad_output, weight, x.shape, stride, padding, (1, 1))
    grad_weight, grad_bias = ops._weight_grad_cuda(
        grad_output, x, weight, bias is not None, stride, padding, (1, 1)
    )

    def reference(absolute: bool) -> list[Tensor]:
        """All results in float64; or the same of absolute values, which is what errors are measured in."""

        def exactly(tensor: Tensor) -> Tensor:
            return tensor.double().abs() if absolute else tensor.double()

        inputs = [exactly(t).requires_grad_() for t in (x, weight, *([] if bias is None else [bias]))]
        padded = F.pad(inputs[0], (padding[1], padding[1], padding[0], padding[0]))
        result = depthwise_conv2d_reference(padded, inputs[1], (*inputs, None)[2], stride[0])
        return [result, *torch.autograd.grad(result, inputs, exactly(grad_output))]

    ours = [output, grad_input, grad_weight, *([grad_bias] if bias is not None else [])]
    for name, result, exact, size in zip(
        ("output", "input's gradient", "weight's gradient", "bias's gradient"),
        ours,
        reference(False),
        reference(True),
    ):
        assert result.shape == exact.shape, name
        error = (result.double() - exact).abs()
        bound = 1e-5 * size + CUT * ROUNDING[result.dtype] * exact.abs() + 1e-7
        assert (error <= bound).all(), f"{name}: {(error - bound).nan_to_num(1e9).max():.2e} over the bound"
        if result.dtype == torch.float32:
            assert error.norm() <= 1e-5 * exact.norm() + 1e-7, name
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert grad_input.is_contiguous(memory_format=torch.channels_last)
    assert grad_weight.stride() == weight.stride()


def chosen(kernel: int, stride: int, dtype: torch.dtype) -> list[dict]:
    """Even channels with all that a layer can have; odd ones of 3x3 without padding of the rows, or bias."""
    common = {"kernel": kernel, "stride": stride, "dtype": dtype, "seed": 0}
    even = {"padding": (kernel // 2,) * 2, "batch": 3, "channels": 10, "size": (9, 7), "bias": True}
    odd = {"padding": (0, kernel // 2), "batch": 2, "channels": 5, "size": (kernel, 11), "bias": False}
    return [
        {**common, **even, "weight_dtype": dtype},
        *([{**common, **odd, "weight_dtype": torch.float32}] if kernel == 3 else []),
    ]


def check_many(kernel: int, stride: int, dtype: torch.dtype) -> None:
    @seed(f"{kernel} {stride} {dtype}")
    @settings(max_examples=EXAMPLES[kernel], deadline=None, database=None)
    @given(layer=layers(kernel, stride, dtype))
    def check_each(layer: dict) -> None:
        check(layer)

    if RANDOM:
        check_each()
    else:
        for layer in chosen(kernel, stride, dtype):
            check(layer)


CASES = [
    (kernel, dtype)
    for kernel in EXAMPLES
    for dtype in DTYPES
    if RANDOM or kernel == 3 or dtype == (torch.bfloat16 if kernel == 5 else torch.float32)
]
"""What a dtype changes is the same for each size."""


@pytest.mark.parametrize(("kernel", "dtype"), CASES, ids=str)
def test_stride_1(kernel, dtype):
    check_many(kernel, 1, dtype)


@pytest.mark.parametrize(("kernel", "dtype"), CASES, ids=str)
def test_stride_2(kernel, dtype):
    check_many(kernel, 2, dtype)


@pytest.mark.parametrize("kernel", [3, 5, 7] if RANDOM else [3])
def test_the_weights_gradient_is_the_same_bits_again(kernel):
    generator = torch.Generator().manual_seed(0)
    x, grad_output = (
        torch.randn(5, 8, 9, 9, generator=generator).to(DEVICE).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    weight = torch.empty(8, 1, kernel, kernel, device=DEVICE)
    geometry = (1, 1), (kernel // 2, kernel // 2), (1, 1)
    first, second = (ops._weight_grad_cuda(grad_output, x, weight, True, *geometry) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
