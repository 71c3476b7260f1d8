"""Key rotation over the control API: what it takes, refuses and never says."""

from __future__ import annotations

import json

import pytest

from tests.unit.control.harness import Node, check_problem
from tests.unit.control.memory_keys import NEW, NEW_ID, OLD, OLD_ID, member


async def add(node: Node, **body: object):
    return await node.client.request("POST", "/v1/keys", body=json.dumps(body).encode())


async def test_rotation(node: Node) -> None:
    node.keys.others = [member("n2", OLD, NEW)]
    answer = await add(node, key=NEW.hex())
    assert (answer.status, answer.json()["key"]) == (201, NEW_ID)
    assert (await add(node, key=NEW.hex())).status == 200
    answer = await node.client.request("POST", f"/v1/keys/{NEW_ID}/use")
    assert answer.json() == {"key": NEW_ID, "changed": True, "keys": [NEW_ID, OLD_ID]}
    refused = await node.client.request("DELETE", f"/v1/keys/{OLD_ID}")
    problem = check_problem(refused, 409, "conflict")
    assert [row["name"] for row in problem["members"]] == ["n2"]
    answer = await node.client.request("DELETE", f"/v1/keys/{OLD_ID}", query="force=1")
    assert answer.json()["keys"] == [NEW_ID]
    view = (await node.client.request("GET", "/v1/keys")).json()
    assert (view["node"], view["keys"]) == ("n1", [NEW_ID])
    assert [row["name"] for row in view["members"]] == ["n1", "n2"]


async def test_keys_are_never_told(node: Node) -> None:
    answers = [
        await add(node, key=NEW.hex()),
        await add(node, key=NEW.hex() + "0"),
        await add(node, key=NEW.hex(), more=1),
        await node.client.request("GET", "/v1/keys"),
        await node.client.request("POST", f"/v1/keys/{NEW.hex()}/use"),
        await node.client.request("POST", f"/v1/keys/{NEW_ID}/use"),
    ]
    for answer in answers[:4]:
        for key in (OLD, NEW):
            assert key.hex().encode() not in answer.body
    assert OLD.hex() not in node.log.getvalue()
    assert [answer.status for answer in answers] == [201, 400, 400, 200, 404, 200]


@pytest.mark.parametrize(
    "body", [{}, {"key": ""}, {"key": "AB" * 32}, {"key": "ab" * 31}, {"key": 5}, {"key": "é" * 64}]
)
async def test_what_is_no_key(node: Node, body: dict[str, object]) -> None:
    check_problem(await add(node, **body), 400, "bad-request")
    assert node.keys.service.view().keys == (OLD_ID,)


@pytest.mark.parametrize("key", ["0" * 7, "0" * 9, "ABCDEF01", "..", "00000000"])
async def test_unknown_key_ids(node: Node, key: str) -> None:
    answer = await node.client.request("POST", f"/v1/keys/{key}/use")
    check_problem(answer, 404, "key-not-found")


async def test_wrong_force(node: Node) -> None:
    answer = await node.client.request("POST", f"/v1/keys/{OLD_ID}/use", query="force=yes")
    check_problem(answer, 400, "bad-request")
