"""A builder's signed word that an artifact is the compiled form of a module. SPEC §9.

An artifact is native code: whoever loads it runs it. It is opened only when an attestation by a
trusted builder names exactly this module, artifact key and artifact digest.
"""

from __future__ import annotations

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from .errors import RemoteProtocolError
from .identity import Credential, TrustAnchor, sign, verify
from .ids import ArtifactKey, Digest, NodeId


class Attestation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    module: Digest
    key: ArtifactKey
    artifact: Digest
    builder: Credential
    signature: bytes


_decoder = msgspec.msgpack.Decoder(Attestation)


def _payload(module: Digest, key: ArtifactKey, artifact: Digest) -> bytes:
    return msgspec.msgpack.encode((module, key, artifact))


def attest(
    private_key: Ed25519PrivateKey,
    builder: Credential,
    *,
    module: Digest,
    key: ArtifactKey,
    artifact: Digest,
) -> Attestation:
    signature = sign(private_key, "artifact", _payload(module, key, artifact))
    return Attestation(module, key, artifact, builder, signature)


def encode_attestation(attestation: Attestation) -> bytes:
    return msgspec.msgpack.encode(attestation)


def decode_attestation(data: bytes) -> Attestation:
    """Raises RemoteProtocolError("attestation")."""
    try:
        return _decoder.decode(data)
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
    payload = _payload(module, key, artifact)
    verify(attestation.builder.public_key, "artifact", payload, attestation.signature)
    return builder
