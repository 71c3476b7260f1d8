"""The catalog by content, against an own model of what was signed.

`Ledger` hears of every record that a node signs, and of every disk that saves or loses one. A
record on a disk that was never lost is *kept*: an acknowledged change. When the cluster has
agreed, each key must show the greatest kept record or a greater one that somebody signed (a record
whose only disk was lost may survive or not), nobody may show what nobody signed, and where a
tombstone is the greatest, nobody may show anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import NamedTuple

from protocol.records import Record, decode_record, record_key


class Order(NamedTuple):
    """The merge rule of SPEC §6.3, written down a second time; the last by another hash would
    do as well, as ties in all but the value are not made here."""

    hlc: int
    signer: str
    content: bytes


def order_of(record: Record) -> Order:
    return Order(record.hlc, record.signer, blake2b(record.value, digest_size=16).digest())


class Shown(NamedTuple):
    """One live record as a node shows it."""

    key: str
    order: Order


class Ledger:
    def __init__(self) -> None:
        self._signed: dict[str, dict[Order, bool]] = {}
        """By key: order to "is a tombstone"."""
        self._disks: dict[int, dict[str, Order]] = {}
        self._seen: dict[int, dict[str, Order]] = {}
        """By node: the greatest tombstone it has had per key, as long as its disk lives."""

    def signed(self, records: Iterable[Record]) -> None:
        for record in records:
            self._signed.setdefault(record_key(record), {})[order_of(record)] = record.tombstone

    def saved(self, disk: int, encoded: Iterable[bytes]) -> None:
        """A disk keeps one record per key: the greatest it was given."""
        kept = self._disks.setdefault(disk, {})
        for one in encoded:
            record = decode_record(one)
            key, order = record_key(record), order_of(record)
            kept[key] = max(order, kept.get(key, order))
            if record.tombstone:
                seen = self._seen.setdefault(disk, {})
                seen[key] = max(order, seen.get(key, order))

    def wiped(self, disk: int) -> None:
        self._disks.pop(disk, None)
        self._seen.pop(disk, None)

    def kept(self) -> dict[str, Order]:
        """Per key the greatest record on any disk."""
        best: dict[str, Order] = {}
        for disk in self._disks.values():
            for key, order in disk.items():
                best[key] = max(order, best.get(key, order))
        return best

    def resurrected(self, node: int, shown: Iterable[Shown]) -> list[str]:
        """What this node shows though it had a later tombstone itself: wrong at any time."""
        seen = self._seen.get(node, {})
        return [one.key for one in shown if one.key in seen and one.order < seen[one.key]]

    def lost(self, shown: Mapping[str, Order]) -> list[str]:
        """What is wrong with the live records of a cluster that has agreed, in words."""
        wrong: list[str] = []
        for key, order in shown.items():
            if order not in self._signed.get(key, {}):
                wrong.append(f"{key}: nobody signed what is shown")
        for key, order in self.kept().items():
            dead = self._signed[key][order]
            have = shown.get(key)
            if have is not None and have < order:
                what = "it was removed" if dead else "a later change is lost"
                wrong.append(f"{key}: an old record is back; {what}")
            elif have is None and not dead and not self._overruled(key, order):
                wrong.append(f"{key}: an acknowledged record is lost")
        return wrong

    def _overruled(self, key: str, order: Order) -> bool:
        """A later tombstone that is on no disk any more may have done its work first."""
        return any(dead and other > order for other, dead in self._signed[key].items())


def equal(views: Mapping[int, Mapping[str, Order]]) -> list[int]:
    """Nodes whose live records differ from those of the first."""
    nodes = list(views)
    return [node for node in nodes[1:] if views[node] != views[nodes[0]]]
