"""Distributed training: ranks, the process group, the DDP wrap, and sums over all ranks.

    torchrun --nproc-per-node 2 -m fastcnn.train --arch resnet18

Without torchrun there is one rank and no process group, and every collective here is a no-op.
"""

from __future__ import annotations

import datetime
import inspect
import os
import pickle
import re
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pickle import PicklingError
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastcnn.errors import LocalError, PeerLostError, TrainingError, UserError
from fastcnn.runtime.interface import address_towards, gloo_interface
from fastcnn.runtime.peers import ARRIVAL, Peers, meet
from fastcnn.runtime.shared import map_shared, write_shared

A = TypeVar("A")
T = TypeVar("T")
PEER_TIMEOUT = 120.0
"""Default of --peer-timeout in seconds."""


@dataclass(frozen=True)
class Ranks:
    """Position of this process: `rank` of `world_size`, `local_rank` of `local_world_size` on its node."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @staticmethod
    def from_environment() -> Ranks:
        """Read the ranks from torchrun's environment variables."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return Ranks(*(int(os.environ.get(name, default)) for name, default in zip(names, (0, 1, 0, 1))))


def choose_device(device: str, ranks: Ranks) -> torch.device:
    """Return this rank's device for `auto`, `cuda`, `mps` or `cpu`; raise ValueError if it is missing."""
    if device == "auto":
        device = (
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
        if device == "mps" and ranks.world_size > 1:
            device = "cpu"
    if device == "cuda":
        if not torch.cuda.is_available():
            raise UserError("--device cuda: this torch sees no CUDA GPU; use --device cpu or auto")
        if ranks.local_world_size > torch.cuda.device_count():
            raise UserError(
                f"{ranks.local_world_size} processes on a node with {torch.cuda.device_count()} GPUs: "
                f"use torchrun --nproc-per-node {torch.cuda.device_count()}"
            )
        return torch.device("cuda", ranks.local_rank)
    if device == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("--device mps: this torch sees no Apple GPU; use --device cpu or auto")
        if ranks.world_size > 1:
            raise UserError("--device mps trains in one process: start it without torchrun")
    return torch.device(device)


@contextmanager
def process_group(
    ranks: Ranks, device: torch.device, peer_timeout: float = PEER_TIMEOUT
) -> Iterator[Peers | None]:
    """Initialize NCCL for CUDA, gloo elsewhere; keep an already initialized group.

    Args:
        peer_timeout: seconds in which a lost rank is named and the others end.

    Yields:
        The heartbeats of the ranks; None for a single rank and a group of the caller.

    Raises:
        PeerLostError: a rank is lost.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks.world_size == 1 or dist.is_initialized():
        yield None
        return
    peers = _join(ranks, device, peer_timeout)
    together = True
    try:
        yield peers
    except BaseException as error:
        # After any other error, other ranks may wait in a collective: the group ends with the process.
        together = isinstance(error, (UserError, TrainingError)) and not isinstance(error, LocalError)
        if is_collective_failure(error):
            raise peers.explain(_first_sentence(error)) from error
        raise
    finally:
        if together:
            peers.stop()
            dist.destroy_process_group()


def _join(ranks: Ranks, device: torch.device, peer_timeout: float) -> Peers:
    """Meet the other ranks, start the heartbeats and initialize the group."""
    _check_network(device)
    address = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0"))
    patience = datetime.timedelta(seconds=ARRIVAL)
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=patience))
        meeting = meet(store, rank, world_size, address=address_towards(*address))
        heartbeats = dist.TCPStore(*address, is_master=False, timeout=patience, wait_for_workers=False)
        peers = Peers(heartbeats, meeting, peer_timeout)
    except dist.DistError as error:
        where = f"{address[0]}:{address[1]}"
        raise PeerLostError(
            f"no connection to torchrun's store at {where} ({_first_sentence(error)})"
        ) from error
    peers.start()
    if device.type != "cuda" and len(set(meeting.hosts)) > 1 and "GLOO_SOCKET_IFNAME" not in os.environ:
        interface = gloo_interface(meeting.addresses, rank)
        if interface is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = interface
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            # A restart under torchrun finds the addresses of ended processes in the store.
            store=dist.PrefixStore(meeting.name, store),
            rank=rank,
            world_size=world_size,
            device_id=device if device.type == "cuda" else None,
            timeout=datetime.timedelta(minutes=30),
        )
    except RuntimeError as error:
        raise peers.explain(_first_sentence(error)) from error
    return peers


def _check_network(device: torch.device) -> None:
    """Raise UserError for what this rank's settings show, so that no other rank is blamed."""
    if device.type == "cuda" and not dist.is_nccl_available():
        raise LocalError("several ranks on GPUs need a torch with NCCL: use Linux, or one rank")
    names = os.environ.get("GLOO_SOCKET_IFNAME", "") if device.type != "cuda" else ""
    own = [name for _, name in socket.if_nameindex()]
    if not set(filter(None, names.split(","))) <= set(own):
        raise LocalError(f"GLOO_SOCKET_IFNAME={names}: no such interface here; use one of {', '.join(own)}")


def is_collective_failure(error: BaseException) -> bool:
    """Return whether a collective failed: its error comes from the network, not from this rank's work."""
    return isinstance(error, dist.DistError) or (
        type(error) is RuntimeError and any(word in str(error) for word in ("gloo/transport", "NCCL"))
    )


def _first_sentence(error: BaseException) -> str:
    """Return the first sentence of an error of torch, without the place in torch's code."""
    first, _, cause = str(error).partition("Last error:")  # NCCL's, with the reason at its end
    text = cause.strip() or first
    return re.sub(r"^\[[^\]]*\] ", "", text.splitlines()[0]).partition(". ")[0]


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def data_parallel(
    model: nn.Module, device: torch.device, bucket_cap_mb: int | None
) -> DistributedDataParallel:
    """Wrap a model in DDP. Buffers stay local in steps and are averaged over ranks before each validation.

    Gradients are set to None after each step. DDP then copies them into its buckets all the same, at once for
    a bucket where this torch can; as views of the buckets they are not copied back.
    """
    names = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # torch 2.14
    settings: dict[str, Any] = {
        buffers: False,
        "gradient_as_bucket_view": True,
        "bucket_cap_mb": bucket_cap_mb,
    }
    if "batched_grad_copy" in names:  # of newer torch
        settings["batched_grad_copy"] = True
    return DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, **settings
    )


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum `tensor` over all ranks, in place."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


def sum_over_ranks(counts: list[int], device: torch.device) -> list[int]:
    """Return each count summed over all ranks. All ranks must call it; it waits for the device."""
    if not is_distributed():
        return counts
    return all_reduce_sum(torch.tensor(counts, dtype=torch.int64, device=device)).tolist()


def any_rank(flag: bool, device: torch.device) -> bool:  # noqa: FBT001 - a value, not a mode
    """Return whether `flag` is set on any rank. All ranks must call it; it waits for the device."""
    return sum_over_ranks([int(flag)], device) != [0]


def from_main(compute: Callable[[], T]) -> T:
    """Return `compute()` of rank 0 on every rank; its UserError is raised on every rank too."""
    if not is_distributed():
        return compute()
    box: list[object] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = compute()
        except UserError as error:
            box[1] = error.shared()
    dist.broadcast_object_list(box, src=0)
    if isinstance(box[1], UserError):
        raise box[1]
    return box[0]  # type: ignore[return-value]


class RemoteError(RuntimeError):
    """Traceback of an error on rank 0, as the cause of the same error on another rank."""


def call_on_main(function: Callable[[A], object], argument: A) -> bool:
    """Return whether `function(argument)` is true on rank 0, on every rank. All ranks call it.

    An Exception of it is raised on every rank, with rank 0's traceback; one that cannot be pickled is a
    RuntimeError on the others.
    """
    if not is_distributed():
        return bool(function(argument))
    outcome: tuple[bool, bytes, str] = False, b"", ""
    error: Exception | None = None
    if dist.get_rank() == 0:
        try:
            outcome = bool(function(argument)), b"", ""
        except Exception as caught:
            error = caught
            outcome = False, _pickled(caught), traceback.format_exc()
    box = [outcome]
    dist.broadcast_object_list(box, src=0)
    answer, pickled, text = box[0]
    if error is not None:
        raise error
    if text:
        cause = RemoteError(f"on rank 0:\n{text}")
        raise (pickle.loads(pickled) if pickled else RuntimeError(text.splitlines()[-1])) from cause
    return answer


def _pickled(error: Exception) -> bytes:
    """Return an exception's bytes; b"" if it does not survive them."""
    try:
        content = pickle.dumps(error)
        return content if isinstance(pickle.loads(content), Exception) else b""
    except Exception:
        return b""


def on_main(work: Callable[[], object], device: torch.device) -> None:
    """Call `work` on rank 0; its UserError is raised on every rank too. All ranks call it.

    Without an error it costs one number of communication; it waits for the device.
    """
    if not is_distributed():
        work()
        return
    mistake: UserError | None = None
    if dist.get_rank() == 0:
        try:
            work()
        except UserError as error:
            mistake = error.shared()
    if any_rank(mistake is not None, device):
        _raise_together(mistake)


def local_main_first(compute: Callable[[], T], ranks: Ranks) -> T:
    """Return `compute()` of every rank; it may fill a cache that the ranks of a node share.

    Rank 0 runs first, then the first rank of each node, then the others. A UserError on any rank is raised on
    all.
    """
    value: T | None = None
    mistake: UserError | None = None
    turn = 0 if ranks.is_main else 1 if ranks.local_rank == 0 else 2
    for now in range(3):
        if turn == now:
            try:
                value = compute()
            except UserError as error:
                mistake = error.shared()
        wait_for_all()
    _raise_together(mistake)
    return value  # type: ignore[return-value]


def read_once_per_node(compute: Callable[[], T], ranks: Ranks) -> T:
    """Return `compute()` of the first rank of each node, whose arrays its other ranks map from a file.

    Rank 0 runs before the other nodes: they may share a cache. A UserError on any rank is raised on all.
    """
    first = ranks.local_rank == 0
    value = local_main_first(lambda: compute() if first else None, ranks)
    path: str | None = None
    if first and ranks.local_world_size > 1:
        with suppress(OSError, TypeError, AttributeError, PicklingError):  # else each rank computes
            path = write_shared(value)
    path = gather_to_all(path)[ranks.rank - ranks.local_rank]

    def obtain() -> T:
        if first:
            return value  # type: ignore[return-value]
        return compute() if path is None else map_shared(path)

    try:
        return on_every_rank(obtain)
    finally:
        if first and path is not None:
            os.remove(path)


def on_every_rank(compute: Callable[[], T]) -> T:
    """Return `compute()` of every rank; a UserError on any rank is raised on all."""
    value: T | None = None
    mistake: UserError | None = None
    try:
        value = compute()
    except UserError as error:
        mistake = error.shared()
    _raise_together(mistake)
    return value  # type: ignore[return-value]


def _raise_together(mistake: UserError | None) -> None:
    for error in gather_to_all(mistake):
        if error is not None:
            raise error


def gather_to_main(value: T) -> list[T]:
    """Return the values of all ranks, in rank order, on rank 0; an empty list elsewhere."""
    if not is_distributed():
        return [value]
    values: list[T] | None = [value] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values, dst=0)
    return values or []


def gather_to_all(value: T) -> list[T]:
    """Return the values of all ranks, in rank order, on every rank."""
    if not is_distributed():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def barrier() -> None:
    if is_distributed():
        dist.barrier()


def wait_for_all() -> None:
    """Wait until all ranks are here, without a time limit: one may read the headers of millions of images.

    A collective would end at the group's limit, and Ctrl-C would wait for it. This one asks the store.
    """
    if not is_distributed():
        return
    store = dist.distributed_c10d._get_default_store()
    number = store.add(f"fastcnn/wait/{dist.get_rank()}", 1)
    key, seconds = f"fastcnn/arrived/{number}", 0.01
    if store.add(key, 1) == dist.get_world_size():
        store.set(f"{key}/all", "")
    while not store.check([f"{key}/all"]):
        time.sleep(seconds)
        seconds = min(1.0, 1.5 * seconds)


@torch.no_grad()
def average_buffers(model: nn.Module, fixed: Sequence[Tensor] = ()) -> None:
    """Average floating-point buffers (batch norm statistics) over all ranks, in one message.

    Args:
        fixed: buffers that are equal on all ranks; they stay bitwise unchanged.
    """
    excluded = {id(buffer) for buffer in fixed}
    buffers = [b for b in model.buffers() if b.is_floating_point() and id(b) not in excluded]
    if not is_distributed() or not buffers:
        return
    flat = torch.cat([b.flatten().float() for b in buffers])
    all_reduce_sum(flat).div_(dist.get_world_size())
    for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers])):
        buffer.copy_(mean.view_as(buffer))
