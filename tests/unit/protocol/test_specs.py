"""Function specs fail closed and are bounded; manifests bound what a peer can send. SPEC §3, §8."""

from __future__ import annotations

import msgspec
import pytest
from protocol_support import DIGEST

from protocol import manifest as m
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.function import (
    SPEC_BYTES_MAX,
    FunctionSpec,
    InitCall,
    InitSpec,
    Mount,
    Policy,
    decode_spec,
    encode_spec,
    init_digest,
    version_of,
)
from protocol.ids import Digest, digest_of

SPEC = FunctionSpec("cgi", Digest(DIGEST), 100, Digest(DIGEST))


def with_policy(**changes: object) -> FunctionSpec:
    return msgspec.structs.replace(SPEC, policy=Policy(**changes))  # type: ignore[arg-type]


def with_init(*calls: InitCall, **changes: object) -> FunctionSpec:
    init = InitSpec(calls, **changes)  # type: ignore[arg-type]
    return msgspec.structs.replace(SPEC, init=init)


def test_an_init_is_part_of_the_version_and_has_a_digest_of_its_own() -> None:
    calls = (InitCall("a", (-(1 << 63), (1 << 63) - 1, 0.5, "x", ("y", "z"))), InitCall("b"))
    one, two = (
        with_init(*calls, env={"B": "2", "A": "1"}),
        with_init(*calls, env={"A": "1", "B": "2"}),
    )
    assert decode_spec(encode_spec(one)) == one
    assert encode_spec(one) == encode_spec(two)
    assert one.init is not None
    assert two.init is not None
    assert init_digest(one.init) == init_digest(two.init)
    specs = (SPEC, with_init(), one, with_init(calls[0]), with_init(stubs=("env", "host")))
    assert decode_spec(encode_spec(specs[-1])) == specs[-1]
    assert len({version_of(encode_spec(spec)) for spec in specs}) == 5
    # 1 and 1.0 are arguments of different types.
    assert init_digest(InitSpec((InitCall("a", (1,)),))) != init_digest(
        InitSpec((InitCall("a", (1.0,)),))
    )


def test_a_spec_round_trips_and_names_itself() -> None:
    spec = with_policy(env={"B": "2", "A": "1"}, mounts=(Mount("web", "/www"),), tmp_bytes=1)
    encoded = encode_spec(spec)
    assert decode_spec(encoded) == spec
    again = with_policy(env={"A": "1", "B": "2"}, mounts=(Mount("web", "/www"),), tmp_bytes=1)
    assert version_of(encode_spec(again)) == version_of(encoded)
    assert version_of(encode_spec(SPEC)) != version_of(encoded)


@pytest.mark.parametrize(
    "spec",
    [
        with_policy(env={"A": "x\x00y"}),
        with_policy(env={"A=B": "x"}),
        with_policy(env={"": "x"}),
        with_policy(mounts=(Mount("a", "/x"), Mount("b", "/x/"))),
        with_policy(mounts=(Mount("a", "/x/../y"),)),
        with_policy(mounts=(Mount("a", "x"),)),
        with_policy(mounts=(Mount("../a", "/x"),)),
        with_policy(mounts=(Mount("a", "/tmp"),), tmp_bytes=1),
        with_policy(timeout_ms=0),
        with_policy(memory_bytes=1),
        with_policy(concurrency=0),
        msgspec.structs.replace(SPEC, module=Digest("x")),
        msgspec.structs.replace(SPEC, manifest=Digest("X" * 64)),
        msgspec.structs.replace(SPEC, args=("a\x00",)),
        msgspec.structs.replace(SPEC, entrypoint="\x00"),
        msgspec.structs.replace(SPEC, methods=("get",)),
        msgspec.structs.replace(SPEC, module_bytes=1),
        with_init(InitCall("")),
        with_init(InitCall("x" * 257)),
        with_init(InitCall("a\x00")),
        with_init(InitCall("a", (float("nan"),))),
        with_init(InitCall("a", (float("-inf"),))),
        with_init(InitCall("a", (1 << 63,))),
        with_init(InitCall("a", (0,) * 17)),
        with_init(InitCall("a", (True,))),
        with_init(InitCall("a", (None,))),  # type: ignore[arg-type]
        with_init(InitCall("a", ("x" * 8193,))),
        with_init(InitCall("a", (("x",) * 65,))),
        with_init(*[InitCall("a")] * 17),
        with_init(env={"A": "\x00"}),
        with_init(env={"A=": ""}),
        with_init(stubs=("b", "a")),
        with_init(stubs=("a", "a")),
        with_init(stubs=("",)),
        with_init(stubs=("x" * 257,)),
        with_init(stubs=tuple(f"{index:02}" for index in range(17))),
        with_init(timeout_ms=0),
        with_init(timeout_ms=300_001),
    ],
)
def test_specs_that_grant_nonsense_are_refused(spec: FunctionSpec) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_spec(encode_spec(spec))


def test_specs_are_bounded_and_strict() -> None:
    big = msgspec.structs.replace(SPEC, args=("x" * 8192,) * 3)
    for data in (b"", b"\xc1", encode_spec(big), encode_spec(SPEC) + b"x"):
        with pytest.raises(RemoteProtocolError, match="spec"):
            decode_spec(data)
    assert len(encode_spec(big)) > SPEC_BYTES_MAX
    unknown = msgspec.msgpack.encode(msgspec.to_builtins(SPEC) | {"root": True})
    with pytest.raises(RemoteProtocolError, match="root"):
        decode_spec(unknown)


FRAMES = [b"a" * 12_500, b"b" * 10_000, b"c" * 10]
RAW = 2 * 16 * 1024 + 5


def test_a_manifest_says_where_everything_is() -> None:
    made = m.build_manifest(Digest(DIGEST), RAW, FRAMES)
    encoded = m.encode_manifest(made)
    assert m.decode_manifest(encoded, expected=m.manifest_digest(made)) == made
    assert made.segments == 3
    assert made.wire_bytes == sum(map(len, FRAMES))
    assert [made.raw_length(i) for i in range(3)] == [16384, 16384, 5]
    assert [made.wire_offset(i) for i in range(3)] == [0, 12_500, 22_500]
    for index, frame in enumerate(FRAMES):
        made.check_segment(index, frame)


@pytest.mark.parametrize(
    ("index", "wire"),
    [(-1, FRAMES[0]), (3, FRAMES[0]), (2, b"c" * 9), (2, b"c" * 9 + b"d"), (0, FRAMES[1])],
)
def test_wrong_segments_are_refused(index: int, wire: bytes) -> None:
    made = m.build_manifest(Digest(DIGEST), RAW, FRAMES)
    with pytest.raises(RemoteProtocolError, match="segment"):
        made.check_segment(index, wire)


@pytest.mark.parametrize(
    "change",
    [
        {"blob": "x"},
        {"raw_bytes": 0},
        {"raw_bytes": m.BLOB_BYTES_MAX + 1},
        {"raw_bytes": RAW + 16384},
        {"segment_bytes": 1},
        {"segment_bytes": m.SEGMENT_BYTES_MAX + 1},
        {"wire_lengths": (12_500, 10_000)},
        {"wire_lengths": (12_500, 0, 10)},
        {"wire_lengths": (12_500, 10_000, 5000)},
        {"wire_digests": b"x"},
    ],
)
def test_manifests_that_do_not_add_up_are_refused(change: dict[str, object]) -> None:
    made = m.build_manifest(Digest(DIGEST), RAW, FRAMES)
    wrong = msgspec.structs.replace(made, **change)
    with pytest.raises(RemoteProtocolError, match="manifest"):
        m.decode_manifest(m.encode_manifest(wrong))


def test_manifest_bytes_are_bounded_and_bound() -> None:
    made = m.encode_manifest(m.build_manifest(Digest(DIGEST), RAW, FRAMES))
    for data, expected in (
        (b"x" * (m.MANIFEST_BYTES_MAX + 1), None),
        (b"\xc1", None),
        (made, digest_of(b"other")),
    ):
        with pytest.raises(RemoteProtocolError, match="manifest"):
            m.decode_manifest(data, expected=expected)
    with pytest.raises(LocalProtocolError):
        m.build_manifest(Digest(DIGEST), RAW, FRAMES[:2])


@pytest.mark.parametrize(
    ("raw", "segment"),
    [(1, 16384), (8 << 20, 32768), (32 << 20, 131072), (36_000_000, 131072), (1 << 29, 262144)],
)
def test_segment_size_follows_the_blob(raw: int, segment: int) -> None:
    assert m.segment_bytes_for(raw) == segment
