"""Where two large sets differ, found in two steps: 64 groups of 64 buckets each. SPEC §7.3.

An item's hash names its bucket by the top 12 bits; a bucket's digest is the exclusive or of its
items' 64-bit digests, a group's that of its buckets. A *place* is a bucket (0…4095) or, from
FIRST_GROUP on, a whole group. Sparse: an empty set costs nothing.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from .errors import RemoteProtocolError

GROUPS: Final = 64
PER_GROUP: Final = 64
BUCKETS: Final = GROUPS * PER_GROUP
FIRST_GROUP: Final = BUCKETS
PLACES: Final = FIRST_GROUP + GROUPS
DIRECT_MAX: Final = 64
"""A differing group of at most so many items is listed at once: 20 to 37 bytes each against the
512 of its buckets' digests and another round trip."""

_DIGESTS: Final = Struct(f">{GROUPS}Q")
DIGESTS_BYTES: Final = _DIGESTS.size
PLACE: Final = Struct(">H")


def bucket_of(hashed: int) -> int:
    """Of a 64-bit hash."""
    return hashed >> 52


def place_of_group(group: int) -> int:
    return FIRST_GROUP + group


def buckets_of(place: int) -> range:
    if place >= FIRST_GROUP:
        first = (place - FIRST_GROUP) * PER_GROUP
        return range(first, first + PER_GROUP)
    return range(place, place + 1)


def unpack_digests(data: bytes) -> tuple[int, ...]:
    """Of 64 groups, or of one group's 64 buckets; the wire type fixes the length."""
    return _DIGESTS.unpack(data)


def pack_places(places: list[int]) -> bytes:
    return b"".join(map(PLACE.pack, places))


def unpack_places(data: bytes) -> list[int]:
    """Raises RemoteProtocolError("sync"): cut off, or no place."""
    if len(data) % PLACE.size:
        raise RemoteProtocolError("sync", "list of places is cut off")
    places = list(dict.fromkeys(place for (place,) in PLACE.iter_unpack(data)))
    if any(place >= PLACES for place in places):
        raise RemoteProtocolError("sync", "no such place")
    return places


class BucketDigests:
    """Of one set; its owner toggles an item's digest when it comes and when it goes."""

    __slots__ = ("_digests",)

    def __init__(self) -> None:
        self._digests: dict[int, int] = {}

    def toggle(self, bucket: int, digest: int) -> None:
        changed = self._digests.get(bucket, 0) ^ digest
        if changed:
            self._digests[bucket] = changed
        else:
            self._digests.pop(bucket, None)

    def groups(self) -> bytes:
        sums = [0] * GROUPS
        for bucket, digest in self._digests.items():
            sums[bucket // PER_GROUP] ^= digest
        return _DIGESTS.pack(*sums)

    def children(self, group: int) -> bytes:
        get = self._digests.get
        return _DIGESTS.pack(*(get(bucket, 0) for bucket in buckets_of(place_of_group(group))))
