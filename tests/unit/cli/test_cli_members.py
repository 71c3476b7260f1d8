"""`edged members` once and live, and the gossip part of `edged status`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from edged.cli import members
from edged.interfaces import MemberView
from protocol.ids import NodeId
from tests.unit.cli.node_thread import NodeThread


def a_member(**changed: object) -> MemberView:
    view = MemberView(
        name="n2",
        node_id=NodeId("22" * 16),
        region="eu",
        state="alive",
        gossip_address="127.0.0.1:7947",
        gateway_url="",
        target="x86_64",
        generation=1,
        incarnation=4,
        rtt_ms=12.5,
        is_self=False,
        load=0.5,
        since_s=2_000.0,
    )
    return msgspec.structs.replace(view, **changed)


@pytest.fixture
def looks(node: NodeThread, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What the node answers one after the other; then Ctrl-C."""

    def set_looks(*others: tuple[MemberView, ...]) -> None:
        rest = list(others)
        node.operator.others = rest.pop(0)

        def sleep(_seconds: float) -> None:
            if not rest:
                raise KeyboardInterrupt
            node.operator.others = rest.pop(0)

        monkeypatch.setattr(members.time, "sleep", sleep)

    return set_looks


def test_once(cli: Any, node: NodeThread) -> None:
    node.operator.others = (a_member(state="suspect", why="accused by n3; stream silent"),)
    shown = cli("members").stdout
    me, other = (line.split() for line in shown.splitlines() if "127.0.0.1:79" in line)
    assert me[:7] == ["n1", "*", "alive", "local", "–", "2", "25%"]
    assert other[:8] == ["n2", "suspect", "eu", "12.5", "ms", "–", "50%", "4"]
    assert shown.count("accused by n3; stream silent") == 1


def test_watching_prints_changes_where_there_is_no_terminal(cli: Any, looks: Any) -> None:
    suspect = a_member(state="suspect", why="stream \x1b[31msilent")
    looks((a_member(),), (a_member(load=0.6),), (suspect,), ())
    watched = cli("members", "--watch")
    assert watched.exit_code == 0
    lines = [line.split(maxsplit=1)[1] for line in watched.stdout.splitlines()]
    assert lines == [
        "n1 alive incarnation 0",
        "n2 alive incarnation 4",
        "n2 suspect incarnation 4 stream \\x1b[31msilent",
        "n2 forgotten",
    ]


def test_watching_as_json_lines(cli: Any, looks: Any) -> None:
    looks((a_member(),), (a_member(state="down"),))
    lines = [json.loads(line) for line in cli("members", "-w", "--json").stdout.splitlines()]
    assert [line["members"][1]["state"] for line in lines] == ["alive", "down"]
    assert lines[0]["at_s"] <= lines[1]["at_s"]


def test_watching_on_a_terminal_redraws(
    cli: Any, looks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks((a_member(),), (a_member(state="down", why="no answer"),))
    monkeypatch.setattr(members, "is_terminal", lambda: True)
    shown = cli("members", "--watch", color=True).stdout
    first, second = shown.split(members.HOME_AND_CLEAR)[1:]
    assert "2 alive\n" in first
    assert "1 alive, 1 down\n" in second
    assert "no answer" in second


def test_status_tells_of_gossip(cli: Any) -> None:
    shown = cli("status").stdout
    for text in (
        "load 25%",
        "2 of 8 (0 is well)",
        "7: answered 5 directly, 0 through helpers, 0 by stream; 0 failed, 1 nacks",
        "8 in (800 B), 9 out (900 B)",
        "envelope 810 B, ack 90 B",
        "updates 3",
        "seal-open 4",
    ):
        assert text in shown
