"""Who fetches a blob from this node, and which segment each gets: the machine. SPEC §10.6.

A holder that is asked for any segment gives one it has sent to nobody: each goes out once, and the
askers pass it on to each other meanwhile. A second time it goes out only to who asks for it by
index. What was sent is forgotten when nobody asks for the blob any more: the next crowd starts
anew.

Owned by the stream server. Bounds: BLOBS_MAX blobs, then the one that was longest without a new
asker is forgotten (its askers are served what they ask for by index); ASKERS_MAX per blob.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from .bitsets import first_from
from .ids import Digest, NodeId
from .rng import Rng
from .streams import FETCHERS_MAX

BLOBS_MAX: Final = 256
ASKERS_MAX: Final = 256
"""As many as a server has connections."""


@dataclass(slots=True)
class _Asker:
    has: int
    connections: int = 1


@dataclass(slots=True)
class _Crowd:
    cursor: float
    """Where the sending starts, as a share of the blob: holders that seed the same blob begin at
    different places and so send different segments."""
    sent: int = 0
    """Segments that went out."""
    askers: dict[NodeId, _Asker] = field(default_factory=dict)


class Seeding:
    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self._crowds: OrderedDict[Digest, _Crowd] = OrderedDict()

    def join(self, blob: Digest, peer: NodeId, has: int) -> tuple[NodeId, ...]:
        """A peer wants the blob, on one more connection; others that do, at most FETCHERS_MAX."""
        crowd = self._crowds.get(blob)
        if crowd is None:
            crowd = self._crowds[blob] = _Crowd(self._rng.random())
            if len(self._crowds) > BLOBS_MAX:
                self._crowds.popitem(last=False)
        self._crowds.move_to_end(blob)
        asker = crowd.askers.get(peer)
        if asker is not None:
            asker.has = has
            asker.connections += 1
        elif len(crowd.askers) < ASKERS_MAX:
            crowd.askers[peer] = _Asker(has)
        return self.others(blob, peer)

    def others(self, blob: Digest, peer: NodeId) -> tuple[NodeId, ...]:
        crowd = self._crowds.get(blob)
        if crowd is None:
            return ()
        others = [other for other in crowd.askers if other != peer]
        if len(others) > FETCHERS_MAX:
            others = self._rng.sample(others, FETCHERS_MAX)
        return tuple(others)

    def renew(self, blob: Digest, peer: NodeId, has: int) -> None:
        """It told its whole bitmap again, on the same connection."""
        asker = self._asker(blob, peer)
        if asker is not None:
            asker.has |= has

    def have(self, blob: Digest, peer: NodeId, bits: int) -> None:
        self.renew(blob, peer, bits)

    def leave(self, blob: Digest, peer: NodeId) -> None:
        """The end of one connection on which it wanted the blob."""
        crowd = self._crowds.get(blob)
        asker = None if crowd is None else crowd.askers.get(peer)
        if crowd is None or asker is None:
            return
        asker.connections -= 1
        if not asker.connections:
            del crowd.askers[peer]
            if not crowd.askers:
                del self._crowds[blob]

    def pick(self, blob: Digest, peer: NodeId, held: int) -> int | None:
        """Which of the `held` segments the peer gets that nobody has had from here; None: it lacks
        none of those. It counts as sent."""
        crowd = self._crowds.get(blob)
        asker = self._asker(blob, peer)
        if crowd is None or asker is None:
            return None
        new = held & ~asker.has & ~crowd.sent
        if not new:
            return None
        index = first_from(new, int(crowd.cursor * held.bit_length()))
        self.sent(blob, peer, index)
        return index

    def sent(self, blob: Digest, peer: NodeId, index: int) -> None:
        """The peer gets this segment."""
        crowd = self._crowds.get(blob)
        if crowd is not None:
            crowd.sent |= 1 << index
            self.have(blob, peer, 1 << index)

    def _asker(self, blob: Digest, peer: NodeId) -> _Asker | None:
        crowd = self._crowds.get(blob)
        return None if crowd is None else crowd.askers.get(peer)
