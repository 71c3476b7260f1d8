"""ids, identity and attestations: who is who, who may say what. SPEC §2."""

from __future__ import annotations

import msgspec
import pytest
from protocol_support import CA, DIGEST, NOT_AFTER_S, anchor, credential_of, key_of

from protocol import ids
from protocol.artifact import (
    ATTESTATIONS_MAX,
    Attested,
    attest,
    check_attestation,
    decode_attestations,
    decode_attested,
    encode_attestations,
    encode_attested,
)
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.identity import TrustAnchor, issue_credential, public_bytes, sign, verify
from protocol.ids import ArtifactKey, Digest

OTHER = Digest("cd" * 32)
KEY = ArtifactKey("ef" * 32)


@pytest.mark.parametrize(
    ("parse", "good", "bad", "code"),
    [
        (ids.parse_digest, "0a" * 32, ["", "0A" * 32, "0a" * 31, "0a" * 32 + "\n"], "digest"),
        (ids.parse_version, "0a" * 32, ["0g" * 32, "0a" * 33], "version"),
        (
            ids.parse_function_name,
            "a-b_9",
            ["", "A", "-a", "a-", "a" * 64, "a/b", "a\n", "ä"],
            "function-name",
        ),
        (ids.parse_node_name, "n1.eu-west", ["", ".a", "a.", "N", "a b", "a" * 64], "node-name"),
    ],
)
def test_names_are_parsed_not_repaired(parse, good, bad, code) -> None:
    assert parse(good) == good
    for text in bad:
        with pytest.raises(RemoteProtocolError) as caught:
            parse(text)
        assert caught.value.code == code


def test_node_id_certifies_its_key() -> None:
    public = public_bytes(key_of("n0"))
    assert ids.node_id_of(public) == credential_of("n0").node_id
    assert len(ids.node_id_of(public)) == 2 * ids.NODE_ID_BYTES
    assert public_bytes(key_of("n0").public_key()) == public


def test_a_signature_serves_one_purpose() -> None:
    signature = sign(key_of("n0"), "record", b"text")
    public = public_bytes(key_of("n0"))
    verify(public, "record", b"text", signature)
    for purpose, text, key in (
        ("artifact", b"text", public),
        ("record", b"texT", public),
        ("record", b"text", public_bytes(key_of("n1"))),
        ("record", b"text", b"short"),
    ):
        with pytest.raises(RemoteProtocolError, match="signature"):
            verify(key, purpose, text, signature)


def test_roles_are_kept_in_one_order() -> None:
    public = public_bytes(key_of("n0"))
    one = issue_credential(
        CA, name="n0", public_key=public, roles=("control", "serve"), not_after_s=1
    )
    assert one.roles == ("serve", "control")
    with pytest.raises(LocalProtocolError):
        issue_credential(CA, name="n0", public_key=b"", roles=(), not_after_s=1)
    with pytest.raises(LocalProtocolError):
        TrustAnchor(b"")


@pytest.mark.parametrize(
    ("change", "role", "wall_s", "code"),
    [
        ({"name": "n1"}, None, 1.0, "signature"),
        ({"name": "N 1"}, None, 1.0, "node-name"),
        ({"roles": ("serve",)}, None, 1.0, "signature"),
        ({"not_after_s": NOT_AFTER_S + 1}, None, 1.0, "signature"),
        ({"public_key": public_bytes(key_of("n1"))}, None, 1.0, "signature"),
        ({"public_key": b"x"}, None, 1.0, "signature"),
        ({}, None, NOT_AFTER_S + 1.0, "credential-expired"),
    ],
)
def test_altered_credentials_are_refused(change, role, wall_s, code) -> None:
    credential = msgspec.structs.replace(credential_of("n0"), **change)
    with pytest.raises(RemoteProtocolError) as caught:
        anchor().check(credential, role=role, wall_s=wall_s)
    assert caught.value.code == code


def test_roles_are_checked_even_for_remembered_credentials() -> None:
    trust = anchor()
    serve = credential_of("n0", roles=("serve",))
    assert trust.check(serve, role="serve", wall_s=1) == serve.node_id
    with pytest.raises(RemoteProtocolError, match="credential-role"):
        trust.check(serve, role="control", wall_s=1)


def test_remembered_credentials_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    trust = anchor()
    monkeypatch.setattr(TrustAnchor, "REMEMBERED_MAX", 2)
    for name in ("n0", "n1", "n2", "n0"):
        trust.check(credential_of(name), role=None, wall_s=1)
    assert len(trust._verified) == 2


def test_attestation_holds_for_exactly_what_it_says() -> None:
    builder = credential_of("b0", roles=("build",))
    made = attest(
        key_of("b0"), builder, module=Digest(DIGEST), key=KEY, artifact=OTHER, manifest=OTHER
    )
    (again,) = decode_attestations(encode_attestations((made,)))
    wanted = {"module": Digest(DIGEST), "key": KEY, "artifact": OTHER}
    assert check_attestation(again, anchor(), **wanted, wall_s=1) == builder.node_id
    other_form = msgspec.structs.replace(again, manifest=Digest(DIGEST))
    with pytest.raises(RemoteProtocolError, match="signature"):
        check_attestation(other_form, anchor(), **wanted, wall_s=1)
    for field, value in (("module", OTHER), ("key", ArtifactKey("00" * 32)), ("artifact", DIGEST)):
        with pytest.raises(RemoteProtocolError, match="attestation"):
            check_attestation(again, anchor(), **(wanted | {field: value}), wall_s=1)


def test_only_builders_attest() -> None:
    wanted = {"module": Digest(DIGEST), "key": KEY, "artifact": OTHER}
    made = attest(key_of("n0"), credential_of("n0", roles=("serve",)), **wanted, manifest=OTHER)
    with pytest.raises(RemoteProtocolError, match="credential-role"):
        check_attestation(made, anchor(), **wanted, wall_s=1)
    forged = attest(key_of("n1"), credential_of("b0", roles=("build",)), **wanted, manifest=OTHER)
    with pytest.raises(RemoteProtocolError, match="signature"):
        check_attestation(forged, anchor(), **wanted, wall_s=1)
    for junk in (b"", b"\x91\x90", b"\xff" * 40, encode_attestations([made] * 17)):
        with pytest.raises(RemoteProtocolError, match="attestation"):
            decode_attestations(junk)


def test_what_a_peer_says_it_holds_is_bounded() -> None:
    builder = credential_of("b0", roles=("build",))
    wanted = {"module": Digest(DIGEST), "key": KEY, "artifact": OTHER}
    word = attest(key_of("b0"), builder, **wanted, manifest=OTHER)
    told = Attested(OTHER, 9, 5, Digest(DIGEST), (word,) * ATTESTATIONS_MAX)
    assert decode_attested(encode_attested(told)) == told
    assert decode_attested(encode_attested(None)) is None
    for wrong in (
        {"artifact": "../x"},
        {"manifest": ""},
        {"size_bytes": 0},
        {"wire_bytes": 1 << 40},
        {"attestations": (word,) * (ATTESTATIONS_MAX + 1)},
    ):
        with pytest.raises(RemoteProtocolError, match="attestation"):
            decode_attested(encode_attested(msgspec.structs.replace(told, **wrong)))
    for junk in (b"\x90", b"\xff" * 40):
        with pytest.raises(RemoteProtocolError, match="attestation"):
            decode_attested(junk)
