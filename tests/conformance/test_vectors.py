"""The golden frames in protocol/vectors: another implementation must read and write the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import zstandard

from protocol.codec import (
    decode_packet,
    decode_sync_reply,
    decode_sync_request,
    encode_message,
    encode_sync,
    join_messages,
)
from protocol.errors import RemoteProtocolError
from protocol.identity import TrustAnchor
from protocol.ids import NodeId, digest_of
from protocol.manifest import decode_manifest, encode_manifest, segment_bytes_for
from protocol.records import decode_record, encode_record, verify_record
from protocol.seal import Keyring, Opened, Seal, key_id, sender_key
from protocol.streams import (
    FrameReader,
    Reply,
    Request,
    encode_frame,
    reply_reader,
    request_reader,
)
from protocol.syncmessages import SyncDelivery, SyncExchange, SyncList, SyncOpen, SyncOutline

PROTOCOL = Path(__file__).resolve().parents[2] / "protocol"
REQUESTS = (SyncOpen, SyncList, SyncExchange)
KINDS = {kind.__name__: kind for kind in (*REQUESTS, SyncOutline, SyncDelivery)}


def load(name: str) -> Any:
    return json.loads((PROTOCOL / "vectors" / f"{name}.json").read_text())


MESSAGES, DATAGRAMS, RECORDS, SYNCS = map(load, ("messages", "datagrams", "records", "syncs"))
STREAMS, MANIFESTS = map(load, ("streams", "manifests"))


@pytest.mark.parametrize("case", MESSAGES, ids=lambda case: case["name"])
def test_messages(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    if case["ok"]:
        messages = decode_packet(data)
        assert join_messages([encode_message(message) for message in messages]) == data
        return
    with pytest.raises(RemoteProtocolError) as caught:
        decode_packet(data)
    assert caught.value.code == case["code"]


def receiver() -> Seal:
    """The vectors' receiver, which knows their sender."""
    ring = Keyring([bytes.fromhex(key) for key in DATAGRAMS["cluster_keys"]])
    seal = Seal(ring, NodeId(DATAGRAMS["receiver"]), DATAGRAMS["receiver_generation"])
    seal.links.told(bytes.fromhex(DATAGRAMS["sender"]), DATAGRAMS["generation"], 0)
    return seal


def test_keys_are_derived() -> None:
    key, sender = bytes.fromhex(DATAGRAMS["cluster_keys"][0]), bytes.fromhex(DATAGRAMS["sender"])
    assert key_id(key).hex() == DATAGRAMS["key_id"]
    assert sender_key(key, sender, DATAGRAMS["generation"]).hex() == DATAGRAMS["sender_key"]


@pytest.mark.parametrize("case", DATAGRAMS["good"], ids=lambda case: case["name"])
def test_datagrams(case: dict[str, Any]) -> None:
    seal, data = receiver(), bytes.fromhex(case["hex"])
    counter = case["counter"]
    if counter >> 32:
        near = Opened(NodeId(DATAGRAMS["sender"]), 7, counter - 3, b"", True, True)
        seal.commit(near)
    opened = seal.open(data)
    assert (opened.sender, opened.generation) == (DATAGRAMS["sender"], DATAGRAMS["generation"])
    assert (opened.counter, opened.bound, opened.known) == (counter, case["bound"], case["known"])
    assert opened.payload.hex() == DATAGRAMS["payload"]
    assert decode_packet(opened.payload)


@pytest.mark.parametrize("case", DATAGRAMS["bad"], ids=lambda case: case["code"])
def test_bad_datagrams(case: dict[str, str]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        receiver().open(bytes.fromhex(case["hex"]))
    assert caught.value.code == case["code"]


@pytest.mark.parametrize("case", RECORDS["good"], ids=lambda case: case["key"][:9])
def test_records(case: dict[str, str]) -> None:
    data = bytes.fromhex(case["hex"])
    anchor = TrustAnchor(bytes.fromhex(RECORDS["ca"]))
    verified = verify_record(decode_record(data), anchor, wall_ms=RECORDS["wall_ms"])
    assert verified.key == case["key"]
    assert encode_record(verified.record) == verified.encoded == data


@pytest.mark.parametrize("case", RECORDS["bad"], ids=lambda case: case["code"])
def test_bad_records(case: dict[str, str]) -> None:
    anchor = TrustAnchor(bytes.fromhex(RECORDS["ca"]))
    record = decode_record(bytes.fromhex(case["hex"]))
    with pytest.raises(RemoteProtocolError) as caught:
        verify_record(record, anchor, wall_ms=RECORDS["wall_ms"])
    assert caught.value.code == case["code"]


@pytest.mark.parametrize("case", SYNCS, ids=lambda case: f"{case['kind']}-{case['ok']}")
def test_syncs(case: dict[str, Any]) -> None:
    data, kind = bytes.fromhex(case["hex"]), KINDS[case["kind"]]
    decode = decode_sync_request if kind in REQUESTS else decode_sync_reply
    if case["ok"]:
        message = decode(data)
        assert type(message) is kind
        assert encode_sync(message) == data
        return
    with pytest.raises(RemoteProtocolError) as caught:
        decode(data)
    assert caught.value.code == case["code"]


@pytest.mark.parametrize("case", STREAMS, ids=lambda case: case["name"])
def test_frames_of_streams(case: dict[str, Any]) -> None:
    reader: FrameReader[Any] = request_reader() if case["side"] == "request" else reply_reader()
    reader.feed(bytes.fromhex(case["hex"]))
    if case["ok"]:
        frame = reader.next_frame()
        assert frame is not None
        assert type(frame[0]).__name__ == case["name"]
        assert encode_frame(*frame).hex() == case["hex"]
        assert not reader.mid_frame
        return
    with pytest.raises(RemoteProtocolError) as caught:
        reader.next_frame()
    assert caught.value.code == case["code"]


def test_every_message_on_a_stream_has_a_vector() -> None:
    for side, union in (("request", Request), ("reply", Reply)):
        named = {case["name"] for case in STREAMS if case["ok"] and case["side"] == side}
        assert named == {kind.__name__ for kind in get_args(union)}


def test_a_blob_its_frames_and_its_manifest() -> None:
    head, then = (bytes.fromhex(MANIFESTS["raw"][part]) for part in ("head", "then"))
    raw = head + then * MANIFESTS["raw"]["times"]
    frames = list(map(bytes.fromhex, MANIFESTS["frames"]))
    data = bytes.fromhex(MANIFESTS["hex"])
    manifest = decode_manifest(data, expected=MANIFESTS["digest"])
    assert encode_manifest(manifest) == data
    assert manifest.blob == digest_of(raw)
    assert manifest.segment_bytes == segment_bytes_for(len(raw))
    made = b""
    for index, frame in enumerate(frames):
        manifest.check_segment(index, frame)
        made += zstandard.ZstdDecompressor().decompress(frame)
        assert len(made) - index * manifest.segment_bytes == manifest.raw_length(index)
    assert made == raw


@pytest.mark.parametrize("case", MANIFESTS["bad"], ids=lambda case: case["name"])
def test_bad_manifests(case: dict[str, str]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_manifest(bytes.fromhex(case["hex"]))
    assert caught.value.code == "manifest"


def test_every_vector_cites_a_rule_that_exists() -> None:
    headings = set(
        re.findall(r"^#+ §(\d+(?:\.\d+)*)", (PROTOCOL / "SPEC.md").read_text(), re.MULTILINE)
    )
    cited = {case["spec"] for case in [*MESSAGES, *SYNCS, *DATAGRAMS["bad"], *DATAGRAMS["good"]]}
    cited |= {case["spec"] for case in [*RECORDS["good"], *RECORDS["bad"], *STREAMS]}
    cited |= {case["spec"] for case in [MANIFESTS, *MANIFESTS["bad"]]}
    assert cited <= headings, sorted(cited - headings)
