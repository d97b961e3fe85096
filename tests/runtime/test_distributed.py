"""Two gloo processes equal one."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

import worker_two_ranks
from fastcnn.errors import UserError
from fastcnn.runtime import distributed
from fastcnn.runtime.distributed import Ranks, choose_device
from ranks import run_ranks
from worker_two_ranks import train


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    return run_ranks(worker_two_ranks.results)


KINDS = ["lenet5", "lenet5 accumulated", "lenet5 unfrozen", "resnet20"]
KINDS += ["unet/lenet5", "yolo/lenet5", "yolo/lenet5 accumulated"]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_whose_pixels_and_boxes_are_as_many_train_like_one(results, kind):
    one = train(kind.split()[0], rank=0, world_size=1, unfreeze_at=2 if "unfrozen" in kind else None)
    assert isinstance(one["parameters"], dict)
    for name, parameter in one["parameters"].items():
        first, second = (result[kind]["parameters"][name] for result in results)
        assert torch.equal(first, second)
        assert (first - parameter).norm() <= 1e-3 * parameter.norm().clamp(min=1e-3), name
    for result in results:
        assert result[kind]["metrics"] == pytest.approx(one["metrics"], rel=1e-3)


def test_buckets_are_torchs_own_or_as_told_also_after_unfreezing(results):
    assert [result["lenet5"]["bucket bytes"] for result in results] == [25 * 2**20] * 2
    assert [result["lenet5 unfrozen"]["bucket bytes"] for result in results] == [3 * 2**20] * 2


@pytest.mark.parametrize("newer", [True, False], ids=["newer torch", "older torch"])
def test_gradients_are_copied_into_buckets_at_once_where_torch_can(monkeypatch, newer):
    given: dict[str, Any] = {}

    def older(module, device_ids, bucket_cap_mb, broadcast_buffers, gradient_as_bucket_view):
        given.update(gradient_as_bucket_view=gradient_as_bucket_view)

    def newest(
        module, device_ids, bucket_cap_mb, forward_sync_buffers, gradient_as_bucket_view, batched_grad_copy
    ):
        given.update(gradient_as_bucket_view=gradient_as_bucket_view, batched_grad_copy=batched_grad_copy)

    monkeypatch.setattr(distributed, "DistributedDataParallel", newest if newer else older)
    distributed.data_parallel(torch.nn.Linear(1, 1), torch.device("cpu"), None)
    assert given == {"gradient_as_bucket_view": True, **({"batched_grad_copy": True} if newer else {})}


def test_a_nan_on_one_rank_stops_updates_on_all(results):
    for result in results:
        assert "step 2" in result["spoiled"]["error"]
    assert all(torch.isfinite(p).all() for p in results[0]["spoiled"]["parameters"].values())


def test_ranks_agree(results):
    assert [result["any"] for result in results] == [[True, False]] * 2
    assert [result["from main"] for result in results] == ["rank 0"] * 2
    assert [result["gathered"] for result in results] == [[0, 1], []]
    assert [result["mistake"] for result in results] == ["rank 1 has no such folder"] * 2
    assert [result["mean"].tolist() for result in results] == [[1.5, 2.5]] * 2
    assert [result["fixed"].tolist() for result in results] == [[1.0, 2.0], [2.0, 3.0]]
    assert [result["backend"] for result in results] == ["gloo"] * 2


def test_the_first_rank_reads_and_the_other_maps_its_arrays(results):
    assert [result["read once"]["calls"] for result in results] == [1, 0]
    if sys.platform.startswith("linux"):
        first, second = (result["read once"]["maps"] for result in results)
        assert first == []
        assert len(second) == 1
        assert second[0].endswith("(deleted)")
    for rank, result in enumerate(results):
        found = result["read once"]["found"]
        assert found["rank"] == 0
        assert found["array"].tolist() == [7 + rank, *range(1, 100_000)]
        assert found["turned"].tolist() == [[1, 0], [0, 0], [0, 1]]


def test_what_cannot_be_written_is_read_by_each_rank(results):
    assert [result["read by each"]["calls"] for result in results] == [1, 1]
    assert [result["read by each"]["found"]["rank"] for result in results] == [0, 1]


def test_each_rank_mixes_its_batches_in_its_own_way(results):
    first, second = (result["mixes"] for result in results)
    shares = [mix[-1] for mix in (*first, *second)]
    assert len(set(shares)) == 8
    assert all(0 < share < 1 for share in shares)


def test_ranks_come_from_torchruns_environment(monkeypatch):
    assert Ranks.from_environment() == Ranks(0, 1, 0, 1)
    names = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert Ranks.from_environment() == Ranks(5, 8, 1, 4)


def test_an_interface_that_is_not_there_is_named_and_no_rank_is_blamed(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nope0")
    with pytest.raises(UserError, match="GLOO_SOCKET_IFNAME=nope0: no such interface here; use one of .*lo"):
        distributed._check_network(torch.device("cpu"))
    nccl = "NCCL error in: NCCLUtils.cpp:94, unhandled system error\nLast error:\nNo space left on device"
    assert distributed._first_sentence(RuntimeError(nccl)) == "No space left on device"


def test_a_device_that_is_not_there_says_what_to_write(monkeypatch, wording):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto", Ranks()) == torch.device("cpu")
    for device in ("cuda", "mps"):
        with pytest.raises(ValueError, match=f"^--device {device}: ") as caught:
            choose_device(device, Ranks())
        wording(caught.value)


def test_more_processes_than_gpus_says_what_to_write(monkeypatch, wording):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto", Ranks(1, 2, 1, 2)) == torch.device("cuda", 1)
    with pytest.raises(ValueError) as caught:
        choose_device("cuda", Ranks(2, 3, 2, 3))
    wording(caught.value)


@pytest.mark.slow
def test_a_rank_that_reads_for_longer_than_a_collective_may_take_is_waited_for():
    """The first scan of millions of images took longer than the group's limit of 30 minutes."""
    assert run_ranks(worker_two_ranks.read_slowly, 1.5, 0.5) == [[0, 0], [1, 1]]
