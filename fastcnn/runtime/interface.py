"""The network interface of gloo on a machine whose own name means the loopback address. Torch-free.

gloo announces the address of the machine's name. Debian and Ubuntu give it 127.0.1.1 in /etc/hosts, where
other nodes cannot connect.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress

SIOCGIFADDR = 0x8915


def address_towards(host: str, port: int) -> str:
    """Return this machine's address on the way to a host; "" if there is none. Sends nothing."""
    with suppress(OSError):
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return probe.getsockname()[0]
    return ""


def gloo_interface(addresses: Sequence[str], rank: int) -> str | None:
    """Return the interface to set for gloo; None if its own choice is right.

    Args:
        addresses: of each rank, on the way to the store.
    """
    if not is_loopback(_address_of_name()):
        return None
    own = addresses[rank]
    others = [address for address in addresses if not is_loopback(address)]
    if is_loopback(own) and others:
        own = address_towards(others[0], 9)
    return None if is_loopback(own) else _interface_of(own)


def is_loopback(address: str) -> bool:
    return not address or ipaddress.ip_address(address).is_loopback


def _address_of_name() -> str:
    with suppress(OSError):
        return socket.gethostbyname(socket.gethostname())
    return ""  # gloo then takes the loopback address too


def _interface_of(address: str) -> str | None:
    """Return the name of the interface with an IPv4 address (Linux)."""
    if sys.platform != "linux":
        return None
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no IPv4 address
                request = struct.pack("256s", name.encode())
                if socket.inet_ntoa(fcntl.ioctl(probe, SIOCGIFADDR, request)[20:24]) == address:
                    return name
    return None
