"""Every decoder of bytes from elsewhere, and good inputs to begin from.

A target may raise RemoteProtocolError and nothing else; what it accepts must also survive being
encoded again, checked, or acted on, as a node would do with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import modules
import msgspec

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from protocol_support import (  # noqa: E402
    CLUSTER_KEY,
    WALL_MS,
    address_of,
    alias_record,
    anchor,
    credential_of,
    init_spec_bytes,
    key_of,
    make_gossip,
    metadata_of,
    node_id,
    spec_bytes,
    statement_of,
    version_record,
)

from protocol.artifact import (  # noqa: E402
    attest,
    check_attestation,
    decode_attestations,
    encode_attestations,
)
from protocol.codec import (  # noqa: E402
    decode_packet,
    decode_sync_reply,
    decode_sync_request,
    encode_message,
    join_messages,
    split_packet,
)
from protocol.errors import RemoteProtocolError  # noqa: E402
from protocol.function import decode_spec, encode_spec  # noqa: E402
from protocol.identity import Credential  # noqa: E402
from protocol.ids import ArtifactKey, Digest, NodeId, digest_of  # noqa: E402
from protocol.manifest import decode_manifest, encode_manifest  # noqa: E402
from protocol.messages import Alive  # noqa: E402
from protocol.records import (  # noqa: E402
    decode_bundle,
    decode_record,
    encode_bundles,
    encode_record,
    verify_record,
)
from protocol.seal import Keyring, Seal  # noqa: E402
from protocol.streams import (  # noqa: E402
    Cancel,
    Confirm,
    Confirmed,
    DeltaPart,
    Done,
    GetAny,
    GetDelta,
    GetManifest,
    GetSegment,
    Have,
    ManifestReply,
    Offer,
    Ping,
    Pong,
    Records,
    RecordsStored,
    Replicate,
    Replicated,
    SegmentReply,
    Want,
    encode_frame,
    reply_reader,
    request_reader,
)

DIGEST = Digest("ab" * 32)


@dataclass(frozen=True)
class Target:
    name: str
    corpus: Sequence[bytes]
    run: Callable[[bytes], object]


def vectors(name: str) -> object:
    return json.loads((ROOT / "protocol" / "vectors" / f"{name}.json").read_text())


def hexes(value: object) -> list[bytes]:
    """Every "hex" in a vectors file, good or bad."""
    if isinstance(value, dict):
        own = [bytes.fromhex(value["hex"])] if "hex" in value else []
        return own + [data for child in value.values() for data in hexes(child)]
    if isinstance(value, list):
        return [data for child in value for data in hexes(child)]
    return []


# ---------------------------------------------------------------- datagrams
def opening() -> Callable[[bytes], object]:
    known = vectors("datagrams")
    assert isinstance(known, dict)
    ring = Keyring([bytes.fromhex(key) for key in known["cluster_keys"]])
    seal = Seal(ring, NodeId(known["receiver"]), known["receiver_generation"])
    seal.links.told(bytes.fromhex(known["sender"]), known["generation"], 0)
    return seal.open


def packet(data: bytes) -> None:
    messages = decode_packet(data)
    assert [decode_packet(join_messages([one]))[0] for one in split_packet(data)] == list(messages)
    assert decode_packet(join_messages([encode_message(each) for each in messages])) == messages


class Machine:
    """A whole gossip machine, made anew now and then, told `data` as a payload by a member."""

    LIFE = 200

    def __init__(self) -> None:
        self._age = self.LIFE

    def __call__(self, data: bytes) -> None:
        if self._age >= self.LIFE:
            self._age = 0
            self._gossip = make_gossip(0)
            self._seal = Seal(Keyring([CLUSTER_KEY]), node_id("n1"), 1)
            alive = Alive(bytes.fromhex(node_id("n1")), 1, 0, metadata_of("n1", address_of(1)))
            self._say(join_messages([encode_message(alive)]), bound=True)
        self._age += 1
        self._say(data[:1000], bound=data[-1:] != b"\x00")

    def _say(self, payload: bytes, *, bound: bool) -> None:
        gossip, now = self._gossip, self._age * 0.05
        receiver = bytes.fromhex(gossip.node_id) if bound else b""
        sealed = self._seal.seal(payload, receiver, 1 if bound else 0, known=bound)
        try:
            gossip.receive_datagram(sealed, address_of(1), now, WALL_MS)
        finally:
            gossip.on_timer(now)
            answers = 0
            while (datagram := gossip.poll_transmit()) is not None:
                assert len(datagram.data) <= 1200
                answers += 1
            while gossip.poll_event() is not None:
                pass
            assert answers < 200


def syncs() -> Callable[[bytes], object]:
    one, other = make_gossip(0), make_gossip(1)
    one.sync_begin(other.node_id, 0.0)

    def run(data: bytes) -> None:
        try:
            one.sync_answer(data, other.node_id, 0.0, WALL_MS)
        except RemoteProtocolError:
            one.sync_begin(other.node_id, 0.0)
            one.sync_next(data, other.node_id, 0.0, WALL_MS)
        finally:
            while one.poll_event() is not None:
                pass
            while one.poll_transmit() is not None:
                pass

    return run


# ---------------------------------------------------------------- what is signed or described
ANCHOR = anchor()
SPEC = spec_bytes("fuzz")
STARTED = init_spec_bytes("fuzz")
CREDENTIAL = credential_of("n0")
KEY = ArtifactKey("cd" * 32)
ATTESTATION = encode_attestations(
    [attest(key_of("n0"), CREDENTIAL, module=DIGEST, key=KEY, artifact=DIGEST, manifest=DIGEST)]
)


def record(data: bytes) -> None:
    decoded = decode_record(data)
    assert decode_record(encode_record(decoded)) == decoded
    verify_record(decoded, ANCHOR, wall_ms=WALL_MS)


def bundle(data: bytes) -> None:
    assert decode_bundle(encode_bundles(decode_bundle(data))[0]) == decode_bundle(data)


def spec(data: bytes) -> None:
    decoded = decode_spec(data)
    assert decode_spec(encode_spec(decoded)) == decoded


def attestation(data: bytes) -> None:
    for decoded in decode_attestations(data):
        check_attestation(
            decoded, ANCHOR, module=DIGEST, key=KEY, artifact=DIGEST, wall_s=WALL_MS / 1000
        )


def credential(data: bytes) -> None:
    """As it comes inside records and attestations."""
    try:
        decoded = msgspec.msgpack.decode(data, type=Credential)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RemoteProtocolError("credential", str(error)) from error
    ANCHOR.check(decoded, role="control", wall_s=WALL_MS / 1000)


def manifest(data: bytes) -> None:
    decoded = decode_manifest(data)
    assert encode_manifest(decoded) == data or decode_manifest(encode_manifest(decoded)) == decoded


def manifest_corpus() -> list[bytes]:
    def made(raw: int, segment: int) -> bytes:
        count = -(-raw // segment)
        fields = ["zstd", DIGEST, raw, segment, [9] * count, bytes(32 * count)]
        return msgspec.msgpack.encode(fields)

    return [made(1, 65536), made(200_000, 65536), made(5_000_000, 262_144)]


# ---------------------------------------------------------------- streams
def requests(data: bytes) -> None:
    reader = request_reader()
    for at in range(0, len(data), 7):
        reader.feed(data[at : at + 7])
        while reader.next_frame() is not None:
            pass


def replies(data: bytes) -> None:
    whole, pieces = reply_reader(), reply_reader()
    whole.feed(data)
    while whole.next_frame() is not None:
        pass
    for at in range(0, len(data), 3):
        pieces.feed(data[at : at + 3])
        while pieces.next_frame() is not None:
            pass


HEADS = (
    Ping(1),
    GetManifest(2, DIGEST),
    GetSegment(3, DIGEST, 4),
    GetAny(4, DIGEST),
    GetDelta(5, DIGEST, (DIGEST,) * 4, 9),
    Have(DIGEST, (1, 2, 300)),
    Cancel(5),
    Replicate(7, DIGEST, DIGEST),
    Records(8),
    Confirm(9, DIGEST),
    Done(DIGEST),
)
BODIED = (ManifestReply(2), SegmentReply(3, 4), Offer(5, False, ()), DeltaPart(6, DIGEST, 4))
REQUESTS = [*(encode_frame(head) for head in HEADS), encode_frame(Want(6, DIGEST), b"body")]
REPLIES = [
    encode_frame(Pong(1)),
    encode_frame(Replicated(7)),
    encode_frame(RecordsStored(8)),
    encode_frame(Confirmed(9, True)),
    *(encode_frame(head, b"body") for head in BODIED),
]


def targets() -> list[Target]:
    messages, records = hexes(vectors("messages")), hexes(vectors("records"))
    sync_payloads = hexes(vectors("syncs"))
    stated = version_record("f", STARTED, snapshot=statement_of(STARTED))
    wasm = [each for each in modules.corpus() if each.startswith(modules.HEADER)]
    records += map(encode_record, (version_record("f", SPEC), alias_record("f", None), stated))
    return [
        Target("seal", hexes(vectors("datagrams")), opening()),
        Target("packet", messages, packet),
        Target("machine", messages, Machine()),
        Target("sync-request", sync_payloads, decode_sync_request),
        Target("sync-reply", sync_payloads, decode_sync_reply),
        Target("sync", sync_payloads, syncs()),
        Target("record", records, record),
        Target("bundle", encode_bundles(records), bundle),
        Target("manifest", manifest_corpus(), manifest),
        Target("requests", REQUESTS, requests),
        Target("replies", REPLIES, replies),
        Target("credential", [msgspec.msgpack.encode(CREDENTIAL)], credential),
        Target("attestation", [ATTESTATION, digest_of(b"").encode()], attestation),
        Target("module", wasm, modules.refusing(modules.read, wasm)),
        Target("snapshot", wasm, modules.refusing(modules.make, wasm)),
        Target("spec", [SPEC, STARTED, spec_bytes("x", args_bytes=100)], spec),
    ]
