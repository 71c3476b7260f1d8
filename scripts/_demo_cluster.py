"""What scripts/demo acts and tells with: the cluster's commands, plain HTTP, guests compiled beside
it, expectations that are counted, text that fits 80 columns.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import _guests
from _env import ROOT
from rich.console import Console
from rich.table import Table

COMMAND_TIMEOUT_S = 120.0
SETTLE_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 60.0
TELL_EVERY_S = 10.0
AT_ONCE = ("warm", "forwarded")
"""Starts of requests that waited for no code: it was in memory here, or at a peer."""


class DemoError(Exception):
    """A step without which the story cannot go on."""


@dataclass(frozen=True)
class Case:
    """One request and the only right answer."""

    function: str
    made_with: str
    target: str
    answer: bytes
    body: bytes = b""


@dataclass
class Answer:
    status: int
    start: str
    phases_ms: dict[str, float]
    elapsed_s: float
    right: bool


def fetch(
    method: str, url: str, *, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One request on a connection of its own. Raises OSError, HTTPException."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=REQUEST_TIMEOUT_S)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, body or None, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


class GuestBuilder:
    """scripts/guests in a process of its own, beside whatever goes on meanwhile."""

    def __init__(self, wanted: set[str]) -> None:
        # In the order of build.toml, in which scripts/guests takes them up.
        self._guests = {g.name: g for g in _guests.guests() if g.name in wanted}
        self._done: set[str] = set()
        self._process: subprocess.Popen[str] | None = None
        if self.missing():
            command = [sys.executable, str(ROOT / "scripts" / "guests"), *self._guests]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, text=True, start_new_session=True,
            )  # fmt: skip

    def missing(self) -> list[str]:
        for name, guest in self._guests.items():
            if name not in self._done and _guests.is_built(guest):
                self._done.add(name)
        return [name for name in self._guests if name not in self._done]

    def wait_for(self, demo: Demo, name: str) -> None:
        """Until guest `name` is built; at once for those that need no building. Raises DemoError
        with the compiler's words."""
        started_s = told_s = time.monotonic()
        with demo.console.status("") as live:
            while name in (missing := self.missing()):
                if self._process is not None and self._process.poll() is not None:
                    if name not in self.missing():
                        return  # built in the very last moment
                    assert self._process.stderr is not None
                    raise DemoError(f"guests:\n{self._process.stderr.read().strip()}")
                now_s = time.monotonic()
                # scripts/guests compiles two at a time.
                what = f"compiling {' and '.join(missing[:2])}, {now_s - started_s:.0f} s"
                more = f"; then {', '.join(missing[2:])}" if missing[2:] else ""
                live.update(what + more)
                if not demo.console.is_terminal and now_s - told_s >= TELL_EVERY_S:
                    demo.say(what)
                    told_s = now_s
                time.sleep(0.1)
        waited_s = time.monotonic() - started_s
        if waited_s > 0.5:
            demo.say(f"compiled {name}: waited {waited_s:.0f} s for it")

    def close(self) -> None:
        """Ends it with the compilers it started, if it still runs."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait()


@dataclass
class Demo:
    state: Path
    console: Console
    guests: GuestBuilder
    started_s: float = field(default_factory=time.monotonic)
    failed: list[str] = field(default_factory=list)
    checks: int = 0
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)

    # ------------------------------------------------------------ telling
    def say(self, *lines: str) -> None:
        """Each of `lines` fits what is left of 80 columns, so that no terminal breaks it."""
        head = f"[dim]{time.monotonic() - self.started_s:6.1f} s[/]  "
        for line in lines:
            self.console.print(head + line, soft_wrap=True)
            head = " " * 10

    def expect(self, what: str, holds: bool) -> None:
        self.checks += 1
        if not holds:
            self.failed.append(what)
            self.console.print(f"          [bold red]NOT SO:[/] {what}")

    def settle(self, what: str, holds: Callable[[], bool]) -> float:
        """Polls; the seconds it took, or a failed expectation."""
        started_s = time.monotonic()
        while not (done := holds()) and time.monotonic() - started_s < SETTLE_TIMEOUT_S:
            time.sleep(0.05)
        self.expect(f"{what} within {SETTLE_TIMEOUT_S:.0f} s", done)
        return time.monotonic() - started_s

    # ------------------------------------------------------------ acting
    def edged(self, *arguments: str) -> Any:
        """What `edged … --json` prints. Raises DemoError with its problem."""
        command = [sys.executable, "-m", "edged", *arguments, "--json"]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=dict(os.environ, EDGED_STATE=str(self.state)),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"edged {' '.join(arguments)}: no answer") from error
        if done.returncode:
            raise DemoError(f"edged {' '.join(arguments)}:\n{done.stderr.strip()}")
        return json.loads(done.stdout)

    def control(self, node: str, path: str) -> Any:
        """A GET of a node's control API."""
        directory = Path(self.nodes[node]["directory"])
        token = (directory / "control.token").read_text(encoding="ascii").strip()
        url = self.nodes[node]["control_url"] + path
        status, _, data = fetch("GET", url, headers={"Authorization": f"Bearer {token}"})
        if status != 200:
            raise DemoError(f"{url}: {status} {data[:200]!r}")
        return data.decode() if path == "/v1/metrics" else json.loads(data)

    def compiles(self, node: str) -> int:
        found = re.findall(
            r"^edged_compiles_total\{.*\} (\S+)$", self.control(node, "/v1/metrics"), re.M
        )
        return int(sum(map(float, found)))

    def invoke(self, case: Case, node: str) -> Answer:
        url = f"{self.nodes[node]['gateway_url']}/{case.function}{case.target}"
        started_s = time.monotonic()
        try:
            status, headers, data = fetch("POST" if case.body else "GET", url, body=case.body)
        except (OSError, http.client.HTTPException) as error:
            return Answer(0, type(error).__name__, {}, time.monotonic() - started_s, False)
        timing = re.findall(r"(\w+);dur=([\d.]+)", headers.get("Server-Timing", ""))
        return Answer(
            status,
            headers.get("X-Edged-Start", ""),
            {name: float(value) for name, value in timing},
            time.monotonic() - started_s,
            status == 200 and data == case.answer,
        )

    def ask_twice(self, case: Case, node: str) -> tuple[Answer, Answer]:
        return self.invoke(case, node), self.invoke(case, node)

    def invoke_all(
        self,
        cases: tuple[Case, ...],
        nodes: tuple[str, ...],
        title: str,
        *,
        cold_everywhere: bool = False,
    ) -> dict[tuple[str, str], Answer]:
        """Every case on every node, twice; a table of the first answers, which are returned.
        `cold_everywhere`: no node is ready, so the second may wait for code as the first did."""
        table = Table(box=None)
        table.add_column("first answers, ms", no_wrap=True, overflow="ignore")
        for case in cases:
            table.add_column(case.function, justify="right", no_wrap=True, overflow="ignore")
        with ThreadPoolExecutor(len(nodes)) as pool:  # the nodes work side by side
            asked = pool.map(lambda node: [self.ask_twice(case, node) for case in cases], nodes)
            answers = dict(zip(nodes, asked, strict=True))
        first: dict[tuple[str, str], Answer] = {}
        for node in nodes:
            cells = []
            for case, (one, two) in zip(cases, answers[node], strict=True):
                first[case.function, node] = one
                what = f"{case.function} on {node}"
                self.expect(f"{what} answers right", one.right and two.right)
                if not cold_everywhere:
                    self.expect(f"{what} is ready when asked again", two.start in AT_ONCE)
                start = one.start[:1] if one.status == 200 else f"{one.status} {one.start}".strip()
                cells.append(f"{one.elapsed_s * 1e3:.0f} {start}")
            table.add_row(self.label(node), *cells)
        self.console.print(f"\n[bold]{title}[/]")
        self.console.print(table)
        starts = sorted({answer.start for answer in first.values() if answer.status == 200})
        legend = ", ".join(f"{start[:1]} {start}" for start in starts)
        star = "  * interprets" if any(self.interprets(node) for node in nodes) else ""
        self.console.print(f"[dim]{legend}{star}[/]\n")
        return first

    def label(self, node: str) -> str:
        star = "*" if self.interprets(node) else ""
        return f"{node}{star} {self.nodes[node]['region']}"

    def interprets(self, node: str) -> bool:
        return bool(self.nodes[node]["target"] == "pulley64")
