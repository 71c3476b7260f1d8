"""Shaped links in whole nodes: what a client feels, what members see, and the proof of both."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import trio

from edged.errors import ConfigError
from edged.links import Document, NodeAt, encode_document, partition
from edged.topology import Rule
from tests.integration.node.cluster import Lab, Running, lab, says

LATENCY_MS = 60.0


async def start(made: Lab, name: str, document: Document) -> Running:
    file = made.root / "links.json"
    file.write_bytes(encode_document(document))
    return await made.start(
        name,
        node={"name": name, "region": f"r-{name}"},
        links={"enabled": True, "file": str(file)},
    )


async def counts(node: Running, peer: str) -> dict[str, Any]:
    view = await node.ask("GET", "/v1/links")
    (found,) = [each for each in view["peers"] if each["name"] == peer]
    return found


async def states(node: Running) -> dict[str, str]:
    members = (await node.ask("GET", "/v1/members"))["members"]
    return {member["name"]: member["state"] for member in members}


async def test_far_nodes_join_serve_and_part(tmp_path: Path) -> None:
    far = Document(rules=(Rule(sources=("*",), targets=("*",), latency_ms=LATENCY_MS),))
    async with lab(tmp_path) as made:
        one = await start(made, "n1", far)
        host = one.addresses.gossip_address
        # Whom n2 does not know yet is found by its address.
        other = await start(
            made, "n2", Document(nodes={"n1": NodeAt("r-n1", host)}, rules=far.rules)
        )
        await made.agree()
        begun = trio.current_time()
        await one.deploy("hello", says("hello"))
        assert trio.current_time() - begun > 2 * LATENCY_MS / 1000, "the copy crossed the link"
        assert (await made.knows(other, "/hello")).text == "hello"
        (member,) = [
            member
            for member in (await one.ask("GET", "/v1/members"))["members"]
            if member["name"] == "n2"
        ]
        assert member["rtt_ms"] >= 2 * LATENCY_MS * 0.95
        crossed = await counts(one, "n2")
        assert crossed["datagrams_delayed"]
        assert crossed["stream_bytes_delayed"]
        assert await one.metric("edged_link_delayed_bytes_total") > 0

        apart = partition(far, [["r-n1"], ["r-n2"]], cut="reset")
        for node in (one, other):
            await node.ask("PUT", "/v1/links", content=encode_document(apart))
        while (await states(one))["n2"] == "alive" or (await states(other))["n1"] == "alive":
            await trio.sleep(0.1)
        while not (await counts(one, "n2"))["datagrams_dropped"]["cut"]:
            await trio.sleep(0.05)
        answer = await one.control("PUT", "/v1/functions/hello", content=b"{}")
        assert answer.status_code == 400, "its operator is not cut off"

        for node in (one, other):
            document = json.loads(encode_document(far)) | {"at_ms": 0}
            await node.ask("PUT", "/v1/links", json=document)
        await made.agree()


async def test_a_wrong_file_is_named_at_the_start(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        bad = made.root / "links.json"
        bad.write_text('{"rules": [{"from": ["*"], "to": ["*"], "loss": 3}]}')
        config = made.prepare("n1", links={"enabled": True, "file": str(bad)})
        node = Running("n1", config, io.StringIO())
        with pytest.raises(ConfigError, match=r"rules\.loss = 3"):
            await node.node.run()
