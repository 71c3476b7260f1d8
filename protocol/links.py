"""What this node and each peer it talks to know of each other, and so which header fits. SPEC §4.3.

A short header names its sender by four bytes, so a node may send one only to a peer that has shown
that it knows this node in its generation; by showing the same, a node promises to understand what
the peer sends then. Owned by Seal. Bound: LINKS_MAX peers, more than the member table holds, so
only the owner of a cluster key can push one out; a link that is lost costs one unanswered probe.
"""

from __future__ import annotations

from typing import Final

LINKS_MAX: Final = 16_384
SESSION_BYTES: Final = 4
SAME_SESSION_MAX: Final = 8
"""Peers whose ids begin alike; chance gives two among 12,288 once in 57 clusters."""
EPOCH_BITS: Final = 30
"""A peer that has not had a long header for 2³⁰ counters gets one: well before the low 32 bits,
all that a short one carries, say too little."""


class _Link:
    __slots__ = ("doubted", "epoch", "generation", "knows_us")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.knows_us = False
        self.doubted = False
        self.epoch = -1
        """Of this node's counter at its last long header to the peer."""


class Links:
    def __init__(self, links_max: int = LINKS_MAX) -> None:
        self._links_max = links_max
        self._links: dict[bytes, _Link] = {}
        self._sessions: dict[bytes, list[bytes]] = {}

    def __len__(self) -> int:
        return len(self._links)

    def _at(self, peer: bytes, generation: int) -> _Link | None:
        """The link to `peer`, begun anew when its generation is; None for a former one."""
        link = self._links.get(peer)
        if link is None:
            if len(self._links) >= self._links_max:
                self._forget(next(iter(self._links)))
            link = self._links[peer] = _Link(generation)
            alike = self._sessions.setdefault(peer[:SESSION_BYTES], [])
            alike.append(peer)
            if len(alike) > SAME_SESSION_MAX:
                self._forget(alike[0])
        elif generation > link.generation:
            link = self._links[peer] = _Link(generation)
        return link if link.generation == generation else None

    def _forget(self, peer: bytes) -> None:
        del self._links[peer]
        session = peer[:SESSION_BYTES]
        alike = self._sessions[session]
        alike.remove(peer)
        if not alike:
            del self._sessions[session]

    # ------------------------------------------------------------ what is learned
    def told(self, peer: bytes, generation: int, counter: int) -> None:
        """A long header that shows the peer that this node knows it goes out."""
        link = self._at(peer, generation)
        if link is not None:
            link.epoch = counter >> EPOCH_BITS

    def heard(self, peer: bytes, generation: int, *, known: bool) -> None:
        """The peer answered in this node's generation; `known`: and showed that it knows it."""
        link = self._at(peer, generation) if known else self._links.get(peer)
        if link is not None and link.generation == generation:
            link.knows_us = link.knows_us or known
            link.doubted = False

    def doubt(self, peer: bytes) -> None:
        """The peer did not answer: it may have restarted and know nobody."""
        link = self._links.get(peer)
        if link is not None:
            link.knows_us = False
            link.doubted = True

    # ------------------------------------------------------------ what follows
    def doubted(self, peer: bytes) -> bool:
        link = self._links.get(peer)
        return link is not None and link.doubted

    def short(self, peer: bytes, generation: int, counter: int) -> bool:
        """Whether a short header with this counter would be understood."""
        link = self._links.get(peer)
        return (
            link is not None
            and link.knows_us
            and link.generation == generation
            and link.epoch == counter >> EPOCH_BITS
        )

    def senders(self, session: bytes) -> list[tuple[bytes, int]]:
        """(id, generation) of those who may have sent a short header with this session."""
        return [(peer, self._links[peer].generation) for peer in self._sessions.get(session, ())]
