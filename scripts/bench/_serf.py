"""Debian's serf as the other side of a benchmark: where it comes from, and how to drive it.

Its log lines carry whole seconds, so a thread stamps each as it arrives; orders go over its RPC.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from _cluster import ANSWER_TIMEOUT_S, CONTROL_HOST, SEEDS, START_TIMEOUT_S, Side, Sighting
from _common import REPOSITORY

from edged.cluster.ports import free_ports

CACHE = REPOSITORY / ".cache" / "bench"
SERF_VERSION = "0.9.4"
KINDS = {"Join": "up", "Failed": "down", "Leave": "left"}


def find_serf() -> Path | None:
    """Installed, or from Debian's archive into the cache; None with the reason printed."""
    installed = shutil.which("serf")
    if installed and _debian_version().startswith(SERF_VERSION):
        return Path(installed)
    unpacked = CACHE / "serf" / "usr" / "bin" / "serf"
    if unpacked.is_file():
        return unpacked
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        print("skipped: no serf here, and this is no Debian to fetch it from", file=sys.stderr)
        return None
    CACHE.mkdir(parents=True, exist_ok=True)
    for attempt in range(2):
        done = subprocess.run(
            ["apt-get", "download", "serf"],
            cwd=CACHE, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode == 0 or attempt or os.geteuid() != 0:
            break
        subprocess.run(["apt-get", "update", "-q"], capture_output=True, check=False)
    packages = sorted(CACHE.glob("serf_*.deb"))
    if not packages:
        print(f"skipped: apt has no serf for us: {done.stderr.strip()}", file=sys.stderr)
        return None
    subprocess.run(["dpkg-deb", "-x", str(packages[-1]), str(CACHE / "serf")], check=True)
    return unpacked


def _debian_version() -> str:
    if shutil.which("dpkg-query") is None:
        return ""
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", "serf"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip()


class SerfSide(Side):
    """`serf agent` processes, LAN profile, unsealed as it comes; spoken to over its RPC."""

    label = "serf"
    _JOINED = re.compile(r"serf: EventMember(Join|Failed|Leave): (\S+)")
    _SUSPECT = re.compile(r"memberlist: Suspect (\S+) has failed")
    _TOLD = re.compile(r"agent: Received event: user-event: (\S+)")

    def __init__(
        self, count: int, hosts: Sequence[str], ports: Sequence[int], *, program: Path
    ) -> None:
        super().__init__(count, hosts, ports)
        self._program = program
        rpc = free_ports(count, taken=ports)
        self._rpc = dict(zip(self.names, rpc, strict=True))
        self._arrived: list[tuple[float, str, str]] = []
        self._selector = selectors.DefaultSelector()
        self._ending = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _spawn(self, name: str, *, alone: bool) -> None:
        seeds = [f"-retry-join={self.hosts[n]}:{self.ports[n]}" for n in self.names[:SEEDS]]
        process = subprocess.Popen(
            [
                str(self._program), "agent", f"-node={name}", "-profile=lan", "-log-level=info",
                f"-bind={self.hosts[name]}:{self.ports[name]}",
                f"-rpc-addr={CONTROL_HOST}:{self._rpc[name]}",
                *([] if alone else [seed for seed in seeds if self.hosts[name] not in seed]),
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self.processes[name] = process
        self._selector.register(process.stdout, selectors.EVENT_READ, [name, b""])

    def _read(self) -> None:
        """Stamps each line when it comes."""
        while not self._ending:
            for key, _ in self._selector.select(0.1):
                at_s = time.time()
                data = os.read(key.fd, 65536)
                if not data:
                    self._selector.unregister(key.fileobj)
                    continue
                *lines, key.data[1] = (key.data[1] + data).split(b"\n")
                name = key.data[0]
                self._arrived += [(at_s, name, line.decode(errors="replace")) for line in lines]

    def wait_ready(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        for name in self.running:
            while True:
                try:
                    socket.create_connection((CONTROL_HOST, self._rpc[name]), 1.0).close()
                    break
                except OSError:
                    if self.processes[name].poll() is not None or time.monotonic() > deadline_s:
                        raise RuntimeError(f"serf {name} does not start") from None
                    time.sleep(0.02)

    def refresh(self) -> None:
        arrived, self._arrived = self._arrived, []
        for at_s, observer, line in arrived:
            if found := self._JOINED.search(line):
                kind = KINDS[found[1]]
                self.sightings.append(Sighting(at_s, observer, kind, found[2]))
            elif found := self._SUSPECT.search(line):
                self.sightings.append(Sighting(at_s, observer, "suspect", found[1]))
            elif found := self._TOLD.search(line):
                self.sightings.append(Sighting(at_s, observer, "told", found[1]))

    def join(self) -> float:
        seeds = [f"{self.hosts[name]}:{self.ports[name]}" for name in self.names[:SEEDS]]
        calls = [Rpc(CONTROL_HOST, self._rpc[name]) for name in self.names]
        at_s = time.time()
        for call in calls:
            call.send("join", {"Existing": seeds, "Replay": False})
        for call in calls:
            call.receive(b"Num")
            call.close()
        return at_s

    def tell(self, name: str, subject: str) -> tuple[float, float]:
        call = Rpc(CONTROL_HOST, self._rpc[name])
        asked_s = time.time()
        call.send("event", {"Name": subject, "Payload": "x" * 64, "Coalesce": False})
        call.receive(b"Seq")
        acknowledged_s = time.time()
        call.close()
        return asked_s, acknowledged_s

    def stop(self) -> None:
        super().stop()
        self._ending = True
        self._reader.join()
        self._selector.close()


class Rpc:
    """Serf's RPC: MessagePack over TCP, header and body in turn."""

    def __init__(self, host: str, port: int) -> None:
        self._seq = 0
        for attempt in range(3):  # on a busy machine serf was seen to hang up at once
            self._socket = socket.create_connection((host, port), ANSWER_TIMEOUT_S)
            try:
                self.send("handshake", {"Version": 1})
                self.receive(b"Seq")
            except (OSError, RuntimeError):
                self._socket.close()
                if attempt == 2:
                    raise
                time.sleep(0.2)
            else:
                return

    def send(self, command: str, body: dict[str, Any]) -> None:
        self._seq += 1
        header = {"Command": command, "Seq": self._seq}
        encode = msgspec.msgpack.encode
        self._socket.sendall(encode(header) + encode(body))

    def receive(self, last: bytes) -> None:
        """An answer, up to the field `last`. Raises RuntimeError with serf's error."""
        data = b""
        while last not in data and not (b"Error" in data and b"Error\xa0" not in data):
            part = self._socket.recv(65536)
            if not part:
                raise RuntimeError("serf closed the connection")
            data += part
        if b"Error\xa0" not in data:
            raise RuntimeError(f"serf: {data!r}")

    def close(self) -> None:
        self._socket.close()
