"""`accelerate` swaps layers in place and changes nothing else; what is wrong or slower keeps its class."""

from __future__ import annotations

import copy
import importlib
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.ao.nn.intrinsic import ConvReLU2d
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fastcnn_kernels import DepthwiseConv2d, _trial, dispatch
from fastcnn_kernels._trial import Run, Times
from fastcnn_kernels.accelerate import Report, Row, accelerate, restore
from fastcnn_kernels.lrn import LocalResponseNorm

DEPTHWISE = {
    "torchvision": {"mobilenet_v2": 17, "efficientnet_b0": 16, "convnext_tiny": 18},
    "timm": {"mobilenetv2_100": 17, "efficientnet_b0": 16, "convnext_tiny": 18},
}
"""How many depthwise layers each network has, by its paper."""
NETWORKS = [(library, name) for library, names in DEPTHWISE.items() for name in names]


@pytest.fixture(autouse=True)
def own_measurements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Those of this machine are neither read nor written."""
    monkeypatch.setenv("FASTCNN_KERNELS_CACHE", str(tmp_path))
    dispatch.times.cache_clear()
    yield
    dispatch.times.cache_clear()


def network(library: str, name: str) -> nn.Module:
    torch.manual_seed(0)
    if library == "timm":
        model = pytest.importorskip("timm").create_model(name, num_classes=10)
    else:
        model = getattr(torchvision.models, name)(num_classes=10)
    return model.to(memory_format=torch.channels_last)


def depthwise(channels: int = 8, kernel: int = 3, stride: int = 1, **settings: Any) -> nn.Conv2d:
    settings = {"padding": kernel // 2, "groups": channels, **settings}
    return nn.Conv2d(channels, channels, kernel, stride, **settings)


def legacy_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


class Network(nn.Sequential):
    """With a `forward` of its own, since torch.compile treats PyTorch's as opaque."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


def small() -> nn.Sequential:
    """Both kinds of layer that are swapped ("2" and "4"), and what networks have around them."""
    torch.manual_seed(0)
    first, norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
    model = Network(first, norm, depthwise(8), nn.ReLU(), nn.LocalResponseNorm(5), nn.Dropout())
    return model.to(memory_format=torch.channels_last)


def images(*shape: int) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return x.to(memory_format=torch.channels_last)


def row(report: Report, name: str) -> Row:
    return next(row for row in report.rows if row.name == name)


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and all gradients of a training step."""
    torch.manual_seed(0)  # of dropout and stochastic depth
    x = x.clone().requires_grad_()
    output = model(x)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return [output, *torch.autograd.grad(output, [x, *model.parameters()], upstream)]


def assert_same_results(model: nn.Module, original: nn.Module, x: Tensor) -> None:
    for mine, correct in zip(results(model, x), results(original, x)):
        torch.testing.assert_close(mine, correct, rtol=1e-6, atol=1e-6)


def classes(model: nn.Module) -> list[type]:
    return [type(m) for m in model.modules()]


# Real networks


@pytest.mark.parametrize(
    ("library", "name"),
    [pytest.param(*pair, marks=[pytest.mark.slow] * (i > 1)) for i, pair in enumerate(NETWORKS)],
)
def test_every_depthwise_layer_is_swapped_and_nothing_else_changes(library, name):
    model, count = network(library, name), DEPTHWISE[library][name]
    original = copy.deepcopy(model)
    plain = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1]
    report = accelerate(model)
    assert len(plain) == len(report.rows) == count
    assert str(report).endswith(f"\n{count} of {count} depthwise layers swapped")
    assert classes(model) == [
        DepthwiseConv2d if m in plain else theirs for m, theirs in zip(model.modules(), classes(original))
    ]
    ours, theirs = model.state_dict(), original.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert_same_results(model, original, images(2, 3, 64, 64))
    assert restore(model) == count
    assert classes(model) == classes(original)


def test_a_sample_finds_the_same_layers_and_the_shapes_that_they_are_given():
    model = network("torchvision", "mobilenet_v2")
    report = accelerate(model, images(2, 3, 64, 64))
    assert sum(row.swapped for row in report.rows) == 17
    assert row(report, "features.1.conv.0.0").input == (2, 32, 32, 32)
    assert row(report, "features.17.conv.1.0").input == (2, 960, 2, 2)
    assert {row.why for row in report.rows} == {"not measured: no CUDA device"}


def test_timm_layers_with_a_padding_of_their_own_are_left_alone():
    model = network("timm", "tf_efficientnet_b0")
    report = accelerate(model)
    left = [row for row in report.rows if not row.swapped]
    assert (len(report.rows), len(left)) == (16, 4)
    assert {row.why for row in left} == {"its class is Conv2dSame, which may compute something else"}
    assert all(" s2 " in row.kind for row in left)


def test_local_response_normalization_is_swapped():
    def alexnet() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(3, 16, 5, 2), nn.ReLU(), nn.LocalResponseNorm(5, k=2.0), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(16, 24, 3), nn.ReLU(), nn.LocalResponseNorm(4, 0.1, 0.5)),
            *(nn.Flatten(), nn.Linear(600, 10)),
        )

    model, original = alexnet(), alexnet()
    report = accelerate(model)
    assert [(row.name, row.kind, row.swapped) for row in report.rows] == [
        ("2", "LRN 5", True),
        ("6", "LRN 4", True),
    ]
    assert sum(type(m) is LocalResponseNorm for m in model) == 2
    assert str(report).endswith("\n2 of 2 LRN layers swapped")
    for mine, correct in zip(results(model, images(2, 3, 33, 33)), results(original, images(2, 3, 33, 33))):
        torch.testing.assert_close(mine, correct, rtol=1e-5, atol=1e-5)
    assert restore(model) == 2
    assert classes(model) == classes(original)


# What is swapped


@pytest.mark.parametrize(
    "layer",
    [
        depthwise(8, 9),
        nn.Conv2d(8, 8, (3, 5), groups=8),
        depthwise(8, 3, 3),
        depthwise(8, 3, dilation=2),
        depthwise(8, 3, padding_mode="reflect"),
        nn.Conv2d(8, 16, 3, groups=8),
        DepthwiseConv2d(8, 3),
        parametrizations.weight_norm(depthwise(8)),
        prune.identity(depthwise(8), "weight"),
        prune.identity(depthwise(8), "bias"),
        legacy_weight_norm(depthwise(8)),
        depthwise(8, device="meta"),
    ],
    ids=[
        *("9 x 9", "3 x 5", "stride", "dilation", "padding mode", "two outputs", "ours"),
        *("weight norm", "pruned", "pruned bias", "old weight norm", "meta"),
    ],
)
def test_a_layer_that_ours_cannot_be_keeps_its_class_and_has_a_reason(layer, wording):
    before = type(layer)
    (only,) = accelerate(nn.Sequential(layer)).rows
    assert type(layer) is before
    assert not only.swapped
    wording(only.why)


def test_a_layer_whose_forward_was_replaced_is_left_alone():
    layer = depthwise(8)
    layer.forward = lambda input: input  # type: ignore[method-assign]
    (only,) = accelerate(nn.Sequential(layer)).rows
    assert (only.swapped, only.why) == (False, "its forward was replaced")


def test_dense_and_grouped_convolutions_are_not_even_listed(wording):
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(1, 1, 3))
    report = accelerate(model)
    assert report.rows == ()
    wording(report)


def test_a_model_may_be_a_layer_itself():
    layer = depthwise(8)
    report = accelerate(layer)
    assert type(layer) is DepthwiseConv2d
    assert report.rows[0].name == ""
    assert "\n(model)  depthwise 3x3 s1 C=8 " in str(report)


def test_a_module_under_two_names_is_swapped_once():
    shared = depthwise(3)
    model = nn.ModuleDict({"a": shared, "b": shared})
    assert [row.name for row in accelerate(model).rows] == ["a"]
    assert model["a"] is model["b"] is shared
    original = nn.Sequential(*[copy.deepcopy(shared)] * 2)
    restore(original)
    assert_same_results(nn.Sequential(shared, shared), original, images(2, 3, 8, 8))
    assert restore(model) == 1


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("sample", [None, images(2, 8, 9, 9)], ids=["", "sample"])
def test_a_padding_that_is_a_word_is_ours_too(padding, sample):
    model = nn.Sequential(depthwise(8, 5, padding=padding))
    original = copy.deepcopy(model)
    measure = None if sample is None else stopwatch(50, 40, 30)
    assert accelerate(model, sample, _measure=measure).rows[0].swapped
    assert type(model[0]) is DepthwiseConv2d
    assert_same_results(model, original, images(2, 8, 9, 9))


def test_layers_with_the_same_weight_are_swapped_and_keep_it():
    model = nn.Sequential(depthwise(8), nn.ReLU(), depthwise(8, stride=2))
    model[2].weight = model[0].weight
    original = copy.deepcopy(model)
    assert [row.swapped for row in accelerate(model).rows] == [True, True]
    assert model[2].weight is model[0].weight
    assert len(list(model.parameters())) == 3
    assert_same_results(model, original, images(2, 8, 9, 9))


def test_hooks_that_change_inputs_outputs_and_gradients_do_so_afterwards():
    def triple(layer: nn.Module, inputs: Any, outputs: Any) -> tuple[Tensor]:
        return (3 * inputs[0],)

    def hooked() -> nn.Sequential:
        torch.manual_seed(0)
        model = nn.Sequential(depthwise(8), nn.ReLU())
        model[0].register_forward_pre_hook(lambda layer, args: (2 * args[0][:, :, 1:],))
        model[0].register_forward_hook(lambda layer, args, output: output + 1)
        model[0].register_full_backward_hook(triple)
        return model

    model = hooked()
    report = accelerate(model, images(2, 8, 9, 9))
    assert report.rows[0].swapped
    assert report.rows[0].input == (2, 8, 8, 9)
    assert_same_results(model, hooked(), images(2, 8, 9, 9))


@pytest.mark.parametrize("order", ["fused first", "swapped first"])
def test_a_convolution_that_is_fused_with_its_batch_norm_is_swapped_and_restored(order):
    torch.manual_seed(0)
    conv, norm = depthwise(8, bias=False).eval(), nn.BatchNorm2d(8).eval()
    nn.init.uniform_(norm.weight)
    assert norm.running_mean is not None
    nn.init.uniform_(norm.running_mean)
    plain = nn.Sequential(copy.deepcopy(conv), norm)
    if order == "swapped first":
        accelerate(conv)
    fused = fuse_conv_bn_eval(conv, norm)
    assert accelerate(fused).rows[0].swapped
    assert type(fused) is DepthwiseConv2d
    x = images(2, 8, 9, 9)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-5, atol=1e-5)
    assert restore(fused) == 1
    assert type(fused) is nn.Conv2d


def test_a_convolution_of_a_fused_module_is_swapped():
    model = ConvReLU2d(depthwise(8), nn.ReLU())
    original = copy.deepcopy(model)
    assert [(row.name, row.swapped) for row in accelerate(model).rows] == [("0", True)]
    assert_same_results(model, original, images(2, 8, 9, 9))


def test_a_second_call_changes_nothing():
    model = small()
    accelerate(model)
    report = accelerate(model, images(2, 3, 8, 8))
    assert [(row.swapped, row.why) for row in report.rows] == 2 * [(True, "swapped before")]
    assert (restore(model), restore(model)) == (2, 0)


def test_restore_leaves_layers_that_were_built_as_ours():
    model = nn.Sequential(DepthwiseConv2d(8, 3), LocalResponseNorm(5), depthwise(8))
    accelerate(model)
    assert restore(model) == 1
    assert classes(model) == [nn.Sequential, DepthwiseConv2d, LocalResponseNorm, nn.Conv2d]


def test_script_modules_are_no_obstacle():
    scripted = torch.jit.script(nn.Sequential(depthwise(8)).eval())
    model = nn.Sequential(depthwise(8), scripted, torch.jit.freeze(copy.deepcopy(scripted)))
    assert [row.name for row in accelerate(model, images(1, 8, 9, 9)).rows] == ["0"]


# The sample


def test_a_sample_leaves_flags_statistics_and_random_states_alone():
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    model = nn.Sequential(Noisy(), *small())
    model[2].eval()  # as in a network with frozen statistics
    flags, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    accelerate(model, images(2, 3, 8, 8), _measure=lambda ours, theirs: (1.0, 2.0))
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(not m._forward_pre_hooks for m in model.modules())


def test_a_sample_may_be_several_arguments():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.unused = depthwise(8), depthwise(8)

        def forward(self, x: Tensor, y: Tensor, scale: float) -> Tensor:
            return self.conv(input=x + scale * y)

    model = Sum()
    report = accelerate(model, (images(2, 8, 9, 7), images(2, 8, 9, 7), 0.5))
    assert row(report, "conv").input == (2, 8, 9, 7)
    assert row(report, "conv").swapped
    unused = row(report, "unused")
    assert (unused.input, unused.swapped, unused.why) == (None, False, "the sample does not reach it")


@pytest.mark.parametrize("wrong", [[1, 2], {"x": 1}, "images"], ids=["list", "dict", "text"])
def test_a_sample_of_another_type_is_refused(wrong):
    kind = type(wrong).__name__
    expected = f"^sample: expected a tensor or a tuple of the model's arguments, not a {kind}$"
    with pytest.raises(ValueError, match=expected):
        accelerate(small(), wrong)


def test_a_sample_on_another_device_is_refused(wording):
    with pytest.raises(ValueError) as caught:
        accelerate(small(), torch.empty(2, 3, 8, 8, device="meta"))
    wording(caught.value)


def test_an_error_of_the_model_comes_out_as_it_is():
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("mine")

    model = nn.Sequential(depthwise(3), Broken())
    with pytest.raises(KeyError, match="mine"):
        accelerate(model, images(2, 3, 8, 8))
    assert all(m.training and not m._forward_pre_hooks for m in model.modules())
    assert type(model[0]) is nn.Conv2d


# Faster


def stopwatch(forward: float, input_grad: float, weight_grad: float) -> Callable[[Run, Run], Times]:
    """Says what the passes of each layer take by ours, in turn; PyTorch's take 100."""
    readings: list[float] = []

    def measure(ours: Run, theirs: Run) -> Times:
        readings[:] = readings or [forward, input_grad, weight_grad]
        return readings.pop(0), 100.0

    return measure


def test_a_faster_layer_is_kept_and_its_gain_reported():
    model = nn.Sequential(depthwise(8))
    report = accelerate(model, images(2, 8, 9, 9), _measure=stopwatch(50, 40, 30))
    assert type(model[0]) is DepthwiseConv2d
    assert report.rows[0].why == "fwd 2.0x, dgrad 2.5x, wgrad 3.3x"
    assert report.rows[0].speedup == pytest.approx(300 / 120)
    assert "; those measured take 120 us instead of 300 us (2.50x)" in str(report)


def test_a_slower_layer_is_not_swapped():
    model = nn.Sequential(depthwise(8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is no fault
        report = accelerate(model, images(2, 8, 9, 9), _measure=stopwatch(200, 400, 100))
    assert type(model[0]) is nn.Conv2d
    assert not report.rows[0].swapped
    assert report.rows[0].why == "PyTorch is faster: fwd 0.5x, dgrad 0.2x, wgrad 1.0x"
    assert str(report).endswith("\n0 of 1 depthwise layers swapped")


def test_a_slower_pass_runs_on_pytorch_and_costs_nothing():
    model = nn.Sequential(depthwise(8))
    report = accelerate(model, images(2, 8, 9, 9), _measure=stopwatch(50, 400, 50))
    assert report.rows[0].speedup == pytest.approx(300 / 200)
    layer = dispatch.Layer("input_grad", "float32", 3, 1, 8, 9, 9, 1, 1)
    assert dispatch.times("cpu")[layer] == {2: (400, 100)}


def test_a_slower_normalization_is_not_swapped():
    model = nn.Sequential(nn.LocalResponseNorm(5))
    report = accelerate(model, images(2, 8, 9, 9), _measure=lambda ours, theirs: (3.0, 2.0))
    assert type(model[0]) is nn.LocalResponseNorm
    assert report.rows[0].why == "PyTorch is faster: fwd 0.7x, bwd 0.7x"


def test_measured_are_the_two_sides_of_each_pass():
    times: list[Any] = []

    def measure(ours: Run, theirs: Run) -> Times:
        times.append(theirs())
        return 1.0, 2.0

    accelerate(depthwise(8, stride=2), images(2, 8, 9, 7), _measure=measure)
    forward, input_grad, (weight_grad, bias_grad) = times
    assert (forward.shape, input_grad.shape) == ((2, 8, 5, 4), (2, 8, 9, 7))
    assert (weight_grad.shape, bias_grad.shape) == ((8, 1, 3, 3), (8,))


def test_equal_layers_are_tried_once_and_each_input_of_a_shared_layer_is():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = depthwise(8), depthwise(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.b(x)).mean() + self.a(x[:, :, ::2, ::2]).mean()

    calls = []

    def measure(ours: Run, theirs: Run) -> Times:
        calls.append(ours)
        return 1.0, 2.0

    report = accelerate(Twice(), images(2, 8, 8, 8), _measure=measure)
    assert len(calls) == 3 * 2
    assert row(report, "a").microseconds == (6, 12)
    assert row(report, "b").microseconds == (3, 6)


# Right


def spoil(monkeypatch: pytest.MonkeyPatch, cls: type[nn.Module], factor: Callable[[Tensor], Any]) -> None:
    right = cls.forward
    monkeypatch.setattr(cls, "forward", lambda self, input: factor(right(self, input)))


@pytest.mark.parametrize("sample", [None, images(2, 8, 9, 9)], ids=["", "sample"])
@pytest.mark.parametrize(
    ("layer", "ours", "dtype"),
    [
        (depthwise(8), DepthwiseConv2d, torch.float32),
        (depthwise(8), DepthwiseConv2d, torch.bfloat16),
        (nn.LocalResponseNorm(5), LocalResponseNorm, torch.float32),  # PyTorch's has no bfloat16 on the CPU
    ],
)
def test_an_output_that_is_wrong_by_1_percent_falls_back(monkeypatch, layer, ours, dtype, sample):
    spoil(monkeypatch, ours, lambda output: 1.01 * output)
    model = nn.Sequential(copy.deepcopy(layer), nn.Linear(9, 1)).to(dtype)
    original = type(model[0]).__name__
    with pytest.warns(UserWarning, match=rf"^0: kept nn\.{original}: the output differs") as caught:
        report = accelerate(model, None if sample is None else sample.to(dtype))
    assert type(model[0]).__name__ == original
    assert report.rows[0].why.startswith("the output differs from float64 by 0.01 (eager ")
    assert [str(w.message) for w in caught] == [f"0: kept nn.{original}: {report.rows[0].why}"]
    assert caught[0].filename == __file__


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 1.01 * grad


@pytest.mark.parametrize("name", ["input", "weight", "bias"])
def test_a_gradient_that_is_wrong_by_1_percent_falls_back(monkeypatch, name):
    module = importlib.import_module("fastcnn_kernels.depthwise_conv")
    right = module.depthwise_conv2d

    def wrong(input: Tensor, weight: Tensor, bias: Tensor, *geometry: Any) -> Tensor:
        tensors = {"input": input, "weight": weight, "bias": bias}
        tensors[name] = WrongGradient.apply(tensors[name])
        return right(*tensors.values(), *geometry)

    monkeypatch.setattr(module, "depthwise_conv2d", wrong)
    model = nn.Sequential(depthwise(8))
    with pytest.warns(UserWarning, match=rf"^0: kept nn\.Conv2d: the gradient of the {name} differs from"):
        accelerate(model)
    assert type(model[0]) is nn.Conv2d


def test_not_a_number_falls_back(monkeypatch):
    spoil(monkeypatch, DepthwiseConv2d, lambda output: output * float("nan"))
    with pytest.warns(UserWarning, match="the output differs from float64 by nan"):
        assert not accelerate(depthwise(8)).rows[0].swapped


def test_an_exception_falls_back_and_the_other_layers_are_swapped(monkeypatch):
    def fail(output: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("tried to allocate\nmany lines") if output.shape[1] == 6 else KeyError

    right = DepthwiseConv2d.forward
    monkeypatch.setattr(
        DepthwiseConv2d, "forward", lambda self, x: fail(x) if x.shape[1] in (6, 4) else right(self, x)
    )
    model = nn.ModuleList([depthwise(6), depthwise(4), depthwise(8)])
    with pytest.warns(UserWarning, match="^[01]: kept nn.Conv2d: ") as caught:
        report = accelerate(model)
    assert [row.swapped for row in report.rows] == [False, False, True]
    assert [str(w.message) for w in caught] == [
        "0: kept nn.Conv2d: OutOfMemoryError: tried to allocate",
        "1: kept nn.Conv2d: KeyError: ",
    ]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_works_without_gradients_around_it(context):
    model = small().requires_grad_(False)
    with context():
        assert all(row.swapped for row in accelerate(model, images(2, 3, 8, 8)).rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_it_works_in_other_dtypes(dtype):
    model = nn.Sequential(depthwise(8), depthwise(8, 5, 2, bias=False)).to(dtype)
    assert all(row.swapped for row in accelerate(model, images(2, 8, 9, 9).to(dtype)).rows)


def test_the_checks_run_under_the_autocast_around_them(monkeypatch):
    seen = set()

    def see(output: Tensor) -> Tensor:
        seen.add(output.dtype)
        return output

    spoil(monkeypatch, DepthwiseConv2d, see)
    with torch.autocast("cpu", torch.bfloat16):
        report = accelerate(small(), images(2, 3, 8, 8))
    assert seen == {torch.bfloat16}
    assert all(row.swapped for row in report.rows)


def test_of_a_large_batch_some_images_are_checked_and_all_are_measured(monkeypatch):
    checked: list[int] = []
    measured: list[int] = []

    def check(layer: nn.Module, ours: type[nn.Module], x: Tensor) -> None:
        checked.append(len(x))

    def measure(layer: nn.Module, ours: type[nn.Module], x: Tensor, how: object) -> dict[str, Times]:
        measured.append(len(x))
        return {"forward": (1.0, 2.0)}

    monkeypatch.setattr(_trial, "_difference", check)
    monkeypatch.setattr(_trial, "_times", measure)
    accelerate(depthwise(8), images(50, 8, 9, 9), _measure=lambda ours, theirs: (1.0, 2.0))
    assert (checked, measured) == ([32], [50])


def test_layers_that_start_at_zero_are_checked_too(monkeypatch):
    spoil(monkeypatch, DepthwiseConv2d, lambda output: 1.01 * output)
    layer = depthwise(8)
    nn.init.zeros_(layer.weight)
    with pytest.warns(UserWarning, match="differs"):
        accelerate(layer)


# What a model goes through afterwards


def test_hooks_and_the_optimizer_survive():
    model, calls = small(), []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.get_submodule("2").register_forward_hook(lambda layer, args, output: calls.append(type(layer)))
    accelerate(model)
    assert calls == [], "a check ran the hooks"
    weight = model.get_parameter("2.weight")
    before = weight.detach().clone()
    model(images(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    assert calls == [DepthwiseConv2d]
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_is_swapped_and_can_be_restored(how):
    model = small()
    accelerate(model)
    if how == "deepcopy":
        other = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert classes(other) == classes(model)
    assert_same_results(other, model, images(2, 3, 8, 8))
    assert restore(other) == 2
    assert classes(other) == classes(small())
    assert type(model[2]) is DepthwiseConv2d


class Graphs:
    """A compiler that keeps the names of what each graph calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.calls.append(" ".join(str(node.target) for node in graph.graph.nodes))
        return graph.forward


def test_an_accelerated_model_compiles_to_one_graph_of_our_operations():
    model, original, graphs = small().eval(), small().eval(), Graphs()
    accelerate(model)
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    torch.testing.assert_close(compiled(images(2, 3, 8, 8)), original(images(2, 3, 8, 8)))
    (calls,) = graphs.calls
    assert "depthwise_conv2d" in calls


@pytest.mark.parametrize("how", ["wrapped", "inside", "in place"])
def test_a_compiled_model_is_swapped_and_compiled_anew(how):
    model, graphs = small().eval(), Graphs()
    if how == "in place":
        compiled: Any = model
        model.compile(backend=graphs)
    else:
        compiled = torch.compile(model, backend=graphs)
        compiled = compiled if how == "wrapped" else nn.Sequential(compiled)
    x = images(2, 3, 8, 8)
    compiled(x)
    report = accelerate(compiled, x)
    assert [row.name for row in report.rows] == (["0.2", "0.4"] if how == "inside" else ["2", "4"])
    assert row(report, report.rows[0].name).input == (2, 8, 8, 8)
    compiled(x)
    restore(compiled)
    compiled(x)
    # Back on PyTorch the first graph fits again.
    assert ["depthwise_conv2d" in calls for calls in graphs.calls] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize(("library", "name"), NETWORKS)
def test_accelerated_networks_compile_to_one_graph_and_train_alike(library, name):
    model = network(library, name)
    original = copy.deepcopy(model)
    accelerate(model)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = images(2, 3, 64, 64)
    for mine, correct in zip(results(compiled, x), results(original, x)):
        torch.testing.assert_close(mine, correct, rtol=1e-4, atol=1e-4)


# The report


def test_the_report_is_a_table_that_fits_a_terminal():
    model = nn.Sequential(depthwise(8, 5, 2), nn.LocalResponseNorm(5), depthwise(8, 9))
    report = accelerate(model, images(2, 8, 15, 15), _measure=lambda ours, theirs: (1.0, 3.0))
    assert str(report) == (
        "layer  kind                  input      swapped  gain   why\n"
        "0      depthwise 5x5 s2 C=8  2x8x15x15  yes      3.00x  fwd 3.0x, dgrad 3.0x, wgrad 3.0x\n"
        "1      LRN 5                 2x8x8x8    yes      3.00x  fwd 3.0x, bwd 3.0x\n"
        "2      depthwise 9x9 s1 C=8  -          no       -      a kernel of 9 x 9 "
        "(3 x 3, 5 x 5 and 7 x 7 have one)\n\n"
        "1 of 2 depthwise layers and 1 of 1 LRN layers swapped; "
        "those measured take 5 us instead of 15 us (3.00x)"
    )
    long = Report(
        (
            Row(
                name="stages.2.blocks.17.conv_dw",
                kind="depthwise 7x7 s1 C=768",
                input=None,
                swapped=False,
                why=30 * "words ",
            ),
        )
    )
    assert max(map(len, str(long).splitlines())) <= 110


# On a GPU


@pytest.mark.gpu
def test_on_cuda_each_layer_is_measured_and_later_runs_know_the_times():
    model = network("torchvision", "mobilenet_v2").cuda()
    original, x = copy.deepcopy(model).eval(), images(32, 3, 224, 224).cuda()
    with warnings.catch_warnings(), torch.autocast("cuda", torch.bfloat16):
        warnings.simplefilter("error")  # every layer is right
        report = accelerate(model, x)
        times = [row.microseconds or (0, 0) for row in report.rows]
        assert all(ours > 0 and theirs > 0 for ours, theirs in times)
        assert [row.swapped for row in report.rows] == [ours < theirs for ours, theirs in times]
        torch.testing.assert_close(model.eval()(x), original(x), rtol=0.05, atol=0.05)
    measured = dispatch.times(torch.cuda.get_device_name())
    layer = dispatch.Layer("forward", "bfloat16", 3, 1, 32, 112, 112, 1, 1)
    assert 32 in measured[layer]


@pytest.mark.gpu
def test_on_cuda_a_layer_whose_input_is_not_channels_last_is_left_alone():
    layer = depthwise(8).cuda()
    (only,) = accelerate(layer, torch.randn(2, 8, 9, 9, device="cuda")).rows
    assert (only.swapped, only.why) == (False, "a tensor that is not in channels-last memory")
