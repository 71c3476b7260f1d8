"""Trust files: the cluster CA, a node's identity, and the TLS contexts made of them.

A CA directory holds `ca.key`, `ca.pem` and `keyring`; a node's trust directory holds `node.key`,
`node.pem`, `credential`, and copies of `ca.pem` and `keyring`. The identity of a peer is its
Ed25519 key and nothing else: no host name is ever compared. Files with secrets are made with mode
0600, and refused if anybody but their owner may read them. DESIGN §3, SPEC §2, RFC 8410 (Ed25519
in X.509), RFC 8446 (TLS 1.3).
"""

from __future__ import annotations

import base64
import binascii
import datetime
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.errors import RemoteProtocolError
from protocol.identity import ROLES, Credential, Role, TrustAnchor, issue_credential, public_bytes
from protocol.ids import NodeId, node_id_of, parse_node_name
from protocol.streams import ALPN, HTTP_ALPN

from .errors import ConfigError, PeerError
from .files import read_file, write_file
from .keyring import new_key, parse_keyring, read_keyring, write_keyring

CA_DAYS: Final = 3650
NODE_DAYS: Final = 825
"""What TLS clients last accepted of a public certificate before 2020; renewal keeps the key."""
BACKDATE: Final = datetime.timedelta(hours=1)
"""Certificates are valid this long before their making: clocks of a fresh cluster differ."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What a node holds to prove who it is and to judge others."""

    name: str
    node_id: NodeId
    credential: Credential
    anchor: TrustAnchor
    ca_public_key: bytes
    expires_s: float
    """Unix time from which peers refuse this node: its certificate, credential or CA has ended."""
    ca_expires_s: float
    private_key: Ed25519PrivateKey = field(repr=False)
    keyring_keys: tuple[bytes, ...] = field(repr=False)
    """32 bytes each, the first one seals."""
    _server: ssl.SSLContext = field(repr=False)
    _client: ssl.SSLContext = field(repr=False)
    _gateway: ssl.SSLContext = field(repr=False)

    def server_ssl_context(self) -> ssl.SSLContext:
        """TLS 1.3, presents node.pem, demands a certificate of the same CA."""
        return self._server

    def client_ssl_context(self) -> ssl.SSLContext:
        """As the server's, for dialling. A refusal of *our* certificate shows on the first read,
        not in the handshake: TLS 1.3 lets the client finish first."""
        return self._client

    def gateway_ssl_context(self) -> ssl.SSLContext:
        """As the client's, for dialling peers' gateways."""
        return self._gateway


def create_ca(directory: Path, *, wall_s: float | None = None) -> None:
    """Makes ca.key, ca.pem and a keyring with one key.

    Raises ConfigError if a CA is there already: it is never overwritten."""
    _make_directory(directory)
    if (directory / "ca.key").exists():
        raise ConfigError(f"{directory / 'ca.key'}: there is a CA already; use it, or remove it")
    key = Ed25519PrivateKey.generate()
    now = _instant(wall_s)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edged cluster CA")])
    certificate = (
        _builder(name, name, key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, None)
    )
    write_keyring(directory / "keyring", [new_key()])
    write_file(directory / "ca.pem", certificate.public_bytes(Encoding.PEM), secret=False)
    write_file(directory / "ca.key", _private_pem(key), secret=True)


def issue_node(
    ca_directory: Path,
    node_trust_directory: Path,
    *,
    name: str,
    roles: tuple[Role, ...] = ROLES,
    days: int = NODE_DAYS,
    wall_s: float | None = None,
) -> NodeId:
    """Writes a node's whole trust directory. A node that has a key keeps it (and with it its node
    id); certificate, credential, ca.pem and keyring are made anew, so this also renews.

    Raises ConfigError: no usable CA, a bad name, no or unknown roles."""
    try:
        parse_node_name(name)
    except RemoteProtocolError as error:
        raise ConfigError(f"node name {error.detail}") from error
    unknown = [role for role in roles if role not in ROLES]
    if unknown or not roles:
        raise ConfigError(f"roles {list(roles)}: one or more of {', '.join(ROLES)}")
    if days < 1:
        raise ConfigError(f"days = {days}: at least 1")
    ca_key = _read_private_key(ca_directory / "ca.key")
    ca = _read_certificate(ca_directory / "ca.pem")
    if _certificate_key(ca, ca_directory / "ca.pem") != public_bytes(ca_key):
        raise ConfigError(f"{ca_directory / 'ca.pem'}: does not belong to ca.key beside it")
    keyring = read_file(ca_directory / "keyring", secret=True)
    parse_keyring(keyring, ca_directory / "keyring")

    _make_directory(node_trust_directory)
    key_path = node_trust_directory / "node.key"
    key = _read_private_key(key_path) if key_path.exists() else Ed25519PrivateKey.generate()
    now = _instant(wall_s)
    certificate = _node_certificate(ca_key, ca, key.public_key(), name, now, days)
    credential = issue_credential(
        ca_key,
        name=name,
        public_key=public_bytes(key),
        roles=roles,
        not_after_s=int(certificate.not_valid_after_utc.timestamp()),
    )
    encoded = base64.b64encode(msgspec.msgpack.encode(credential)) + b"\n"
    write_file(key_path, _private_pem(key), secret=True)
    write_file(
        node_trust_directory / "node.pem", certificate.public_bytes(Encoding.PEM), secret=False
    )
    write_file(node_trust_directory / "credential", encoded, secret=False)
    write_file(node_trust_directory / "ca.pem", ca.public_bytes(Encoding.PEM), secret=False)
    write_file(node_trust_directory / "keyring", keyring, secret=True)
    return credential.node_id


def load_trust(directory: Path, *, wall_s: float | None = None) -> Trust:
    """Reads and cross-checks a node's trust directory.

    Raises ConfigError naming the file and the fix: missing, unreadable, readable by others,
    malformed, expired, or not belonging together."""
    now = _instant(wall_s)
    private_key = _read_private_key(directory / "node.key")
    ca = _read_certificate(directory / "ca.pem")
    certificate = _read_certificate(directory / "node.pem")
    credential = _read_credential(directory / "credential")
    keyring = directory / "keyring"
    keys = read_keyring(keyring)

    ca_public_key = _certificate_key(ca, directory / "ca.pem")
    for path, found in (("ca.pem", ca), ("node.pem", certificate)):
        _check_dates(directory / path, found, now)
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise ConfigError(f"{directory / 'node.pem'}: not issued by ca.pem beside it") from error
    own = public_bytes(private_key)
    if _certificate_key(certificate, directory / "node.pem") != own:
        raise ConfigError(f"{directory / 'node.pem'}: not of node.key beside it; issue it again")
    if credential.public_key != own:
        raise ConfigError(f"{directory / 'credential'}: not of node.key beside it; issue it again")
    anchor = TrustAnchor(ca_public_key)
    try:
        node_id = anchor.check(credential, role=None, wall_s=now.timestamp())
    except RemoteProtocolError as error:
        raise ConfigError(f"{directory / 'credential'}: {error}; issue the node again") from error
    if _common_name(certificate) != credential.name:
        raise ConfigError(f"{directory / 'credential'}: names another node than node.pem")
    return Trust(
        name=credential.name,
        node_id=node_id,
        credential=credential,
        anchor=anchor,
        ca_public_key=ca_public_key,
        expires_s=min(
            float(credential.not_after_s),
            ca.not_valid_after_utc.timestamp(),
            certificate.not_valid_after_utc.timestamp(),
        ),
        ca_expires_s=ca.not_valid_after_utc.timestamp(),
        private_key=private_key,
        keyring_keys=keys,
        _server=_context(directory, ssl.PROTOCOL_TLS_SERVER, ALPN, HTTP_ALPN),
        _client=_context(directory, ssl.PROTOCOL_TLS_CLIENT, ALPN),
        _gateway=_context(directory, ssl.PROTOCOL_TLS_CLIENT, HTTP_ALPN),
    )


def peer_node_id(certificate_der: bytes | None) -> NodeId:
    """Node id of a peer whose certificate the TLS handshake verified.

    Raises PeerError: there is none, or its key is not Ed25519."""
    if not certificate_der:
        raise PeerError("peer showed no certificate")
    try:
        key = x509.load_der_x509_certificate(certificate_der).public_key()
    except ValueError as error:
        raise PeerError("peer's certificate cannot be parsed") from error
    if not isinstance(key, Ed25519PublicKey):
        raise PeerError("peer's certificate is not of an Ed25519 key")
    return node_id_of(public_bytes(key))


# ---------------------------------------------------------------- certificates
def _instant(wall_s: float | None) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(
        time.time() if wall_s is None else wall_s, tz=datetime.UTC
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: Ed25519PublicKey,
    now: datetime.datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _node_certificate(
    ca_key: Ed25519PrivateKey,
    ca: x509.Certificate,
    key: Ed25519PublicKey,
    name: str,
    now: datetime.datetime,
    days: int,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    uri = x509.UniformResourceIdentifier(f"edged://node/{node_id_of(public_bytes(key))}")
    usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        _builder(subject, ca.subject, key, now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, None)
    )


def _certificate_key(certificate: x509.Certificate, path: Path) -> bytes:
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path}: not a certificate of an Ed25519 key")
    return public_bytes(key)


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _check_dates(path: Path, certificate: x509.Certificate, now: datetime.datetime) -> None:
    if now > certificate.not_valid_after_utc:
        raise ConfigError(
            f"{path}: expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; "
            "issue the node again"
        )
    if now < certificate.not_valid_before_utc:
        raise ConfigError(
            f"{path}: valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; "
            "set this machine's clock"
        )


def _context(directory: Path, protocol: int, *alpn: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.set_alpn_protocols(alpn)
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        # No resumption: each connection shows its certificate anew, and no ticket is in flight
        # when a peer closes at once (an unread one turns its close into a reset).
        context.num_tickets = 0
    try:
        context.load_verify_locations(cafile=directory / "ca.pem")
        context.load_cert_chain(directory / "node.pem", directory / "node.key")
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{directory}: TLS refuses ca.pem, node.pem or node.key") from error
    return context


# ---------------------------------------------------------------- files
def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be made: {error.strerror}") from error


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _read_private_key(path: Path) -> Ed25519PrivateKey:
    data = read_file(path, secret=True)
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not an unencrypted PEM private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: not an Ed25519 key")
    return key


def _read_certificate(path: Path) -> x509.Certificate:
    data = read_file(path, secret=False)
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise ConfigError(f"{path}: not a PEM certificate") from error


def _read_credential(path: Path) -> Credential:
    data = read_file(path, secret=False)
    try:
        return msgspec.msgpack.decode(
            base64.b64decode(data.strip(), validate=True), type=Credential
        )
    except (binascii.Error, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a credential; issue the node again") from error
