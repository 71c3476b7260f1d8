"""Sealed datagrams: the cluster keyring and one key per sender and generation. SPEC §4.

Invariants: a nonce is used once per derived key (generation never repeats, the counter only
grows); a datagram that does not authenticate changes nothing; caches are bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from struct import Struct
from typing import Final

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from .errors import LocalProtocolError, RemoteProtocolError
from .ids import NODE_ID_BYTES, NodeId

DATAGRAM_BYTES_MAX: Final = 1200
"""QUIC's minimum (RFC 9000 §14): passes every path that carries IPv6."""
MAGIC: Final = b"eg"
WIRE_VERSION: Final = 1
KEY_BYTES: Final = 32
KEYS_MAX: Final = 8
TAG_BYTES: Final = 16
WINDOW_BITS: Final = 1024
"""Larger than RFC 6479's usual 64: a burst to one peer may overtake by hundreds on a bad link."""
SENDERS_MAX: Final = 4096
KEY_ID_CONTEXT: Final = "edged 2025 datagram key id v1"
SENDER_KEY_CONTEXT: Final = "edged 2025 datagram sender key v1"

_HEADER: Final = Struct(">2sB4s16sQQ")
HEADER_BYTES: Final = _HEADER.size
assert HEADER_BYTES == 7 + NODE_ID_BYTES + 16
PAYLOAD_BYTES_MAX: Final = DATAGRAM_BYTES_MAX - HEADER_BYTES - TAG_BYTES
_U64: Final = Struct(">Q")
_NONCE: Final = Struct(">IQ")


class Keyring:
    """The cluster's keys; datagrams are sealed with the first and opened with any. Rotation: add
    the new key last everywhere, then move it first everywhere, then remove the old one."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not 1 <= len(keys) <= KEYS_MAX or any(len(key) != KEY_BYTES for key in keys):
            raise LocalProtocolError(f"a keyring has 1 to {KEYS_MAX} keys of {KEY_BYTES} bytes")
        self._keys = {key_id(key): key for key in keys}
        if len(self._keys) != len(keys):
            raise LocalProtocolError("two keys of the keyring are equal or share a key id")
        self.primary: Final = key_id(keys[0])
        self.ids: Final = tuple(identifier.hex() for identifier in self._keys)
        """Hex, the primary's first."""

    def get(self, identifier: bytes) -> bytes | None:
        return self._keys.get(identifier)


def key_id(key: bytes) -> bytes:
    """Four bytes that name a key without revealing it."""
    return blake3(key, derive_key_context=KEY_ID_CONTEXT).digest(4)


def sender_key(key: bytes, sender: bytes, generation: int) -> bytes:
    material = key + sender + _U64.pack(generation)
    return blake3(material, derive_key_context=SENDER_KEY_CONTEXT).digest()


class Opened(msgspec.Struct, frozen=True):
    """An authenticated datagram, not yet committed."""

    sender: NodeId
    generation: int
    counter: int
    payload: bytes


class _Window:
    """What was received from one sender: its newest generation, top counter, and a bitmap of the
    WINDOW_BITS counters below the top (bit 0 is the top)."""

    __slots__ = ("bitmap", "generation", "top")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.top = -1
        self.bitmap = 0

    def fresh(self, counter: int) -> bool:
        if counter > self.top:
            return True
        age = self.top - counter
        return age < WINDOW_BITS and not self.bitmap >> age & 1

    def mark(self, counter: int) -> None:
        if counter > self.top:
            shift = counter - self.top
            kept = self.bitmap << shift if shift < WINDOW_BITS else 0
            self.bitmap = (kept | 1) & ((1 << WINDOW_BITS) - 1)
            self.top = counter
        else:
            self.bitmap |= 1 << (self.top - counter)


class Seal:
    """Seals for one (node, generation); opens for all. Not shared between nodes."""

    def __init__(
        self, keyring: Keyring, node_id: NodeId, generation: int, *, senders_max: int = SENDERS_MAX
    ) -> None:
        self._sender = bytes.fromhex(node_id)
        self._generation = generation
        self._counter = 0
        self._senders_max = senders_max
        self._ciphers: OrderedDict[tuple[bytes, bytes, int], ChaCha20Poly1305] = OrderedDict()
        self._windows: OrderedDict[bytes, _Window] = OrderedDict()
        self.set_keyring(keyring)

    def set_keyring(self, keyring: Keyring) -> None:
        """Live rotation: what a removed key sealed no longer opens, at once."""
        self._keyring = keyring
        self._ciphers.clear()
        self._own = self._derive(keyring.primary, self._sender, self._generation)

    def _derive(self, identifier: bytes, sender: bytes, generation: int) -> ChaCha20Poly1305:
        key = self._keyring.get(identifier)
        if key is None:
            raise RemoteProtocolError("seal-key", f"no key {identifier.hex()}")
        return ChaCha20Poly1305(sender_key(key, sender, generation))

    def seal(self, payload: bytes) -> bytes:
        """Raises LocalProtocolError if `payload` is over PAYLOAD_BYTES_MAX."""
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise LocalProtocolError(f"payload of {len(payload)} bytes")
        counter = self._counter
        self._counter += 1
        header = _HEADER.pack(
            MAGIC, WIRE_VERSION, self._keyring.primary, self._sender, self._generation, counter
        )
        return header + self._own.encrypt(_NONCE.pack(0, counter), payload, header)

    def open(self, data: bytes) -> Opened:
        """Authenticates; changes nothing but the cache of ciphers. Call `commit` when the payload
        has been decoded, so that a datagram is consumed once or not at all.

        Raises RemoteProtocolError: "seal-short", "seal-long", "seal-magic", "seal-version",
        "seal-key", "seal-replay", "seal-open"."""
        if len(data) < HEADER_BYTES + TAG_BYTES:
            raise RemoteProtocolError("seal-short", f"{len(data)} bytes")
        if len(data) > DATAGRAM_BYTES_MAX:
            raise RemoteProtocolError("seal-long", f"{len(data)} bytes")
        header = data[:HEADER_BYTES]
        magic, version, identifier, sender, generation, counter = _HEADER.unpack(header)
        if magic != MAGIC:
            raise RemoteProtocolError("seal-magic", magic.hex())
        if version != WIRE_VERSION:
            raise RemoteProtocolError("seal-version", f"{version}; this node speaks {WIRE_VERSION}")
        self._check_replay(sender, generation, counter)
        slot = (identifier, sender, generation)
        cipher = self._ciphers.get(slot) or self._derive(*slot)
        try:
            payload = cipher.decrypt(_NONCE.pack(0, counter), data[HEADER_BYTES:], header)
        except InvalidTag as error:
            raise RemoteProtocolError("seal-open", f"from {sender.hex()}") from error
        self._remember(slot, cipher)
        return Opened(NodeId(sender.hex()), generation, counter, payload)

    def _check_replay(self, sender: bytes, generation: int, counter: int) -> None:
        window = self._windows.get(sender)
        if window is None or generation > window.generation:
            return
        if generation < window.generation:
            raise RemoteProtocolError("seal-replay", "from an older generation of its sender")
        if not window.fresh(counter):
            raise RemoteProtocolError("seal-replay", f"counter {counter}, top {window.top}")

    def _remember(self, slot: tuple[bytes, bytes, int], cipher: ChaCha20Poly1305) -> None:
        self._ciphers[slot] = cipher
        self._ciphers.move_to_end(slot)
        if len(self._ciphers) > self._senders_max:
            self._ciphers.popitem(last=False)

    def commit(self, opened: Opened) -> None:
        """The datagram is consumed: it never opens again. The least recently heard senders are
        forgotten above `senders_max`; only holders of a cluster key can bring that about."""
        sender = bytes.fromhex(opened.sender)
        window = self._windows.get(sender)
        if window is None or opened.generation > window.generation:
            window = self._windows[sender] = _Window(opened.generation)
        window.mark(opened.counter)
        self._windows.move_to_end(sender)
        if len(self._windows) > self._senders_max:
            self._windows.popitem(last=False)
