"""A network of its own for a benchmark: no other traffic, countable, and hosts that fall silent.

`enter` continues the script in fresh network and process namespaces (as root, or where users may
make namespaces), so that everything it started ends with it. There every host is an address on the
loopback device, inside a subnet that is routed into the void: an address that is taken away answers
nothing any more, no refusal and no reset, as a host without power.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable

MARK = "EDGED_BENCH_ISOLATED"
SUBNET = "10.77"
PACKET_OUTGOING = 4
ETH_P_IP = 0x0800
TCP, UDP = 6, 17


def enter() -> bool:
    """Whether this process is in namespaces of its own; restarts the script to get there."""
    if os.environ.get(MARK):
        return True
    command = _unshare()
    if command is None:
        return False
    os.environ[MARK] = "1"
    sys.stdout.flush()
    os.execvp(command[0], [*command, sys.executable, *sys.argv])
    raise AssertionError("exec does not return")


def _unshare() -> list[str] | None:
    """The command that works here."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return None
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *user, "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    check = [*command, "sh", "-c", "ip link set lo up && ip link add s0 type veth peer name s1"]
    done = subprocess.run(check, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    return command if done.returncode == 0 else None


def ip(lines: Iterable[str]) -> None:
    """Commands of the ip tool, in one process."""
    subprocess.run(
        ["ip", "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True,
        capture_output=True,
    )  # fmt: skip


def build() -> None:
    """The loopback device, and a wire whose far end nobody serves."""
    ip(
        [
            "link set lo up",
            "link add void type veth peer name void-end",
            "link set void arp off up",
            "link set void-end arp off up",
            f"route add {SUBNET}.0.0/16 dev void",
        ]
    )


def plug(hosts: Iterable[str]) -> None:
    ip(f"addr add {host}/32 dev lo" for host in hosts)


def unplug(hosts: Iterable[str]) -> None:
    """From now on whatever is sent to these hosts vanishes."""
    ip(f"addr del {host}/32 dev lo" for host in hosts)


class Tap(threading.Thread):
    """Counts IP bytes on the loopback device by (sender's address, protocol), each packet once."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind(("lo", ETH_P_IP))
        self._socket.settimeout(0.2)
        self._ending = False
        self.bytes: Counter[tuple[str, int]] = Counter()
        self.packets: Counter[tuple[str, int]] = Counter()

    def run(self) -> None:
        while not self._ending:
            try:
                packet, address = self._socket.recvfrom(64)
            except TimeoutError:
                continue
            if address[2] == PACKET_OUTGOING or len(packet) < 20:
                continue
            key = (socket.inet_ntoa(packet[12:16]), packet[9])
            self.bytes[key] += int.from_bytes(packet[2:4])
            self.packets[key] += 1

    def stop(self) -> None:
        self._ending = True
        self.join()
        self._socket.close()
