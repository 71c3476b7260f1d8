"""Sealed datagrams: the cluster keyring, one key per sender and generation, two headers. SPEC §4.

Invariants: a nonce is used once per derived key (generation never repeats, the counter only
grows, whichever header); a datagram that does not authenticate changes nothing; one that is bound
to a receiver's generation opens nowhere else and never later; caches are bounded.
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
from .links import SESSION_BYTES, Links
from .replay import LOW_BITS, Window, rebuild

DATAGRAM_BYTES_MAX: Final = 1200
"""QUIC's minimum (RFC 9000 §14): passes every path that carries IPv6."""
MAGIC: Final = b"eg"
LONG_VERSION: Final = 1
SHORT_KIND: Final = 0xE2
"""First byte of a short header: 0xE0 + the wire version that brought it."""
SHORT_SINCE: Final = 2
WIRE_VERSION: Final = 2
"""The highest that this implementation speaks."""
KEY_BYTES: Final = 32
KEYS_MAX: Final = 8
TAG_BYTES: Final = 16
WINDOWS_MAX: Final = 16_384
"""More than the member table holds: a window is lost only to one who has a cluster key."""
CIPHERS_MAX: Final = 4096
KEY_ID_CONTEXT: Final = "edged 2025 datagram key id v1"
SENDER_KEY_CONTEXT: Final = "edged 2025 datagram sender key v1"

TO_NOBODY: Final = 0
TO_ID: Final = 1
TO_GENERATION: Final = 2
_BINDING: Final = 3
KNOWN: Final = 4

_LONG: Final = Struct(">2sBB4s16sQQ")
LONG_BYTES: Final = _LONG.size
assert LONG_BYTES == 8 + NODE_ID_BYTES + 16
_SHORT: Final = Struct(">BB4sI")
SHORT_BYTES: Final = _SHORT.size
assert SHORT_BYTES == 2 + SESSION_BYTES + LOW_BITS // 8
_LOW_MASK: Final = (1 << LOW_BITS) - 1
PAYLOAD_BYTES_MAX: Final = DATAGRAM_BYTES_MAX - LONG_BYTES - TAG_BYTES
"""Behind a long header; a short one leaves 30 more, which nothing counts on."""
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

    def hinted(self, hint: int) -> list[bytes]:
        """Ids of the keys whose first byte that is, as short headers name them."""
        return [identifier for identifier in self._keys if identifier[0] == hint]


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
    bound: bool
    """To this node in this generation. If not, it may be a recording."""
    known: bool
    """The sender shows that it knows this node's generation."""


class Seal:
    """Seals for one (node, generation); opens for all. Not shared between nodes."""

    def __init__(
        self,
        keyring: Keyring,
        node_id: NodeId,
        generation: int,
        *,
        wire: int = WIRE_VERSION,
        windows_max: int = WINDOWS_MAX,
        ciphers_max: int = CIPHERS_MAX,
    ) -> None:
        self.links: Final = Links()
        self._own_id = bytes.fromhex(node_id)
        self._generation = generation
        self._self = self._own_id + _U64.pack(generation)
        self._speaks_short = wire >= SHORT_SINCE
        self._counter = 0
        self._windows_max = windows_max
        self._ciphers_max = ciphers_max
        self._ciphers: OrderedDict[tuple[bytes, bytes, int], ChaCha20Poly1305] = OrderedDict()
        self._windows: OrderedDict[bytes, Window] = OrderedDict()
        self.set_keyring(keyring)

    def set_keyring(self, keyring: Keyring) -> None:
        """Live rotation: what a removed key sealed no longer opens, at once."""
        self._keyring = keyring
        self._ciphers.clear()
        self._own = self._derive(keyring.primary, self._own_id, self._generation)

    def _derive(self, identifier: bytes, sender: bytes, generation: int) -> ChaCha20Poly1305:
        key = self._keyring.get(identifier)
        if key is None:
            raise RemoteProtocolError("seal-key", f"no key {identifier.hex()}")
        return ChaCha20Poly1305(sender_key(key, sender, generation))

    # ------------------------------------------------------------ sealing
    def header_bytes(self, receiver: bytes, generation: int, wire: int) -> int:
        """Of the next datagram to this member, which speaks up to `wire`."""
        if not self._speaks_short or wire < SHORT_SINCE:
            return LONG_BYTES
        short = self.links.short(receiver, generation, self._counter)
        return SHORT_BYTES if short else LONG_BYTES

    def seal(
        self, payload: bytes, receiver: bytes = b"", generation: int = 0, *, known: bool = False
    ) -> bytes:
        """Behind a long header: for anyone, for a node in any generation (0), or for just one.
        `known`: that node is in the member table with that generation.

        Raises LocalProtocolError if `payload` is too long."""
        flags = (TO_GENERATION if generation else TO_ID) if receiver else TO_NOBODY
        counter = self._take_counter(payload, LONG_BYTES)
        if known:
            flags |= KNOWN
            self.links.told(receiver, generation, counter)
        header = _LONG.pack(
            MAGIC,
            LONG_VERSION,
            flags,
            self._keyring.primary,
            self._own_id,
            self._generation,
            counter,
        )
        bound = header + receiver + (_U64.pack(generation) if generation else b"")
        return header + self._own.encrypt(_NONCE.pack(0, counter), payload, bound)

    def seal_short(self, payload: bytes, receiver: bytes, generation: int) -> bytes:
        """For a member that `header_bytes` names a short header for.

        Raises LocalProtocolError if `payload` is too long."""
        counter = self._take_counter(payload, SHORT_BYTES)
        header = _SHORT.pack(
            SHORT_KIND,
            self._keyring.primary[0],
            self._own_id[:SESSION_BYTES],
            counter & _LOW_MASK,
        )
        bound = header + receiver + _U64.pack(generation)
        return header + self._own.encrypt(_NONCE.pack(0, counter), payload, bound)

    def _take_counter(self, payload: bytes, header_bytes: int) -> int:
        if len(payload) > DATAGRAM_BYTES_MAX - header_bytes - TAG_BYTES:
            raise LocalProtocolError(f"payload of {len(payload)} bytes")
        counter = self._counter
        self._counter += 1
        return counter

    # ------------------------------------------------------------ opening
    def open(self, data: bytes) -> Opened:
        """Authenticates; changes nothing but the cache of ciphers. Call `commit` when the payload
        has been decoded, so that a datagram is consumed once or not at all.

        Raises RemoteProtocolError: "seal-short", "seal-long", "seal-magic", "seal-version",
        "seal-flags", "seal-session", "seal-key", "seal-replay", "seal-open"."""
        if len(data) > DATAGRAM_BYTES_MAX:
            raise RemoteProtocolError("seal-long", f"{len(data)} bytes")
        short = self._speaks_short and data[:1] == b"\xe2"
        if len(data) < (SHORT_BYTES if short else LONG_BYTES) + TAG_BYTES:
            raise RemoteProtocolError("seal-short", f"{len(data)} bytes")
        return self._open_short(data) if short else self._open_long(data)

    def _open_long(self, data: bytes) -> Opened:
        header = data[:LONG_BYTES]
        magic, version, flags, identifier, sender, generation, counter = _LONG.unpack(header)
        if magic != MAGIC:
            raise RemoteProtocolError("seal-magic", magic.hex())
        if version != LONG_VERSION:
            raise RemoteProtocolError("seal-version", f"{version} of a long header")
        binding = flags & _BINDING
        if flags > KNOWN | TO_GENERATION or binding > TO_GENERATION:
            raise RemoteProtocolError("seal-flags", f"{flags:#04x}")
        if not self._fresh(sender, generation, counter):
            raise RemoteProtocolError("seal-replay", f"counter {counter} from {sender.hex()}")
        bound = header
        if binding:
            bound += self._self if binding == TO_GENERATION else self._own_id
        payload = self._decrypt(identifier, sender, generation, counter, data[LONG_BYTES:], bound)
        if payload is None:
            raise RemoteProtocolError("seal-open", f"from {sender.hex()}")
        return Opened(
            NodeId(sender.hex()),
            generation,
            counter,
            payload,
            binding == TO_GENERATION,
            flags & KNOWN > 0,
        )

    def _open_short(self, data: bytes) -> Opened:
        header = data[:SHORT_BYTES]
        _, hint, session, low = _SHORT.unpack(header)
        senders = self.links.senders(session)
        if not senders:
            raise RemoteProtocolError("seal-session", session.hex())
        identifiers = self._keyring.hinted(hint)
        if not identifiers:
            raise RemoteProtocolError("seal-key", f"no key that begins with {hint:#04x}")
        sealed, bound = data[SHORT_BYTES:], header + self._self
        code = "seal-replay"
        for sender, generation in senders:
            window = self._windows.get(sender)
            top = window.top if window is not None and window.generation == generation else -1
            counter = rebuild(top, low)
            if not self._fresh(sender, generation, counter):
                continue
            code = "seal-open"
            for identifier in identifiers:
                payload = self._decrypt(identifier, sender, generation, counter, sealed, bound)
                if payload is not None:
                    return Opened(NodeId(sender.hex()), generation, counter, payload, True, True)
        raise RemoteProtocolError(code, f"session {session.hex()}")

    def _decrypt(
        self,
        identifier: bytes,
        sender: bytes,
        generation: int,
        counter: int,
        sealed: bytes,
        bound: bytes,
    ) -> bytes | None:
        """Raises RemoteProtocolError("seal-key")."""
        slot = (identifier, sender, generation)
        cipher = self._ciphers.get(slot) or self._derive(*slot)
        try:
            payload = cipher.decrypt(_NONCE.pack(0, counter), sealed, bound)
        except InvalidTag:
            return None
        self._ciphers[slot] = cipher
        self._ciphers.move_to_end(slot)
        if len(self._ciphers) > self._ciphers_max:
            self._ciphers.popitem(last=False)
        return payload

    def _fresh(self, sender: bytes, generation: int, counter: int) -> bool:
        window = self._windows.get(sender)
        if window is None or generation > window.generation:
            return True
        return generation == window.generation and window.fresh(counter)

    def commit(self, opened: Opened) -> None:
        """The datagram is consumed: it never opens again. The least recently heard senders are
        forgotten above `windows_max`; only holders of a cluster key can bring that about."""
        sender = bytes.fromhex(opened.sender)
        window = self._windows.get(sender)
        if window is None or opened.generation > window.generation:
            window = self._windows[sender] = Window(opened.generation)
        window.mark(opened.counter)
        self._windows.move_to_end(sender)
        if len(self._windows) > self._windows_max:
            self._windows.popitem(last=False)
        if opened.bound:
            self.links.heard(sender, opened.generation, known=opened.known)
