"""First answers of a function with much native code (26 MB; a quick run has 6 MB), on nodes that
hold nothing of it, behind links of 100 Mbit/s: with the artifact of the one node that has it,
forwarded to that node, compiled by two tiers, compiled by one.

The module is varied by a custom section until it is placed on the node that it is deployed to, so
that no other fetches it unasked. The bound of a fetch is its wire form's bytes by the link's rate:
headers of TCP and TLS, 5 %, are not in it. The kernels at hand have no netem, so the links add no
latency: a round trip takes what the hosts take.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from _common import bar
from _far_nodes import FarNodes, Role
from _large_module import large_module
from _netns import Net
from _node import Answer, cpu_of

from protocol.holdings import READY_FORMS
from protocol.ids import Digest, digest_of
from protocol.replicas import Site, placement

FUNCTIONS, FUNCTIONS_QUICK = 1900, 400
"""11.7 MB of module, 26 MB of native code on x86-64, 13 MB of it on the wire, 16 CPU seconds to
compile; a quick run has a fifth of it."""
MBIT = 100.0
BYTES_PER_MS = MBIT * 125.0
CHECK_MS = 50.0
ARTIFACT_BAR = 1.1
FORWARD_BAR_MS = 20.0
OWN_ASKED = 5
STANDBY_S = 2.0
WAIT_S = 30.0
TARGET = "/f/probe?x=7"
FUNCTION = {"abi": "export", "replicas": 1}
HOLDER = Role("holder", tiers="optimised")


def roles(*, quick: bool) -> list[Role]:
    more = 0 if quick else 2
    return [
        HOLDER,
        *(Role(f"artifact-{number}") for number in range(1 + more)),
        *(Role(f"forwarded-{number}", forward=True) for number in range(1 + more)),
        *([] if quick else [Role("one-tier", tiers="optimised", accept="none")]),
        Role("two-tiers", accept="none"),
    ]


def measure(root: Path, *, quick: bool) -> dict[str, Any]:
    """Raises Unavailable, RuntimeError."""
    nodes_of = roles(quick=quick)
    with Net(len(nodes_of)) as net, FarNodes(net, root, nodes_of) as nodes:
        for number in range(len(nodes_of)):
            net.limit(number, MBIT)
        nodes.start()
        return _Run(nodes, [role.name for role in nodes_of], quick=quick).rows()


class _Run:
    def __init__(self, nodes: FarNodes, names: list[str], *, quick: bool) -> None:
        self._nodes = nodes
        self._names = names
        self._functions = FUNCTIONS_QUICK if quick else FUNCTIONS
        self._expected = b""

    def rows(self) -> dict[str, Any]:
        time.sleep(STANDBY_S)
        module, wire_bytes = self._deploy()
        compiled = self._first(HOLDER.name, "compiled")
        artifact = self._artifact(module)
        rows: dict[str, Any] = {"compiled at the holder": [compiled]}
        for kind, names in self._kinds().items():
            rows[kind] = []
            for name in names:
                if kind == "forwarded":
                    rows[kind].append(self._forwarded(name))
                    self._nodes.kill(name)  # it fetches the artifact from here on
                else:
                    rows[kind].append(self._first(name, _start(kind)))
            if kind in ("one tier", "two tiers"):
                self._nodes.kill(names[0])
        wire = {"module": wire_bytes, "artifact": artifact["wire_bytes"]}
        return {"rows": rows, "wire_bytes": wire, "artifact_bytes": artifact["size_bytes"]}

    def _kinds(self) -> dict[str, list[str]]:
        """What costs the others no CPU afterwards comes first."""
        kinds: dict[str, list[str]] = {}
        for name in self._names[1:]:
            kind = name.rpartition("-")[0] if name[-1].isdigit() else name.replace("-", " ")
            kinds.setdefault(kind, []).append(name)
        return kinds

    def _deploy(self) -> tuple[Digest, int]:
        sites = [Site(self._nodes.node_id(name), "far") for name in self._names]
        module = _placed(large_module(self._functions).read_bytes(), sites)
        stored = self._nodes.control(HOLDER.name, "PUT", "/v1/modules", module)
        wanted = FUNCTION | {"module": stored["module"]}
        self._nodes.control(HOLDER.name, "PUT", "/v1/functions/f", wanted)
        return stored["module"], stored["wire_bytes"]

    def _artifact(self, module: Digest) -> dict[str, Any]:
        """At the holder; waits until all others know of it."""
        for name in self._names[1:]:
            deadline_s = time.monotonic() + WAIT_S
            while not READY_FORMS.intersection(self._forms(name)):
                if time.monotonic() > deadline_s:
                    raise RuntimeError(f"{name} never heard of the artifact")
                time.sleep(0.1)
        blobs = self._nodes.control(HOLDER.name, "GET", "/v1/blobs")["blobs"]
        return next(b for b in blobs if b["kind"] == "artifact" and b["module"] == module)

    def _forms(self, name: str) -> list[str]:
        try:
            shown = self._nodes.control(name, "GET", "/v1/functions/f")
        except RuntimeError:  # its record has not come yet
            return []
        return [holder["form"] for holder in shown["holders"]]

    def _ask(self, name: str, start: str) -> Answer:
        answer = self._nodes.ask(name, TARGET)
        self._expected = self._expected or answer.body
        if (answer.status, answer.body, answer.start) != (200, self._expected, start):
            raise RuntimeError(f"{name}: not a right first answer: {answer}")
        return answer

    def _first(self, name: str, start: str) -> dict[str, float]:
        pid = self._nodes.pid(name)
        before_s = cpu_of(pid)
        answer = self._ask(name, start)
        return _row(answer) | {"cpu_ms": round((cpu_of(pid) - before_s) * 1e3)}

    def _forwarded(self, name: str) -> dict[str, float]:
        own_s = statistics.median(
            self._ask(HOLDER.name, "warm").elapsed_s for _ in range(OWN_ASKED)
        )
        rtt_ms = self._nodes.rtt_ms(name, HOLDER.name)
        row = _row(self._ask(name, "forwarded"))
        own_ms = round(own_s * 1e3, 1)
        added_ms = round(row["first_ms"] - own_ms, 1)
        return row | {"own_ms": own_ms, "rtt_ms": rtt_ms, "added_ms": added_ms}


def _row(answer: Answer) -> dict[str, float]:
    return {"first_ms": round(answer.elapsed_s * 1e3, 1)} | answer.phases_ms


def _start(kind: str) -> str:
    return "artifact" if kind == "artifact" else "compiled"


def _placed(module: bytes, sites: list[Site]) -> bytes:
    """Varied until the first site is where it belongs."""
    for number in range(10_000):
        text = str(number).encode()
        section = b"\x07variant" + text
        varied = module + bytes([0, len(section)]) + section
        if placement(digest_of(varied), sites, 1)[0] == sites[0]:
            return varied
    raise RuntimeError("no variant of the module belongs on the first node")


def show(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Prints the rows; the bars."""
    rows, wire = found["rows"], found["wire_bytes"]
    bound_ms = wire["artifact"] / BYTES_PER_MS + CHECK_MS
    print(
        f"\n{found['artifact_bytes'] / 1e6:.1f} MB of native code, {wire['artifact'] / 1e6:.2f} MB"
        f" on the wire, of a module of {wire['module'] / 1e6:.2f} MB there; links of {MBIT:g}"
        f" Mbit/s\n{'':24} {'first ms':>9}"
    )
    for kind, measured in rows.items():
        for row in measured:
            rest = "  ".join(
                f"{name} {value:g}" for name, value in row.items() if name != "first_ms"
            )
            print(f"{kind:24} {row['first_ms']:9.1f}   {rest}")
    first_ms = {
        kind: statistics.median(row["first_ms"] for row in measured)
        for kind, measured in rows.items()
    }
    compiled_ms = first_ms.get("one tier", first_ms["compiled at the holder"])
    for kind, other_ms in (("one tier", compiled_ms), ("two tiers", first_ms["two tiers"])):
        print(f"the artifact path is {other_ms / first_ms['artifact']:.1f} times as fast as {kind}")
    above_ms = statistics.median(row["added_ms"] - row["rtt_ms"] for row in rows["forwarded"])
    size = f"{found['artifact_bytes'] / 1e6:.0f} MB artifact at {MBIT:g} Mbit/s"
    ratio = first_ms["artifact"] / bound_ms
    return [
        bar(f"{size}: first answer, of bound + {CHECK_MS:g} ms", ratio, ARTIFACT_BAR, "×"),
        bar(f"{size}: forwarded, above holder's own + RTT", above_ms, FORWARD_BAR_MS, "ms"),
    ]
