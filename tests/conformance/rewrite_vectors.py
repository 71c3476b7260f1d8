"""Makes protocol/vectors/*.json anew: python tests/conformance/rewrite_vectors.py. Only when the
wire changes on purpose."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "conformance")]

import msgspec  # noqa: E402
from exchange_vectors import manifest_file, stream_cases  # noqa: E402
from protocol_support import (  # noqa: E402
    CA,
    CLUSTER_KEY,
    WALL_MS,
    alias_record,
    credential_of,
    init_spec_bytes,
    key_of,
    metadata_of,
    node_id,
    spec_bytes,
    statement_of,
    version_record,
)

from protocol.buckets import PLACES  # noqa: E402
from protocol.clock import SKEW_MS_MAX  # noqa: E402
from protocol.codec import encode_message, encode_sync, join_messages  # noqa: E402
from protocol.function import InitSpec, version_of  # noqa: E402
from protocol.identity import public_bytes  # noqa: E402
from protocol.ids import FunctionName, digest_of  # noqa: E402
from protocol.messages import (  # noqa: E402
    Ack,
    Alive,
    Down,
    Finding,
    HoldingsUpdate,
    Left,
    MemberRow,
    Message,
    Nack,
    Pad,
    Ping,
    PingReq,
    RecordHint,
    RecordUpdate,
    Suspect,
)
from protocol.records import Record, encode_record, encode_version, sign_record  # noqa: E402
from protocol.seal import Keyring, Seal, key_id, sender_key  # noqa: E402
from protocol.syncmessages import (  # noqa: E402
    HoldingsSet,
    Outline,
    SyncDelivery,
    SyncExchange,
    SyncList,
    SyncOpen,
    SyncOutline,
)

A, B = bytes.fromhex(node_id("n0")), bytes.fromhex(node_id("n1"))
OTHER_KEY = bytes(range(32, 64))
METADATA = metadata_of("n0", ("127.0.0.1", 7946))
ALIVE = Alive(A, 7, 3, METADATA)
SPEC = spec_bytes("vector")
BARE = ["n", ["h", 1], ["h", 1], "", "", "", ""]
"""Metadata up to its key ids."""
Case = dict[str, object]


def message_cases() -> list[Case]:
    good: list[tuple[str, str, Message]] = [
        ("ping", "5.3", Ping((1 << 32) - 1)),
        ("ack", "5.3", Ack(1, (1 << 32) - 1, 255)),
        ("ack, idle", "5.3", Ack(1, 0, 0)),
        ("pad", "4.6", Pad(bytes(3))),
        ("indirect probe", "5.3", PingReq(3, B, ("::1", 7946))),
        ("nack", "5.3", Nack(3)),
        ("alive", "5.2", ALIVE),
        ("suspect", "5.4", Suspect(A, 7, 3, B, Finding.SILENT)),
        ("suspect, refused", "5.4", Suspect(A, 7, 3, B, Finding.REFUSED)),
        ("suspect, stalled", "5.4", Suspect(A, 7, 3, B, Finding.STALLED)),
        ("down", "5.4", Down(A, 7, 3, B, False)),
        ("down, final", "5.4", Down(A, 7, 3, B, True)),
        ("left", "5.5", Left(A, 7, 3)),
        ("record", "6.4", RecordUpdate(b"record")),
        ("record hint", "6.4", RecordHint("a/hello", 5)),
        (
            "holdings",
            "7.1",
            HoldingsUpdate(A, 7, 0, 2, ((bytes(32), "module"), (b"\x01" * 32, ""))),
        ),
    ]
    cases: list[Case] = [
        {"name": name, "spec": spec, "hex": join_messages([encode_message(m)]).hex(), "ok": True}
        for name, spec, m in good
    ]
    packed = msgspec.msgpack.encode
    bad = [
        ("empty", b""),
        ("no messages", b"\xdc\x00\x00"),
        ("array that promises 2^32 - 1 items", b"\xdd\xff\xff\xff\xff"),
        ("unknown tag", packed([[99, 1]])),
        ("missing field", packed([[1]])),
        ("digest over 32 bits", packed([[2, 1, 1 << 32, 0]])),
        ("load over 8 bits", packed([[2, 1, 1, 256]])),
        ("load that is negative", packed([[2, 1, 1, -1]])),
        ("pad of 1201", packed([[12, bytes(1201)]])),
        (
            "key ids of 7 digits",
            packed([[5, A, 1, 0, [*BARE, "0" * 7]]]),
        ),
        ("wire version 0", packed([[5, A, 1, 0, [*BARE, "", 0]]])),
        ("extra field", packed([[4, 1, 2]])),
        ("sequence over 32 bits", packed([[4, 1 << 32]])),
        ("negative sequence", packed([[4, -1]])),
        ("node id of 15 bytes", packed([[8, bytes(15), 1, 1]])),
        ("generation over 63 bits", packed([[8, bytes(16), 1 << 63, 1]])),
        ("port 0", packed([[3, 1, bytes(16), ["127.0.0.1", 0]]])),
        ("host with an empty label", packed([[3, 1, bytes(16), ["a..b", 1]]])),
        ("host label of 64", packed([[3, 1, bytes(16), ["a" * 64, 1]]])),
        ("host that ends in a line feed", packed([[3, 1, bytes(16), ["a\n", 1]]])),
        ("host with a space", packed([[3, 1, bytes(16), ["a b", 1]]])),
        ("node name in capitals", packed([[5, A, 1, 0, ["N0", ["h", 1], ["h", 1]]]])),
        ("finding 3", packed([[6, A, 1, 0, B, 3]])),
        ("finding that is a truth", packed([[6, A, 1, 0, B, True]])),
        ("down that is final by number", packed([[7, A, 1, 0, B, 1]])),
        ("unknown form", packed([[11, A, 1, 0, 1, [[bytes(32), "source"]]]])),
        ("trailing byte", join_messages([encode_message(Nack(1))]) + b"\x00"),
        ("129 messages", packed([[4, 1]] * 129)),
    ]
    cases += [
        {"name": name, "spec": "4.6", "hex": data.hex(), "ok": False, "code": "codec"}
        for name, data in bad
    ]
    return cases


def bad_datagrams(long: bytes, small: bytes) -> list[tuple[str, bytes]]:
    """Two good ones, altered."""
    return [
        ("seal-short", long[:55]),
        ("seal-short", small[:25]),
        ("seal-short", b""),
        ("seal-long", long + bytes(1200)),
        ("seal-magic", b"xx" + long[2:]),
        ("seal-magic", b"\xe3" + small[1:] + bytes(30)),
        ("seal-version", long[:2] + b"\x02" + long[3:]),
        ("seal-flags", long[:3] + b"\x03" + long[4:]),
        ("seal-flags", long[:3] + b"\x0a" + long[4:]),
        ("seal-key", long[:4] + bytes(4) + long[8:]),
        ("seal-key", small[:1] + bytes([small[1] ^ 1]) + small[2:]),
        ("seal-session", small[:2] + bytes(4) + small[6:]),
        ("seal-open", long[:-1] + bytes([long[-1] ^ 1])),
        ("seal-open", long[:3] + b"\x02" + long[4:]),
        ("seal-open", long[:41] + bytes([long[41] ^ 1]) + long[42:]),
        ("seal-open", long[:8] + B + long[24:]),
        ("seal-open", small[:-1] + bytes([small[-1] ^ 1])),
        ("seal-open", small[:9] + b"\x01" + small[10:]),
    ]


def datagram_file() -> Case:
    """Sealed by n0 in generation 7 for n1 in generation 9, whose link to n0 stands."""
    ring = Keyring([CLUSTER_KEY, OTHER_KEY])
    payload = join_messages([encode_message(Ping(1)), encode_message(Pad(bytes(20)))])

    def sealed(receiver: bytes, generation: int, *, known: bool, counter: int = 0) -> bytes:
        seal = Seal(ring, node_id("n0"), 7)
        seal._counter = counter
        return seal.seal(payload, receiver, generation, known=known)

    def short(counter: int, *, generation: int = 9, ring: Keyring = ring) -> bytes:
        seal = Seal(ring, node_id("n0"), 7)
        seal._counter = counter
        return seal.seal_short(payload, B, generation)

    good = [
        ("long, to anyone", 0, False, False, sealed(b"", 0, known=False)),
        ("long, to a node", 1, False, False, sealed(B, 0, known=False, counter=1)),
        ("long, to a generation", 2, True, False, sealed(B, 9, known=False, counter=2)),
        ("long, to one that is known", 1 << 40, True, True, None),
        ("short", 3, True, True, short(3)),
        ("short, counter over 32 bits", (1 << 32) + 5, True, True, short((1 << 32) + 5)),
        ("short, second key", 4, True, True, short(4, ring=Keyring([OTHER_KEY]))),
    ]
    bad = bad_datagrams(sealed(B, 9, known=True), short(0))
    bad += [
        ("seal-open", sealed(A, 0, known=False)),
        ("seal-open", sealed(B, 8, known=True)),
        ("seal-open", short(0, generation=8)),
    ]
    return {
        "cluster_keys": [CLUSTER_KEY.hex(), OTHER_KEY.hex()],
        "key_id": key_id(CLUSTER_KEY).hex(),
        "sender": node_id("n0"),
        "generation": 7,
        "receiver": node_id("n1"),
        "receiver_generation": 9,
        "sender_key": sender_key(CLUSTER_KEY, A, 7).hex(),
        "payload": payload.hex(),
        "good": [
            {
                "name": name,
                "spec": "4.2",
                "counter": counter,
                "bound": bound,
                "known": known,
                "hex": (data or sealed(B, 9, known=True, counter=counter)).hex(),
            }
            for name, counter, bound, known, data in good
        ],
        "bad": [{"spec": "4.4", "code": code, "hex": data.hex()} for code, data in bad],
    }


def bad_statements() -> list[tuple[str, Record]]:
    """Each in a record that holds but for it."""
    replace = msgspec.structs.replace
    spec = init_spec_bytes("snapshot")
    good = statement_of(spec)
    bad = [
        ("snapshot", SPEC, good),
        ("snapshot", init_spec_bytes("another"), good),
        ("snapshot", init_spec_bytes("snapshot", InitSpec()), good),
        ("snapshot", spec, replace(good, snapshot=good.module)),
        ("record", spec, replace(good, format=0)),
        ("record", spec, replace(good, size_bytes=0)),
        ("record", spec, replace(good, manifest=digest_of(b"")[:-1])),
        ("record", spec, replace(good, facts=replace(good.facts, init_s=-1.0))),
        ("record", spec, replace(good, facts=replace(good.facts, init_s=math.nan))),
        ("record", spec, replace(good, facts=replace(good.facts, instantiate_after_s=1e9))),
        ("signature", spec, replace(good, facts=replace(good.facts, init_s=0.5))),
        ("signature", spec, replace(good, format=2)),
        ("signature", spec, replace(good, maker=credential_of("n1"))),
        ("credential-role", spec, statement_of(spec, roles=("serve", "control"))),
        ("credential-expired", spec, statement_of(spec, not_after_s=WALL_MS // 1000 - 1)),
    ]
    return [
        (code, version_record("started", of, snapshot=statement)) for code, of, statement in bad
    ]


def record_file() -> Case:
    version = version_of(SPEC)
    started = init_spec_bytes("snapshot")
    expired = statement_of(started, not_after_s=WALL_MS // 1000 - 1)
    record = version_record("hello", SPEC)
    good = {
        f"v/hello/{version}": record,
        f"v/rolled-back/{version}": version_record("rolled-back", SPEC, deployed=1),
        "a/hello": alias_record("hello", version),
        "a/gone": alias_record("gone", None),
        f"v/init/{version_of(started)}": version_record("init", started),
        f"v/started/{version_of(started)}": version_record(
            "started", started, snapshot=statement_of(started)
        ),
        f"v/outlived/{version_of(started)}": version_record(
            "outlived", started, deployed=(WALL_MS - 2000) << 16, snapshot=expired
        ),
    }
    replace = msgspec.structs.replace
    serve = sign_record(
        key_of("n5"),
        credential_of("n5", roles=("serve",)),
        kind="alias",
        name=FunctionName("hello"),
        version="",
        hlc=WALL_MS << 16,
        value=b"",
    )
    bad = [
        ("signature", replace(record, hlc=record.hlc + 1)),
        ("signature", replace(record, name="other")),
        ("record", replace(record, value=SPEC)),
        ("record", replace(record, value=encode_version(spec_bytes("another"), record.hlc))),
        ("record", replace(record, value=encode_version(SPEC, record.hlc + 1))),
        ("record-future", alias_record("hello", None, hlc=(WALL_MS + SKEW_MS_MAX + 1) << 16)),
        ("credential-role", serve),
        ("function-name", replace(record, name="Hello")),
        ("spec", version_record("stubs", init_spec_bytes("", InitSpec(stubs=("b", "a"))))),
    ]
    return {
        "ca": public_bytes(CA).hex(),
        "wall_ms": WALL_MS,
        "good": [
            {"spec": "6.1", "key": key, "hex": encode_record(one).hex()}
            for key, one in good.items()
        ],
        "bad": [
            {"spec": rule, "code": code, "hex": encode_record(one).hex()}
            for rule, rows in (("6.2", bad), ("14.3", bad_statements()))
            for code, one in rows
        ],
    }


def sync_cases() -> list[Case]:
    held = HoldingsSet(A, 7, 1, 2, ((bytes(32), "artifact"), (b"\x01" * 32, "")))
    rows = (MemberRow("alive", ALIVE), MemberRow("down", ALIVE))
    listed = Outline(((0, bytes(37)), (PLACES - 1, bytes(37))), ((63, bytes(512)),))
    good = [
        SyncOpen(ALIVE, bytes(512), b"\x01" * 512),
        SyncOutline(ALIVE, listed, Outline(((17, bytes(20)),), ())),
        SyncList(b"\x00\x01", b"\x0f\xff\x10\x00"),
        SyncExchange(A, bytes(8), A + bytes(16), rows, (b"record",), (held,)),
        SyncDelivery(rows, (b"record",), (held,), (1, 2, 3), 4),
    ]
    cases: list[Case] = [
        {"kind": type(one).__name__, "spec": "7.3", "hex": encode_sync(one).hex(), "ok": True}
        for one in good
    ]
    packed = msgspec.msgpack.encode
    empty = encode_sync(SyncDelivery((), (), (), (0, 0, 0), 0))
    for kind, data in (
        ("SyncOpen", b""),
        ("SyncOpen", empty),
        ("SyncOpen", packed([20, msgspec.to_builtins(ALIVE), bytes(511), bytes(512)])),
        ("SyncOutline", encode_sync(good[1])[:-1]),
        ("SyncList", packed([22, bytes(8194), b""])),
        ("SyncExchange", packed([23, b"", b"", b"", [], [b""], []])),
        ("SyncExchange", packed([23, b"", b"", b"", [["gone", []]], [], []])),
        ("SyncDelivery", packed([24, [], [], [], [0, 0], 0])),
        ("SyncDelivery", encode_sync(good[0])),
    ):
        cases.append({"kind": kind, "spec": "7.3", "hex": data.hex(), "ok": False, "code": "sync"})
    return cases


def main() -> None:
    folder = ROOT / "protocol" / "vectors"
    for name, value in (
        ("messages", message_cases()),
        ("datagrams", datagram_file()),
        ("records", record_file()),
        ("syncs", sync_cases()),
        ("streams", stream_cases()),
        ("manifests", manifest_file()),
    ):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
