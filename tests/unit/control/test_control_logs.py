"""A function's log over the control API: the past, and following it."""

from __future__ import annotations

import json

import pytest
import trio

from edged.control.stream import LogStream
from tests.unit.control.asgi_client import Answer, sender
from tests.unit.control.harness import Node, check_problem


async def test_logs(node: Node) -> None:
    await node.deploy("a", module=await node.upload())
    for number in range(5):
        node.operator.say("a", f"line {number}")
    answer = await node.client.request("GET", "/v1/functions/a/logs", query="tail=2")
    assert answer.headers["content-type"] == "application/x-ndjson"
    texts = [json.loads(line)["text"] for line in answer.body.splitlines()]
    assert texts == ["line 3", "line 4"]
    empty = await node.client.request("GET", "/v1/functions/a/logs", query="tail=0")
    assert (empty.status, empty.body) == (200, b"")


@pytest.mark.parametrize(
    "query", ["tail=-1", "tail=x", "tail=10001", "tail=", "tail=1e3", "tail=٣", "follow=yes"]
)
async def test_wrong_log_queries(node: Node, query: str) -> None:
    await node.deploy("a", module=await node.upload())
    answer = await node.client.request("GET", "/v1/functions/a/logs", query=query)
    check_problem(answer, 400, "bad-request")


async def test_following_an_unknown_function(node: Node) -> None:
    answer = await node.client.request("GET", "/v1/functions/b/logs", query="follow=1")
    check_problem(answer, 404, "function-not-found")


class Follower:
    """A client that reads a followed log until it is told to leave."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.answer = Answer()
        self.leave = trio.Event()
        self.changed = trio.Condition()
        self.fail_sends = False

    async def run(self) -> None:
        asked = False

        async def receive() -> dict:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await self.leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            if self.fail_sends:
                raise BrokenPipeError
            await sender(self.answer)(message)
            async with self.changed:
                self.changed.notify_all()

        scope = self.node.client.scope("GET", "/v1/functions/a/logs", "follow=1&tail=1")
        await self.node.app(scope, receive, send)

    async def wait_for(self, text: bytes) -> None:
        async with self.changed:
            while text not in self.answer.body:
                await self.changed.wait()


async def test_following_until_the_client_leaves(node: Node) -> None:
    await node.deploy("a", module=await node.upload())
    node.operator.say("a", "zero")
    node.operator.say("a", "one")
    follower = Follower(node)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follower.run)
            await follower.wait_for(b"one")
            node.operator.say("a", "two")
            await follower.wait_for(b"two")
            assert node.operator.following == 1
            follower.leave.set()
    assert node.operator.following == 0
    assert b"zero" not in follower.answer.body


async def test_following_ends_when_the_function_goes(node: Node) -> None:
    await node.deploy("a", module=await node.upload())
    node.operator.say("a", "one")
    follower = Follower(node)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follower.run)
            await follower.wait_for(b"one")
            await node.client.request("DELETE", "/v1/functions/a")
    assert follower.answer.complete


async def test_following_ends_when_sending_fails(node: Node) -> None:
    await node.deploy("a", module=await node.upload())
    node.operator.say("a", "one")
    follower = Follower(node)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follower.run)
            await follower.wait_for(b"one")
            follower.fail_sends = True
            node.operator.say("a", "two")
    assert node.operator.following == 0
    assert not [line for line in node.logged() if line["event"] == "control.bug"]


async def test_a_quiet_log_sends_blank_lines(autojump_clock: trio.abc.Clock) -> None:
    async def silence():
        await trio.sleep_forever()
        yield  # pragma: no cover - makes it a generator

    answer = Answer()

    async def receive() -> dict:
        await trio.sleep(50)
        return {"type": "http.disconnect"}

    await LogStream(silence(), keepalive_s=15)({}, receive, sender(answer))
    assert answer.body == b"\n\n\n"
    assert answer.complete
