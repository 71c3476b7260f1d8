"""A builder's signed word that an artifact is the compiled form of a module. SPEC §9.

An artifact is native code: whoever loads it runs it. It is opened only when as many trusted
builders as the node's policy demands attest exactly this module, artifact key and artifact digest.
What is signed also names the manifest of the wire form that the builder made, so that a fetch is
bounded and verified by the same word (SPEC §8).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from .errors import RemoteProtocolError
from .identity import Credential, TrustAnchor, sign, verify
from .ids import ArtifactKey, Digest, NodeId
from .manifest import BLOB_BYTES_MAX

ATTESTATIONS_MAX: Final = 16
"""Of one artifact: more builders than any quorum asks for add nothing."""
ATTESTED_BYTES_MAX: Final = 16 * 1024
"""An attestation has about 550 bytes, 620 with the longest node name."""

_Digest = Annotated[Digest, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Bytes = Annotated[int, Meta(ge=1, le=BLOB_BYTES_MAX)]


class Attestation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    module: _Digest
    key: ArtifactKey
    artifact: _Digest
    manifest: Annotated[Digest, Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
    """Of the wire form that the builder made of it: another builder's may differ, the artifact's
    digest does not. "": it made none, and the artifact never leaves it."""
    builder: Credential
    signature: bytes


Attestations = Annotated[tuple[Attestation, ...], Meta(max_length=ATTESTATIONS_MAX)]


class Attested(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The artifact of one module that a node holds and serves, with the words it has for it."""

    artifact: _Digest
    size_bytes: _Bytes
    wire_bytes: _Bytes
    manifest: _Digest
    """Of the wire form that it serves."""
    attestations: Attestations


_list_decoder = msgspec.msgpack.Decoder(Attestations)
_attested_decoder = msgspec.msgpack.Decoder(Attested)


def _payload(module: Digest, key: ArtifactKey, artifact: Digest, manifest: Digest) -> bytes:
    return msgspec.msgpack.encode((module, key, artifact, manifest))


def attest(
    private_key: Ed25519PrivateKey,
    builder: Credential,
    *,
    module: Digest,
    key: ArtifactKey,
    artifact: Digest,
    manifest: Digest,
) -> Attestation:
    signature = sign(private_key, "artifact", _payload(module, key, artifact, manifest))
    return Attestation(module, key, artifact, manifest, builder, signature)


def encode_attestations(attestations: Sequence[Attestation]) -> bytes:
    return msgspec.msgpack.encode(attestations)


def decode_attestations(data: bytes) -> tuple[Attestation, ...]:
    """Raises RemoteProtocolError("attestation")."""
    try:
        return _list_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RemoteProtocolError("attestation", str(error)) from error


def encode_attested(attested: Attested | None) -> bytes:
    """None, "nothing here", is no bytes."""
    return b"" if attested is None else msgspec.msgpack.encode(attested)


def decode_attested(data: bytes) -> Attested | None:
    """Raises RemoteProtocolError("attestation")."""
    if not data:
        return None
    try:
        return _attested_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RemoteProtocolError("attestation", str(error)) from error


def check_attestation(
    attestation: Attestation,
    anchor: TrustAnchor,
    *,
    module: Digest,
    key: ArtifactKey,
    artifact: Digest,
    wall_s: float,
    own_public_key: bytes | None = None,
) -> NodeId:
    """The builder's node id. A node needs no role, and no credential that is still valid, to trust
    what its own key signed: `own_public_key`.

    Raises RemoteProtocolError: "attestation" (says something else), "signature",
    "credential-expired", "credential-role" (not a `build` node)."""
    if (attestation.module, attestation.key, attestation.artifact) != (module, key, artifact):
        raise RemoteProtocolError("attestation", "is about another module, key or artifact")
    if attestation.builder.public_key == own_public_key:
        builder = attestation.builder.node_id
    else:
        builder = anchor.check(attestation.builder, role="build", wall_s=wall_s)
    payload = _payload(module, key, artifact, attestation.manifest)
    verify(attestation.builder.public_key, "artifact", payload, attestation.signature)
    return builder
