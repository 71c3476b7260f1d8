"""Blobs, transfers, collection, verification and pins over the control API."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from edged.control.download import PIECE_BYTES
from edged.control.ranges import choose
from tests.unit.control.asgi_client import Answer
from tests.unit.control.harness import Node, check_problem

DATA = bytes(range(256)) * 4096
"""1 MiB, several pieces."""


async def get(node: Node, path: str, *headers: tuple[str, str], method: str = "GET") -> Answer:
    return await node.client.request(method, path, headers=headers)


# ---------------------------------------------------------------- the bytes of a blob
@pytest.mark.parametrize(
    ("text", "status", "first", "length"),
    [
        (None, 200, 0, 1000),
        ("bytes=0-", 206, 0, 1000),
        ("bytes=0-0", 206, 0, 1),
        ("Bytes = 10 - 19", 206, 10, 10),
        ("bytes=990-5000", 206, 990, 10),
        ("bytes=999-", 206, 999, 1),
        ("bytes=-1", 206, 999, 1),
        ("bytes=-5000", 206, 0, 1000),
        ("bytes=1000-", 416, 0, 0),
        ("bytes=1000-2000", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
        # Malformed, of another unit, of several parts: ignored (RFC 9110 §14.2).
        ("bytes=", 200, 0, 1000),
        ("bytes=-", 200, 0, 1000),
        ("bytes=5-4", 200, 0, 1000),
        ("bytes=0-1,3-4", 200, 0, 1000),
        ("lines=0-1", 200, 0, 1000),
        ("bytes=\xb2-", 200, 0, 1000),
        ("bytes=" + "9" * 5000 + "-", 416, 0, 0),
        ("bytes=0-" + "9" * 5000, 206, 0, 1000),
        ("bytes=-" + "9" * 5000, 206, 0, 1000),
        ("bytes=" + "0" * 30 + "5-6", 206, 5, 2),
        ("bytes=" + "9" * 30 + "-" + "9" * 29, 200, 0, 1000),
        ("bytes=+1-2", 200, 0, 1000),
    ],
)
def test_ranges(text: str | None, status: int, first: int, length: int) -> None:
    headers = Headers({} if text is None else {"range": text})
    part = choose(headers, etag='"x"', size_bytes=1000)
    assert (part.status, part.first, part.length) == (status, first, length)


@given(st.text(st.characters(codec="latin-1"), max_size=40), st.integers(0, 10))
@example("bytes=0-0", 0)
def test_any_range_is_within_the_blob(text: str, size: int) -> None:
    for wanted in (text, f"bytes={text}"):
        part = choose(Headers({"range": wanted}), etag='"x"', size_bytes=size)
        assert part.status in (200, 206, 416)
        assert 0 <= part.first <= part.first + part.length <= size


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"if-range": '"x"', "range": "bytes=0-0"}, 206),
        ({"if-range": '"y"', "range": "bytes=0-0"}, 200),
        ({"if-range": 'W/"x"', "range": "bytes=0-0"}, 200),
        ({"if-range": "Sat, 29 Oct 1994 19:43:31 GMT", "range": "bytes=0-0"}, 200),
        ({"if-none-match": '"y", W/"x"', "range": "bytes=0-0"}, 304),
        ({"if-none-match": "*"}, 304),
        ({"if-match": '"y", "x"', "range": "bytes=0-0"}, 206),
        ({"if-match": 'W/"x"'}, 412),
        ({"if-match": "*", "if-none-match": '"x"'}, 304),
        ({"if-none-match": '"y"'}, 200),
    ],
)
def test_preconditions(headers: dict[str, str], status: int) -> None:
    assert choose(Headers(headers), etag='"x"', size_bytes=9).status == status


async def test_a_blob_in_pieces(node: Node) -> None:
    digest = node.upkeep.add(DATA)
    answer = await get(node, f"/v1/blobs/{digest}")
    assert (answer.status, answer.body) == (200, DATA)
    assert answer.headers["etag"] == f'"{digest}"'
    assert answer.headers["content-length"] == str(len(DATA))
    assert answer.headers["content-type"] == "application/wasm"
    assert max(node.upkeep.reads) <= PIECE_BYTES
    assert node.upkeep.open == 0


async def test_a_part_and_a_suffix(node: Node) -> None:
    path = f"/v1/blobs/{node.upkeep.add(DATA)}"
    part = await get(node, path, ("range", "bytes=300000-600000"))
    assert (part.status, part.body) == (206, DATA[300000:600001])
    assert part.headers["content-range"] == f"bytes 300000-600000/{len(DATA)}"
    assert part.headers["content-length"] == "300001"
    suffix = await get(node, path, ("range", "bytes=-3"))
    assert (suffix.status, suffix.body) == (206, DATA[-3:])
    beyond = await get(node, path, ("range", f"bytes={len(DATA)}-"))
    assert beyond.status == beyond.json()["status"] == 416
    assert beyond.headers["content-range"] == f"bytes */{len(DATA)}"
    assert node.upkeep.open == 0


async def test_head_and_not_modified_read_nothing(node: Node) -> None:
    digest = node.upkeep.add(DATA)
    head = await get(node, f"/v1/blobs/{digest}", ("range", "bytes=0-9"), method="HEAD")
    assert (head.status, head.headers["content-length"]) == (200, str(len(DATA)))
    same = await get(node, f"/v1/blobs/{digest}", ("if-none-match", f'"{digest}"'))
    assert (same.status, same.body) == (304, b"")
    assert "content-length" not in same.headers
    assert (node.upkeep.reads, node.upkeep.open) == ([], 0)


async def test_a_condition_that_does_not_hold(node: Node) -> None:
    path = f"/v1/blobs/{node.upkeep.add(DATA)}"
    answer = await get(node, path, ("if-match", '"another"'))
    assert answer.status == answer.json()["status"] == 412


async def test_an_empty_blob(node: Node) -> None:
    path = f"/v1/blobs/{node.upkeep.add(b'')}"
    assert (await get(node, path)).status == 200
    assert (await get(node, path, ("range", "bytes=0-"))).status == 416


async def test_damage_is_a_problem_and_no_answer(node: Node) -> None:
    digest = node.upkeep.add(DATA)
    node.upkeep.damaged.add(digest)
    check_problem(await get(node, f"/v1/blobs/{digest}"), 500, "blob-corrupt")


async def test_a_disk_that_fails_half_way_ends_the_answer_short(node: Node) -> None:
    node.upkeep.breaks_at = PIECE_BYTES
    answer = await get(node, f"/v1/blobs/{node.upkeep.add(DATA)}")
    assert answer.status == 200
    assert len(answer.body) == PIECE_BYTES < int(answer.headers["content-length"])
    assert node.upkeep.open == 0


@pytest.mark.parametrize("name", ["0" * 63, "G" * 64, "6522eb97", "x", "..", "%2e%2e"])
async def test_no_digest(node: Node, name: str) -> None:
    problem = check_problem(await get(node, f"/v1/blobs/{name}"), 400, "bad-request")
    assert "write all 64" in problem["detail"]


async def test_no_such_blob(node: Node) -> None:
    check_problem(await get(node, f"/v1/blobs/{'0' * 64}"), 404, "blob-not-found")


# ---------------------------------------------------------------- lists
async def test_blobs_come_in_pages(node: Node) -> None:
    known = sorted(node.upkeep.add(b"%d" % number) for number in range(5))
    seen, query = [], "limit=2"
    while True:
        page = (await node.client.request("GET", "/v1/blobs", query=query)).json()
        seen.append([row["digest"] for row in page["blobs"]])
        if page["next_after"] is None:
            break
        query = f"limit=2&after={page['next_after']}"
    assert seen == [known[:2], known[2:4], known[4:]]


@pytest.mark.parametrize("query", ["after=x", "limit=-1", "limit=0", "limit=4097", "kind=module"])
async def test_wrong_queries_of_blobs(node: Node, query: str) -> None:
    answer = await node.client.request("GET", "/v1/blobs", query=query)
    check_problem(answer, 400, "bad-request")


async def test_transfers(node: Node) -> None:
    answer = await node.client.request("GET", "/v1/transfers")
    assert answer.json() == {"node": "n1", "transfers": []}


# ---------------------------------------------------------------- doing
async def test_collecting(node: Node) -> None:
    answer = await node.client.request("POST", "/v1/gc")
    assert answer.json()["grace_s"] == 3600
    await node.client.request("POST", "/v1/gc", query="dry_run=1&grace_s=0")
    assert node.upkeep.collections == [(False, None), (True, 0)]
    for query in ("dry_run=yes", "grace_s=1.5", "grace_s=-1", "grace=0", f"grace_s={400 * 86400}"):
        answer = await node.client.request("POST", "/v1/gc", query=query)
        check_problem(answer, 400, "bad-request")
    node.upkeep.collecting = True
    check_problem(await node.client.request("POST", "/v1/gc"), 409, "conflict")
    check_problem(await node.client.request("GET", "/v1/gc"), 405, "method-not-allowed")


async def test_verifying(node: Node) -> None:
    assert (await node.client.request("GET", "/v1/verify")).json()["state"] == "never"
    begun = await node.client.request("POST", "/v1/verify")
    assert (begun.status, begun.json()["state"]) == (202, "running")
    assert (await node.client.request("GET", "/v1/verify")).json()["state"] == "running"


async def test_pins(node: Node) -> None:
    digest = node.upkeep.add(b"x")
    path = f"/v1/pins/{digest}"
    first = await node.client.request("PUT", path)
    assert (first.status, first.json()["changed"]) == (201, True)
    assert (await node.client.request("PUT", path)).status == 200
    assert (await node.client.request("GET", "/v1/pins")).json()["digests"] == [digest]
    assert (await node.client.request("DELETE", path)).json()["changed"]
    assert not (await node.client.request("DELETE", path)).json()["changed"]
    check_problem(await node.client.request("PUT", "/v1/pins/nothing"), 404, "blob-not-found")
