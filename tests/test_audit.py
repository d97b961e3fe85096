"""What the kernels compile to, read from their machine code: no GPU is needed for that, but Triton is."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torchvision
from torch import nn

from fastcnn_kernels import audit
from fastcnn_kernels.layers import NETWORKS, Depthwise

pytest.importorskip("triton")

CASES = {case.name: case for case in audit.cases(audit.TYPICAL)}
QUICK = [name for name in CASES if "3x3" in name or "LRN" in name]


def check(name: str, architecture: str) -> None:
    case = CASES[name]
    code = audit.compile_case(case, architecture)
    registers, instructions = audit.MOST[name]
    assert (code.spilled, code.shared) == (0, 0)
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


@pytest.mark.parametrize("name", CASES)
def test_a_warp_reads_whole_lines(name):
    assert CASES[name].side_by_side % 128 == 0


@pytest.mark.parametrize(
    "layer",
    [layer for layers in NETWORKS.values() for layer in layers if isinstance(layer, Depthwise)],
    ids=str,
)
def test_lanes_of_every_network_read_whole_sectors_and_few_idle(layer):
    for case in audit.cases([layer]):
        assert case.side_by_side % 32 == 0
        assert case.useful > 0.85


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
    assert {Depthwise(d.kernel, d.stride, d.channels, d.size, n) for d, n in found.items()} == set(
        NETWORKS[name]
    )


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
    from fastcnn_kernels import _depthwise_conv_launch as launch
    from fastcnn_kernels._depthwise_conv_triton import convolve_kernel
    from fastcnn_kernels._patches import Axis

    (case,) = (case for case in audit.cases([Depthwise(3, 1, 64, 56)]) if case.name.endswith("forward"))
    axis = Axis(56, 56, 14, 3, 1, 1, False)
    constants = {**case.programs[0][1], "ROWS": axis, "COLUMNS": axis}
    assert launch.LANES == constants["LANES"]
    huge = audit.Case(**{**vars(case), "programs": ((convolve_kernel, constants),)})
    assert audit.compile_case(huge, "sm_90").spilled > 0
