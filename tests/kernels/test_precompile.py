"""fastcnn_kernels/precompile.py: what a step will launch is in Triton's cache before."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastcnn.runtime.distributed import Ranks
from fastcnn.setup import warmup
from fastcnn_kernels import DepthwiseConv2d, LocalResponseNorm, precompile
from fastcnn_kernels.layers import NETWORKS
from fastcnn_kernels.precompile import Call, calls_of, calls_of_layers, precompiling

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def call(
    kind: str,
    input: tuple[int, ...],
    dtype: str,
    size: int,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    **rest: bool,
) -> Call:
    layer: dict[str, Any] = {"size": size, "stride": stride, "padding": padding, **rest}
    return Call(kind=kind, input=input, dtype=dtype, **layer)


SMALL = [
    call("forward", (2, 8, 9, 9), "bfloat16", 3, 2, (1, 1)),
    call("weight_grad", (2, 8, 9, 9), "bfloat16", 3, 2, (1, 1), bias=True),
    call("norm_grad", (2, 8, 9, 9), "bfloat16", 5),
]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = DepthwiseConv2d(8, 3, stride=2, padding=1)
        self.again = DepthwiseConv2d(8, 5, padding=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.lrn = LocalResponseNorm(5, relu=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.again(self.depthwise(self.first(x))))
        return self.lrn(self.again(x)).mean((2, 3))


def test_a_model_s_calls_are_those_of_its_layers_in_a_step():
    model = Network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = calls_of(model, (4, 3, 16, 16), torch.bfloat16)
    geometry = (4, 8, 16, 16), "bfloat16", 3, 2, (1, 1)
    assert found[:3] == [
        call("forward", *geometry, bias=True),
        call("input_grad", *geometry),
        call("weight_grad", *geometry, bias=True),
    ]
    again = (4, 8, 8, 8), "bfloat16", 5, 1, (2, 2)
    assert found[3:6] == [call(kind, *again) for kind in ("forward", "input_grad", "weight_grad")]
    assert found[6:] == [call(kind, (4, 8, 8, 8), "bfloat16", 5, relu=True) for kind in ("norm", "norm_grad")]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert calls_of(nn.Conv2d(3, 8, 3), (4, 3, 16, 16), torch.bfloat16) == []


def test_what_has_no_kernel_is_no_call():
    padded = DepthwiseConv2d(8, 3)
    padded.padding_mode = "circular"
    layers = [
        DepthwiseConv2d(8, (3, 5)),
        DepthwiseConv2d(8, 3, dilation=2),
        padded,
    ]
    for layer in layers:
        assert calls_of(layer, (1, 8, 16, 16), torch.float32) == []


def test_published_networks_have_three_passes_a_layer():
    calls = calls_of_layers(NETWORKS["mobilenet_v2"], "bf16", 256)
    assert len(calls) == 3 * len(NETWORKS["mobilenet_v2"])
    assert call("input_grad", (256, 96, 112, 112), "bfloat16", 3, 2, (1, 1)) in calls
    assert [call.kind for call in calls_of_layers(NETWORKS["alexnet"], "fp16", 8)] == [
        "norm",
        "norm_grad",
    ] * 2


def entries(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_dir()}


HITS = """
import json, sys
import torch
from triton import knobs
from fastcnn_kernels import precompile

hits = []
knobs.compilation.listener = lambda **about: hits.append(about["cache_hit"])
if sys.argv[1] == "real":  # tensors with memory, as in a launch
    empty = torch.empty
    torch.empty = lambda *size, **settings: empty(*size, **{**settings, "device": "cpu"})
calls = [precompile.Call(**{**c, "input": tuple(c["input"]), "padding": tuple(c["padding"])})
         for c in json.loads(sys.argv[2])]
precompile.compile_here(calls, 90)
print(json.dumps(hits))
"""


@pytest.mark.slow
@needs_triton
def test_what_was_compiled_is_what_a_launch_looks_for(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    calls_json = json.dumps([vars(call) for call in SMALL])

    def hits(tensors: str) -> list[bool]:
        command = [sys.executable, "-c", HITS, tensors, calls_json]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    command = [sys.executable, "-m", "fastcnn_kernels.precompile", "--arch", "sm_90", "--from-stdin"]
    subprocess.run(command, env=environment, input=calls_json, text=True, check=True)
    found = entries(tmp_path)
    assert len(found) >= 5  # taps, convolution, correlation, sums, normalization
    launched = hits("real")
    assert len(launched) == 5
    assert all(launched)
    assert entries(tmp_path) == found


ON_A_GPU = """
import json
import torch
from triton import knobs
from fastcnn_kernels import depthwise_conv2d, local_response_norm

hits = []
knobs.compilation.listener = lambda **about: hits.append(about["cache_hit"])
x = torch.randn(2, 8, 9, 9, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
weight = torch.randn(8, 1, 3, 3, device="cuda", requires_grad=True)
y = depthwise_conv2d(x.requires_grad_(), weight, None, 2, 1)
local_response_norm(y, 5).sum().backward()
print(json.dumps(hits))
"""


@pytest.mark.gpu
def test_on_a_gpu_a_step_compiles_nothing_more(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    calls = [
        call(kind, (2, 8, 9, 9), "bfloat16", 3, 2, (1, 1))
        for kind in ("forward", "input_grad", "weight_grad")
    ]
    calls += [call(kind, (2, 8, 5, 5), "bfloat16", 5) for kind in ("norm", "norm_grad")]
    arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
    command = [sys.executable, "-m", "fastcnn_kernels.precompile", "--arch", arch, "--from-stdin"]
    calls_json = json.dumps([vars(call) for call in calls])
    subprocess.run(command, env=environment, input=calls_json, text=True, check=True)
    done = subprocess.run(
        [sys.executable, "-c", ON_A_GPU], env=environment, capture_output=True, text=True, check=True
    )
    hits = json.loads(done.stdout)
    assert len(hits) >= 6
    assert all(hits)


@pytest.mark.parametrize(("rank", "device", "expected"), [(0, "cuda", 1), (1, "cuda", 0), (0, "cpu", 0)])
def test_before_a_training_the_first_process_of_a_machine_compiles_and_all_wait_for_it(
    monkeypatch, rank, device, expected
):
    compiled: list[tuple[Any, ...]] = []

    @contextmanager
    def precompiling(*arguments: Any) -> Iterator[None]:
        yield
        compiled.append(arguments)

    monkeypatch.setattr(warmup, "precompiling", precompiling)
    monkeypatch.setattr(warmup, "why_not_triton", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    ranks = Ranks(rank, 2, rank, 2)
    shapes = warmup.InputShapes(sizes=[16, 32], val_size=48, batch_size=4, channels=3)
    where, dtype = torch.device(device), torch.bfloat16
    order: list[str] = []
    monkeypatch.setattr(warmup, "wait_for_all", lambda: order.append(f"wait, {len(compiled)} compiled"))
    with warmup.kernels_ahead(Network(), shapes, device=where, dtype=dtype, ranks=ranks):
        order.append("block")
    assert len(compiled) == expected
    assert order == ["block", *([f"wait, {expected} compiled"] if device == "cuda" else [])]
    for calls, capability, _ in compiled:
        assert capability == (9, 0)
        assert {call.input[2] for call in calls if call.kind == "weight_grad"} == {16, 8, 32}
        assert {call.input[2] for call in calls if call.kind == "forward"} == {16, 8, 32, 48, 24}


@pytest.mark.parametrize(("padding", "zeros"), [("same", (2, 2)), ("valid", (0, 0))])
def test_a_padding_that_is_a_word_is_compiled_as_numbers(padding, zeros):
    calls = calls_of(DepthwiseConv2d(8, 5, padding=padding), (2, 8, 9, 9), torch.bfloat16)
    assert [call.padding for call in calls] == [zeros] * 3


@pytest.fixture
def started(monkeypatch, tmp_path) -> list[int]:
    """How many processes were started, of the command that `precompile` would run."""
    monkeypatch.setattr(precompile, "_mark", lambda calls, capability: tmp_path / "mark")
    counts: list[int] = []

    def start(calls, capability, processes, quiet):
        counts.append(processes)
        return [subprocess.Popen([sys.executable, "-c", f"raise SystemExit({int(len(calls) > 2)})"])]

    monkeypatch.setattr(precompile, "_start", start)
    return counts


def test_what_is_compiled_is_marked_and_not_started_again(started, tmp_path):
    for _ in range(2):
        with precompiling(SMALL[:2], (9, 0), 4):
            pass
    assert started == [4]
    assert (tmp_path / "mark").exists()


def test_what_failed_is_tried_again(started):
    for _ in range(2):
        with precompiling(SMALL, (9, 0), 4):
            pass
    assert started == [4, 4]


def test_an_error_inside_leaves_no_process(monkeypatch, tmp_path):
    monkeypatch.setattr(precompile, "_mark", lambda calls, capability: tmp_path / "mark")
    sleeping = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(precompile, "_start", lambda *_, **__: [sleeping])
    with pytest.raises(KeyboardInterrupt), precompiling(SMALL, (9, 0), 4):
        raise KeyboardInterrupt
    assert sleeping.poll() is not None
    assert not (tmp_path / "mark").exists()


@needs_triton
def test_the_mark_knows_calls_and_capability():
    marks = {precompile._mark(calls, arch) for calls in (SMALL, SMALL[:1]) for arch in ((8, 0), (9, 0))}
    assert len(marks) == 4
    assert precompile._mark(SMALL, (9, 0)) == precompile._mark(list(SMALL), (9, 0))


@needs_triton
@pytest.mark.parametrize("arch", ["sm_75", "hopper"])
def test_an_architecture_without_kernels_is_refused(arch, capsys):
    with pytest.raises(SystemExit) as stopped:
        precompile.main(["--arch", arch])
    assert stopped.value.code == 2
    assert f"--arch {arch}: use sm_80 or a later one" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="parents are looked at on POSIX systems")
def test_a_compiling_process_ends_with_its_parent(monkeypatch):
    monkeypatch.setattr(precompile.os, "getppid", iter([7, 1]).__next__)
    monkeypatch.setattr(precompile.time, "sleep", lambda seconds: None)
    statuses: list[int] = []
    monkeypatch.setattr(precompile.os, "_exit", statuses.append)
    precompile._follow(7)
    assert statuses == [1]
