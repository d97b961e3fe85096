"""The ranks of a run as peers: they meet at the start, and notice when one of them is lost.

All of it goes through the key-value store of the process group, on a connection of its own: it works for NCCL
and gloo alike, and a training step does nothing for it.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch.distributed as dist

from fastcnn.errors import RESUMABLE, PeerLostError

ARRIVAL = 600.0
"""Max seconds until all ranks have imported torch and met."""
NAMED_AFTER = 0.5
"""Silence after which a rank is lost, as a fraction of --peer-timeout; the rest is for a save."""
LONGEST_PERIOD = 1.0
"""Max seconds between two heartbeats."""
GRACE = 5.0
"""Seconds in which a rank may reach the end of its step and save, before its process ends."""
NAMED_RANKS = 8
"""Max ranks in a message."""
SHARED = "fastcnn/start"
"""Key of the newest name."""
LEFT = "left"
"""Last heartbeat of a rank that has ended in an orderly way."""


@dataclass(frozen=True)
class Meeting:
    """The ranks of one start of the run."""

    name: str
    """Prefix of the keys of this start. A restart under torchrun finds the former one's keys in the store."""
    rank: int
    hosts: tuple[str, ...]
    """Host name of each rank."""
    addresses: tuple[str, ...] = ()
    """Address of each rank on the way to the store."""


def meet(
    store: dist.Store, rank: int, world_size: int, *, address: str = "", timeout: float = ARRIVAL
) -> Meeting:
    """Wait for all ranks, and agree on a name for this start of the run.

    torchrun's store outlives its workers, and restart counts differ between nodes that joined at different
    times. So rank 0 draws a name, each rank signs in under it, and rank 0 lists the signatures. A list
    without the own signature belongs to a former start.

    Raises:
        PeerLostError: ranks did not arrive in `timeout` seconds; the message names them.
    """
    own = json.dumps([secrets.token_hex(8), socket.gethostname(), address])
    wait = _Wait(timeout)
    signed = _gather(store, own, world_size, wait) if rank == 0 else _sign(store, own, rank, wait)
    name, signatures = signed
    _, hosts, addresses = zip(*map(json.loads, signatures))
    return Meeting(name, rank, hosts, addresses)


def _gather(store: dist.Store, own: str, world_size: int, wait: _Wait) -> tuple[str, list[str]]:
    """Draw a name, and list the signatures of all ranks under it, on rank 0."""
    name = secrets.token_hex(8)
    store.set(_beat(name, 0), "")
    store.set(_lost(name), "")
    store.set(SHARED, name)
    signed = {0: own}
    while absent := [rank for rank in range(world_size) if rank not in signed]:
        for rank in absent:
            if store.check([f"{name}/{rank}"]):
                signed[rank] = store.get(f"{name}/{rank}").decode()
        if len(signed) < world_size:
            wait(absent)
    everyone = [signed[rank] for rank in range(world_size)]
    store.set(f"{name}/all", json.dumps(everyone))
    return name, everyone


def _sign(store: dist.Store, own: str, rank: int, wait: _Wait) -> tuple[str, list[str]]:
    """Sign in under the newest name until rank 0 lists the signature."""
    signed = ""
    while True:
        if store.check([SHARED]):
            name = store.get(SHARED).decode()
            if name != signed:
                store.set(_beat(name, rank), "")
                store.set(f"{name}/{rank}", own)
                signed = name
            if store.check([f"{name}/all"]):
                everyone = json.loads(store.get(f"{name}/all"))
                if own in everyone:
                    return name, everyone
        wait([0])


class _Wait:
    """Growing waits until a deadline."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout
        self.seconds = 0.005

    def __call__(self, absent: Sequence[int]) -> None:
        """Wait; raise PeerLostError after the deadline."""
        if time.monotonic() > self.deadline:
            raise PeerLostError(f"{_described(absent)} not started within {self.timeout:.0f} s")
        time.sleep(self.seconds)
        self.seconds = min(2 * self.seconds, 0.2)


class Peers:
    """Heartbeats of the ranks. Rank 0 watches all others, and each of them watches rank 0.

    Two threads: one exchanges heartbeats through the store, where a broken link may hold it up for many
    minutes; the other one judges by what was heard. After the loss of a rank it ends the process, since the
    main thread may wait in a collective for as long. A rank that calls `check` outside of collectives can
    save before.

    Args:
        store: a connection of its own to the store of the group.
        timeout: seconds in which a lost rank is named and this process ends.
    """

    def __init__(self, store: dist.Store, meeting: Meeting, timeout: float) -> None:
        self._store = store
        self._meeting = meeting
        self._period = min(LONGEST_PERIOD, timeout / 60)
        self._limit = NAMED_AFTER * timeout
        watched = range(1, len(meeting.hosts)) if meeting.rank == 0 else [0]
        self._heard = dict.fromkeys(watched, time.monotonic())
        self._beats: dict[int, bytes] = {}
        self._lost: str | None = None
        self._saving = False
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=f"fastcnn{work.__name__}", daemon=True)
            for work in (self._exchange, self._judge)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take leave of the other ranks, which may work on."""
        self._end.set()
        for thread in self._threads:
            thread.join(self._period)

    def check(self) -> None:
        """Raise PeerLostError if a rank is lost. The process has the rest of the timeout to save and end."""
        if self._lost is not None:
            self._saving = True
            raise PeerLostError(self._lost)

    def explain(self, failure: str) -> PeerLostError:
        """Return the error for a failed collective; it names the lost rank if that is found in seconds."""
        self._saving = True
        failed = time.monotonic()
        while self._lost is None and time.monotonic() < failed + 6 * self._period:
            time.sleep(self._period / 4)
            if time.monotonic() > failed + 4.5 * self._period:  # time for two beats of a living rank
                self._find_lost("ended or become unreachable", failed + 1.5 * self._period)
        time.sleep(1.5 * self._period)  # rank 0 passes on what it has found
        return PeerLostError(self._lost or f"another rank has ended or become unreachable ({failure})")

    def _exchange(self) -> None:
        name, rank = self._meeting.name, self._meeting.rank
        beats = 0
        with suppress(RuntimeError):  # the store has ended: from here on a silence, for `_judge`
            while not self._end.wait(self._period):
                beats += 1
                self._store.set(_beat(name, rank), str(beats))
                if rank == 0 and self._lost is not None:
                    self._store.set(_lost(name), self._lost)
                watched = list(self._heard)
                lost, *values = self._store.multi_get([_lost(name), *(_beat(name, w) for w in watched)])
                self._hear(dict(zip(watched, values)))
                if lost and self._lost is None:
                    self._lost = lost.decode()
            self._store.set(_beat(name, rank), LEFT)

    def _hear(self, beats: dict[int, bytes]) -> None:
        now = time.monotonic()
        new = {rank: now for rank, beat in beats.items() if beat != self._beats.get(rank)}
        self._beats = beats
        heard = {**self._heard, **new}
        self._heard = {rank: at for rank, at in heard.items() if beats[rank] != LEFT.encode()}

    def _judge(self) -> None:
        before = time.monotonic()
        while self._lost is None:
            if self._end.wait(self._period):
                return
            now = time.monotonic()
            if now - before > self._limit / 2:  # this process was suspended, and could not hear anything
                self._heard = dict.fromkeys(self._heard, now)
            before = now
            self._find_lost(f"not answered for {self._limit:.0f} s", now - self._limit)
        if self._end.wait(min(GRACE, self._limit / 2)) or (self._saving and self._end.wait(self._limit / 2)):
            return
        if os.environ.get("LOCAL_RANK", "0") == "0":
            os.write(2, f"fastcnn: error: {PeerLostError(self._lost)}\n".encode())
        os._exit(RESUMABLE)

    def _find_lost(self, what: str, since: float) -> None:
        """Set the lost ranks: those unheard since a time."""
        silent = [rank for rank, heard in self._heard.items() if heard < since]
        if silent and self._lost is None:
            self._lost = f"{_described(silent, self._meeting.hosts)} {what}"


def _beat(name: str, rank: int) -> str:
    return f"{name}/beat/{rank}"


def _lost(name: str) -> str:
    return f"{name}/lost"


def _described(ranks: Sequence[int], hosts: Sequence[str] = ()) -> str:
    """Begin a sentence about ranks: "rank 3 on HOST has"; names the first of many."""
    names = [f"rank {rank} on {hosts[rank]}" if hosts else f"rank {rank}" for rank in ranks[:NAMED_RANKS]]
    more = f" and {len(ranks) - NAMED_RANKS} more" if len(ranks) > NAMED_RANKS else ""
    return ", ".join(names) + more + (" has" if len(ranks) == 1 else " have")
