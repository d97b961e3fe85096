"""What the kernels compile to: registers, spills, instructions, and the time that follows. Needs no GPU.

    python benchmarks/audit.py                        # each kernel on a typical layer
    python benchmarks/audit.py --layers mobilenet_v2  # on every layer of a network, or of all
    python benchmarks/audit.py --arch sm_90 --markdown

The kernels are compiled ahead of time for each architecture, as they are launched, and the machine code is
read with the `cuobjdump` of Triton's package. An element is an output in a forward pass, an element of the
input in a gradient, and in the small programs around them a tap or a partial sum. Predicted times are those
of an H200 whose every issue slot, or whose memory, is always busy. On maps of 28 x 28 and more one ran at 70
to 95% of that where memory bounds, at 60 to 80% where arithmetic does; launches are not counted.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastcnn_kernels.layers import NETWORKS, Depthwise, Norm

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")

# An H200 issues 4 instructions for 32 lanes on each of 132 multiprocessors at 1.755 GHz, and copies 4.3 TB/s.
INSTRUCTIONS_PER_SECOND = 132 * 4 * 32 * 1.755e9
BYTES_PER_SECOND = 4.3e12

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
BATCH = 256
"""Batch size of the predicted times; it determines the partial sums of a weight gradient per image."""
TYPICAL: tuple[Depthwise | Norm, ...] = (
    *(Depthwise(kernel, stride, 192, 56) for kernel in (3, 5, 7) for stride in (1, 2)),
    Norm(5, 192, 56),
)

MOST = {
    # Limits of each kernel on its typical layer in bf16: registers, and instructions per element. A test
    # checks every architecture. Lower them with each improvement. They are those of Triton 3.9; with 3.6 the
    # forward of 5x5 s2 and 7x7 s2 takes up to 168 registers, that of 3x3 s2 128, and nothing spills.
    "depthwise 3x3 s1 forward": (96, 14.7),
    "depthwise 3x3 s1 input gradient": (96, 14.7),
    "depthwise 3x3 s1 weight gradient": (88, 14.9),
    "depthwise 3x3 s2 forward": (128, 18.9),
    "depthwise 3x3 s2 input gradient": (56, 5.6),
    "depthwise 3x3 s2 weight gradient": (72, 4.8),
    "depthwise 5x5 s1 forward": (128, 33.1),
    "depthwise 5x5 s1 input gradient": (128, 33.1),
    "depthwise 5x5 s1 weight gradient": (168, 34.2),
    "depthwise 5x5 s2 forward": (128, 38.8),
    "depthwise 5x5 s2 input gradient": (96, 10.2),
    "depthwise 5x5 s2 weight gradient": (136, 9.8),
    "depthwise 7x7 s1 forward": (128, 65.3),
    "depthwise 7x7 s1 input gradient": (128, 65.3),
    "depthwise 7x7 s1 weight gradient": (168, 68.1),
    "depthwise 7x7 s2 forward": (96, 76.1),
    "depthwise 7x7 s2 input gradient": (160, 18.0),
    "depthwise 7x7 s2 weight gradient": (136, 19.0),
    "LRN 5 forward": (32, 13.5),
    "LRN 5 gradient": (48, 28.5),
    "depthwise 3x3 taps": (16, 49.1),
    "depthwise 3x3 partial sums": (168, 12.1),
    "depthwise 5x5 taps": (16, 49.1),
    "depthwise 5x5 partial sums": (168, 12.1),
    "depthwise 7x7 taps": (16, 49.1),
    "depthwise 7x7 partial sums": (168, 12.1),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A pass of a layer: its programs, and the work that they are compared with."""

    name: str
    layer: str
    """Channels x size."""
    programs: tuple[tuple[Any, dict[str, Any]], ...]
    """Kernels with their compile-time arguments."""
    types: dict[str, str]
    """Types of the other arguments in Triton's notation: "*bf16", "i32"."""
    elements: int
    """Elements of a lane in one pass through the code, or through its loop."""
    useful: float
    """Share of these elements that lie in the map."""
    bytes: float
    """Bytes per element if each of the layer's tensors moves once."""
    side_by_side: int
    """Contiguous bytes that the lanes of a warp read."""
    more_bytes: float = 0
    """Further bytes per element: partial sums, and tensors that a second program reads again."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """Machine code of a case's programs, for one architecture."""

    registers: int
    """Registers per lane, of the program that needs most."""
    spilled: int
    """Bytes of stack and local memory of a lane, plus the instructions that access them."""
    shared: int
    """Bytes of shared memory."""
    instructions: int
    """Instructions in one pass through the code, or through its loop; sum of all programs."""
    multiply_adds: int
    """Multiply-adds among them; some work on two numbers."""

    def for_each(self, case: Case) -> float:
        """Instructions per element in the map."""
        return self.instructions / case.elements / case.useful

    def picoseconds(self, case: Case) -> tuple[float, float]:
        """Predicted picoseconds per element on an H200: of the instructions and of the memory."""
        instructions = 1e12 * self.for_each(case) / INSTRUCTIONS_PER_SECOND
        return instructions, 1e12 * (case.bytes + case.more_bytes) / BYTES_PER_SECOND

    def bound(self, case: Case) -> str:
        instructions, memory = self.picoseconds(case)
        if instructions <= memory:
            return "memory"
        return "arithmetic" if self.multiply_adds > 2 / 3 * self.instructions else "issue slots"


def floor(case: Case) -> float:
    """Lower bound in picoseconds per element on an H200: each tensor moves once."""
    return 1e12 * case.bytes / BYTES_PER_SECOND


def cases(layers: Sequence[Depthwise | Norm], dtype: str = "bf16") -> Iterator[Case]:
    for layer in layers:
        yield from (
            depthwise_cases(layer, dtype) if isinstance(layer, Depthwise) else norm_cases(layer, dtype)
        )
    yield from small_cases(sorted({layer.kernel for layer in layers if isinstance(layer, Depthwise)}))


def depthwise_cases(layer: Depthwise, dtype: str) -> Iterator[Case]:
    from fastcnn_kernels import depthwise_conv_launch as launch

    padding = layer.kernel // 2
    out_size = (layer.size + 2 * padding - layer.kernel) // layer.stride + 1
    ratio = (out_size / layer.size) ** 2
    shape = launch.Shape(
        channels=layer.channels,
        in_size=(layer.size,) * 2,
        out_size=(out_size,) * 2,
        kernel=layer.kernel,
        stride=layer.stride,
        padding=(padding,) * 2,
    )
    image, count = f"*{dtype}", "i32"
    convolve = {"source": image, "taps": "*fp32", "bias": "*fp32", "output": image, "batch": count}
    correlate = {"input": image, "grad_output": image, "partial": "*fp32", "batch": count, "splits": count}
    lanes = launch.LANES
    passes = {
        # Launches, types of their arguments, and tensors that move, in units of the patched map.
        "forward": ([launch.forward_launch(shape, bias=False, lanes=lanes)], convolve, 1 + 1 / ratio),
        "input gradient": ([launch.input_grad_launch(shape, lanes=lanes)], convolve, 1 + ratio),
        "weight gradient": (
            launch.weight_grad_launches(shape, bias=False, lanes=lanes),
            correlate,
            1 + ratio,
        ),
    }
    for name, (launches, types, tensors) in passes.items():
        constants = launches[0].constants
        rows, columns, group = constants["ROWS"], constants["COLUMNS"], constants["GROUP"]
        pixels = rows.patch * columns.patch
        more_bytes = BYTES[dtype] * tensors * (len(launches) - 1)
        if name == "weight gradient":  # partial sums are written and read again
            sums = launch.splits(launches[0], BATCH) * launches[0].patches * layer.kernel**2
            more_bytes += 2 * BYTES["fp32"] * sums / (BATCH * layer.size**2)
        yield Case(
            name=f"depthwise {layer.kernel}x{layer.kernel} s{layer.stride} {name}",
            layer=f"{layer.channels} x {layer.size}",
            programs=tuple((launch.kernel, launch.constants) for launch in launches),
            types=types,
            elements=pixels * group,
            useful=rows.patched * columns.patched / (launches[0].patches * pixels),
            bytes=BYTES[dtype] * tensors,
            side_by_side=min(32, constants["CHUNK"]) * group * BYTES[dtype],
            more_bytes=more_bytes,
        )


def small_cases(kernels: Iterable[int]) -> Iterator[Case]:
    """Cases of the programs that do not depend on the layer's shape."""
    from fastcnn_kernels import depthwise_conv_launch as launch

    for kernel in kernels:
        taps = launch.taps_launch(kernel, flip=False)
        reduce = launch.reduce_launch(kernel, bias=False, many=True)
        yield Case(
            name=f"depthwise {kernel}x{kernel} taps",
            layer="any",
            programs=((taps.kernel, taps.constants),),
            types={"weight": "*fp32", "taps": "*fp32", "channels": "i32"},
            elements=taps.constants["BLOCK"] // launch.LANES,
            useful=1,
            bytes=2 * BYTES["fp32"],
            side_by_side=BYTES["fp32"],  # the taps of a channel are contiguous
        )
        pointers = dict.fromkeys(("partial", "grad_weight", "grad_bias"), "*fp32")
        yield Case(
            name=f"depthwise {kernel}x{kernel} partial sums",
            layer="any",
            programs=((reduce.kernel, reduce.constants),),
            types={**pointers, "count": "i32", "channels": "i32"},
            elements=reduce.constants["ROWS"] * reduce.constants["COLUMNS"] // launch.LANES,
            useful=1,
            bytes=BYTES["fp32"],
            side_by_side=reduce.constants["COLUMNS"] * BYTES["fp32"],
        )


def norm_cases(layer: Norm, dtype: str) -> Iterator[Case]:
    import torch

    from fastcnn_kernels import lrn_launch

    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    shape = (BATCH, layer.channels, layer.size, layer.size)
    launch = lrn_launch.plan(shape, dtypes[dtype], channels_last=True, size=layer.window, relu=False)
    constants = {**launch.constants, "THREE_QUARTERS": True}
    group = constants["GROUP"]
    numbers = {"lanes": "i32", "stride": "i32", "scale": "fp32", "beta": "fp32", "k": "fp32"}
    passes = {"forward": ("input", "output"), "gradient": ("grad_output", "input", "grad_input")}
    for name, tensors in passes.items():
        yield Case(
            name=f"LRN {layer.window} {name}",
            layer=f"{layer.channels} x {layer.size}",
            programs=((lrn_launch.KERNELS[name], constants),),
            types={**dict.fromkeys(tensors, f"*{dtype}"), **numbers},
            elements=group,
            useful=layer.channels / (group * -(-layer.channels // group)),
            bytes=BYTES[dtype] * len(tensors),
            side_by_side=32 * group * BYTES[dtype],
        )


def compile_case(case: Case, architecture: str) -> Code:
    """Compile for an architecture such as "sm_90" and read the machine code; takes seconds."""
    codes = [
        _read(_compile(kernel, constants, case.types, architecture)) for kernel, constants in case.programs
    ]
    return Code(
        registers=max(code.registers for code in codes),
        spilled=sum(code.spilled for code in codes),
        shared=sum(code.shared for code in codes),
        instructions=sum(code.instructions for code in codes),
        multiply_adds=sum(code.multiply_adds for code in codes),
    )


def _compile(kernel: Any, constants: dict[str, Any], types: dict[str, str], architecture: str) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        # As in a launch: torch's memory is aligned, and counts need not be multiples of 16.
        attrs={
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(names)
            if types.get(name, "").startswith("*")
        },
    )
    target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    options = {"num_warps": 4, "enable_fp_fusion": True}
    return triton.compile(source, target=target, options=options)


def _read(compiled: Any) -> Code:
    """Read the machine code; count the longest loop if there is one, else the code up to the last exit."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert usage is not None, text[:500]
    registers, stack, local = map(int, usage.groups())
    code = [(int(at, 16), words) for at, words in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", text)]
    end = max(at for at, words in code if "EXIT" in words)
    jumps = [(at, re.search(r"\bBRA\b.*?0x([0-9a-f]+)", words)) for at, words in code if at < end]
    loops = [(int(jump[1], 16), at) for at, jump in jumps if jump and int(jump[1], 16) < at]
    first, last = max(loops, key=lambda loop: loop[1] - loop[0], default=(0, end))
    executed = [words for at, words in code if first <= at <= last]
    accesses = sum("LDL" in words or "STL" in words for _, words in code)
    return Code(
        registers=registers,
        spilled=stack + local + accesses,
        shared=compiled.metadata.shared,  # requested by the launch, so not in the machine code
        instructions=len(executed),
        multiply_adds=sum("FFMA" in word for word in executed),
    )


COLUMNS: dict[str, tuple[int, Callable[[Case, str, Code], object]]] = {
    # Title: width, and content of a cell.
    "kernel": (32, lambda case, architecture, code: case.name),
    "layer": (10, lambda case, architecture, code: case.layer),
    "arch": (6, lambda case, architecture, code: architecture),
    "regs": (4, lambda case, architecture, code: code.registers),
    "spilled": (7, lambda case, architecture, code: code.spilled),
    "shared": (6, lambda case, architecture, code: code.shared),
    "line": (4, lambda case, architecture, code: case.side_by_side),
    "instr": (5, lambda case, architecture, code: f"{code.for_each(case):.1f}"),
    "ps": (5, lambda case, architecture, code: f"{max(code.picoseconds(case)):.2f}"),
    "floor": (5, lambda case, architecture, code: f"{floor(case):.2f}"),
    "bound by": (11, lambda case, architecture, code: code.bound(case)),
}
LEGEND = """
layer: channels x side. regs: registers of a lane. spilled, shared: bytes. line: bytes that a warp reads side
by side. instr: instructions for each element. ps: predicted picoseconds for each element on an H200, at batch
256. floor: those of its memory alone, if each of the layer's tensors moved once."""


def line(cells: Sequence[object], *, markdown: bool) -> str:
    if markdown:
        return "| " + " | ".join(map(str, cells)) + " |"
    widths = [width for width, _ in COLUMNS.values()]
    texts = (f"{cell:<{width}}" if width > 7 else f"{cell:>{width}}" for cell, width in zip(cells, widths))
    return " ".join(texts).rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/audit.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--layers", choices=["typical", *NETWORKS, "all"], default="typical")
    parser.add_argument("--arch", choices=ARCHITECTURES, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--dtype", choices=BYTES, default="bf16")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    settings = parser.parse_args(argv)
    if importlib.util.find_spec("triton") is None:
        print("audit.py: error: Triton is not installed: pip install triton", file=sys.stderr)
        return 2
    networks: dict[str, tuple[Depthwise | Norm, ...]] = {
        **NETWORKS,
        "typical": TYPICAL,
        "all": tuple(layer for layers in NETWORKS.values() for layer in layers),
    }
    print(line(list(COLUMNS), markdown=settings.markdown))
    if settings.markdown:
        print(line(["---"] * len(COLUMNS), markdown=True))
    for case in cases(list(dict.fromkeys(networks[settings.layers])), settings.dtype):
        for architecture in settings.arch:
            code = compile_case(case, architecture)
            cells = [show(case, architecture, code) for _, show in COLUMNS.values()]
            print(line(cells, markdown=settings.markdown), flush=True)
    print(LEGEND)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
