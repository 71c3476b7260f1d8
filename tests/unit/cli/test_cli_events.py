"""`edged events`: the past, and following it."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from edged.cli import events
from edged.interfaces import PlanChange
from tests.unit.cli.node_thread import NodeThread


def test_events(cli: Any, node: NodeThread) -> None:
    node.do(node.events.add, "member-suspect", "n2", "no ack")
    node.do(node.events.add, "member-down", "n2\x1b[31m", "no ack")
    shown = cli("events", "--tail", "1").stdout
    assert "member-suspect" not in shown
    assert "n1 member-down      n2\\x1b[31m  no ack\n" in shown
    rows = [json.loads(line) for line in cli("events", "--json").stdout.splitlines()]
    assert [(row["seq"], row["kind"], row["detail"]) for row in rows] == [
        (1, "member-suspect", "no ack"),
        (2, "member-down", "no ack"),
    ]
    assert cli("events", "--tail", "5000").exit_code == 2


def test_following(cli: Any, node: NodeThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C cannot be pressed in a thread: the last row does it."""
    shown = events._line

    def line(row: Any) -> str:
        if row.kind == "node-draining":
            raise KeyboardInterrupt
        return shown(row)

    monkeypatch.setattr(events, "_line", line)
    node.do(node.events.add, "node-ready", "n1")
    results = []
    reader = threading.Thread(target=lambda: results.append(cli("events", "-f")))
    reader.start()
    deadline = time.monotonic() + 10
    while node.do(lambda: node.events.waiting) == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    node.do(node.events.add, "member-up", "n2")
    node.do(node.events.add, "node-draining", "n1")
    reader.join(10)
    assert results[0].exit_code == 0
    assert [text.split()[2] for text in results[0].stdout.splitlines()] == [
        "node-ready",
        "member-up",
    ]


def test_a_change_of_form_is_told_in_words_and_as_data(cli: Any, node: NodeThread) -> None:
    change = PlanChange(1.0, "drift", "module", "snapshot", "bandwidth", 125e3, 2.5e6)
    node.do(node.events.planned, "ua", change)
    shown = cli("events").stdout
    assert shown.endswith(
        "n1 plan-changed     ua  module → snapshot (drift): bandwidth 1 mbit/s → 20 mbit/s\n"
    )
    (row,) = [json.loads(line) for line in cli("events", "--json").stdout.splitlines()]
    assert (row["plan"]["after"], row["plan"]["input_after"]) == ("snapshot", 2.5e6)
