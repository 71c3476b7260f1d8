"""The laboratory's switches over the control API."""

from __future__ import annotations

import json

import pytest

from edged.interfaces.lab import CLOCK_SKEW_MS_MAX
from edged.switches import Switches
from edged.telemetry import make_log
from tests.unit.control.asgi_client import Answer, Client
from tests.unit.control.harness import Node, check_problem


async def put(client: Client, **wish: object) -> Answer:
    return await client.request("PUT", "/v1/lab", body=json.dumps(wish).encode())


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_off_it_says_which_key_turns_it_on(node: Node, method: str) -> None:
    body = b'{"disk_full": true}' if method == "PUT" else b""
    answer = await node.client.request(method, "/v1/lab", body=body)
    problem = check_problem(answer, 409, "switched-off")
    assert problem["key"] == "lab.enabled"
    assert "lab.enabled = true" in problem["detail"]


async def test_switches_are_turned_and_proven(node: Node) -> None:
    switches = Switches(make_log("n1", stream=node.log))
    notes: list[tuple[str, str, str]] = []
    switches.note = lambda *row: notes.append(row)
    client = node.with_lab(switches)
    assert (await client.request("GET", "/v1/lab")).json()["clock_skew_ms"] == 0

    view = (await put(client, clock_skew_ms=-90_000, disk_full=True)).json()
    assert view == (await client.request("GET", "/v1/lab")).json() | {
        "clock_ms": view["clock_ms"],
        "machine_ms": view["machine_ms"],
    }
    assert view["disk_full"] is True
    assert view["writes_refused"] == 0
    assert -90_000 - 5 <= view["clock_ms"] - view["machine_ms"] <= -90_000
    assert notes == [("lab-switched", "lab", "clock_skew_ms -90000, disk_full true")]

    with pytest.raises(OSError, match="No space left"):
        switches.disk.step("create")
    switches.disk.step("rename")
    assert (await client.request("GET", "/v1/lab")).json()["writes_refused"] == 1

    view = (await put(client)).json()  # what is left out is off
    assert (view["clock_skew_ms"], view["disk_full"]) == (0, False)
    switches.disk.step("create")


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({"clock_skew_ms": CLOCK_SKEW_MS_MAX + 1}, "clock_skew_ms"),
        ({"clock_skew_ms": -CLOCK_SKEW_MS_MAX - 1}, "clock_skew_ms"),
        ({"clock_skew_ms": 0.5}, "clock_skew_ms"),
        ({"disk_full": 1}, "disk_full"),
        ({"disk": True}, "disk"),
    ],
)
async def test_what_is_wrong_is_named_and_changes_nothing(
    node: Node, wish: dict[str, object], told: str
) -> None:
    switches = Switches(make_log("n1", stream=node.log))
    problem = check_problem(await put(node.with_lab(switches), **wish), 400, "bad-request")
    assert told in problem["detail"]
    assert (switches.clock.shift_ms, switches.disk.full) == (0, False)
