"""Clusters of real processes behind one face for benchmarks; edged's. Serf's are in _serf.py.

A side is started with everyone alone, told to join all at once, and watched through what its nodes
write themselves, with the instant of each event. Nothing is polled while something is measured.
"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import _isolated
import msgspec
from _common import REPOSITORY

from edged.cluster.layout import dump_toml
from edged.cluster.ports import free_ports
from edged.trust import create_ca, issue_node

START_TIMEOUT_S = 90.0
ANSWER_TIMEOUT_S = 30.0
SEEDS = 3
CONTROL_HOST = "127.0.0.1"
HELLO = (
    '(module (import "wasi_snapshot_preview1" "fd_write"'
    " (func $w (param i32 i32 i32 i32) (result i32)))"
    ' (memory (export "memory") 1) (data (i32.const 16) "hello")'
    ' (func (export "_start") (i32.store (i32.const 0) (i32.const 16))'
    " (i32.store (i32.const 4) (i32.const 5))"
    " (drop (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"
)


class Sighting(NamedTuple):
    """One line of one node's own account."""

    at_s: float
    observer: str
    kind: str
    """up, suspect, down, left, told; tells: it is on this node's disk and goes out"""
    subject: str


class Cost(NamedTuple):
    cpu_s: float
    rss_bytes: int
    pss_bytes: int


class Side(ABC):
    """What both have in common. Hosts are by number; `dead` tells since when."""

    label = ""

    def __init__(self, count: int, hosts: Sequence[str], ports: Sequence[int]) -> None:
        """`hosts[i]`:`ports[i]` is where node i gossips."""
        self.names = [f"{self.label[0]}{i:02}" for i in range(count)]
        self.hosts = dict(zip(self.names, hosts, strict=True))
        self.ports = dict(zip(self.names, ports, strict=True))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.sightings: list[Sighting] = []
        self._dead: dict[str, list[tuple[float, float]]] = {name: [] for name in self.names}
        self._born_s: dict[str, float] = {}
        self._unplugged: dict[str, None] = {}

    # ------------------------------------------------------------ each has its own
    @abstractmethod
    def _spawn(self, name: str, *, alone: bool) -> None:
        """`alone`: without seeds."""

    @abstractmethod
    def wait_ready(self) -> None:
        """Until all running ones take orders."""

    @abstractmethod
    def refresh(self) -> None:
        """Brings `sightings` up to date."""

    def refresh_told(self) -> None:
        """As `refresh`, of what was told."""
        self.refresh()

    @abstractmethod
    def join(self) -> float:
        """All at once; when the first was told."""

    @abstractmethod
    def tell(self, name: str, subject: str) -> tuple[float, float]:
        """Makes `name` spread something; (when asked, when acknowledged)."""

    def tells_s(self, name: str, subject: str, asked_s: float, acknowledged_s: float) -> float:
        """When that began to spread."""
        return self.seen("tells", subject, asked_s).get(name, acknowledged_s)

    # ------------------------------------------------------------ life
    @property
    def running(self) -> list[str]:
        return [name for name in self.names if name in self.processes]

    def spawn(self, names: Iterable[str], *, alone: bool) -> None:
        for name in names:
            self._born_s[name] = time.time()
            if self._dead[name] and self._dead[name][-1][1] == float("inf"):
                self._dead[name][-1] = (self._dead[name][-1][0], self._born_s[name])
            self._spawn(name, alone=alone)

    def kill(self, names: Sequence[str], *, silent: bool) -> float:
        """SIGKILL; the hosts vanish from the network first if `silent`. When it began."""
        at_s = time.time()
        if silent:
            _isolated.unplug(self.hosts[name] for name in names)
            self._unplugged.update(dict.fromkeys(names))
        for name in names:
            self._dead[name].append((at_s, float("inf")))
            self.processes[name].kill()
        for name in names:
            self.processes.pop(name).wait()
        return at_s

    def revive_all(self, settle_s: float) -> None:
        """Whoever is dead, with its host; waits until all see all."""
        dead = [name for name in self.names if name not in self.processes]
        if not dead:
            return
        if self._unplugged:
            _isolated.plug(self.hosts[name] for name in self._unplugged)
        self._unplugged.clear()
        self.spawn(dead, alone=False)
        self.wait_full(60.0)
        time.sleep(settle_s)

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
        self.processes.clear()

    # ------------------------------------------------------------ what they saw
    def full_since_s(self) -> float | None:
        """Since when everyone running sees everyone running; None if not yet."""
        self.refresh()
        running = self.running
        latest: dict[tuple[str, str], tuple[float, str]] = {}
        for at_s, observer, kind, subject in self.sightings:
            if kind in ("up", "down", "left") and at_s >= self._born_s[observer]:
                latest[observer, subject] = (at_s, kind)
        since_s = 0.0
        for observer in running:
            for subject in running:
                if observer != subject:
                    at_s, kind = latest.get((observer, subject), (0.0, ""))
                    if kind != "up" or at_s < self._born_s[subject]:
                        return None
                    since_s = max(since_s, at_s)
        return since_s

    def wait_full(self, timeout_s: float) -> float:
        deadline_s = time.monotonic() + timeout_s
        while (since_s := self.full_since_s()) is None:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended with {process.returncode}")
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{self.label}: not all see all after {timeout_s:g} s")
            time.sleep(0.05)
        return since_s

    def seen(self, kind: str, subject: str, since_s: float) -> dict[str, float]:
        """By observer: when it first saw that, of those seen since then."""
        found: dict[str, float] = {}
        for sighting in self.sightings:
            if (sighting.kind, sighting.subject) == (kind, subject) and sighting.at_s >= since_s:
                found.setdefault(sighting.observer, sighting.at_s)
        return found

    def false_deaths(self) -> list[Sighting]:
        """Declarations of nodes that ran at that time."""
        return [
            sighting
            for sighting in self.sightings
            if sighting.kind == "down"
            and not any(a <= sighting.at_s <= b for a, b in self._dead[sighting.subject])
        ]

    def cost(self, name: str) -> Cost:
        process = self.processes[name]
        if process.poll() is not None:
            raise RuntimeError(
                f"{self.label} {name} ended with {process.returncode}:\n{self.last_words(name)}"
            )
        return cost_of(process.pid)

    def last_words(self, name: str) -> str:
        """The end of its log."""
        del name
        return ""


class EdgedSide(Side):
    """`edged run` processes, LAN preset."""

    label = "edged"

    def __init__(self, count: int, hosts: Sequence[str], ports: Sequence[int]) -> None:
        super().__init__(count, hosts, ports)
        self._temporary = tempfile.TemporaryDirectory(prefix="edged-bench-")
        self._base = Path(self._temporary.name)
        self._offsets: dict[str, int] = {}
        self._module = ""
        controls = free_ports(2 * count, taken=ports)
        self._controls = dict(zip(self.names, controls[:count], strict=True))
        self._gateways = dict(zip(self.names, controls[count:], strict=True))
        create_ca(self._base / "ca")
        for name in self.names:
            (self._base / name).mkdir()
            issue_node(self._base / "ca", self._base / name / "trust", name=name)

    @property
    def seeds(self) -> list[str]:
        return [f"{self.hosts[name]}:{self.ports[name]}" for name in self.names[:SEEDS]]

    def _spawn(self, name: str, *, alone: bool) -> None:
        own = self._base / name
        config = {
            "node": {"name": name, "region": "local", "log_level": "info"},
            "gateway": {"bind": f"{CONTROL_HOST}:{self._gateways[name]}"},
            "control": {"bind": f"{CONTROL_HOST}:{self._controls[name]}"},
            "gossip": {
                "bind": f"{self.hosts[name]}:{self.ports[name]}",
                "seeds": [] if alone else self.seeds,
                "preset": "lan",
            },
        }
        (own / "node.toml").write_text(dump_toml(config), "utf-8")
        with (own / "node.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "edged", "run", str(own / "node.toml")],
                cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def wait_ready(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        for name in self.running:
            while not (self._base / name / "data" / "run.json").exists():
                if self.processes[name].poll() is not None or time.monotonic() > deadline_s:
                    raise RuntimeError(f"{name} does not start:\n{self.last_words(name)}")
                time.sleep(0.02)

    def last_words(self, name: str) -> str:
        return (self._base / name / "node.log").read_text(errors="replace")[-4000:]

    def refresh(self) -> None:
        for name in self.names:
            path = self._base / name / "node.log"
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(self._offsets.get(name, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offsets[name] = self._offsets.get(name, 0) + len(whole)
            for line in whole.splitlines():
                if b'"member ' in line:
                    row = json.loads(line)
                    at_s = datetime.fromisoformat(row["timestamp"]).timestamp()
                    kind = row["event"].removeprefix("member ")
                    self.sightings.append(Sighting(at_s, name, kind, row["member"]))

    def refresh_told(self) -> None:
        """From the event logs: a function is there when the record that names its version is."""
        kinds = {"record-accepted": "told", "record-published": "tells"}
        for name in self.running:
            self.sightings += [
                Sighting(row["at_ms"] / 1000, name, kinds[row["kind"]], row["name"])
                for row in self.events(name)
                if row["kind"] in kinds and row["detail"].startswith("a/")
            ]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Of one node's own log, all it has."""
        view = json.loads(self.request(name, "GET", "/v1/events?after=0&limit=4096"))
        rows: list[dict[str, Any]] = view["events"]
        return rows

    def request(self, name: str, method: str, path: str, body: bytes = b"") -> bytes:
        """Of the control API. Raises RuntimeError."""
        connection = self._connect(name)
        try:
            connection.request(method, path, body or None, self._headers(name))
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"{name} {method} {path}: {answer.status} {data[:300]!r}")
        return data

    def _connect(self, name: str) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(
            CONTROL_HOST, self._controls[name], timeout=ANSWER_TIMEOUT_S
        )

    def _headers(self, name: str) -> dict[str, str]:
        token = (self._base / name / "control.token").read_text("ascii").strip()
        return {"Authorization": f"Bearer {token}"}

    def join(self) -> float:
        body = msgspec.json.encode({"seeds": self.seeds})
        connections = [(self._connect(name), self._headers(name)) for name in self.names]
        for connection, _ in connections:
            connection.connect()
        at_s = time.time()
        for connection, headers in connections:
            connection.request("POST", "/v1/join", body, headers)
        for connection, _ in connections:
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            if answer.status >= 300:
                raise RuntimeError(f"join: {answer.status} {data[:300]!r}")
        return at_s

    def prepare(self) -> None:
        """Everyone holds the module and has compiled it, so that a deploy is its record only."""
        for name in self.running:
            stored = json.loads(self.request(name, "PUT", "/v1/modules", HELLO.encode()))
            self._module = stored["module"]
        self.tell(self.names[0], "warm")

    def tell(self, name: str, subject: str) -> tuple[float, float]:
        # One other node shall have it on disk, so that little else than gossip is measured.
        body = msgspec.json.encode({"module": self._module, "replicas": 1})
        connection, headers = self._connect(name), self._headers(name)
        connection.connect()
        try:
            asked_s = time.time()
            connection.request("PUT", f"/v1/functions/{subject}", body, headers)
            answer = connection.getresponse()
            data = answer.read()
            acknowledged_s = time.time()
        finally:
            connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"deploy: {answer.status} {data[:300]!r}")
        return asked_s, acknowledged_s

    def udp_sent(self) -> tuple[int, int]:
        """(datagrams, IP bytes) all nodes have sent, by their own count."""
        datagrams = total = 0
        for name in self.running:
            text = self.request(name, "GET", "/v1/metrics").decode()
            count = _metric(text, r'edged_datagrams_total\{direction="out"\}')
            datagrams += count
            total += _metric(text, r'edged_datagram_bytes_total\{direction="out"\}') + 28 * count
        return datagrams, total

    def stop(self) -> None:
        super().stop()
        self._temporary.cleanup()


def _metric(text: str, name: str) -> int:
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return int(float(found[1])) if found else 0


def cost_of(pid: int) -> Cost:
    """CPU of all its threads in nanoseconds' precision, RSS and PSS now."""
    # The kernel's clock of another process, as clock_getcpuclockid(3) makes it.
    cpu_s = time.clock_gettime((~pid << 3) | 2)
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = {k: int(v) * 1024 for k, v in re.findall(r"^(Rss|Pss): +(\d+) kB", text, re.MULTILINE)}
    return Cost(cpu_s, sizes["Rss"], sizes["Pss"])
