"""Ports for local nodes, which keep them over restarts.

They come from outside the kernel's ephemeral range, so that no outgoing connection takes the port
of a node that is down for a moment.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from edged.errors import ConfigError

HOST: Final = "127.0.0.1"
LOWEST: Final = 10_240
HIGHEST: Final = 32_767
"""Below Linux's default ephemeral range, 32768 to 60999."""

_RANGE_FILE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def ephemeral_range(path: Path = _RANGE_FILE) -> range:
    try:
        low, high = (int(word) for word in path.read_text().split())
    except (OSError, ValueError):
        return range(32_768, 61_000)
    return range(low, high + 1)


def free_ports(count: int, *, taken: Collection[int]) -> list[int]:
    """`count` different ports on which TCP and UDP can be bound now.

    Raises ConfigError if there are not enough."""
    ephemeral = ephemeral_range()
    usable = [port for port in range(LOWEST, HIGHEST + 1) if port not in taken]
    candidates = [port for port in usable if port not in ephemeral]
    if len(candidates) < 10 * count:  # a machine with an unusually wide ephemeral range
        candidates = usable
    found: list[int] = []
    chance = random.SystemRandom()
    while candidates and len(found) < count:
        at = chance.randrange(len(candidates))
        candidates[at], candidates[-1] = candidates[-1], candidates[at]
        if is_free(port := candidates.pop()):
            found.append(port)
    if len(found) < count:
        raise ConfigError(f"only {len(found)} of {count} ports are free on {HOST}")
    return found


def is_free(port: int) -> bool:
    try:
        sockets = _bind(port)
    except OSError:
        return False
    for each in sockets:
        each.close()
    return True


class Held:
    """Ports that nobody else can bind, until they are given up for the node they are for. Nodes
    start in waves; without this, another cluster's choice could fall on the ports of the last."""

    def __init__(self) -> None:
        self._sockets: dict[int, list[socket.socket]] = {}

    def hold(self, ports: Iterable[int]) -> int | None:
        """The first that is taken already; None: all are held."""
        for port in ports:
            try:
                self._sockets[port] = _bind(port, again=True)
            except OSError:
                return port
        return None

    def release(self, ports: Iterable[int]) -> None:
        for port in ports:
            for each in self._sockets.pop(port, ()):
                each.close()

    def close(self) -> None:
        self.release(list(self._sockets))


def _bind(port: int, *, again: bool = False) -> list[socket.socket]:
    """TCP and UDP. `again`: also where connections of a node that used it have just ended, as the
    node itself would; whoever only looks whether it is free finds that it is not.

    Raises OSError."""
    sockets: list[socket.socket] = []
    try:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            sockets.append(socket.socket(socket.AF_INET, kind))
            if again and kind == socket.SOCK_STREAM:
                sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sockets[-1].bind((HOST, port))
    except OSError:
        for each in sockets:
            each.close()
        raise
    return sockets
