"""Local response normalization as users meet it; the Triton kernels' own tests are in grid_lrn.py."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn_kernels import LocalResponseNorm, local_response_norm, local_response_norm_reference

OPS = torch.ops.fastcnn
FORMATS = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", [(2, 6, 3, 4), (2, 1, 3, 3), (2, 5, 7), (2, 5, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 20])
def test_it_is_that_of_torch_forward_and_backward(size, shape):
    x = random(*shape).requires_grad_()
    ours = local_response_norm(x, size, alpha=0.3, beta=0.6, k=2.0)
    theirs = F.local_response_norm(x, size, alpha=0.3, beta=0.6, k=2.0)
    upstream = random(*shape, seed=1)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, x, upstream), torch.autograd.grad(theirs, x, upstream)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype):
    x = 10 * random(2, 16, 4, 4, dtype=dtype)
    exact = local_response_norm_reference(x.double(), 5, 0.1)
    ours = local_response_norm(x, 5, 0.1)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_the_fused_relu_is_one_before_it():
    x = random(2, 6, 3, 3).requires_grad_()
    ours, theirs = local_response_norm(x, 5, 0.3, relu=True), F.local_response_norm(x.relu(), 5, 0.3)
    torch.testing.assert_close(ours, theirs)
    upstream = random(2, 6, 3, 3, seed=1)
    torch.testing.assert_close(
        torch.autograd.grad(ours, x, upstream), torch.autograd.grad(theirs, x, upstream)
    )


def test_gradients_are_those_of_finite_differences():
    x = random(2, 6, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: local_response_norm(x, 4, 0.5, 0.75, 1.5), (x,))


@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
@pytest.mark.parametrize(("size", "beta"), [(3, 0.75), (4, 0.6)])
def test_gradients_of_gradients_are_right_too(size, beta, relu):
    x = random(2, 6, 2, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: local_response_norm(x, size, 0.5, beta, 1.5, relu), (x,))


def test_an_infinite_gradient_does_not_pass_the_relu():
    x = torch.tensor([-1.0, 2.0]).view(1, 2, 1).requires_grad_()
    upstream = torch.tensor([torch.inf, 1.0]).view(1, 2, 1)
    (grad,) = torch.autograd.grad(local_response_norm(x, 1, relu=True), x, upstream)
    assert grad.flatten()[0] == 0


@FORMATS
@pytest.mark.parametrize("shape", [(2, 6, 4, 4), (2, 1, 4, 4), (2, 6, 1, 1)], ids=str)
def test_the_memory_format_stays_in_both_directions(shape, memory_format):
    x = random(*shape, dtype=torch.float32).contiguous(memory_format=memory_format).requires_grad_()
    y = local_response_norm(x, 5)
    (grad,) = torch.autograd.grad(y.sum(), x)  # of an expanded gradient, which is dense in no format
    assert y.stride() == grad.stride() == x.stride()
    assert OPS.local_response_norm(x.to("meta"), 5, 1.0, 1.0, 1.0, False).stride() == x.stride()


def test_an_input_that_is_not_dense():
    x = random(2, 8, 4, 6)[:, ::2, :, 1:4]
    torch.testing.assert_close(local_response_norm(x, 3), F.local_response_norm(x, 3))


@FORMATS
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
def test_opcheck_passes_for_both_operations(relu, memory_format):
    x, grad = (
        random(2, 6, 4, 3, dtype=torch.float32, seed=seed).contiguous(memory_format=memory_format)
        for seed in (0, 1)
    )
    settings = (5, 0.3, 0.75, 1.0, relu)
    torch.library.opcheck(OPS.local_response_norm, (x.requires_grad_(), *settings))
    torch.library.opcheck(OPS.local_response_norm_backward, (grad, x.detach(), *settings))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_lenet_with_it_is_the_eager_one_in_one_graph(backend):
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = nn.Sequential(
        nn.Conv2d(1, 6, 5),
        LocalResponseNorm(5, relu=True),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        LocalResponseNorm(5, relu=True),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 10),
    ).to(memory_format=torch.channels_last)
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    results = []
    for run, network in ((eager, eager), (compiled, twin)):
        images = random(2, 1, 32, 32, dtype=torch.float32).requires_grad_()
        output = run(images)
        output.square().mean().backward()
        results.append([output, images.grad, *(p.grad for p in network.parameters())])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_it_is_exported():
    layer, x = LocalResponseNorm(5), random(2, 6, 4, 4, dtype=torch.float32)
    exported = torch.export.export(layer, (x,))
    assert "fastcnn.local_response_norm.default" in str(exported.graph)
    torch.testing.assert_close(exported.module()(x), layer(x))


def test_under_autocast_the_dtype_stays():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert local_response_norm(random(1, 4, 2, 2, dtype=torch.bfloat16), 3).dtype == torch.bfloat16
        assert local_response_norm(random(1, 4, 2, 2, dtype=torch.float32), 3).dtype == torch.float32


def test_the_module_is_that_of_torch_also_by_its_class_alone():
    x, theirs = random(2, 6, 3, 3), nn.LocalResponseNorm(5, 0.3)
    expected = theirs(x)
    torch.testing.assert_close(LocalResponseNorm(5, 0.3)(x), expected)
    theirs.__class__ = LocalResponseNorm
    torch.testing.assert_close(theirs(x), expected)
    assert repr(LocalResponseNorm(5, relu=True)).endswith("relu=True)")


@pytest.mark.parametrize(
    ("shape", "settings", "why"),
    [
        ((2, 8, 9, 9), {}, None),
        ((2, 8, 9, 9), {"alpha": -0.1}, "alpha -0.1"),  # pow may be finite where the logarithm is not
        ((2, 8, 9, 9), {"k": 0.0}, "k 0.0"),
        ((2, 8, 9, 9), {"size": 17}, "a window of 17 channels"),
        ((1, 8, 2**14, 2**14), {}, "more than 32 bits"),
        ((1, 1, 2**14, 2**14), {}, None),
        ((1, 1, 2**15, 2**14), {}, "more than 32 bits"),  # from channel -4 to channel 0
    ],
    ids=str,
)
def test_the_launcher_says_what_it_cannot_do(shape, settings, why):
    kernels = pytest.importorskip("fastcnn_kernels.lrn_launch")
    x = torch.empty(shape, device="meta", dtype=torch.bfloat16)
    said = kernels.why_not(x, **{"size": 5, "alpha": 0.1, "k": 1.0, **settings})
    assert said is None if why is None else why in said


@pytest.mark.parametrize(
    ("x", "size"),
    [(random(2, 3, 4), 0), (random(2, 3), 5), (torch.zeros(2, 3, 4, dtype=torch.uint8), 5)],
    ids=["size", "axes", "dtype"],
)
def test_a_mistake_is_one_line(x, size, wording):
    with pytest.raises(ValueError) as caught:
        local_response_norm(x, size)
    assert "\n" not in str(caught.value)
    wording(caught.value)
