"""Largest costs of a training step in device time, each beside its lower bound.

A trace of torch.profiler attributes each kernel to the operation that launched it. On the CPU an operation's
time excludes nested operations. A convolution or matrix product includes all that is nested in it. Operations
of one name on tensors of the same shapes are one cost.
"""

from __future__ import annotations

import ast
import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

Event = dict[str, Any]
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of trace events that run on the device."""
CONVOLUTIONS = ("aten::convolution", "aten::convolution_backward")
PRODUCTS = {"aten::mm": 0, "aten::addmm": 1, "aten::bmm": 0, "aten::baddbmm": 1}
"""Matrix products, with the index of their first matrix argument."""
DTYPES = {
    "c10::BFloat16": ("bfloat16", 2),
    "c10::Half": ("float16", 2),
    "float": ("float32", 4),
    "double": ("float64", 8),
    "unsigned char": ("uint8", 1),
    "bool": ("bool", 1),
    "int": ("int32", 4),
    "long": ("int64", 8),
    "long int": ("int64", 8),
}
"""Names of element types in traces: torch's name and the bytes of an element."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Calls in a step of one operation on tensors of the same shapes."""

    name: str
    shapes: str
    """Shapes and dtype of its tensors, such as "256x64x56x56 64x64x1x1 bfloat16"."""
    calls: float
    seconds: float
    """Time of all calls."""
    flops: int
    """FLOPs of a call; 0 if none or unknown."""
    bytes: int
    """Bytes that a call must read and write; 0 if unknown."""
    dtype: str

    def floor(self, bytes_per_second: float, flops_per_second: dict[str, float]) -> float | None:
        """Lower bound of all calls in seconds; None if their work is unknown.

        Args:
            flops_per_second: rates of matrix products for "float32" and, if native, "bfloat16", which counts
                for float16 too.
        """
        if self.bytes == 0:
            return None
        dtype = "bfloat16" if self.dtype == "float16" else self.dtype
        rate = flops_per_second.get(dtype, flops_per_second["float32"]) if self.flops else 1.0
        return self.calls * max(self.bytes / bytes_per_second, self.flops / rate)


def measure(step: Callable[[], Any], steps: int = 2) -> list[Cost]:
    """Trace a step and return its costs, the largest first. The step must not be a CUDA graph.

    Args:
        steps: traced steps, after one to warm up.
    """
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    for count in (1, steps):  # the first trace sets the profiler up
        with torch.profiler.profile(activities=activities, record_shapes=True, acc_events=True) as profiler:
            for _ in range(count):
                step()
            if on_gpu:
                torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return read(json.loads(path.read_text())["traceEvents"], steps)


def read(events: Iterable[Event], steps: int) -> list[Cost]:
    """Costs per step of a trace, the largest first."""
    events = [event for event in events if event.get("ph") == "X"]
    operations = sorted(
        (event for event in events if event.get("cat") == "cpu_op"), key=lambda e: (e["ts"], -e["dur"])
    )
    parents, own = _nested(operations)
    by_id = {event["args"]["External id"]: i for i, event in enumerate(operations)}
    kernels = [event for event in events if event.get("cat") in ON_DEVICE]
    # CPU: each operation's own time. GPU: kernels, by the operation that launched them.
    spent: dict[tuple[Any, ...], list[Any]] = defaultdict(lambda: [0.0, set()])
    for i, seconds in enumerate(own) if not kernels else ():
        owner = _owner(operations, parents, i)
        _add(spent, _describe(operations[owner]), seconds, owner)
    for kernel in kernels:
        launcher = by_id.get(kernel["args"].get("External id"))
        if launcher is None:
            _add(spent, (kernel["name"], "", 0, 0, ""), kernel["dur"], id(kernel))
        else:
            owner = _owner(operations, parents, launcher)
            _add(spent, _describe(operations[owner]), kernel["dur"], owner)
    costs = [
        Cost(
            name=name,
            shapes=shapes,
            calls=len(calls) / steps,
            seconds=seconds / 1e6 / steps,
            flops=flops,
            bytes=moved,
            dtype=dtype,
        )
        for (name, shapes, flops, moved, dtype), (seconds, calls) in spent.items()
    ]
    return sorted(costs, key=lambda cost: -cost.seconds)


def _add(spent: dict[tuple[Any, ...], list[Any]], what: tuple[Any, ...], seconds: float, call: int) -> None:
    spent[what][0] += seconds
    spent[what][1].add(call)


def _nested(operations: Sequence[Event]) -> tuple[list[int | None], list[float]]:
    """Parent index, and time without nested operations, of operations sorted by start."""
    parents: list[int | None] = []
    own = [float(event["dur"]) for event in operations]
    running: dict[Any, list[int]] = defaultdict(list)
    for i, event in enumerate(operations):
        stack = running[event["tid"]]
        while stack and event["ts"] >= operations[stack[-1]]["ts"] + operations[stack[-1]]["dur"]:
            stack.pop()
        parents.append(stack[-1] if stack else None)
        if stack:
            own[stack[-1]] -= event["dur"]
        stack.append(i)
    return parents, own


def _owner(operations: Sequence[Event], parents: Sequence[int | None], i: int) -> int:
    """Index of the outermost enclosing convolution or matrix product, or of the operation itself."""
    owner, at = i, parents[i]
    while at is not None:
        if operations[at]["name"] in (*CONVOLUTIONS, *PRODUCTS):
            owner = at
        at = parents[at]
    return owner


def _describe(event: Event) -> tuple[str, str, int, int, str]:
    """Name, shapes, FLOPs, bytes and dtype of an operation."""
    name, args = event["name"], event["args"]
    tensors = [
        (dims, *DTYPES[kind])
        for dims, kind in zip(args.get("Input Dims", []), args.get("Input type", []))
        if kind in DTYPES and not any(isinstance(d, list) for d in dims)
    ]
    dtype, size = tensors[0][1:] if tensors else ("", 0)
    shapes = " ".join("x".join(map(str, dims)) for dims, _, _ in tensors if dims)
    flops = moved = 0
    if name in CONVOLUTIONS:
        flops, moved = _convolution(name, [dims for dims, _, _ in tensors], args["Concrete Inputs"])
        moved *= size
    elif name in PRODUCTS:
        *batch, rows, inner = tensors[PRODUCTS[name]][0]
        columns = tensors[PRODUCTS[name] + 1][0][-1]
        flops = 2 * math.prod((*batch, rows, inner, columns))
        moved = size * (sum(math.prod(dims) for dims, _, _ in tensors) + math.prod((*batch, rows, columns)))
    elif name.startswith("triton_"):  # Inductor's, whose outputs are arguments too
        moved = sum(math.prod(dims) * bytes for dims, _, bytes in tensors)
    return name.removeprefix("aten::"), f"{shapes} {dtype}".strip(), flops, moved, dtype


def _convolution(name: str, shapes: list[list[int]], arguments: list[str]) -> tuple[int, int]:
    """FLOPs, and elements read and written; 0 for a transposed convolution."""
    if name.endswith("_backward"):
        output, image, weight = shapes[:3]
        image_too, weight_too, _ = ast.literal_eval(arguments[10])
        gradients = image_too + weight_too
        numbers = math.prod(output) + gradients * (math.prod(image) + math.prod(weight))
        return 2 * gradients * math.prod(output) * math.prod(weight[1:]), numbers
    image, weight = shapes[:2]
    if arguments[6] == "True":
        return 0, 0
    stride, padding, dilation = (ast.literal_eval(argument) for argument in arguments[3:6])
    sides = [
        (side + 2 * p - d * (kernel - 1) - 1) // s + 1
        for side, kernel, s, p, d in zip(image[2:], weight[2:], stride, padding, dilation)
    ]
    output = [image[0], weight[0], *sides]
    numbers = math.prod(output) + math.prod(image) + math.prod(weight)
    return 2 * math.prod(output) * math.prod(weight[1:]), numbers
