"""Time to the first answer by form over real links: two nodes in network namespaces, of which one
has every form and the other nothing (_snapshot_node.py).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from _netns import BURST_BYTES, Net
from _snapshot_facts import Facts
from _snapshot_guests import PLACE
from _snapshot_links import BYTES_PER_MBIT, FORMS, LINKS_MBIT, answered_s, cells, heads, rows

from edged.trust import create_ca, issue_node, load_trust
from protocol.costs import PlanForm

SLOW_S, TOO_SLOW_S = 3.0, 20.0
"""By the model: what takes longer is measured once, as the link decides; or not at all."""
NODE = Path(__file__).with_name("_snapshot_node.py")
HOLDER, ASKER = 0, 1
BURST_S, BURST_BYTES_MIN = 0.006, 4000
"""What goes at once after a rest, in time at the link's rate: 64 KiB would be a small module for
nothing."""


class Answer(NamedTuple):
    own_s: float
    """Fetching, and the CPU time of the rest: what the same takes on cores of its own."""
    first_s: float
    """As it was, on this machine's cores."""
    fetch_s: float
    fetched_bytes: float


Measured = dict[str, dict[float, dict[PlanForm, Answer]]]
"""By function, Mbit/s, form."""


def measure(
    found: list[Facts], *, rounds: int, links_mbit: Sequence[float] = LINKS_MBIT
) -> Measured:
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
            for mbit in links_mbit:
                burst_bytes = int(mbit * BYTES_PER_MBIT * BURST_S)
                burst_bytes = min(max(burst_bytes, BURST_BYTES_MIN), BURST_BYTES)
                net.limit(ASKER, mbit, burst_bytes=burst_bytes)
                for facts in found:
                    answers = _answers(asker, facts, mbit, rounds)
                    measured[facts.case.name][mbit] = answers
    return measured


def _answers(
    asker: subprocess.Popen[str], facts: Facts, mbit: float, rounds: int
) -> dict[PlanForm, Answer]:
    modelled = {form: answered_s(row) for form, row in rows(facts, mbit).items() if form in FORMS}
    found: dict[PlanForm, Answer] = {}
    for form, expected_s in modelled.items():
        if expected_s > TOO_SLOW_S:
            continue
        print(f"measuring {facts.case.name}, {mbit:g} Mbit/s, {form} …", file=sys.stderr)
        times = rounds if expected_s < SLOW_S else 1
        told = [Answer(**_ask(asker, _order(facts, form))) for _ in range(times)]
        found[form] = min(told, key=lambda answer: answer.own_s)
    return found


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


def show(found: list[Facts], measured: Measured) -> None:
    print("\nThe same measured between two nodes, s: the transfer, and the CPU time of the rest")
    print(heads())
    times = []
    for facts in found:
        for mbit, answers in measured[facts.case.name].items():
            modelled = rows(facts, mbit)
            times += [told.own_s / answered_s(modelled[form]) for form, told in answers.items()]
            if answers:
                print(cells(facts, mbit, {form: told.own_s for form, told in answers.items()}))
    low, middle, high = statistics.quantiles(times, n=4)
    print(f"-: not measured, over {TOO_SLOW_S:.0f} s by the model")
    print(f"measured / modelled: {middle:.2f} (median), {low:.2f} to {high:.2f} (half of them)")


def summary(measured: Measured) -> dict[str, dict[str, dict[str, float]]]:
    return {
        name: {
            f"{form} @ {mbit:g}": told._asdict()
            for mbit, answers in links.items()
            for form, told in answers.items()
        }
        for name, links in measured.items()
    }
