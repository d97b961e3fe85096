"""Ranks meet under a new name at each start, and a lost one is named."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from fastcnn.errors import RESUMABLE, PeerLostError
from fastcnn.runtime import peers
from fastcnn.runtime.peers import Meeting, Peers, meet

HOSTS = ("a", "b", "c")
TIMEOUT = 1.2
"""Seconds of --peer-timeout; the period between heartbeats is 20 ms."""


def meet_all(store: dist.Store, world_size: int) -> list[Meeting]:
    """Return the meeting of each rank. The others are there before rank 0 is."""
    with ThreadPoolExecutor(world_size) as pool:
        others = [pool.submit(meet, store, rank, world_size) for rank in range(1, world_size)]
        time.sleep(0.05)
        return [meet(store, 0, world_size), *(other.result() for other in others)]


def test_a_restart_meets_under_a_new_name_in_the_store_of_the_former_start():
    store = dist.HashStore()
    names = set()
    for world_size in (3, 3, 2):  # the last one without a node
        meetings = meet_all(store, world_size)
        assert len({meeting.name for meeting in meetings}) == 1
        assert [meeting.rank for meeting in meetings] == [*range(world_size)]
        assert meetings[0].hosts == (socket.gethostname(),) * world_size
        names.add(meetings[0].name)
    assert len(names) == 3


def test_ranks_that_do_not_start_are_named(wording):
    for rank in (0, 1):
        with pytest.raises(PeerLostError) as caught:
            meet(dist.HashStore(), rank, 3, timeout=0.1)
        wording(str(caught.value).replace("0 s", "600 s"))


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Statuses with which processes would have ended."""
    statuses: list[int] = []
    monkeypatch.setattr(peers.os, "_exit", statuses.append)
    return statuses


class Link:
    """A store behind a link that can be cut: calls then wait, as those of TCP do."""

    def __init__(self, store: dist.Store) -> None:
        self.store = store
        self.up = threading.Event()
        self.up.set()

    def __getattr__(self, name):
        self.up.wait()
        return getattr(self.store, name)


def start(world_size: int = 3) -> tuple[list[Peers], list[Link]]:
    store = dist.HashStore()
    for rank in range(world_size):
        store.set(f"name/beat/{rank}", "")
    store.set("name/lost", "")
    links = [Link(store) for _ in range(world_size)]
    all_peers = [
        Peers(link, Meeting("name", rank, HOSTS[:world_size]), TIMEOUT)  # type: ignore[arg-type]
        for rank, link in enumerate(links)
    ]
    for each in all_peers:
        each.start()
    return all_peers, links


def stop(all_peers: list[Peers], links: list[Link]) -> None:
    for link, each in zip(links, all_peers):
        link.up.set()
        each.stop()


def test_living_ranks_and_those_that_have_left_are_not_lost(exits):
    all_peers, links = start()
    time.sleep(0.7 * TIMEOUT)
    all_peers[1].stop()  # it had less to do
    time.sleep(0.7 * TIMEOUT)
    for each in all_peers:
        each.check()
    stop(all_peers, links)
    assert exits == []


def test_both_sides_of_a_cut_link_name_the_other_and_end_in_time(exits, capfd, wording):
    all_peers, links = start()
    links[2].up.clear()
    begin = time.monotonic()
    while len(exits) < 3:
        time.sleep(0.01)
    assert peers.NAMED_AFTER * TIMEOUT < time.monotonic() - begin < TIMEOUT
    assert exits == [RESUMABLE] * 3
    messages = []
    for each in all_peers:
        with pytest.raises(PeerLostError) as caught:
            each.check()
        messages.append(str(caught.value).replace("for 1 s", "for 60 s"))
    assert messages[0] == messages[1]  # rank 1 hears it from rank 0
    wording("\n".join((messages[0], messages[2])))
    err = capfd.readouterr().err.replace("for 1 s", "for 60 s")
    assert sorted(err.splitlines()) == sorted(f"fastcnn: error: {message}" for message in messages)
    stop(all_peers, links)


def test_a_rank_that_saves_has_the_rest_of_the_timeout(exits):
    all_peers, links = start(2)
    links[1].up.clear()
    begin = time.monotonic()
    while True:
        try:
            all_peers[0].check()
        except PeerLostError:
            break
        time.sleep(0.01)
    while len(exits) < 2:
        time.sleep(0.01)
    assert 1.4 * peers.NAMED_AFTER * TIMEOUT < time.monotonic() - begin < 1.2 * TIMEOUT
    stop(all_peers, links)


def test_a_failed_collective_names_the_rank_whose_heartbeats_have_ended(exits, wording):
    all_peers, links = start()
    links[2].up.clear()
    with ThreadPoolExecutor() as pool:
        errors = [pool.submit(all_peers[rank].explain, "Connection reset by peer") for rank in (0, 1)]
        first, second = (str(error.result()) for error in errors)
    assert first == second
    wording(first)
    stop(all_peers, links)


def test_a_failed_collective_of_living_ranks_keeps_its_reason(exits, wording):
    all_peers, links = start(2)
    wording(all_peers[0].explain("Connection reset by peer"))
    stop(all_peers, links)


def test_a_process_that_was_suspended_does_not_blame_the_others(exits, monkeypatch):
    monkeypatch.setattr(peers, "LONGEST_PERIOD", 0.02)
    all_peers, links = start(2)
    later = time.monotonic() + 100
    monkeypatch.setattr(peers.time, "monotonic", lambda: later)
    time.sleep(5 * 0.02)
    stop(all_peers, links)
    assert exits == []
