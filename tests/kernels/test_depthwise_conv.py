"""Depthwise convolution as users meet it: values, gradients, memory formats, autocast, compilation, mistakes.

Here on the CPU, where PyTorch does the work; the Triton kernels' own tests are in grid_depthwise_conv.py.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastcnn_kernels import DepthwiseConv2d, depthwise_conv2d, depthwise_conv2d_reference
from fastcnn_kernels import depthwise_conv as operations

CHANNELS_LAST = torch.channels_last
OPS = torch.ops.fastcnn


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def block(channels: int = 12) -> nn.Sequential:
    """A MobileNet-like block: expand, depthwise at stride 2, project."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU6(),
        DepthwiseConv2d(channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU6(),
        nn.Conv2d(channels, 4, 1),
    ).to(memory_format=CHANNELS_LAST)


# Values and gradients


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, (2, 1), 3])
@pytest.mark.parametrize(
    ("kernel", "padding"), [(1, 0), (3, 1), (4, 2), (5, 0), (7, (3, 2)), ((1, 5), (0, 2))]
)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_it_is_conv2d_with_as_many_groups_as_channels(kernel, padding, stride, dilation, bias):
    size = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    x, weight = random(2, 3, 14, 15).requires_grad_(), random(3, 1, *size, seed=1).requires_grad_()
    offsets = random(3, seed=2).requires_grad_() if bias else None
    inputs = [x, weight] + ([offsets] if offsets is not None else [])
    ours = depthwise_conv2d(x, weight, offsets, stride, padding, dilation)
    theirs = F.conv2d(x, weight, offsets, stride, padding, dilation, groups=3)
    torch.testing.assert_close(ours, theirs)
    upstream = random(*theirs.shape, seed=3)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream)
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pytorch_rounds_a_float32_weight_and_its_gradient_to_the_dtype_of_the_images(dtype):
    # That the kernels do not is in grid_depthwise_conv.py.
    x, weight = random(2, 6, 9, 9, dtype=dtype), random(6, 1, 3, 3, dtype=torch.float32).requires_grad_()
    y = depthwise_conv2d(x, weight, padding=1)
    y.float().square().sum().backward()
    exact = depthwise_conv2d_reference(x.double(), weight.detach().to(dtype).double(), padding=1)
    assert (y.dtype, gradient(weight).dtype) == (dtype, torch.float32)
    torch.testing.assert_close(y.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    assert torch.equal(gradient(weight), gradient(weight).to(dtype).float())


def test_gradients_and_their_gradients_are_right():
    x, weight, bias = random(2, 4, 6, 5), random(4, 1, 3, 3, seed=1), random(4, seed=2)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]

    def strided(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise_conv2d(x, weight, bias, stride=2, padding=1)

    assert torch.autograd.gradcheck(strided, inputs)
    assert torch.autograd.gradgradcheck(strided, inputs)


@pytest.mark.parametrize("frozen", ["weight and bias", "bias", "weight"])
def test_the_input_is_kept_only_for_a_gradient_that_needs_it(frozen):
    x, weight, bias = random(2, 4, 6, 6), random(4, 1, 3, 3, seed=1), random(4, seed=2)
    x.requires_grad_()
    weight.requires_grad_("weight" not in frozen)
    bias.requires_grad_("bias" not in frozen)
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = depthwise_conv2d(x, weight, bias, padding=1)
    assert (x.shape in kept) == (frozen != "weight and bias")
    y.sum().backward()
    assert [t.grad is None for t in (weight, bias)] == ["weight" in frozen, "bias" in frozen]


@pytest.mark.parametrize("frozen", ["input", "weight", "all but bias"])
def test_only_the_gradients_that_are_needed_are_made(frozen):
    x, weight, bias = random(2, 4, 6, 6), random(4, 1, 3, 3, seed=1), random(4, seed=2)
    x.requires_grad_(frozen == "weight")
    weight.requires_grad_(frozen == "input")
    bias.requires_grad_(frozen != "weight")
    depthwise_conv2d(x, weight, bias, padding=1).sum().backward()
    assert (x.grad is None) == (frozen != "weight")
    assert (weight.grad is None) == (frozen != "input")
    assert (bias.grad is None) == (frozen == "weight")


def test_a_setting_may_be_a_sequence_of_one_as_in_conv2d():
    x, weight = random(2, 3, 8, 8), random(3, 1, 3, 3, seed=1)
    ours = depthwise_conv2d(x, weight, stride=[2], padding=(1,), dilation=[2])
    torch.testing.assert_close(ours, F.conv2d(x, weight, stride=[2], padding=(1,), dilation=[2], groups=3))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("kernel", "dilation"), [((3, 3), 1), ((4, 2), 1), ((2, 5), (3, 2)), ((1, 4), 1)])
@pytest.mark.parametrize("axes", ["batch", "image"])
def test_a_padding_may_be_a_word_as_in_conv2d(padding, kernel, dilation, axes):
    x = random(2, 3, 11, 12).to(memory_format=CHANNELS_LAST) if axes == "batch" else random(3, 11, 12)
    x, weight = x.requires_grad_(), random(3, 1, *kernel, seed=1).requires_grad_()
    ours = depthwise_conv2d(x, weight, None, 1, padding, dilation)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, of the copy that an odd padding takes
        theirs = F.conv2d(x, weight, None, 1, padding, dilation, groups=3)
    torch.testing.assert_close(ours, theirs)
    upstream = random(*theirs.shape, seed=3)
    for gradients in zip(*(torch.autograd.grad(y, [x, weight], upstream) for y in (ours, theirs))):
        torch.testing.assert_close(*gradients)
    if axes == "batch":
        assert ours.is_contiguous(memory_format=CHANNELS_LAST)


def test_one_image_without_a_batch_axis_and_an_empty_batch():
    x, weight = random(3, 8, 8), random(3, 1, 3, 3, seed=1).requires_grad_()
    torch.testing.assert_close(depthwise_conv2d(x, weight), F.conv2d(x, weight, groups=3))
    empty = depthwise_conv2d(x[None][:0], weight, padding=1)
    empty.sum().backward()
    assert empty.shape == (0, 3, 8, 8)
    assert not gradient(weight).any()


# Memory formats


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(2, 6, 8, 8), (2, 1, 8, 8), (2, 6, 1, 1), (1, 6, 8, 8)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_the_memory_format_stays_in_both_directions(shape, memory_format, stride):
    x = random(*shape, dtype=torch.float32).contiguous(memory_format=memory_format).requires_grad_()
    weight = random(shape[1], 1, 3, 3, dtype=torch.float32, seed=1).requires_grad_()
    y = depthwise_conv2d(x, weight, stride=stride, padding=1)
    y.sum().backward()  # of an expanded gradient, which is dense in no format
    assert y.is_contiguous(memory_format=memory_format)
    assert gradient(x).is_contiguous(memory_format=memory_format)
    assert gradient(weight).stride() == weight.stride()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST], ids=["nchw", "nhwc"])
def test_pytorch_is_asked_for_the_inputs_gradient_in_the_format_of_the_outputs(memory_format):
    class Asked(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.convolution_backward.default:
                formats.append(args[1].is_contiguous(memory_format=memory_format))
            return function(*args, **(kwargs or {}))

    formats: list[bool] = []
    grad = random(2, 6, 4, 4, dtype=torch.float32).contiguous(memory_format=memory_format)
    weight, geometry = random(6, 1, 3, 3, dtype=torch.float32), ((2, 2), (1, 1), (1, 1))
    with Asked():
        operations.pytorch_input_grad(grad, weight, [2, 6, 8, 8], *geometry)
    assert formats == [True]  # else cuDNN transposes


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST], ids=["nchw", "nhwc"])
def test_the_shape_function_has_the_strides_of_the_result(memory_format):
    x = random(2, 6, 9, 7, dtype=torch.float32).contiguous(memory_format=memory_format)
    weight, geometry = random(6, 1, 3, 3, dtype=torch.float32, seed=1), ([2, 2], [1, 1], [1, 1])
    output = OPS.depthwise_conv2d(x, weight, None, *geometry)
    grad = torch.randn_like(output)
    results = [
        (output, OPS.depthwise_conv2d(x.to("meta"), weight.to("meta"), None, *geometry)),
        (
            OPS.depthwise_conv2d_input_grad(grad, weight, x.shape, *geometry),
            OPS.depthwise_conv2d_input_grad(grad.to("meta"), weight.to("meta"), x.shape, *geometry),
        ),
        *zip(
            OPS.depthwise_conv2d_weight_grad(grad, x, weight, True, *geometry),
            OPS.depthwise_conv2d_weight_grad(
                grad.to("meta"), x.to("meta"), weight.to("meta"), True, *geometry
            ),
        ),
    ]
    for real, fake in results:
        assert (real.shape, real.stride(), real.dtype) == (fake.shape, fake.stride(), fake.dtype)


# torch.library, torch.compile, torch.export, autocast


@pytest.mark.parametrize(
    ("kernel", "stride", "size"), [(3, 2, 8), (5, 1, 8), (5, 2, 8), (3, 1, 2), (7, 1, 7)]
)
def test_on_the_cpu_slow_gradients_in_half_precision_are_float32_s_rounded_once(kernel, stride, size):
    x = torch.randn(3, 8, size, size).bfloat16().contiguous(memory_format=CHANNELS_LAST)
    weight, geometry = torch.randn(8, 1, kernel, kernel), ([stride] * 2, [kernel // 2] * 2, [1, 1])
    grad = torch.randn_like(OPS.depthwise_conv2d(x, weight, None, *geometry))
    if stride > 1:
        expected = OPS.depthwise_conv2d_input_grad(grad.float(), weight, x.shape, *geometry).bfloat16()
        found = OPS.depthwise_conv2d_input_grad(grad, weight, x.shape, *geometry)
        assert torch.equal(found, expected)
    else:
        expected, _ = OPS.depthwise_conv2d_weight_grad(grad.float(), x.float(), weight, False, *geometry)
        assert torch.equal(OPS.depthwise_conv2d_weight_grad(grad, x, weight, False, *geometry)[0], expected)


@pytest.mark.parametrize(
    ("bias", "memory_format"),
    [
        (True, CHANNELS_LAST),
        pytest.param(False, CHANNELS_LAST, marks=pytest.mark.slow),
        pytest.param(False, torch.contiguous_format, marks=pytest.mark.slow),
        pytest.param(True, torch.contiguous_format, marks=pytest.mark.slow),
    ],
    ids=["bias-nhwc", "nhwc", "nchw", "bias-nchw"],
)
def test_opcheck_passes_for_each_operation(bias, memory_format):
    x = random(2, 4, 7, 6, dtype=torch.float32).contiguous(memory_format=memory_format)
    weight = random(4, 1, 3, 3, dtype=torch.float32, seed=1)
    offsets = random(4, dtype=torch.float32, seed=2) if bias else None
    grad = random(2, 4, 4, 3, dtype=torch.float32, seed=3).contiguous(memory_format=memory_format)
    for tensor in (x, weight, grad, *([] if offsets is None else [offsets])):
        tensor.requires_grad_()
    geometry = [2, 2], [1, 1], [1, 1]
    torch.library.opcheck(OPS.depthwise_conv2d, (x, weight, offsets, *geometry))
    torch.library.opcheck(OPS.depthwise_conv2d_input_grad, (grad, weight, [2, 4, 7, 6], *geometry))
    torch.library.opcheck(OPS.depthwise_conv2d_weight_grad, (grad, x, weight, bias, *geometry))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_block_is_the_eager_one_in_one_graph(backend):
    torch._dynamo.reset()
    eager = block()
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    x = random(4, 4, 12, 12, dtype=torch.float32).contiguous(memory_format=CHANNELS_LAST)
    results = []
    for run, network in ((eager, eager), (compiled, twin)):
        images = x.clone().requires_grad_()
        output = run(images)
        output.square().mean().backward()
        results.append([output, images.grad, *(p.grad for p in network.parameters())])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_block_is_exported_and_gives_the_same():
    network, x = block().eval(), random(2, 4, 12, 12, dtype=torch.float32)
    exported = torch.export.export(network, (x,))
    assert "fastcnn.depthwise_conv2d.default" in str(exported.graph)
    torch.testing.assert_close(exported.module()(x), network(x))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_under_autocast_images_are_cast_and_weights_keep_their_dtype(compiled):
    torch._dynamo.reset()
    layer = DepthwiseConv2d(6, 3, padding=1)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = run(random(2, 6, 8, 8, dtype=torch.float32))
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert {gradient(p).dtype for p in layer.parameters()} == {torch.float32}


def test_autocast_leaves_float64_alone():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert depthwise_conv2d(random(1, 2, 5, 5), random(2, 1, 3, 3)).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_the_meta_device_it_gives_a_shape_also_under_autocast(dtype):
    layer = DepthwiseConv2d(6, 3, stride=2, device="meta", dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(torch.empty(2, 6, 9, 9, device="meta", dtype=dtype))
    assert (y.shape, y.dtype) == ((2, 6, 4, 4), dtype)


# The module


@pytest.mark.parametrize(
    "settings", [{}, {"padding": "same"}, {"padding": "valid"}, {"bias": False}], ids=str
)
def test_the_module_is_a_conv2d(settings):
    torch.manual_seed(0)
    ours = DepthwiseConv2d(6, 3, **settings)
    theirs = nn.Conv2d(6, 6, 3, groups=6, **settings)
    theirs.load_state_dict(ours.state_dict())
    x = random(2, 6, 8, 8, dtype=torch.float32)
    assert isinstance(ours, nn.Conv2d)
    torch.testing.assert_close(ours(x), theirs(x))


def test_the_modules_circular_padding_is_kept():
    ours = DepthwiseConv2d(2, 3, padding=1)
    ours.padding_mode = "circular"
    ours._reversed_padding_repeated_twice = [1, 1, 1, 1]
    x = random(1, 2, 5, 5, dtype=torch.float32)
    padded = F.pad(x, (1, 1, 1, 1), mode="circular")
    torch.testing.assert_close(ours(x), F.conv2d(padded, ours.weight, ours.bias, groups=2))


# What the kernels refuse, so that PyTorch does it


@pytest.mark.parametrize(
    ("kernel", "settings", "why"),
    [
        (3, {}, None),
        (4, {}, "a kernel of 4 x 4"),
        (3, {"stride": (1, 2)}, "stride"),
        (3, {"dilation": (2, 2)}, "dilation"),
        (3, {"dtype": torch.float64}, "float64"),
        (3, {"memory_format": torch.contiguous_format}, "not in channels-last memory"),
        (3, {"dtype": torch.bfloat16, "offset": 1}, "begins between two words"),
    ],
)
@pytest.mark.parametrize("first", ["the layer's input", "a gradient of one pixel"])
def test_the_launcher_says_what_it_cannot_do(kernel, settings, why, first):
    launch = pytest.importorskip("fastcnn_kernels.depthwise_conv_launch")
    dtype = settings.get("dtype", torch.float32)
    start, count = settings.get("offset", 0), 2 * 6 * kernel * kernel
    x = torch.zeros(start + count, dtype=dtype)[start:].view(2, kernel, kernel, 6).permute(0, 3, 1, 2)
    x = x.contiguous(memory_format=settings.get("memory_format", CHANNELS_LAST))
    # One pixel is dense in both formats, and says nothing of the input that is read beside it.
    tensors = [x] if first == "the layer's input" else [torch.zeros(2, 6, 1, 1, dtype=dtype), x]
    stride, dilation = settings.get("stride", (1, 1)), settings.get("dilation", (1, 1))
    weight = torch.zeros(6, 1, kernel, kernel, dtype=dtype)
    said = launch.why_not(tensors, weight, x.shape, (stride, (0, 0), dilation))
    assert said is None if why is None else why in said


BF16, META = torch.bfloat16, "meta"


@pytest.mark.parametrize(
    ("shape", "settings", "why"),
    [
        ((8, 96, 112, 112), {}, None),
        ((2**13, 64, 64, 64), {}, None),  # 2 ** 31 elements, in pairs of channels
        ((2**13, 63, 64, 66), {}, "lanes take more than 32 bits"),  # as many, but single ones
        ((2**24, 64, 4, 4), {}, "lanes take more than 32 bits"),
        ((1, 64, 2**12, 2**13), {}, "offsets or lanes"),
        ((1, 64, 2, 2), {"padding": (2**12, 2**12)}, "offsets or lanes"),  # only the output is large
        ((2, 8, 9, 9), {"other": {"dtype": torch.float32}}, "tensors of torch.bfloat16 and torch.float32"),
        ((2, 8, 9, 9), {"other": {"device": "cpu"}}, "tensors on cpu and meta"),
    ],
    ids=str,
)
def test_the_launcher_refuses_what_32_bits_cannot_count_and_tensors_that_do_not_fit(shape, settings, why):
    launch = pytest.importorskip("fastcnn_kernels.depthwise_conv_launch")
    x = torch.empty(shape, dtype=BF16, device=META, memory_format=CHANNELS_LAST)
    weight = torch.empty(shape[1], 1, 3, 3, device=META)
    other = {"dtype": BF16, "device": META, **settings.get("other", {})}
    tensors = [x, torch.empty(1, shape[1], 1, 1, **other)]
    geometry = (1, 1), settings.get("padding", (1, 1)), (1, 1)
    said = launch.why_not(tensors, weight, shape, geometry)
    assert said is None if why is None else why in said


# Mistakes


@pytest.mark.parametrize(
    "arguments",
    [
        {"input": random(3, 4)},
        {"weight": random(3, 3, 3, 3)},
        {"weight": random(4, 1, 3, 3)},
        {"bias": random(4)},
        {"weight": random(3, 1, 3, 3).to("meta")},
        {"bias": random(3).to("meta")},
        {"padding": "same", "stride": 2},
        {"padding": "full"},
        {"stride": (1, 1, 1)},
        {"stride": 0},
        {"padding": -1},
        {"dilation": 4},
    ],
    ids=[
        *("axes", "dense weight", "more weights", "more biases", "weight elsewhere", "bias elsewhere"),
        *("same", "no such padding", "three strides", "no stride", "negative padding", "too small"),
    ],
)
def test_a_mistake_is_one_line(arguments, wording):
    settings = {"input": random(1, 3, 5, 5), "weight": random(3, 1, 3, 3), **arguments}
    with pytest.raises(ValueError) as caught:
        depthwise_conv2d(**settings)
    assert "\n" not in str(caught.value)
    wording(caught.value)
