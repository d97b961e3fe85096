"""What the kernels compile to, read from their machine code: no GPU is needed for that, but Triton is."""

from __future__ import annotations

import importlib
from collections import Counter

import pytest
import torch
import torchvision
from torch import nn

import audit
from fastcnn_kernels.layers import NETWORKS, Depthwise

pytest.importorskip("triton")

from fastcnn_kernels._patches import MOST_PIXELS, cut

CASES = {case.name: case for case in audit.cases(audit.TYPICAL)}
QUICK = [name for name in CASES if "3x3 s1" in name or "LRN" in name]


def check(name: str, architecture: str) -> None:
    case = CASES[name]
    code = audit.compile_case(case, architecture)
    registers, instructions = audit.MOST[name]
    assert code.spilled == 0
    assert code.shared == (128 if name.endswith("partial sums") else 0)  # which four warps add together
    assert code.registers <= registers
    assert code.for_each(case) <= instructions


def test_each_kernel_has_a_bound():
    assert set(audit.MOST) == set(CASES)


@pytest.mark.parametrize("name", QUICK)
def test_the_small_kernels_spill_nothing_and_keep_to_their_bounds(name):
    check(name, "sm_90")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", audit.ARCHITECTURES)
@pytest.mark.parametrize("name", CASES)
def test_no_kernel_spills_and_each_keeps_to_its_bounds(name, architecture):
    check(name, architecture)


@pytest.mark.parametrize("name", [name for name in CASES if not name.endswith("taps")])
def test_a_warp_reads_whole_lines(name):
    # The partial sums of 8 channels lie together: programs must be many, and they read whole sectors.
    assert CASES[name].side_by_side % (32 if name.endswith("partial sums") else 128) == 0


@pytest.mark.parametrize(
    "layer",
    [layer for layers in NETWORKS.values() for layer in layers if isinstance(layer, Depthwise)],
    ids=str,
)
def test_lanes_of_every_network_read_whole_sectors_and_few_idle(layer):
    for case in audit.depthwise_cases(layer, "bf16"):
        assert case.side_by_side % 32 == 0
        assert case.useful > 0.85


@pytest.mark.parametrize(
    ("module", "kernel", "numbers"),
    [
        ("_depthwise_conv_triton", "convolve_kernel", {"batch"}),
        ("_depthwise_conv_triton", "correlate_kernel", {"batch", "splits"}),
        ("_depthwise_conv_triton", "reduce_kernel", {"count"}),
        ("_lrn_triton", "forward_kernel", {"lanes"}),
        ("_lrn_triton", "backward_kernel", {"lanes"}),
    ],
)
def test_one_program_serves_all_batches(module, kernel, numbers):
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    kernel, other = getattr(importlib.import_module(f"fastcnn_kernels.{module}"), kernel), torch.empty(1)
    bind = create_function_from_signature(
        kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32))
    )

    def compiled_for(number: int) -> object:
        return bind(*(number if name in numbers else other for name in kernel.arg_names))[1]

    assert compiled_for(1) == compiled_for(16) == compiled_for(17)


def test_the_partial_sums_of_a_weights_gradient_count_as_what_memory_moves(monkeypatch):
    from fastcnn_kernels import depthwise_conv_launch as launch

    buffers = []
    monkeypatch.setattr(launch.Launch, "run", lambda self, grid, *arguments: buffers.append(arguments))
    x = torch.empty(audit.BATCH, 192, 56, 56, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(192, 1, 3, 3, device="meta")
    launch.weight_grad(x, x, weight, None, stride=(1, 1), padding=(1, 1))
    (_, _, partial, *_), (read, *_) = buffers
    assert read is partial
    case = CASES["depthwise 3x3 s1 weight gradient"]
    assert case.more_bytes == pytest.approx(2 * partial.nbytes / x.numel())
    instant = audit.Code(registers=32, spilled=0, shared=0, instructions=0, multiply_adds=0)
    instructions, memory = instant.picoseconds(case)
    assert instructions == 0
    assert memory > audit.floor(case)
    assert instant.bound(case) == "memory"


def test_a_weights_gradient_in_two_programs_reads_its_tensors_twice():
    case = CASES["depthwise 7x7 s2 weight gradient"]
    assert len(case.programs) == 2
    assert case.more_bytes > case.bytes


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0", "convnext_tiny"])
def test_the_layers_are_those_of_torchvisions_networks(name):
    found: Counter[Depthwise] = Counter()

    def record(layer: nn.Conv2d, inputs: tuple[torch.Tensor]) -> None:
        size = inputs[0].shape[2]
        found[Depthwise(layer.kernel_size[0], layer.stride[0], layer.in_channels, size)] += 1

    with torch.device("meta"):
        network = getattr(torchvision.models, name)().eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.register_forward_pre_hook(record)
    network(torch.empty(1, 3, 224, 224, device="meta"))
    assert {Depthwise(d.kernel, d.stride, d.channels, d.size, count=n) for d, n in found.items()} == set(
        NETWORKS[name]
    )


@pytest.mark.slow
def test_the_command_prints_a_table(capsys):
    assert audit.main(["--layers", "alexnet", "--arch", "sm_90"]) == 0
    title, *rows = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert title.split() == [*audit.COLUMNS][:-1] + ["bound", "by"]
    assert len(rows) == 2 * len(NETWORKS["alexnet"])
    assert all(len(row) <= 110 for row in rows)
    assert all(row.split()[-1] == "memory" for row in rows)  # its LRN is bound by memory


@pytest.mark.slow
def test_spills_are_seen():
    # A patch of 196 outputs in two channels, which registers cannot hold.
    from fastcnn_kernels import depthwise_conv_launch as launch
    from fastcnn_kernels._depthwise_conv_triton import convolve_kernel
    from fastcnn_kernels._patches import Axis

    (case,) = (case for case in audit.cases([Depthwise(3, 1, 64, 56)]) if case.name.endswith("forward"))
    axis = Axis(patched=56, windowed=56, patch=14, kernel=3, stride=1, padding=1, transposed=False)
    constants = {**case.programs[0][1], "ROWS": axis, "COLUMNS": axis}
    assert launch.LANES == constants["LANES"]
    huge = audit.Case(**{**vars(case), "programs": ((convolve_kernel, constants),)})
    assert audit.compile_case(huge, "sm_90").spilled > 0


@pytest.mark.parametrize("key", MOST_PIXELS)
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 2)])
def test_no_patch_is_one_element_however_small_the_map(key, size):
    kind, kernel, stride = key
    rows, columns = cut(kind, size, size, kernel=kernel, stride=stride, padding=(kernel // 2, kernel // 2))
    assert rows.patch * columns.patch > 1
