"""Trust files: what is made, what is refused, and that errors name the file and the fix."""

from __future__ import annotations

import base64
import ssl
import stat
import time
from pathlib import Path

import msgspec
import pytest

from edged.errors import ConfigError, PeerError
from edged.trust import create_ca, issue_node, load_trust, peer_node_id
from protocol.identity import Credential, Role, sign, verify

DAY_S = 86_400.0


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    create_ca(tmp_path / "ca")
    return tmp_path / "ca"


@pytest.fixture
def node(ca: Path, tmp_path: Path) -> Path:
    issue_node(ca, tmp_path / "n1", name="n1", roles=("serve", "control"))
    return tmp_path / "n1"


def test_a_node_s_files_load_and_say_who_it_is(ca: Path, node: Path) -> None:
    trust = load_trust(node)
    assert trust.name == "n1"
    assert trust.credential.roles == ("serve", "control")
    assert trust.credential.node_id == trust.node_id
    assert trust.anchor.check(trust.credential, role="serve", wall_s=time.time()) == trust.node_id
    signature = sign(trust.private_key, "record", b"x")
    verify(trust.credential.public_key, "record", b"x", signature)
    assert trust.keyring_keys == (bytes.fromhex((ca / "keyring").read_text().strip()),)
    der = ssl.PEM_cert_to_DER_cert((node / "node.pem").read_text())
    assert peer_node_id(der) == trust.node_id
    for context in (trust.server_ssl_context(), trust.client_ssl_context()):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert not context.check_hostname


def test_secrets_do_not_show_in_a_repr(node: Path) -> None:
    trust = load_trust(node)
    assert trust.keyring_keys[0].hex() not in repr(trust)
    assert "PrivateKey" not in repr(trust)


def test_secrets_are_made_for_their_owner_only(ca: Path, node: Path) -> None:
    for path in (ca / "ca.key", ca / "keyring", node / "node.key", node / "keyring"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not [path for path in (*ca.iterdir(), *node.iterdir()) if path.name.startswith(".")]


def test_a_ca_is_never_overwritten(ca: Path) -> None:
    before = (ca / "ca.key").read_bytes()
    with pytest.raises(ConfigError, match=r"ca\.key: there is a CA already"):
        create_ca(ca)
    assert (ca / "ca.key").read_bytes() == before


def test_issuing_again_renews_and_keeps_the_identity(ca: Path, node: Path) -> None:
    before = load_trust(node)
    issue_node(ca, node, name="n1", roles=("serve",), days=9)
    after = load_trust(node)
    assert after.node_id == before.node_id
    assert after.credential.roles == ("serve",)
    assert after.credential.not_after_s != before.credential.not_after_s


@pytest.mark.parametrize("name", ["node.key", "keyring"])
def test_a_secret_others_may_read_is_refused(node: Path, name: str) -> None:
    (node / name).chmod(0o640)
    with pytest.raises(ConfigError, match=f"{name}: mode 0640 lets others read.*chmod 600"):
        load_trust(node)


@pytest.mark.parametrize("name", ["node.key", "node.pem", "ca.pem", "credential", "keyring"])
@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff garbage\n", b"A" * 70_000], ids=["empty", "garbage", "huge"]
)
def test_a_broken_file_is_named(node: Path, name: str, content: bytes) -> None:
    (node / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{name.replace('.', '[.]')}: "):
        load_trust(node)
    (node / name).unlink()
    with pytest.raises(ConfigError, match=f"{name}: cannot be read: No such file"):
        load_trust(node)


@pytest.mark.parametrize("name", ["node.key", "node.pem", "credential", "ca.pem"])
def test_files_of_two_nodes_or_two_clusters_do_not_mix(
    tmp_path: Path, node: Path, name: str
) -> None:
    create_ca(tmp_path / "ca2")
    issue_node(tmp_path / "ca2", tmp_path / "other", name="n1")
    (node / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(ConfigError, match=r"not issued by|not of node\.key|signature"):
        load_trust(node)


def test_certificates_of_another_node_of_the_cluster_are_refused(
    tmp_path: Path, ca: Path, node: Path
) -> None:
    issue_node(ca, tmp_path / "n2", name="n2")
    for name in ("node.pem", "credential"):
        own = (node / name).read_bytes()
        (node / name).write_bytes((tmp_path / "n2" / name).read_bytes())
        with pytest.raises(ConfigError, match=f"{name}: not of node.key"):
            load_trust(node)
        (node / name).write_bytes(own)


def test_a_credential_with_roles_the_ca_did_not_grant_is_refused(
    tmp_path: Path, ca: Path, node: Path
) -> None:

    trust = load_trust(node)
    forged = msgspec.structs.replace(trust.credential, roles=("serve", "build", "control"))
    assert isinstance(forged, Credential)
    (node / "credential").write_bytes(base64.b64encode(msgspec.msgpack.encode(forged)))
    with pytest.raises(ConfigError, match="credential: signature"):
        load_trust(node)


def test_expiry_and_clocks(ca: Path, tmp_path: Path) -> None:
    issue_node(ca, tmp_path / "n", name="n", days=2)
    load_trust(tmp_path / "n", wall_s=time.time() + 1.9 * DAY_S)
    with pytest.raises(ConfigError, match=r"node\.pem: expired at .* issue the node again"):
        load_trust(tmp_path / "n", wall_s=time.time() + 2.1 * DAY_S)
    with pytest.raises(ConfigError, match=r"ca\.pem: valid only from .* clock"):
        load_trust(tmp_path / "n", wall_s=time.time() - DAY_S)


@pytest.mark.parametrize("text", ["zz\n", "aa\n", "ab" * 32 + "\n" + "ab" * 32, "é" * 32])
def test_a_keyring_has_different_32_byte_hex_keys(node: Path, text: str) -> None:
    (node / "keyring").write_text(text)
    with pytest.raises(ConfigError, match="keyring: "):
        load_trust(node)


def test_a_keyring_may_hold_several_keys(node: Path) -> None:
    (node / "keyring").write_text("\n".join(f"{n:02x}" * 32 for n in range(3)))
    assert load_trust(node).keyring_keys == tuple(bytes([n]) * 32 for n in range(3))


@pytest.mark.parametrize(
    ("name", "roles", "days", "match"),
    [
        ("Bad Name", ("serve",), 1, "node name"),
        ("n", (), 1, "roles"),
        ("n", ("root",), 1, "roles"),
        ("n", ("serve",), 0, "days"),
    ],
)
def test_issuing_checks_what_it_is_asked(
    ca: Path, tmp_path: Path, name: str, roles: tuple[Role, ...], days: int, match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        issue_node(ca, tmp_path / "x", name=name, roles=roles, days=days)
    assert not (tmp_path / "x").exists()


def test_issuing_needs_a_ca_that_belongs_together(tmp_path: Path, ca: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca\.key: cannot be read"):
        issue_node(tmp_path / "none", tmp_path / "x", name="x")
    create_ca(tmp_path / "ca2")
    (ca / "ca.pem").write_bytes((tmp_path / "ca2" / "ca.pem").read_bytes())
    with pytest.raises(ConfigError, match=r"ca\.pem: does not belong to ca\.key"):
        issue_node(ca, tmp_path / "x", name="x")


def test_a_peer_without_a_usable_certificate_has_no_id() -> None:
    for der in (None, b"", b"\x30\x03abc"):
        with pytest.raises(PeerError):
            peer_node_id(der)
