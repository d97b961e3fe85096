"""The Triton kernels of local response normalization on random inputs, against a float64 reference.

On a CUDA device compiled, elsewhere under Triton's interpreter, which must have a process of its own:

    TRITON_INTERPRET=1 python -m pytest tests/kernels/grid_lrn.py
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcnn_kernels import local_response_norm_reference, lrn_launch
from fastcnn_kernels import lrn as ops

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Relative rounding of a stored value. The interpreter cuts bits off where a GPU rounds.
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}
CUT = 1 if DEVICE.type == "cuda" else 2
WHOLE = "WHOLE_GRID" in os.environ
EXAMPLES = 60 if DEVICE.type == "cuda" else 320 if WHOLE else 20  # for a GPU each is compiled


@pytest.fixture(autouse=True, scope="module")
def kernels_alone():
    """Triton does it all, memory that nobody wrote is NaN, and one program does a small input."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "_use_triton", lambda *arguments: True)
        if DEVICE.type == "cpu":
            patch.setattr(lrn_launch, "LANES", 2048)
        torch.use_deterministic_algorithms(True)
        assert torch.empty(3, device=DEVICE).isnan().all()
        yield
        torch.use_deterministic_algorithms(False)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 6), st.integers(1, 6)),
    groups_of_8=st.booleans(),
    channels_last=st.booleans(),
    dtype=st.sampled_from((torch.float32, torch.bfloat16, torch.float16)),
    size=st.one_of(st.just(5), st.integers(1, 9), st.integers(10, 16)),
    beta=st.one_of(st.just(0.75), st.floats(0.25, 1.5)),
    alpha=st.floats(1e-4, 2.0),
    k=st.floats(0.5, 2.0),
    relu=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
def test_it_agrees_with_float64(shape, groups_of_8, channels_last, dtype, size, beta, alpha, k, relu, seed):
    if groups_of_8:
        shape = (shape[0], 8 * -(-shape[1] // 8), *shape[2:])
    generator = torch.Generator().manual_seed(seed)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, upstream = (
        torch.randn(shape, generator=generator).to(DEVICE, dtype).contiguous(memory_format=memory_format)
        for _ in range(2)
    )
    y = ops._forward_cuda(x, size, alpha, beta, k, relu)
    grad = ops._backward_cuda(upstream, x, size, alpha, beta, k, relu)

    exact = x.double().requires_grad_()
    result = local_response_norm_reference(exact.relu() if relu else exact, size, alpha, beta, k)
    (exact_grad,) = torch.autograd.grad(result, exact, upstream.double())
    for name, ours, correct in (("output", y, result), ("gradient", grad, exact_grad)):
        error = (ours.double() - correct).abs()
        scale = correct.abs() + upstream.double().abs().amax() * (name == "gradient")
        bound = 1e-5 * scale + CUT * ROUNDING[dtype] * correct.abs() + 1e-7
        assert (error <= bound).all(), f"{name}: {(error - bound).nan_to_num(1e9).max():.2e} over the bound"
        assert ours.stride() == x.stride()
        if dtype == torch.float32:
            assert error.norm() <= 1e-5 * correct.norm() + 1e-7, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_view_that_begins_anywhere(dtype):
    memory = torch.randn(1 + 2 * 16 * 3 * 3, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    x = memory[1:].view(2, 3, 3, 16).permute(0, 3, 1, 2)  # channels-last, one element after the start
    assert x.data_ptr() % 16
    exact = local_response_norm_reference(x.double(), 5, 0.5)
    error = (ops._forward_cuda(x, 5, 0.5, 0.75, 1.0, False).double() - exact).abs()
    assert (error <= (1e-5 + CUT * ROUNDING[dtype]) * exact.abs() + 1e-7).all()
