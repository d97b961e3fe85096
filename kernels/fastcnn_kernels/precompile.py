"""Compiles kernels before they are needed, side by side in processes, into Triton's cache.

    python -m fastcnn_kernels.precompile --layers efficientnet_b0                # for the GPU that is here
    python -m fastcnn_kernels.precompile --layers all --arch sm_90 --processes 8    # needs no GPU

    with precompiling(calls_of(model, (256, 3, 224, 224), torch.bfloat16), capability=(9, 0)):
        ...  # compile the rest of the model meanwhile

A kernel is compiled once for each shape of layer, which takes a second or more, one after the other in the
first step. What is in the cache ($TRITON_CACHE_DIR, by default ~/.triton/cache) is found there by any
process, on another machine too if Triton and this package are the same there: no GPU takes part.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcnn_kernels import _support
from fastcnn_kernels.depthwise_conv import DepthwiseConv2d, _output_size, _pair
from fastcnn_kernels.layers import NETWORKS, Depthwise, Norm
from fastcnn_kernels.lrn import LocalResponseNorm

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Call:
    """One pass of a layer, as far as its kernels depend on it."""

    kind: str
    """forward, input_grad or weight_grad of a depthwise convolution; norm or norm_grad."""
    input: tuple[int, ...]
    """[N, C, H, W] of the layer's input, in channels-last memory."""
    dtype: str
    """Its dtype, such as "bfloat16"."""
    size: int
    """Of the kernel, or of the window."""
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    bias: bool = False
    weight_dtype: str = "float32"
    beta: float = 0.75
    relu: bool = False


def calls_of(model: nn.Module, input_size: Sequence[int], dtype: torch.dtype) -> list[Call]:
    """What a training step of a model calls of this package's layers; nothing is computed.

    Args:
        model: on any device; its layers are those of this package.
        input_size: [N, C, H, W] of its images.
        dtype: of the activations, such as autocast's.

    Raises:
        RuntimeError: the model asks for a number that it computed, which there is none of.
    """
    found: list[Call] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].dim() == 4:
            found.extend(_calls(layer, tuple(inputs[0].shape), str(dtype).removeprefix("torch.")))

    layers = [m for m in model.modules() if isinstance(m, (DepthwiseConv2d, LocalResponseNorm))]
    if not layers:
        return []
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    on_meta = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    try:
        with torch.no_grad():
            torch.func.functional_call(model, on_meta, (torch.empty(*input_size, device="meta"),))
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(found))


def _calls(layer: nn.Module, shape: tuple[int, ...], dtype: str) -> Iterator[Call]:
    if isinstance(layer, DepthwiseConv2d):
        square = len(set(layer.kernel_size)) == len(set(layer.stride)) == 1
        if not square or isinstance(layer.padding, str) or layer.dilation != (1, 1):
            return
        weight_dtype = str(layer.weight.dtype).removeprefix("torch.")
        for kind in ("forward", "input_grad", "weight_grad"):
            bias = layer.bias is not None and kind != "input_grad"
            told = layer.kernel_size[0], layer.stride[0], _pair(layer.padding), bias, weight_dtype
            yield Call(kind, shape, dtype, *told)
    elif isinstance(layer, LocalResponseNorm):
        for kind in ("norm", "norm_grad"):
            yield Call(kind, shape, dtype, layer.size, beta=layer.beta, relu=layer.relu)


def calls_of_layers(layers: Iterable[Depthwise | Norm], dtype: str, batch_size: int) -> list[Call]:
    """The same of the layers of published networks."""
    found: list[Call] = []
    for layer in layers:
        shape = batch_size, layer.channels, layer.size, layer.size
        module: nn.Module
        if isinstance(layer, Depthwise):
            told = layer.kernel, layer.stride, layer.kernel // 2
            module = DepthwiseConv2d(layer.channels, *told, bias=False, device="meta")
        else:
            module = LocalResponseNorm(layer.window)
        found += _calls(module, shape, str(DTYPES[dtype]).removeprefix("torch."))
    return list(dict.fromkeys(found))


@contextmanager
def precompiling(
    calls: Sequence[Call], capability: tuple[int, int], processes: int, quiet: bool = True
) -> Iterator[None]:
    """Compiles for GPUs of a compute capability beside what is done inside, and waits for the rest at its
    end. Nothing is started where all of it was compiled before.

    What cannot be compiled is tried again at its first launch, which then says why.
    """
    mark = _mark(calls, capability)
    if not calls or mark.exists():
        yield
        return
    running = _start(calls, capability, processes, quiet)
    try:
        yield
        if sum(process.wait() != 0 for process in running) == 0:
            with suppress(OSError):
                mark.touch()
    finally:
        for process in running:
            process.kill()
            process.wait()


def _mark(calls: Sequence[Call], capability: tuple[int, int]) -> Path:
    """A file in Triton's cache that says that all of these are there."""
    import triton
    from triton import knobs

    code = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    what = repr((calls, capability, triton.__version__)).encode()
    return Path(knobs.cache.dir) / f"fastcnn-{hashlib.sha256(b''.join((*code, what))).hexdigest()[:32]}"


def _start(
    calls: Sequence[Call], capability: tuple[int, int], processes: int, quiet: bool
) -> list[subprocess.Popen[bytes]]:
    """Processes that compile a part each: passes of a kind take about as long."""
    ordered = sorted(calls, key=lambda call: (call.kind, call.size))
    running = []
    for part in range(min(processes, len(ordered))):
        process = subprocess.Popen(
            [sys.executable, "-m", "fastcnn_kernels.precompile", "--arch", "sm_{}{}".format(*capability)]
            + ["--from-stdin"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if quiet else None,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
        running.append(process)
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(json.dumps([vars(call) for call in ordered[part::processes]]).encode())
    return running


class _Driver:
    """What Triton asks of a GPU's driver when it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_here(calls: Iterable[Call], capability: int) -> None:
    """Compiles one after the other. This process can launch no kernel any more.

    Args:
        capability: such as 90.
    """
    from triton.runtime import driver

    driver.set_active(_Driver(capability))
    _support.only_compile = True
    for call in calls:
        _compile(call)


def _compile(call: Call) -> None:
    """Launches a pass with tensors that have no memory."""
    from fastcnn_kernels import _depthwise_conv_launch as depthwise
    from fastcnn_kernels import _lrn_triton as lrn

    def empty(size: Sequence[int], dtype: str = call.dtype) -> Tensor:
        layout = torch.channels_last if len(size) == 4 else torch.contiguous_format
        return torch.empty(*size, dtype=getattr(torch, dtype), device="meta", memory_format=layout)

    input = empty(call.input)
    settings = 1e-4, call.beta, 1.0, call.relu
    if call.kind == "norm":
        if lrn.why_not(input, call.size, 1e-4, 1.0) is None:
            lrn.forward(input, empty(call.input), call.size, *settings)
        return
    if call.kind == "norm_grad":
        if lrn.why_not(input, call.size, 1e-4, 1.0) is None:
            lrn.backward(empty(call.input), input, empty(call.input), call.size, *settings)
        return
    channels, stride = call.input[1], (call.stride, call.stride)
    weight = empty((channels, 1, call.size, call.size), call.weight_dtype).contiguous()
    bias = empty((channels,), call.weight_dtype) if call.bias else None
    if depthwise.why_not((input,), weight, call.input, stride, call.padding, (1, 1)) is not None:
        return
    output = empty(_output_size(input, weight, stride, call.padding, (1, 1)))
    if call.kind == "forward":
        depthwise.forward(input, weight, bias, output, stride, call.padding)
    elif call.kind == "input_grad":
        depthwise.input_grad(output, weight, input, stride, call.padding)
    else:
        depthwise.weight_grad(output, input, weight, bias, stride, call.padding)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastcnn_kernels.precompile", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--layers", choices=[*NETWORKS, "all"], default="all", help="of networks at 224 px")
    parser.add_argument("--arch", help="such as sm_90; by default that of the first GPU")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of activations (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=256, help="(%(default)s)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="(%(default)s)")
    parser.add_argument("--from-stdin", action="store_true", help=argparse.SUPPRESS)
    settings = parser.parse_args(argv)
    if importlib.util.find_spec("triton") is None:
        parser.error("Triton is not installed: pip install triton")
    number = (settings.arch or "").removeprefix("sm_")
    if settings.arch is None and torch.cuda.is_available():
        number = "{}{}".format(*torch.cuda.get_device_capability(0))
    if not number.isdecimal() or int(number) < 80:
        parser.error(f"--arch {settings.arch}: write sm_80 or a later one; there is no GPU here to ask")
    capability = int(number[:-1]), int(number[-1])
    if settings.from_stdin:
        told = [{**each, "input": tuple(each["input"])} for each in json.load(sys.stdin)]
        compile_here([Call(**{**each, "padding": tuple(each["padding"])}) for each in told], int(number))
        return 0
    names = list(NETWORKS) if settings.layers == "all" else [settings.layers]
    layers = [dataclasses.replace(layer, count=1) for name in names for layer in NETWORKS[name]]
    calls = calls_of_layers(layers, settings.dtype, settings.batch_size)
    begin = time.perf_counter()
    with precompiling(calls, capability, settings.processes, quiet=False):
        pass
    done = _mark(calls, capability).exists()
    print(
        f"{len(calls)} passes for sm_{number} {'are in the cache' if done else 'were not all compiled'}, "
        f"{time.perf_counter() - begin:.0f} s"
    )
    return 0 if done else 1


if __name__ == "__main__":
    raise SystemExit(main())
