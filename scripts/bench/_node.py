"""One real node process for a benchmark, driven by the `edged` command; plus what it costs.

The node's files are in a temporary directory that goes with it.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from _common import REPOSITORY

CLUSTER = "bench"
NODE = "n1"
COMMAND_TIMEOUT_S = 300.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Answer(NamedTuple):
    status: int
    body: bytes
    start: str
    phases_ms: dict[str, float]
    elapsed_s: float


class BenchNode:
    def __init__(self, state: Path) -> None:
        self._state = state
        self._view: dict[str, Any] = {}

    def edged(self, *arguments: str) -> Any:
        """What `edged … --json` prints. Raises RuntimeError with its problem."""
        done = subprocess.run(
            [sys.executable, "-m", "edged", *arguments, "--json"],
            cwd=REPOSITORY, env=dict(os.environ, EDGED_STATE=str(self._state)), text=True,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"edged {' '.join(arguments)}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def up(self) -> None:
        """With one tier of code: what is measured here is not the first answer (coldstart is)."""
        spec = self._state / "spec.toml"
        text = f'[[nodes]]\nname = "{NODE}"\n[config.runtime]\ntiers = "optimised"\n'
        spec.write_text(text, encoding="ascii")
        up = self.edged("cluster", "up", "--file", str(spec), "--name", CLUSTER)
        self._view = up["nodes"][0]

    def down(self) -> None:
        self.edged("cluster", "down", "--name", CLUSTER)

    def kill(self) -> None:
        self.edged("cluster", "kill", NODE, "--name", CLUSTER)

    def restart(self) -> None:
        self._view["pid"] = self.edged("cluster", "restart", NODE, "--name", CLUSTER)["pid"]

    def deploy(self, *arguments: str) -> Any:
        return self.edged("deploy", "--cluster", CLUSTER, *arguments)

    def explain(self, function: str) -> Any:
        return self.edged("explain", function, "--cluster", CLUSTER, "--node", NODE)

    def optimised(self, function: str, *where: str) -> None:
        """Waits until the node runs optimised code of it; something must have asked for it."""
        deadline_s = time.monotonic() + COMMAND_TIMEOUT_S
        while self.tier(function, *where) != "optimised":
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"no optimised code of {function} after {COMMAND_TIMEOUT_S:g} s")
            time.sleep(0.2)

    def tier(self, function: str, *where: str) -> str | None:
        """Of the code in the node's memory; `where` names another node than the first."""
        shown = self.edged("describe", function, "--cluster", CLUSTER, *where)
        tier: str | None = shown["summary"]["tier"]
        return tier

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self._view["gateway_url"].removeprefix("http://").rpartition(":")
        return host, int(port)

    def compiles(self) -> int:
        """Since this process started."""
        token = (Path(self._view["directory"]) / "control.token").read_text("ascii").strip()
        host = self._view["control_url"].removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.request("GET", "/v1/metrics", headers={"Authorization": f"Bearer {token}"})
        text = connection.getresponse().read().decode()
        connection.close()
        found = re.findall(r"^edged_compiles_total\{.*\} (\S+)$", text, re.MULTILINE)
        return int(sum(map(float, found)))

    @property
    def pid(self) -> int:
        return int(self._view["pid"])


def cpu_of(pid: int) -> float:
    """User and system seconds of all threads, and of children that have been waited for."""
    stat = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return sum(map(int, stat[11:15])) / TICKS_PER_S


def ask(
    address: tuple[str, int], target: str, body: bytes = b"", timeout_s: float = 120.0
) -> Answer:
    """One request on a connection of its own, timed from before the connection."""
    began_s = time.perf_counter()
    connection = http.client.HTTPConnection(*address, timeout=timeout_s)
    try:
        return answer_of(connection, target, body, began_s=began_s)
    finally:
        connection.close()


def answer_of(
    connection: http.client.HTTPConnection, target: str, body: bytes = b"", *, began_s: float
) -> Answer:
    connection.request("POST" if body else "GET", target, body=body or None)
    response = connection.getresponse()
    data = response.read()
    elapsed_s = time.perf_counter() - began_s
    timing = re.findall(r"(\w+);dur=([\d.]+)", response.getheader("server-timing", ""))
    phases = {name: float(value) for name, value in timing}
    return Answer(response.status, data, response.getheader("x-edged-start", ""), phases, elapsed_s)


@contextmanager
def one_node() -> Iterator[BenchNode]:
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name:
        node = BenchNode(Path(name))
        node.up()
        try:
            yield node
        finally:
            node.down()
