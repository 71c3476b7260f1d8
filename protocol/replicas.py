"""Which members hold a blob: rendezvous hashing, in distinct regions first. SPEC §11.1.

Pure: everyone who sees the same members computes the same order, and nothing is kept or agreed
on. Of any set of members, taking one away or adding one changes a placement by one node at most,
and only if that node is, or becomes, part of it (tests/property/test_replicas.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from blake3 import blake3

from .ids import Digest, NodeId

REPLICAS_MAX: Final = 16
REPLICAS_DEFAULT: Final = 3


class Site(NamedTuple):
    """A member that may hold copies."""

    node_id: NodeId
    region: str


def score(blob: Digest, node_id: NodeId) -> int:
    """64 bits; the greatest wins."""
    return int.from_bytes(blake3(bytes.fromhex(blob + node_id)).digest(8))


def ranking(blob: Digest, sites: Iterable[Site]) -> tuple[Site, ...]:
    """All `sites`, distinct nodes, in the order in which they are to hold `blob`: the best of each
    region by score, then the rest by score. The node id breaks ties."""
    ordered = sorted(sites, key=lambda site: (-score(blob, site.node_id), site.node_id))
    best: dict[str, Site] = {}
    rest = [site for site in ordered if best.setdefault(site.region, site) is not site]
    return (*best.values(), *rest)


def placement(blob: Digest, sites: Iterable[Site], replicas: int) -> tuple[Site, ...]:
    """Where `blob` belongs: the first `replicas` of the ranking, all if they are fewer."""
    return ranking(blob, sites)[:replicas]


def with_newcomer(
    blob: Digest, placed: tuple[Site, ...], newcomer: Site, replicas: int
) -> tuple[Site, ...]:
    """The placement once `newcomer` joins those of whom it was `placed`: nobody else needs to be
    looked at, as whoever is outside a placement has no part in it."""
    others = [site for site in placed if site.node_id != newcomer.node_id]
    return placement(blob, [*others, newcomer], replicas)
