"""The event log over the control API: queries, long polls, clients that leave."""

from __future__ import annotations

import pytest
import trio

from edged import eventlog
from tests.unit.control.asgi_client import Answer, sender
from tests.unit.control.harness import Node, check_problem


async def test_events(node: Node) -> None:
    for number in range(3):
        node.events.add("record-accepted", f"f{number}", f"a/f{number}")
    answer = await node.client.request("GET", "/v1/events", query="after=1&limit=1")
    view = answer.json()
    assert (view["node"], view["next_after"], view["missed"]) == ("n1", 2, 0)
    (row,) = view["events"]
    assert set(row) == {"seq", "at_ms", "kind", "node", "name", "detail"}
    assert (row["seq"], row["kind"], row["name"]) == (2, "record-accepted", "f1")
    assert (row["detail"], row["node"]) == ("a/f1", "n1")
    latest = (await node.client.request("GET", "/v1/events", query="limit=2")).json()
    assert [row["seq"] for row in latest["events"]] == [2, 3]


@pytest.mark.parametrize(
    "query",
    [
        "after=-1",
        "after=x",
        "after=9007199254740992",
        "after=99999999999999999999",
        "limit=4097",
        "limit=",
        "wait_s=61",
        "wait_s=0.5",
        "wait_s=²",
    ],
)
async def test_wrong_queries(node: Node, query: str) -> None:
    answer = await node.client.request("GET", "/v1/events", query=query)
    check_problem(answer, 400, "bad-request")


async def test_a_long_poll_answers_with_the_next_event(node: Node) -> None:
    answers: list[Answer] = []

    async def poll() -> None:
        query = "after=0&wait_s=60"
        answers.append(await node.client.request("GET", "/v1/events", query=query))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poll)
            await trio.testing.wait_all_tasks_blocked()
            assert not answers
            node.events.add("node-ready", "n1")
    assert [row["kind"] for row in answers[0].json()["events"]] == ["node-ready"]


async def test_too_many_long_polls(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventlog, "WAITERS_MAX", 0)
    answer = await node.client.request("GET", "/v1/events", query="after=0&wait_s=1")
    check_problem(answer, 503, "overloaded")


async def test_a_long_poll_ends_when_its_client_leaves(node: Node) -> None:
    leave = trio.Event()
    asked = False

    async def receive() -> dict:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await leave.wait()
        return {"type": "http.disconnect"}

    answer = Answer()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            scope = node.client.scope("GET", "/v1/events", "after=0&wait_s=60")
            nursery.start_soon(node.app, scope, receive, sender(answer))
            await trio.testing.wait_all_tasks_blocked()
            leave.set()
    assert answer.body == b""
    assert not [line for line in node.logged() if line["event"] == "control.bug"]
