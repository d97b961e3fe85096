"""The largest batch that fits, on a device that pretends to have so much memory."""

from __future__ import annotations

import dataclasses

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from fastcnn.config import Config
from fastcnn.errors import UserError
from fastcnn.models import build
from fastcnn.runtime.distributed import Ranks
from fastcnn.setup import batch_size
from fastcnn.setup.batch_size import MULTIPLE, find_batch_size, is_too_many, largest_that_fits
from fastcnn.setup.shape_check import check_shapes


class Memory:
    """Fits batches up to a size; of each that did not, some memory stays in pieces."""

    def __init__(self, room: int, lost: int = 0) -> None:
        self.room, self.lost = room, lost
        self.tried: list[int] = []
        self.error: Exception = torch.OutOfMemoryError()

    def fits(self, size: int) -> bool:
        self.tried.append(size)
        assert len(self.tried) < 1000, "the search does not end"
        if size <= self.room:
            return True
        self.room -= self.lost
        return False


@given(room=st.integers(0, 5000), cap=st.integers(1, 4096))
def test_the_result_fits_and_the_next_larger_one_does_not(room, cap):
    check(room, cap)


def test_so_it_is_for_every_small_cap():
    for cap in range(1, 100):
        for room in range(cap + 1):
            check(room, cap)


def check(room: int, cap: int) -> None:
    memory = Memory(room)
    found = largest_that_fits(memory.fits, cap)
    assert found <= min(room, cap)
    assert found == cap or found + (MULTIPLE if found >= MULTIPLE else 1) > room
    assert found < MULTIPLE or found % MULTIPLE == 0 or found == cap
    assert len(memory.tried) <= 3 + 2 * cap.bit_length()


@given(room=st.integers(0, 3000), cap=st.integers(1, 2048), lost=st.integers(0, 40))
def test_it_fits_though_failures_leave_the_memory_in_pieces(room, cap, lost):
    memory = Memory(room, lost)
    assert largest_that_fits(memory.fits, cap) <= max(memory.room, 0)


def test_the_cap_is_tried_first_and_alone_where_it_fits():
    memory = Memory(1000)
    assert largest_that_fits(memory.fits, 256) == 256
    assert memory.tried == [256]


SETTINGS = Config(
    arch="lenet5", num_classes=10, in_chans=3, img_size=32, val_img_size=32, amp_dtype="fp32",
    channels_last="on", compile="off",
)  # fmt: skip


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """A CUDA device that is the CPU, and runs out of memory for more images than it has room for."""
    memory = Memory(100)
    real = batch_size.random_images

    def images(shape: tuple[int, int, int, int], device: torch.device) -> torch.Tensor:
        count, channels, height, width = shape
        if not memory.fits(count):
            raise memory.error
        return real((min(count, 2), channels, height, width), device)

    monkeypatch.setattr(batch_size, "random_images", images)
    monkeypatch.setattr(batch_size.gc, "collect", lambda: 0)  # a second each, in a process of many tests
    for name, value in {
        "mem_get_info": (10**9, 10**9),
        "memory_reserved": 0,
        "get_per_process_memory_fraction": 1.0,
        "reset_peak_memory_stats": None,
        "max_memory_reserved": 1,
        "empty_cache": None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
    return memory


def network() -> nn.Module:
    return build("lenet5", 10, in_chans=3)


@pytest.mark.parametrize(("room", "expected"), [(100, 96), (1, 1), (5, 5), (500, 300)])
def test_a_device_that_runs_out_of_memory_gets_what_fits(pretended, room, expected):
    pretended.room = room
    assert find_batch_size(network, SETTINGS, 300, torch.device("cpu"), Ranks()) == expected


def test_batch_norm_that_refuses_one_image_leaves_the_message_to_the_check_of_shapes(pretended):
    pretended.room = 1
    config = dataclasses.replace(SETTINGS, arch="resnet18")
    found = find_batch_size(lambda: build("resnet18", 10), config, 300, torch.device("cpu"), Ranks())
    assert found == 1
    with pytest.raises(UserError, match="^--batch-size 1: batch norm"):
        check_shapes(build("resnet18", 10), dataclasses.replace(config, batch_size=found))


NO_ALGORITHM = "Unable to find a valid cuDNN algorithm to run convolution"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR: the device is out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError(NO_ALGORITHM),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
    ],
    ids=str,
)
def test_libraries_run_out_of_memory_in_their_own_words(error):
    assert is_too_many(2, error)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (2, "CUDA error: an illegal memory access was encountered"),
        (2, "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
        (2, "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
        (2, "shape '[4, 8]' is invalid for input of size 30"),
        (1, NO_ALGORITHM),
    ],
)
def test_other_errors_are_not_taken_for_too_many_images(size, text):
    assert not is_too_many(size, RuntimeError(text))


def test_a_library_that_runs_out_of_memory_is_tried_with_less(pretended):
    pretended.error = RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
    assert find_batch_size(network, SETTINGS, 300, torch.device("cpu"), Ranks()) == 96


def test_any_other_error_is_raised(pretended):
    pretended.error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        find_batch_size(network, SETTINGS, 300, torch.device("cpu"), Ranks())


def test_what_is_kept_in_reserve_is_not_taken(pretended, monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 10**7 * pretended.tried[-1])
    assert (
        find_batch_size(network, SETTINGS, 300, torch.device("cpu"), Ranks()) == 88
    )  # 90% of the memory is 90 images'


def test_not_one_image_is_one_clear_line(pretended, wording):
    pretended.room = 0
    with pytest.raises(UserError, match="^--batch-size max:") as caught:
        find_batch_size(
            network, dataclasses.replace(SETTINGS, batch_size="max"), 8, torch.device("cpu"), Ranks()
        )
    wording(caught.value)


def test_max_needs_a_gpu(train, demo, capsys, wording):
    assert train("--arch", "lenet5", "--data", demo, "--batch-size", "max", "--device", "cpu") == 2
    error = capsys.readouterr().err
    assert "--batch-size max: " in error
    assert error.count("\n") == 1
    wording(error)


@pytest.mark.gpu
@pytest.mark.parametrize("size", ["auto", "max"])
def test_on_a_small_gpu_nothing_runs_out_of_memory(train, demo, size):
    """6% of the device, such as 4.7 GiB of 80: less than 256 images of 224 px take."""
    torch.cuda.set_per_process_memory_fraction(0.06)
    try:
        flags = (
            "--arch",
            "resnet50",
            "--img-size",
            "224",
            "--data",
            demo,
            "--epochs",
            "1",
            "--data-backend",
            "torch",
        )
        assert train(*flags, "--batch-size", size, "--compile", "off", "--device", "cuda") == 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
