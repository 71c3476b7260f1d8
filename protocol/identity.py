"""Who may say what: node credentials signed by the cluster CA, and signatures by nodes.

A credential binds a node's Ed25519 key to its name and roles and travels inside every signed
record, so that a record outlives its signer. Signatures are domain-separated: a signature made
for one purpose never verifies for another. SPEC §2.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from .errors import LocalProtocolError, RemoteProtocolError
from .ids import NodeId, node_id_of, parse_node_name

Role = Literal["serve", "build", "control"]
ROLES: Final[tuple[Role, ...]] = ("serve", "build", "control")

Purpose = Literal["credential", "record", "artifact", "snapshot"]
_DOMAIN: Final[dict[Purpose, bytes]] = {
    "credential": b"edged/1 credential\x00",
    "record": b"edged/1 record\x00",
    "artifact": b"edged/1 artifact\x00",
    "snapshot": b"edged/1 snapshot\x00",
}


class Credential(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The CA's word for a node. `signature` is the CA's over the other fields in this order."""

    name: str
    public_key: bytes  # raw Ed25519, 32 bytes
    roles: tuple[Role, ...]
    not_after_s: int  # seconds since the Unix epoch
    signature: bytes  # Ed25519, 64 bytes

    @property
    def node_id(self) -> NodeId:
        return node_id_of(self.public_key)


def public_bytes(key: Ed25519PrivateKey | Ed25519PublicKey) -> bytes:
    """Raw 32 bytes of the public key."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return public.public_bytes(Encoding.Raw, PublicFormat.Raw)


def sign(key: Ed25519PrivateKey, purpose: Purpose, payload: bytes) -> bytes:
    """Ed25519 (RFC 8032) over the purpose's domain prefix and `payload`; 64 bytes."""
    return key.sign(_DOMAIN[purpose] + payload)


def verify(public_key: bytes, purpose: Purpose, payload: bytes, signature: bytes) -> None:
    """Raises RemoteProtocolError("signature") unless `signature` is `public_key`'s."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _DOMAIN[purpose] + payload)
    except (InvalidSignature, ValueError) as error:
        raise RemoteProtocolError("signature", f"bad {purpose} signature") from error


def _credential_payload(
    name: str, public_key: bytes, roles: tuple[Role, ...], not_after_s: int
) -> bytes:
    return msgspec.msgpack.encode((name, public_key, roles, not_after_s))


def issue_credential(
    ca_key: Ed25519PrivateKey,
    *,
    name: str,
    public_key: bytes,
    roles: tuple[Role, ...],
    not_after_s: int,
) -> Credential:
    """Roles are stored in the order of ROLES, so equal grants encode equally."""
    if len(public_key) != 32:
        raise LocalProtocolError(f"an Ed25519 public key has 32 bytes, not {len(public_key)}")
    ordered = tuple(role for role in ROLES if role in roles)
    payload = _credential_payload(parse_node_name(name), public_key, ordered, not_after_s)
    return Credential(name, public_key, ordered, not_after_s, sign(ca_key, "credential", payload))


class TrustAnchor:
    """Verifies credentials of one CA. Successful checks are remembered (bounded), as a record's
    credential repeats in each record of its signer and a check costs about 0.1 ms."""

    REMEMBERED_MAX: Final = 4096

    def __init__(self, ca_public_key: bytes) -> None:
        if len(ca_public_key) != 32:
            raise LocalProtocolError("an Ed25519 public key has 32 bytes")
        self.ca_public_key: Final = ca_public_key
        self._verified: dict[Credential, None] = {}

    def check(self, credential: Credential, *, role: Role | None, wall_s: float) -> NodeId:
        """The credential's node id.

        Raises RemoteProtocolError: "signature" (not this CA's), "credential-expired",
        "credential-role" (the CA did not grant `role`), "node-name".
        """
        if credential not in self._verified:
            parse_node_name(credential.name)
            if len(credential.public_key) != 32:
                raise RemoteProtocolError("signature", "public key is not 32 bytes")
            payload = _credential_payload(
                credential.name, credential.public_key, credential.roles, credential.not_after_s
            )
            verify(self.ca_public_key, "credential", payload, credential.signature)
            if len(self._verified) >= self.REMEMBERED_MAX:
                self._verified.pop(next(iter(self._verified)))
            self._verified[credential] = None
        if wall_s > credential.not_after_s:
            raise RemoteProtocolError("credential-expired", credential.name)
        if role is not None and role not in credential.roles:
            raise RemoteProtocolError("credential-role", f"{credential.name} lacks {role!r}")
        return credential.node_id
