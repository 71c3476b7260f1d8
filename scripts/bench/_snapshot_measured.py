"""Time to the first answer by form over real links: two nodes in network namespaces, of which one
has every form and the other nothing (_snapshot_node.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _netns import Net
from _snapshot_facts import Facts
from _snapshot_guests import PLACE
from _snapshot_links import FORMS, answered_s, rows

from edged.trust import create_ca, issue_node, load_trust
from protocol.costs import Option

LINKS_MBIT = (20.0, 100.0)
NODE = Path(__file__).with_name("_snapshot_node.py")
HOLDER, ASKER = 0, 1
Measured = dict[str, dict[str, dict[str, float]]]
"""By function, "form @ Mbit/s", phase."""


def measure(found: list[Facts], *, rounds: int) -> Measured:
    """The best of `rounds` each. Raises _netns.Unavailable, RuntimeError."""
    measured: Measured = {facts.case.name: {} for facts in found}
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name, Net(2) as net:
        root = Path(name)
        create_ca(root / "ca")
        for node in ("holder", "asker"):
            issue_node(root / "ca", root / node, name=node)
        at = net.address(HOLDER)
        pairs = [(f.snapshot.blob.digest, f.module.blob.digest) for f in found if f.delta_offered]
        serving = {"store": str(PLACE / "store"), "address": at, "deltas": pairs}
        asking = {"holder": at, "holder_id": load_trust(root / "holder").node_id}
        with (
            _node(net, HOLDER, "holder", serving | {"trust": str(root / "holder")}),
            _node(net, ASKER, "asker", asking | {"trust": str(root / "asker")}) as asker,
        ):
            for mbit in LINKS_MBIT:
                net.limit(ASKER, mbit)
                for facts in found:
                    modelled = rows(facts, mbit)
                    for form in (form for form in FORMS if form in modelled):
                        told = [_ask(asker, _order(facts, form)) for _ in range(rounds)]
                        best = min(told, key=lambda each: each["own_s"])
                        measured[facts.case.name][f"{form} @ {mbit:g}"] = best
                        _show(facts.case.name, mbit, modelled[form], best)
    return measured


def _order(facts: Facts, form: str) -> dict[str, Any]:
    blobs = {
        "module": facts.module.blob,
        "snapshot": facts.snapshot.blob,
        "artifact": facts.module.artifact,
        "snapshot-artifact": facts.snapshot.artifact,
    }
    return {
        "form": form,
        "digest": (facts.snapshot if form.startswith("snapshot") else facts.module).blob.digest,
        "blobs": {name: [blob.digest, blob.manifest] for name, blob in blobs.items()},
        "env": [[name.decode(), value.decode()] for name, value in facts.case.env],
        "stdin": facts.case.stdin.decode(),
        "expected": facts.case.expected.decode(),
    }


@contextmanager
def _node(
    net: Net, number: int, role: str, options: dict[str, Any]
) -> Iterator[subprocess.Popen[str]]:
    command = net.command(number, sys.executable, str(NODE), role, json.dumps(options))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        _answer(process)
        yield process
    finally:
        process.kill()
        process.communicate()


def _ask(process: subprocess.Popen[str], order: dict[str, Any]) -> dict[str, float]:
    assert process.stdin is not None
    process.stdin.write(json.dumps(order) + "\n")
    process.stdin.flush()
    return _answer(process)


def _answer(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a node of the benchmark ended: {process.args}")
    return json.loads(line)


def _show(name: str, mbit: float, modelled: Option, told: dict[str, float]) -> None:
    print(
        f"{name:11} {mbit:4g} Mbit/s {modelled.form:18} modelled {answered_s(modelled):8.3f}"
        f"  own cores {told['own_s']:8.3f}  wall {told['first_s']:8.3f}"
        f"  (fetching {told['fetch_s']:.3f}, {told['fetched_bytes'] / 1e6:.2f} MB)",
        flush=True,
    )
