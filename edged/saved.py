"""Records as they stand on this node's disk: each behind a MAC that only this node can make.

A record is saved once its signatures are verified, and the MAC says so at the next start: a check
of 1 µs instead of 0.1 to 0.19 ms of Ed25519 for each. The key follows from the node's private key
and the CA's public key. So whoever could forge a row could sign as this node as well, a disk from
another node or cluster proves nothing, and what is not proven is verified by its signatures as if
a peer had sent it. SPEC §6.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from blake3 import blake3

from protocol.catalog import SavedRecord

from .trust import Trust

MAC_BYTES: Final = 16
_CONTEXT: Final = "edged 2025 saved records v1"


class SavedRecords:
    """Stateless but for its key."""

    def __init__(self, trust: Trust) -> None:
        material = trust.private_key.private_bytes_raw() + trust.ca_public_key
        self._key = blake3(material, derive_key_context=_CONTEXT).digest()

    def wrap(self, records: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        """(key, encoded record), verified, as rows for the store."""
        return [(key, self._mac(key, encoded) + encoded) for key, encoded in records]

    def unwrap(self, rows: Iterable[tuple[str, bytes]]) -> list[SavedRecord]:
        """Total: rows that were not made by `wrap` are not proven."""
        return [
            SavedRecord(key, row[MAC_BYTES:], self._mac(key, row[MAC_BYTES:]) == row[:MAC_BYTES])
            for key, row in rows
        ]

    def _mac(self, key: str, encoded: bytes) -> bytes:
        return blake3(key.encode() + b"\x00" + encoded, key=self._key).digest(MAC_BYTES)
