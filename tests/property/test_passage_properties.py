"""What gateways tell each other survives the way, and nothing else of the kind does. SPEC §12."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from edged.errors import BadRequest
from edged.gateway.passage import (
    HOPS_MAX,
    RESERVED,
    Headers,
    Passage,
    answered,
    passed_on,
    take_passage,
    without_reserved,
)
from edged.http import HOP_BY_HOP, HttpLimits
from edged.http.head import parse_head
from protocol.ids import NodeId, VersionId

OWN = (
    b"x-edged-path",
    b"x-edged-version",
    b"x-edged-deadline-ms",
    b"x-edged-client",
    b"x-edged-server",
    b"x-edged-refused",
)
NAMES = st.sampled_from(
    [*sorted(HOP_BY_HOP), *OWN, b"via", b"forwarded", b"expect", b"x-a", b"x-b", b"cookie", b"host"]
)
TOKENS = st.sampled_from(
    [b"close", b"X-A", b"x-b", b"host", b"content-length", b"x-edged-path", b"via", b"a, ,b", b""]
)
FIELDS = st.lists(
    st.tuples(NAMES, st.one_of(TOKENS, st.text("ab 1,;=", max_size=9).map(str.encode))), max_size=12
)
NODES = st.text("0123456789abcdef", min_size=32, max_size=32).map(NodeId)
ADDRESSES = st.one_of(
    st.none(), st.tuples(st.sampled_from(["10.0.0.1", "fe80::1"]), st.integers(0, 65535))
)
PASSAGES = st.builds(
    Passage,
    path=st.lists(NODES, min_size=1, max_size=HOPS_MAX, unique=True).map(tuple),
    version=st.text("0123456789abcdef", min_size=64, max_size=64).map(VersionId),
    left_s=st.integers(0, 10**6).map(lambda ms: ms / 1000),
    client=ADDRESSES,
    server=ADDRESSES,
)


def send(headers: Headers, passage: Passage, length: int | None) -> Headers:
    return passed_on(
        headers, passage, node="n-1", http_version="1.1", request_id=b"id", length=length
    )


@given(FIELDS, PASSAGES, st.sampled_from([None, 0, 7]))
@example([], Passage((NodeId("a" * 32),), VersionId("b" * 64), 257.131, None, None), None)
@example([(b"connection", b"x-edged-path, host, x-a"), (b"x-a", b"1"), (b"host", b"h")], None, 0)
def test_a_passage_arrives_as_it_was_sent(
    fields: Headers, passage: Passage | None, length: int | None
) -> None:
    passage = passage or Passage((NodeId("a" * 32),), VersionId("b" * 64), 1.0, None, None)
    hosts = [field for field in fields if field[0] == b"host"]
    fields = without_reserved([field for field in fields if field[0] != b"host"]) + [
        (b"host", b"h:80") for _ in hosts[:1]
    ]
    sent = send(fields, passage, length)
    lines = b"".join(b"%b: %b\r\n" % field for field in sent)
    head = parse_head(b"POST / HTTP/1.1\r\n" + lines + b"\r\n", HttpLimits())
    assert head.body == (-1 if length is None else length)
    assert head.keep_alive
    assert not head.expects_continue
    found, rest = take_passage(head.headers, passage.path[-1])
    assert found == passage
    assert not [name for name, _ in rest if name.startswith(RESERVED)]
    named = {
        token.strip().lower()
        for name, value in fields
        if name == b"connection"
        for token in value.split(b",")
    } - {b"host"}
    gone = named | HOP_BY_HOP | {b"expect"}
    kept = [field for field in fields if field[0] not in gone]
    added = [name for name, _ in rest[len(kept) :]]
    assert [field[0] for field in rest[: len(kept)]] == [field[0] for field in kept]
    assert set(added) <= {
        *(b"host", b"content-length", b"transfer-encoding", b"via", b"forwarded", b"x-request-id")
    }


@given(st.lists(st.tuples(st.sampled_from(OWN), st.binary(max_size=70)), max_size=6), NODES)
def test_whatever_claims_to_be_a_passage_is_one_or_refused(fields: Headers, peer: NodeId) -> None:
    try:
        passage, rest = take_passage(fields, peer)
    except BadRequest:
        return
    assert passage.path[-1] == peer
    assert rest == []


@given(FIELDS, st.floats(0, 100), st.sampled_from([b"run;dur=1.5, total;dur=2.5", b"", b",;,"]))
def test_answers_lose_what_is_between_nodes(fields: Headers, total_s: float, timing: bytes) -> None:
    sent = answered(
        [*fields, (b"server-timing", timing)], node="n-1", request_id=b"id", total_s=total_s
    )
    names = [name for name, _ in sent]
    assert not HOP_BY_HOP & set(names)
    assert b"x-edged-refused" not in names
    for name in (b"server-timing", b"via", b"x-edged-start", b"x-request-id"):
        assert names.count(name) == 1
    (merged,) = [value for name, value in sent if name == b"server-timing"]
    assert merged.count(b"total;dur=") == 1
    assert merged.endswith(b"total;dur=%.3f" % (total_s * 1000))
