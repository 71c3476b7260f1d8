"""Shaped links over the control API."""

from __future__ import annotations

import json

import pytest
import trio

from edged.links import EMPTY
from tests.unit.control.asgi_client import Answer, Client
from tests.unit.control.harness import Node, check_problem
from tests.unit.control.memory_links import memory_shaper

DOCUMENT = {
    "nodes": {"n2": {"region": "far", "address": "127.0.0.1:2"}},
    "rules": [{"from": ["*"], "to": ["far"], "latency_ms": 5, "loss": 1, "bandwidth_mbit": 8}],
}


async def put(client: Client, document: object) -> Answer:
    return await client.request("PUT", "/v1/links", body=json.dumps(document).encode())


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_off_it_says_which_key_turns_it_on(node: Node, method: str) -> None:
    body = b"{}" if method == "PUT" else b""
    answer = await node.client.request(method, "/v1/links", body=body)
    problem = check_problem(answer, 409, "switched-off")
    assert problem["key"] == "links.enabled"
    assert "links.enabled = true" in problem["detail"]


async def test_a_document_is_put_in_force_and_told(node: Node) -> None:
    shaper = memory_shaper(node.events)
    client = node.with_links(shaper)
    empty = (await client.request("GET", "/v1/links")).json()
    assert (empty["document"]["rules"], empty["peers"]) == ([], [])

    change = (await put(client, DOCUMENT)).json()
    assert change["rules"] == 1
    shaper.send(b"x", ("127.0.0.1", 2))
    view = (await client.request("GET", "/v1/links")).json()
    assert [rule["to"] for rule in view["document"]["rules"]] == [["far"]]
    assert view["changed_at_ms"] >= change["at_ms"]
    (peer,) = view["peers"]
    assert (peer["name"], peer["region"]) == ("n2", "far")
    assert peer["link"] == {
        "latency_ms": 5.0,
        "jitter_ms": 0.0,
        "jitter": "uniform",
        "correlation": 0.0,
        "loss": 1.0,
        "duplicate": 0.0,
        "reorder": 0.0,
        "bandwidth_mbit": 8.0,
        "cut": None,
    }
    assert (peer["datagrams"], peer["datagrams_dropped"]["loss"]) == (1, 1)
    event = (await client.request("GET", "/v1/events")).json()["events"][-1]
    assert (event["kind"], event["detail"]) == ("links-changed", "1 rules")


async def test_an_instant_is_kept_until_then(node: Node) -> None:
    shaper = memory_shaper(node.events)
    client = node.with_links(shaper)
    async with trio.open_nursery() as nursery:
        await nursery.start(shaper.run)
        now_ms = shaper.view().changed_at_ms
        change = (await put(client, DOCUMENT | {"at_ms": now_ms + 60_000})).json()
        assert change["at_ms"] == now_ms + 60_000
        view = (await client.request("GET", "/v1/links")).json()
        assert view["pending_at_ms"] == change["at_ms"]
        assert view["document"]["rules"] == []
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"rules": [{"from": ["*"], "to": ["*"], "loss": 2}]}, "rules.loss = 2"),
        ({"rule": []}, "rules is meant?"),
        ({"at_ms": "soon"}, "at_ms"),
        ({"at_ms": 9_000_000_000_000}, "3600 s are allowed"),
        ([], "request body"),
    ],
)
async def test_what_is_wrong_is_named_and_changes_nothing(
    node: Node, body: object, told: str
) -> None:
    shaper = memory_shaper(node.events)
    problem = check_problem(await put(node.with_links(shaper), body), 400, "bad-request")
    assert told in problem["detail"]
    assert shaper.view().document == EMPTY


async def test_a_body_that_is_too_long_is_refused(node: Node) -> None:
    client = node.with_links(memory_shaper(node.events))
    answer = await client.request("PUT", "/v1/links", body=b" " * 1_048_577)
    check_problem(answer, 413, "payload-too-large")
    check_problem(await client.request("PUT", "/v1/links", body=b"[" * 9000), 400, "bad-request")
