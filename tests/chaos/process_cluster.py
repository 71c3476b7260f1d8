"""A cluster of real `edged run` processes for tests: each with a preset of its own, and asked over
its control API what it saw. Ports stay the same over restarts."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from edged.cluster.layout import dump_toml
from edged.cluster.ports import free_ports
from edged.trust import create_ca, issue_node

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0
HOST = "127.0.0.1"
SAYS = (
    '(module (import "wasi_snapshot_preview1" "fd_write"'
    " (func $w (param i32 i32 i32 i32) (result i32)))"
    ' (memory (export "memory") 1) (data (i32.const 16) "%s")'
    ' (func (export "_start") (i32.store (i32.const 0) (i32.const 16))'
    " (i32.store (i32.const 4) (i32.const %d))"
    " (drop (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"
)


def says(text: str) -> bytes:
    """A module that prints `text`."""
    return (SAYS % (text, len(text))).encode()


class Member:
    """One process and its files."""

    def __init__(
        self,
        base: Path,
        name: str,
        preset: str,
        ports: Sequence[int],
        seeds: Sequence[str],
        region: str = "local",
    ) -> None:
        self.base, self.name = base, name
        self.gossip, self.control, self.gateway = (f"{HOST}:{port}" for port in ports)
        self.process: subprocess.Popen[bytes] | None = None
        self.restarting = False
        """Its gateway may refuse connections now."""
        base.mkdir(parents=True)
        config = {
            "node": {"name": name, "region": region},
            "gateway": {"bind": self.gateway},
            "control": {"bind": self.control},
            "gossip": {"bind": self.gossip, "seeds": list(seeds), "preset": preset},
            "store": {"min_free_bytes": 0},
        }
        (base / "node.toml").write_text(dump_toml(config), "utf-8")

    def spawn(self) -> None:
        (self.base / "data" / "run.json").unlink(missing_ok=True)
        with (self.base / "node.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edged", "run", str(self.base / "node.toml")],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_ready(self) -> None:
        assert self.process is not None
        process = self.process

        def ready() -> bool:
            assert process.poll() is None, (self.base / "node.log").read_text()
            return (self.base / "data" / "run.json").exists()

        wait_until(ready)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def restart(self) -> None:
        """Gracefully; returns when it is ready again."""
        assert self.process is not None
        self.restarting = True
        self.signal(signal.SIGTERM)
        assert self.process.wait(WAIT_S) == 0
        self.spawn()
        self.wait_ready()
        self.restarting = False

    def kill(self) -> None:
        """Without a word; its files stay."""
        self.restarting = True
        self.end()

    def revive(self) -> None:
        """Returns when it is ready again."""
        self.spawn()
        self.wait_ready()
        self.restarting = False

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()

    # ------------------------------------------------------------ what it says
    def ask(self, method: str, path: str, body: bytes = b"") -> Any:
        token = (self.base / "control.token").read_text("ascii").strip()
        connection = http.client.HTTPConnection(self.control, timeout=WAIT_S)
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        assert answer.status < 300, data
        return json.loads(data)

    def alive(self) -> set[str]:
        rows = self.ask("GET", "/v1/members")["members"]
        return {row["name"] for row in rows if row["state"] == "alive"}

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Since this process started."""
        rows = self.ask("GET", "/v1/events?after=0&limit=4096")["events"]
        return [row for row in rows if row["kind"] == kind]

    def invoke(self, function: str) -> tuple[int, bytes]:
        """Raises OSError, HTTPException."""
        connection = http.client.HTTPConnection(self.gateway, timeout=WAIT_S)
        try:
            connection.request("GET", f"/{function}")
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


class Members:
    """All of a cluster."""

    def __init__(
        self, base: Path, presets: Sequence[str], regions: Sequence[str] = ("local",)
    ) -> None:
        """Regions are dealt out in turn."""
        ports = free_ports(3 * len(presets), taken=())
        seeds = [f"{HOST}:{port}" for port in ports[: 3 * min(3, len(presets)) : 3]]
        create_ca(base / "ca")
        self.all: list[Member] = []
        for index, preset in enumerate(presets):
            name = f"n{index}"
            own = ports[3 * index : 3 * index + 3]
            region = regions[index % len(regions)]
            self.all.append(Member(base / name, name, preset, own, seeds, region))
            issue_node(base / "ca", base / name / "trust", name=name)

    @property
    def names(self) -> set[str]:
        return {member.name for member in self.all}

    def start(self) -> None:
        for member in self.all:
            member.spawn()
        for member in self.all:
            member.wait_ready()
        self.wait_whole()

    def wait_whole(self) -> None:
        for member in self.all:
            wait_until(lambda member=member: member.alive() == self.names)

    def deploy(self, functions: dict[str, bytes]) -> None:
        """Returns when every node answers with each."""
        first = self.all[0]
        for name, text in functions.items():
            stored = first.ask("PUT", "/v1/modules", says(text.decode()))
            body = msgspec.json.encode({"module": stored["module"]})
            first.ask("PUT", f"/v1/functions/{name}", body)
        for member in self.all:
            for name, text in functions.items():
                wait_until(lambda m=member, n=name, t=text: m.invoke(n) == (200, t))


@contextmanager
def cluster(
    base: Path, presets: Sequence[str], regions: Sequence[str] = ("local",)
) -> Iterator[Members]:
    """Started, whole, and gone afterwards."""
    made = Members(base, presets, regions)
    try:
        made.start()
        yield made
    finally:
        for member in made.all:
            member.end()


def wait_until(
    condition: Callable[[], bool], timeout_s: float = WAIT_S, *, every_s: float = 0.05
) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(every_s)
