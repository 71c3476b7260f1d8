"""The story that scripts/demo tells, with every claim checked: an expectation that fails is
printed, and the exit status is 1.

Deploys and cluster operations go through the `edged` command, invocations through plain HTTP. The
cluster's state is a fresh directory under .edged, removed at the end, also on Ctrl-C and failure.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
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
CLUSTER = "configs/clusters/geo8.toml"
SCENARIO = "configs/chaos/region-loss.toml"
RUN = ROOT / ".edged" / "region-loss"
ORIGIN, SURVIVORS = "n1", tuple(f"n{number}" for number in range(2, 9))
NODES = (ORIGIN, *SURVIVORS)
REPLICAS = 3
AT_ONCE = ("warm", "forwarded")
"""Starts of requests that waited for no code: it was in memory here, or at a peer."""
TEXT = "To be, or not to be, that is the question"


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


ABC = b"6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85  abc\n"
WORDS = b'{"words":10,"distinct":8,"longest":"question","top":{"be":2,"to":2}}\n'
CASES = (
    Case("hello", "C", "?name=edge", b"Hello from C, edge!\n"),
    Case("b3sum", "Zig", "?name=abc", ABC, b"abc"),
    Case("words", "JavaScript", "?top=2", WORDS, TEXT.encode()),
    Case("add_numbers", "WAT", "/add_numbers?num1=5&num2=10", b"15\n"),
    Case("reverse_sub", "WAT", "/reverseSub?a=3&b=10", b"7\n"),
)
LATER = Case("count", "C", "?n=1000000", b"78498 primes below 1000000\n")


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

    def __init__(self) -> None:
        wanted = {case.function for case in (*CASES, LATER)}
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


# ---------------------------------------------------------------- the story
def bring_up(demo: Demo) -> None:
    demo.say(
        "starting eight node processes, one in each of eight AWS regions: between them lie",
        "the round trips measured there; two interpret (pulley64), as a machine of",
        "another architecture would",
    )
    view = demo.edged("cluster", "up", str(ROOT / CLUSTER), "--name", "demo")
    demo.nodes = {node["name"]: node for node in view["nodes"]}
    demo.expect(
        "eight nodes are ready", [n["condition"] for n in view["nodes"]] == ["ready"] * len(NODES)
    )
    demo.expect(
        "every node sees every other",
        all(sorted(node["alive"] or ()) == sorted(NODES) for node in view["nodes"]),
    )
    demo.say(
        "all eight see each other:",
        *(f"  {demo.label(node['name']):18} {node['gateway_url']}" for node in view["nodes"]),
    )


def deploy(demo: Demo, case: Case, node: str) -> None:
    demo.guests.wait_for(demo, case.function)
    started_s = time.monotonic()
    config = str(ROOT / "guests" / case.function / "function.toml")
    done = demo.edged("deploy", "--config", config, "--cluster", "demo", "--node", node)
    module, elapsed_ms = done["module"], (time.monotonic() - started_s) * 1e3
    size_kb, wire_kb = module["size_bytes"] / 1e3, module["wire_bytes"] / 1e3
    demo.say(
        f"{node} took [bold]{case.function}[/] ({case.made_with}) in {elapsed_ms:.0f} ms:"
        f" {size_kb:.1f} kB, {wire_kb:.1f} compressed, on disk on"
        f" {', '.join(done['function']['replicas'])}"
    )


def wait_until_known(demo: Demo, nodes: tuple[str, ...]) -> None:
    def same() -> bool:
        return len({demo.control(node, "/v1/status")["catalog"] for node in nodes}) == 1

    took_s = demo.settle("all nodes know the same functions", same)
    demo.say(f"gossip: {', '.join(nodes)} hold the same catalog after {took_s * 1e3:.0f} ms")


def serve_everywhere(demo: Demo) -> None:
    for case in CASES:
        deploy(demo, case, ORIGIN)
    wait_until_known(demo, NODES)
    first = demo.invoke_all(CASES, NODES, "Deployed through n1 only, invoked in every region")
    for case in CASES:
        regions = {demo.nodes[node]["region"] for node in placement(demo, case)["placed"]}
        demo.expect(f"{case.function} lies on disks in three regions", len(regions) == REPLICAS)
    starts = {answer.start for (_, node), answer in first.items() if node != ORIGIN}
    demo.expect(
        "some first requests were passed on to a node that was ready", "forwarded" in starts
    )

    def own() -> bool:
        return all(demo.invoke(case, node).start == "warm" for case in CASES for node in SURVIVORS)

    took_s = demo.settle("every node runs every function itself", own)
    demo.say(f"every node runs every function itself after {took_s:.1f} s more")


def placement(demo: Demo, case: Case) -> dict[str, Any]:
    found: dict[str, Any] = demo.control("n2", f"/v1/functions/{case.function}")["replicas"]
    return found


def watch_repair(demo: Demo, killed_s: float) -> None:
    """Copies that died with the origin are made good elsewhere."""

    def whole() -> bool:
        found = [placement(demo, case) for case in CASES]
        return all(ORIGIN not in f["placed"] and not f["missing"] for f in found)

    demo.settle(f"every module is on {REPLICAS} living disks again", whole)
    demo.say(
        f"every module is on {REPLICAS} living disks again,"
        f" {time.monotonic() - killed_s:.1f} s after the kill or sooner"
    )


def state_of(demo: Demo, node: str) -> dict[str, Any]:
    """What must survive a crash."""
    functions = demo.control(node, "/v1/functions")["functions"]
    status = demo.control(node, "/v1/status")
    return {
        "functions": {function["name"]: function["version"] for function in functions},
        "blobs": status["blobs"],
        "blob_bytes": status["blob_bytes"],
    }


def lose_the_origin(demo: Demo) -> dict[str, Any]:
    before = state_of(demo, ORIGIN)
    demo.edged("cluster", "kill", ORIGIN, "--name", "demo")
    killed_s = time.monotonic()
    demo.say(f"[bold]killed {ORIGIN}[/] with SIGKILL: the node that took every deploy")
    gone = demo.invoke(CASES[0], ORIGIN)
    demo.expect(f"{ORIGIN} answers nobody", gone.status == 0)
    demo.invoke_all(CASES, SURVIVORS, "The origin is dead; the survivors answer")

    def noticed() -> bool:
        return all(
            member["state"] == "down"
            for node in SURVIVORS
            for member in demo.control(node, "/v1/members")["members"]
            if member["name"] == ORIGIN
        )

    demo.settle(f"all survivors hold {ORIGIN} for down", noticed)
    demo.say(f"all hold {ORIGIN} for down, {time.monotonic() - killed_s:.1f} s after it or sooner")
    watch_repair(demo, killed_s)
    deploy(demo, LATER, "n2")
    wait_until_known(demo, SURVIVORS)
    title = "Deployed through n2 while n1 is dead, asked everywhere at once"
    demo.invoke_all((LATER,), SURVIVORS, title, cold_everywhere=True)
    return before


def bring_it_back(demo: Demo, before: dict[str, Any]) -> None:
    started_s = time.monotonic()
    demo.edged("cluster", "restart", ORIGIN, "--name", "demo")
    took_s = time.monotonic() - started_s
    demo.say(f"[bold]restarted {ORIGIN}[/] on its old files: ready after {took_s:.1f} s")
    after = state_of(demo, ORIGIN)
    repair = demo.control(ORIGIN, "/v1/status")["repair"]
    demo.expect(
        "n1 knows every function in its version",
        before["functions"].items() <= after["functions"].items(),
    )
    demo.expect(
        "n1 holds every blob it held",
        after["blobs"] >= before["blobs"] and after["blob_bytes"] >= before["blob_bytes"],
    )
    demo.expect("no blob was missing or corrupt", not repair["missing"] and not repair["corrupt"])
    demo.say(
        f"state intact: {len(after['functions'])} functions, {after['blobs']} blobs, "
        f"{after['blob_bytes'] / 1e6:.1f} MB;",
        f"repair found {len(repair['missing'])} missing, {len(repair['corrupt'])} corrupt, "
        f"swept {repair['temps_removed']} temporary files",
    )
    first = demo.invoke_all(
        CASES, (ORIGIN,), "The origin again: mapped from its own disk, nothing compiled"
    )
    for case in CASES:
        answer = first[case.function, ORIGIN]
        demo.expect(
            f"{case.function} on n1 was loaded, not compiled",
            answer.start == "loaded" and "compile" not in answer.phases_ms,
        )
    compiles = demo.compiles(ORIGIN)
    demo.expect("n1 compiled nothing since it is back", compiles == 0)
    demo.say(f"compiles on n1 since its restart: {compiles}")
    wait_until_known(demo, NODES)
    demo.invoke_all(
        (LATER,), (ORIGIN,), "Deployed while it was dead: learnt by gossip, fetched from a peer"
    )


def break_on_purpose(demo: Demo) -> None:
    """A region is lost under load, and a verdict given on what clients and disks saw of it."""
    demo.say(
        "a region dies under load and comes back, on a cluster of its own: six nodes,",
        f"30 requests/s, 24 s; the scenario is {SCENARIO}",
    )
    shutil.rmtree(RUN, ignore_errors=True)
    told = demo.edged("chaos", "run", SCENARIO, "--out", str(RUN))
    held = [row["invariant"] for row in told["judged"] if not row["findings"]]
    demo.say(
        f"verdict: [bold]{told['verdict']}[/]; {len(held)} of {len(told['judged'])} invariants"
        f" held over {told['requests']} requests, {told['errors']} of which failed"
    )
    demo.expect(f"the scenario is valid, not {told['verdict']}", told["verdict"] == "valid")
    report = RUN / "report.html"
    demo.expect("the report is written", report.is_file())
    demo.say(f"report: {report.relative_to(ROOT)}")


def end_cluster(demo: Demo) -> None:
    done = demo.edged("cluster", "down", "--name", "demo")
    demo.say(f"stopped {len(done['stopped'])} nodes and removed their files")
    demo.expect("every node stopped when asked", not done["killed"])


def clean_up(demo: Demo) -> None:
    if (demo.state / "clusters" / "demo").exists():
        try:
            end_cluster(demo)
        except DemoError as error:
            demo.expect(f"the cluster stops: {error}", False)
            return
    shutil.rmtree(demo.state, ignore_errors=True)


def show_logs(demo: Demo) -> None:
    """The end of each node's log, for whoever has to find out what went wrong."""
    for log in sorted(demo.state.glob("clusters/*/nodes/*/node.log")):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        demo.console.print(f"[bold]{log.parent.name}/node.log[/] ends with")
        for line in lines:
            demo.console.print(line, markup=False)


def show_kept(demo: Demo) -> None:
    edged = ROOT / ".venv" / "bin" / "edged"
    program = edged.relative_to(ROOT) if Path.cwd() == ROOT else edged
    print("\nThe cluster is still up. Try:")
    print(f"  export EDGED_STATE={demo.state}")
    for node in demo.nodes.values():
        print(f"  curl -i '{node['gateway_url']}/words?text=to+be+or+not+to+be'   # {node['name']}")
    for line in (
        "functions",
        "explain words --node n3",
        "invoke hello -q name=you --node n2 -v",
        "cluster kill n2",
        "cluster status",
        "cluster down",
    ):
        print(f"  {program} {line}")


def tell(demo: Demo, *, keep: bool) -> None:
    if demo.guests.missing():
        demo.say(
            "guests are compiled from source meanwhile, once: a cache keeps them;",
            "what takes longest is Zig's C library, which comes first",
        )
    bring_up(demo)
    serve_everywhere(demo)
    before = lose_the_origin(demo)
    bring_it_back(demo, before)
    if not keep:
        end_cluster(demo)
        break_on_purpose(demo)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the cluster running")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    (ROOT / ".edged").mkdir(exist_ok=True)
    state = Path(tempfile.mkdtemp(prefix="demo-", dir=ROOT / ".edged"))
    # Narrower terminals wrap a table's lines, which cuts nothing; rich would cut cells.
    width = max(80, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 80
    console = Console(width=width, highlight=False, emoji=False)
    demo = Demo(state, console, GuestBuilder())
    kept, interrupted = options.keep, False
    try:
        tell(demo, keep=options.keep)
    except KeyboardInterrupt:
        interrupted, kept = True, False
        console.print("\ninterrupted: cleaning up")
    except (DemoError, http.client.HTTPException, OSError) as error:
        demo.failed.append(str(error))
        console.print(f"[bold red]stopped:[/] {type(error).__name__}", highlight=False)
        console.print(str(error), markup=False)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        demo.guests.close()
        if demo.failed and not interrupted:
            show_logs(demo)
        if not kept:
            clean_up(demo)
    if interrupted:
        return 130
    failed = f"; failed: {'; '.join(demo.failed)}" if demo.failed else ""
    demo.say(f"{demo.checks - len(demo.failed)} of {demo.checks} expectations held{failed}")
    if kept:
        show_kept(demo)
    return 1 if demo.failed else 0
