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
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcnn_kernels import support
from fastcnn_kernels.depthwise_conv import DepthwiseConv2d, explicit_padding, output_size
from fastcnn_kernels.layers import NETWORKS, Depthwise, Norm
from fastcnn_kernels.lrn import LocalResponseNorm

PARENT = "FASTCNN_KERNELS_PARENT"
"""Environment variable with the process that a compiling process ends with."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One pass of a layer, as far as its kernels are compiled for it."""

    kind: str
    """forward, input_grad or weight_grad of a depthwise convolution; norm or norm_grad."""
    input: tuple[int, ...]
    """[N, C, H, W] of the layer's input, in channels-last memory."""
    dtype: str
    """Its dtype, such as "bfloat16"."""
    size: int
    """Size of the kernel, or of the window."""
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    bias: bool = False
    weight_dtype: str = "float32"
    beta: float = 0.75
    relu: bool = False


def calls_of(model: nn.Module, input_size: Sequence[int], dtype: torch.dtype) -> list[Call]:
    """Calls of this package's layers in a training step of a model; nothing is computed.

    Args:
        model: a model with layers of this package, on any device.
        input_size: [N, C, H, W] of its images.
        dtype: dtype of the activations, such as autocast's.

    Raises:
        RuntimeError: the model reads the value of a tensor, which the meta device does not have.
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
        if not square or layer.padding_mode != "zeros" or layer.dilation != (1, 1):
            return
        padding, _ = explicit_padding(layer.padding, layer.kernel_size, layer.stride, layer.dilation)
        for kind in ("forward", "input_grad", "weight_grad"):
            yield Call(
                kind=kind,
                input=shape,
                dtype=dtype,
                size=layer.kernel_size[0],
                stride=layer.stride[0],
                padding=padding,
                bias=layer.bias is not None and kind != "input_grad",
                weight_dtype=str(layer.weight.dtype).removeprefix("torch."),
            )
    elif isinstance(layer, LocalResponseNorm):
        for kind in ("norm", "norm_grad"):
            yield Call(kind=kind, input=shape, dtype=dtype, size=layer.size, beta=layer.beta, relu=layer.relu)


def calls_of_layers(layers: Iterable[Depthwise | Norm], dtype: str, batch_size: int) -> list[Call]:
    """Calls of the layers of published networks."""
    found: list[Call] = []
    for layer in layers:
        shape = batch_size, layer.channels, layer.size, layer.size
        module: nn.Module
        if isinstance(layer, Depthwise):
            geometry = layer.kernel, layer.stride, layer.kernel // 2
            module = DepthwiseConv2d(layer.channels, *geometry, bias=False, device="meta")
        else:
            module = LocalResponseNorm(layer.window)
        found += _calls(module, shape, str(DTYPES[dtype]).removeprefix("torch."))
    return list(dict.fromkeys(found))


@contextmanager
def precompiling(
    calls: Sequence[Call], capability: tuple[int, int], processes: int, *, quiet: bool = True
) -> Iterator[None]:
    """Compile for GPUs of a compute capability in parallel with the body, and wait for the rest at its end.

    Nothing is started if all calls were compiled before. Kernels that fail to compile are compiled again at
    their first launch, which raises the error.

    Args:
        quiet: hide the error output of the processes.
    """
    mark = _mark(calls, capability)
    if not calls or mark.exists():
        yield
        return
    running = _start(calls, capability, processes, quiet=quiet)
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
    """Marker file in Triton's cache: all of these calls were compiled by this code."""
    import triton
    from triton import knobs

    code = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    key = repr((calls, capability, triton.__version__)).encode()
    return Path(knobs.cache.dir) / f"fastcnn-{hashlib.sha256(b''.join((*code, key))).hexdigest()[:32]}"


def _start(
    calls: Sequence[Call], capability: tuple[int, int], processes: int, *, quiet: bool
) -> list[subprocess.Popen[bytes]]:
    """Start processes that compile a part of the calls each."""
    # Passes of one kind take about the same time, so each process gets a share of every kind.
    ordered = sorted(calls, key=lambda call: (call.kind, call.size))
    running = []
    for part in range(min(processes, len(ordered))):
        process = subprocess.Popen(
            [sys.executable, "-m", "fastcnn_kernels.precompile", "--arch", "sm_{}{}".format(*capability)]
            + ["--from-stdin"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if quiet else None,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", PARENT: str(os.getpid())},
        )
        running.append(process)
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(json.dumps([vars(call) for call in ordered[part::processes]]).encode())
    return running


def _follow(parent: int) -> None:
    """End this process after its parent, which a signal may have ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


class _Driver:
    """The part of a GPU driver that Triton's compiler uses."""

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
    """Compile one call after the other. This process cannot launch kernels afterwards.

    Args:
        capability: compute capability, such as 90.
    """
    from triton.runtime import driver

    driver.set_active(_Driver(capability))
    support.only_compile = True
    for call in calls:
        _compile(call)


def _compile(call: Call) -> None:
    """Launch a pass with tensors without memory."""
    if call.kind in ("norm", "norm_grad"):
        _compile_norm(call)
    else:
        _compile_depthwise(call)


def _compile_norm(call: Call) -> None:
    from fastcnn_kernels import lrn_launch

    input, other, result = (_empty(call.input, call.dtype) for _ in range(3))
    settings = lrn_launch.Settings(call.size, 1e-4, call.beta, 1.0, call.relu)
    if lrn_launch.why_not(input, settings.size, settings.alpha, settings.k) is not None:
        return
    if call.kind == "norm":
        lrn_launch.forward(input, result, settings)
    else:
        lrn_launch.backward(other, input, result, settings)


def _compile_depthwise(call: Call) -> None:
    from fastcnn_kernels import depthwise_conv_launch as launch

    input, channels = _empty(call.input, call.dtype), call.input[1]
    weight = _empty((channels, 1, call.size, call.size), call.weight_dtype).contiguous()
    bias = _empty((channels,), call.weight_dtype) if call.bias else None
    stride, padding, dilation = geometry = (call.stride, call.stride), call.padding, (1, 1)
    if launch.why_not((input,), weight, call.input, geometry) is not None:
        return
    output = _empty(output_size(input, weight, stride, padding, dilation), call.dtype)
    if call.kind == "forward":
        launch.forward(input, weight, bias, output, stride=stride, padding=padding)
    elif call.kind == "input_grad":
        launch.input_grad(output, weight, input, stride=stride, padding=padding)
    else:
        launch.weight_grad(output, input, weight, bias, stride=stride, padding=padding)


def _empty(size: Sequence[int], dtype: str) -> Tensor:
    layout = torch.channels_last if len(size) == 4 else torch.contiguous_format
    return torch.empty(*size, dtype=getattr(torch, dtype), device="meta", memory_format=layout)


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
        parser.error(f"--arch {settings.arch}: use sm_80 or a later one; there is no GPU here to ask")
    capability = int(number[:-1]), int(number[-1])
    if settings.from_stdin:
        if PARENT in os.environ:
            threading.Thread(target=_follow, args=(int(os.environ[PARENT]),), daemon=True).start()
        fields = [{**each, "input": tuple(each["input"])} for each in json.load(sys.stdin)]
        compile_here([Call(**{**each, "padding": tuple(each["padding"])}) for each in fields], int(number))
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
