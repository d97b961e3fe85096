"""Two nodes whose link is cut, as network namespaces of this machine.

make faults
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults import TORCHRUN, TRAIN, Launch, check_equal, check_whole
from processes import is_running

EPOCHS = 20
PEER_TIMEOUT = 30
ADDRESSES = "10.77.0.1", "10.77.0.2"

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


class Nodes:
    """Two network namespaces with a link between them. On each, the machine's name means 127.0.1.1."""

    def __init__(self) -> None:
        self.spaces = [f"fastcnn{os.getpid()}{side}" for side in "ab"]
        self.devices = [f"fc{os.getpid()}{side}" for side in "ab"]

    def create(self) -> None:
        for space in self.spaces:
            run("ip", "netns", "add", space)
            hosts = Path("/etc/netns") / space / "hosts"
            hosts.parent.mkdir(parents=True)
            hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {space}\n")
        first, second = self.devices
        run("ip", "link", "add", first, "type", "veth", "peer", "name", second)
        for space, device, address in zip(self.spaces, self.devices, ADDRESSES):
            run("ip", "link", "set", device, "netns", space)
            run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", device)
            run("ip", "-n", space, "link", "set", "lo", "up")
        self.link("up")

    def remove(self) -> None:
        for space in self.spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
            shutil.rmtree(Path("/etc/netns") / space, ignore_errors=True)

    def link(self, state: str) -> None:
        """Connect or cut, "up" or "down", on both sides."""
        for space, device in zip(self.spaces, self.devices):
            run("ip", "-n", space, "link", "set", device, state)

    def start(self, side: int, folder: Path, data: Path) -> Launch:
        """Start torchrun on a node, as docs/distributed.md says for such machines."""
        space = self.spaces[side]
        named = ("ip", "netns", "exec", space, "unshare", "--uts", "sh", "-c", f'hostname {space}; exec "$@"')
        torchrun = (
            *TORCHRUN,
            "--nnodes",
            "2",
            "--nproc-per-node",
            "1",
            "--max-restarts",
            "3",
            "--rdzv-id",
            "cut",
        )
        rendezvous = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:29500")
        own = ("--rdzv-conf", f"is_host={1 - side}", "--local-addr", ADDRESSES[side])
        train = (*TRAIN, "--data", str(data), "--epochs", str(EPOCHS), "--peer-timeout", f"{PEER_TIMEOUT}s")
        # The sides share the run's folder; the log of each is in a folder of its own.
        output = ("--output-dir", str(folder / "run"))
        return Launch(folder / f"node{side}", [*named, "sh", *torchrun, *rendezvous, *own, *train, *output])


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    assert os.geteuid() == 0, "network namespaces need root"
    nodes = Nodes()
    try:
        nodes.create()
        yield nodes
    finally:
        nodes.remove()


def test_both_sides_of_a_cut_link_name_the_other_and_go_on_when_it_is_back(tmp_path, demo, nodes):
    finish(nodes, tmp_path / "whole", demo)
    folder = tmp_path / "cut"
    with nodes.start(0, folder, demo) as first, nodes.start(1, folder, demo) as second:
        first.wait_for(lambda: (folder / "run" / "last.pt").exists())
        workers = [worker_of(side) for side in (first, second)]
        nodes.link("down")
        cut = time.monotonic()
        for side, other in ((first, nodes.spaces[1]), (second, nodes.spaces[0])):
            lost = f"on {other} has not answered for {PEER_TIMEOUT // 2} s; --resume continues"
            side.wait_for(lambda side=side, lost=lost: lost in side.text(), PEER_TIMEOUT)
        named = time.monotonic() - cut
        while any(is_running(worker) for worker in workers):
            assert time.monotonic() < cut + PEER_TIMEOUT
            time.sleep(0.1)
        print(f"\nboth named the other in {named:.0f} s and ended in {time.monotonic() - cut:.0f} s")
        nodes.link("up")
        for side in (first, second):
            assert side.wait(300) == 0, first.text() + second.text()
        print(f"the run went on and ended {time.monotonic() - cut:.0f} s after the cut")
        assert "Resuming from " in first.text() + second.text()
    check_whole(folder)
    check_equal(folder, tmp_path / "whole")


def worker_of(side: Launch) -> int:
    """Return the process of the rank on a node."""
    (worker,) = filter(None, map(side.worker, (0, 1)))
    return worker


def finish(nodes: Nodes, folder: Path, data: Path) -> None:
    """Run both nodes to the end."""
    with nodes.start(0, folder, data) as first, nodes.start(1, folder, data) as second:
        for side in (first, second):
            assert side.wait(300) == 0, first.text() + second.text()
    check_whole(folder)
