"""The interface of gloo where the machine's name means the loopback address."""

from __future__ import annotations

import socket

import pytest

from fastcnn.runtime import interface
from fastcnn.runtime.interface import address_towards, gloo_interface


@pytest.fixture
def own_name(monkeypatch):
    """Let the machine's name mean the loopback address, and lo the only interface."""
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    monkeypatch.setattr(interface, "_interface_of", {"10.0.0.1": "eth0"}.get)


def test_gloo_is_told_the_interface_on_the_way_to_the_store(own_name):
    assert gloo_interface(["10.0.0.1", "10.0.0.2"], 0) == "eth0"


def test_the_node_of_the_store_takes_its_address_on_the_way_to_another(own_name, monkeypatch):
    monkeypatch.setattr(interface, "address_towards", lambda host, port: {"10.0.0.2": "10.0.0.1"}[host])
    assert gloo_interface(["127.0.1.1", "10.0.0.2"], 0) == "eth0"


def test_gloo_chooses_where_all_is_well_or_nothing_is_better(own_name, monkeypatch):
    assert gloo_interface(["127.0.0.1", "127.0.0.1"], 0) is None
    assert gloo_interface(["", ""], 1) is None
    assert gloo_interface(["10.0.0.3", "10.0.0.2"], 0) is None  # an address of no interface
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.1")
    assert gloo_interface(["10.0.0.1", "10.0.0.2"], 0) is None


def test_addresses_and_interfaces_are_those_of_this_machine():
    assert address_towards("127.0.0.1", 29500) == "127.0.0.1"
    assert address_towards("no.such.host.invalid", 29500) == ""
    if "lo" in [name for _, name in socket.if_nameindex()]:
        assert interface._interface_of("127.0.0.1") == "lo"
        assert interface._interface_of("192.0.2.1") is None
