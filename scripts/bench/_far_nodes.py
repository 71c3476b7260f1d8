"""`edged run` processes in network namespaces, each behind its own limited link (_netns.py), and
clients beside them: a connection made in a node's namespace reaches it without its link.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from _common import REPOSITORY
from _netns import Net
from _node import Answer, answer_of

from edged.cluster.layout import dump_toml
from edged.trust import create_ca, issue_node, load_trust
from protocol.ids import NodeId

GATEWAY, CONTROL, GOSSIP = 8080, 8081, 7946
START_TIMEOUT_S = 60.0
RTT_ROUNDS = 5
TIMEOUT_S = 300.0
"""Of a compile, too: on a machine that others use it may take minutes."""


class Role(NamedTuple):
    """How a node differs from the others: what of its configuration."""

    name: str
    tiers: str = "auto"
    accept: str = "signed"
    forward: bool = False


class FarNodes:
    """By name; the first role's node is the others' seed."""

    def __init__(self, net: Net, root: Path, roles: list[Role]) -> None:
        self._net = net
        self._root = root
        self._numbers = {role.name: number for number, role in enumerate(roles)}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        create_ca(root / "ca")
        for role in roles:
            directory = root / role.name
            directory.mkdir()
            issue_node(root / "ca", directory / "trust", name=role.name)
            (directory / "node.toml").write_text(dump_toml(self._config(role)), "utf-8")

    def _config(self, role: Role) -> dict[str, Any]:
        own, seed = (self._net.address(n) for n in (self._numbers[role.name], 0))
        return {
            "node": {"name": role.name, "region": "far", "log_level": "info"},
            "gateway": {
                "bind": f"{own}:{GATEWAY}",
                "forward": role.forward,
                "ready_timeout_s": TIMEOUT_S,
            },
            "control": {"bind": f"127.0.0.1:{CONTROL}"},
            "gossip": {"bind": f"{own}:{GOSSIP}", "seeds": [f"{seed}:{GOSSIP}"], "preset": "lan"},
            "runtime": {"tiers": role.tiers, "compile_timeout_s": TIMEOUT_S},
            "artifacts": {"accept": role.accept, "eager": False},
            "replication": {"replicas": 1},
        }

    def __enter__(self) -> FarNodes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()

    def start(self) -> None:
        """All; returns when each sees all. Raises RuntimeError."""
        for name, number in self._numbers.items():
            command = [sys.executable, "-m", "edged", "run", str(self._root / name / "node.toml")]
            with (self._root / name / "node.log").open("ab") as log:
                self._processes[name] = subprocess.Popen(
                    self._net.command(number, *command),
                    cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip
        deadline_s = time.monotonic() + START_TIMEOUT_S
        for name in self._numbers:
            while not self._sees_all(name):
                if self._processes[name].poll() is not None or time.monotonic() > deadline_s:
                    raise RuntimeError(f"{name} does not start:\n{self.last_words(name)}")
                time.sleep(0.1)

    def _sees_all(self, name: str) -> bool:
        if not (self._root / name / "data" / "run.json").exists():
            return False
        members = self.control(name, "GET", "/v1/members")["members"]
        return sum(member["state"] == "alive" for member in members) == len(self._numbers)

    def kill(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def last_words(self, name: str) -> str:
        return (self._root / name / "node.log").read_text(errors="replace")[-4000:]

    def node_id(self, name: str) -> NodeId:
        return load_trust(self._root / name / "trust").node_id

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def rtt_ms(self, name: str, other: str) -> float:
        """Of a TCP handshake: the kernels', with no process between; the least of some."""
        target = self._net.address(self._numbers[other]), GATEWAY
        took_s = []
        for _ in range(RTT_ROUNDS):
            with self._net.inside(self._numbers[name]):
                began_s = time.perf_counter()
                socket.create_connection(target).close()
                took_s.append(time.perf_counter() - began_s)
        return round(min(took_s) * 1e3, 3)

    def control(self, name: str, method: str, path: str, body: bytes | dict[str, Any] = b"") -> Any:
        """Of a node's control API. Raises RuntimeError."""
        token = (self._root / name / "control.token").read_text("ascii").strip()
        data = msgspec.json.encode(body) if isinstance(body, dict) else body
        connection = http.client.HTTPConnection("127.0.0.1", CONTROL, timeout=TIMEOUT_S)
        try:
            with self._net.inside(self._numbers[name]):
                connection.connect()
            headers = {"Authorization": f"Bearer {token}"}
            connection.request(method, path, data or None, headers)
            answer = connection.getresponse()
            told = answer.read()
        finally:
            connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"{name} {method} {path}: {answer.status} {told[:300]!r}")
        return json.loads(told)

    def ask(self, name: str, target: str) -> Answer:
        """One request from beside the node, timed from before the connection."""
        address = self._net.address(self._numbers[name])
        connection = http.client.HTTPConnection(address, GATEWAY, timeout=TIMEOUT_S)
        try:
            with self._net.inside(self._numbers[name]):
                began_s = time.perf_counter()
                connection.connect()
            return answer_of(connection, target, began_s=began_s)
        finally:
            connection.close()
