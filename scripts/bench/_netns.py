"""Network namespaces with limited links: one switch, a node on each port, no latency added.

A port's uplink is limited where the node sends, its downlink where the switch does, by `tbf`. Needs
root, `ip` and `tc`; everything is removed at the end, whatever happens in between.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO

BURST_BYTES = 64 * 1024
QUEUE_MS, QUEUE_BYTES_MIN = 50, 64 * 1024
CLONE_NEWNET = 0x40000000
NAMED = Path("/var/run/netns")


class Unavailable(Exception):
    """No namespaces here; the text says why."""


def run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{' '.join(words)}: {done.stderr.strip()}")


class Net:
    def __init__(self, nodes: int) -> None:
        self._switch = f"edged-{os.getpid()}-sw"
        self._names = [f"edged-{os.getpid()}-{number}" for number in range(nodes)]

    def __enter__(self) -> Net:
        if os.geteuid() != 0:
            raise Unavailable("network namespaces need root")
        for tool in ("ip", "tc"):
            if shutil.which(tool) is None:
                raise Unavailable(f"no `{tool}` on this machine")
        try:
            self._build()
        except Unavailable:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def _build(self) -> None:
        run("ip", "netns", "add", self._switch)
        inside = ("ip", "-n", self._switch)
        run(*inside, "link", "add", "br0", "type", "bridge")
        run(*inside, "link", "set", "br0", "up")
        # A switch has no firewall; with one, a tenth of all CPU time went there. Where it cannot be
        # switched off, there is none.
        for table in ("iptables", "ip6tables", "arptables"):
            setting = f"net.bridge.bridge-nf-call-{table}=0"
            words = ["ip", "netns", "exec", self._switch, "sysctl", "-qw", setting]
            subprocess.run(words, capture_output=True, check=False)
        run(*inside, "addr", "add", "10.77.0.254/24", "dev", "br0")
        for number, name in enumerate(self._names):
            run("ip", "netns", "add", name)
            port = f"p{number}"
            run("ip", "link", "add", "eth0", "netns", name, "type", "veth",
                "peer", "name", port, "netns", self._switch)  # fmt: skip
            run("ip", "-n", name, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
            run(*inside, "link", "set", port, "master", "br0", "up")

    def _remove(self) -> None:
        for name in [*self._names, self._switch]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def address(self, number: int) -> str:
        return f"10.77.0.{number + 1}"

    def limit(self, number: int, mbit: float, *, burst_bytes: int = BURST_BYTES) -> None:
        """Both directions of a node's link."""
        queue_ms = max(QUEUE_MS, round(QUEUE_BYTES_MIN * 8 / mbit / 1000))
        rate = ("rate", f"{mbit}mbit", "burst", str(burst_bytes))
        shape = ("root", "tbf", *rate, "latency", f"{queue_ms}ms")
        run("tc", "-n", self._names[number], "qdisc", "replace", "dev", "eth0", *shape)
        run("tc", "-n", self._switch, "qdisc", "replace", "dev", f"p{number}", *shape)

    def command(self, number: int | None, *words: str) -> list[str]:
        """To run in a node's namespace; None: the switch's."""
        name = self._switch if number is None else self._names[number]
        return ["ip", "netns", "exec", name, *words]

    @contextmanager
    def inside(self, number: int) -> Iterator[None]:
        """Sockets made meanwhile by this thread are a node's namespace's, for good."""
        with Path("/proc/thread-self/ns/net").open("rb") as here:
            _enter((NAMED / self._names[number]).open("rb"))
            try:
                yield
            finally:
                _enter(here)


def _enter(namespace: IO[bytes]) -> None:
    with namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
