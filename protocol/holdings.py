"""Who holds which blob: each node owns one versioned set, everyone holds a copy. SPEC §7.

A set's version counts its owner's changes within a generation. A delta lists the final state of
every digest changed in (since, version], so it applies to any copy from `since` on. Every copy
remembers at which version each digest changed last (at most: as far as it was told), so anyone can
make the delta for anyone; a copy older than the removals remembered gets the whole set. Holdings
are hints: a holder may have evicted a blob. Only the owner (Gossip) merges.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from typing import Final, Literal

from blake3 import blake3

from .errors import RemoteProtocolError
from .ids import Digest, NodeId
from .messages import Form, HoldingsUpdate
from .syncmessages import HoldingsSet

PER_NODE_MAX: Final = 4_096
TOTAL_MAX: Final = 1_000_000
"""Pairs of node and blob known here; about 200 MB."""
REMOVED_MAX: Final = 1_024
"""Removals remembered per node: with PER_NODE_MAX they are CHANGES_MAX of a message."""
DELTA_CHANGES_MAX: Final = 12
"""Changes a gossiped delta repeats: 12 × 44 bytes fit beside other updates in a datagram, and a
receiver may miss eleven in a row without needing a sync."""


MODULE_FORMS: Final[frozenset[Form]] = frozenset(("module", "running", "building", "ready"))
"""Who shows one of these has the module's bytes."""
READY_FORMS: Final[frozenset[Form]] = frozenset(("ready", "artifact"))
"""Who shows one of these has an artifact for its own key: it can give
the artifact to a node of an equal key."""
ANSWERING_FORMS: Final[frozenset[Form]] = READY_FORMS | {"running"}
"""Who shows one of these has code: it can answer a request."""

Change = tuple[bytes, Form | Literal[""]]
"""Raw digest and its new form; "": not held any more."""


class _Set:
    """`changed` and `removed` say at which version, in its order; each digest is in one of them.
    Removals up to version `floor` are forgotten."""

    __slots__ = (
        "changed",
        "contribution",
        "floor",
        "generation",
        "held",
        "removed",
        "version",
        "visible",
    )

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.version = 0
        self.held: dict[Digest, Form] = {}
        self.changed: dict[Digest, int] = {}
        self.removed: dict[Digest, int] = {}
        self.floor = 0
        self.visible = True
        self.contribution = 0

    def note(self, digest: Digest, form: Form | None, version: int) -> None:
        self.changed.pop(digest, None)
        self.removed.pop(digest, None)
        if form is not None:
            self.changed[digest] = version
            return
        self.removed[digest] = version
        if len(self.removed) > REMOVED_MAX:
            self.floor = max(self.floor, self.removed.pop(next(iter(self.removed))))

    def changes(self, since: int, *, whole: bool = False) -> tuple[Change, ...]:
        """In (since, version], `since` being at least `floor`; `whole`: all that is held."""
        if whole:
            return tuple((bytes.fromhex(digest), form) for digest, form in self.held.items())
        latest: list[Change] = []
        for digest, version in reversed(self.changed.items()):
            if version <= since:
                break
            latest.append((bytes.fromhex(digest), self.held[digest]))
        for digest, version in reversed(self.removed.items()):
            if version <= since:
                break
            latest.append((bytes.fromhex(digest), ""))
        return tuple(latest)


def _contribution(node_id: NodeId, generation: int, version: int) -> int:
    """A set nobody has touched counts as none."""
    if not version:
        return 0
    text = f"holdings\x00{node_id}\x00{generation}\x00{version}"
    return int.from_bytes(blake3(text.encode()).digest(8))


class Holdings:
    def __init__(self, node_id: NodeId, generation: int) -> None:
        self._node_id = node_id
        self._sets: dict[NodeId, _Set] = {}
        self._holders: dict[Digest, dict[NodeId, None]] = {}
        self._total = 0
        self._digest = 0
        self.dirty = False
        """Local changes that the owner has not announced yet."""
        self.show(node_id, generation)

    # ------------------------------------------------------------ reading
    def holders(self, digest: Digest, forms: Collection[Form] | None = None) -> list[NodeId]:
        """Visible nodes that say they hold it, this one included, by node id; `forms`: in one of
        these only."""
        return sorted(
            node
            for node in self._holders.get(digest, ())
            if (known := self._sets[node]).visible
            and (forms is None or known.held[digest] in forms)
        )

    def form(self, node_id: NodeId, digest: Digest) -> Form | None:
        """In which a visible node holds it."""
        known = self._sets.get(node_id)
        return known.held.get(digest) if known is not None and known.visible else None

    def held(self, node_id: NodeId) -> dict[Digest, Form]:
        """A copy of what a visible node holds."""
        known = self._sets.get(node_id)
        return dict(known.held) if known is not None and known.visible else {}

    def version(self, node_id: NodeId) -> tuple[int, int]:
        """(generation, version) known here; (0, 0) of an unknown node."""
        known = self._sets.get(node_id)
        return (known.generation, known.version) if known is not None else (0, 0)

    def contribution(self, node_id: NodeId) -> int:
        """To the state digest."""
        known = self._sets.get(node_id)
        return known.contribution if known is not None else 0

    def state_digest(self) -> int:
        """64 bits over (node, generation, version) of visible nodes."""
        return self._digest

    # ------------------------------------------------------------ this node's own set
    def set_local(self, digest: Digest, held: bool, form: Form = "module") -> bool:
        """Announces a blob, or its going. False if PER_NODE_MAX blobs are announced already (the
        blob is then served to nobody, nothing else breaks)."""
        own = self._sets[self._node_id]
        if own.held.get(digest) == (form if held else None):
            return True
        if held and digest not in own.held and len(own.held) >= PER_NODE_MAX:
            return False
        own.version += 1
        self._put(self._node_id, own, digest, form if held else None)
        own.note(digest, form if held else None, own.version)
        self._recount(self._node_id, own)
        self.dirty = True
        return True

    def delta(self) -> HoldingsUpdate:
        """The latest changes, for gossip."""
        own = self._sets[self._node_id]
        since = max(own.floor, own.version - DELTA_CHANGES_MAX)
        changes = own.changes(since)
        return HoldingsUpdate(
            bytes.fromhex(self._node_id), own.generation, since, own.version, changes
        )

    # ------------------------------------------------------------ others' sets
    def show(self, node_id: NodeId, generation: int) -> None:
        """The node is a reachable member of that generation; an older generation's set is void."""
        known = self._sets.get(node_id)
        if known is None or known.generation < generation:
            self._drop(node_id)
            known = self._sets[node_id] = _Set(generation)
        known.visible = True
        self._recount(node_id, known)

    def hide(self, node_id: NodeId) -> None:
        """The node is down or left: its set is kept but counts for nothing."""
        known = self._sets.get(node_id)
        if known is not None:
            known.visible = False
            self._recount(node_id, known)

    def retain(self, known: Container[NodeId]) -> None:
        """Forgets the sets of all nodes that are not `known` any more."""
        for node_id in [node_id for node_id in self._sets if node_id not in known]:
            self._drop(node_id)

    def merge_update(self, update: HoldingsUpdate) -> Literal["applied", "old", "gap"]:
        """Raises RemoteProtocolError("holdings-full"); the set is unchanged then."""
        node_id = NodeId(update.node.hex())
        known = self._sets.get(node_id)
        if known is None or known.generation < update.generation:
            return "gap"
        if (update.generation, update.version) <= (known.generation, known.version):
            return "old"
        if node_id == self._node_id:
            return "old"
        if update.since > known.version:
            return "gap"
        self._apply(node_id, known, update.version, update.changes)
        return "applied"

    def _apply(self, node_id: NodeId, known: _Set, version: int, changes: Sequence[Change]) -> None:
        """Raises RemoteProtocolError("holdings-full"); unchanged then."""
        coming = {Digest(raw.hex()): form or None for raw, form in changes}
        added = sum((form is not None) - (one in known.held) for one, form in coming.items())
        self._check_room(len(known.held) + added, added)
        for digest, form in coming.items():
            self._put(node_id, known, digest, form)
            known.note(digest, form, version)
        known.version = version
        self._recount(node_id, known)

    def export(self, node_id: NodeId, generation: int, since: int) -> HoldingsSet | None:
        """For a copy of `generation` at version `since`: the delta, or all where that cannot be
        told any more. None if nothing newer is known."""
        known = self._sets.get(node_id)
        if known is None or (known.generation, known.version) <= (generation, since):
            return None
        if known.generation != generation or since < known.floor:
            since = 0
        raw, changes = bytes.fromhex(node_id), known.changes(since, whole=not since)
        return HoldingsSet(raw, known.generation, since, known.version, changes)

    def merge_set(self, news: HoldingsSet) -> bool:
        """Whether it was news and could be applied.

        Raises RemoteProtocolError("holdings-full"); unchanged then."""
        node_id = NodeId(news.node.hex())
        known = self._sets.get(node_id)
        if known is None or node_id == self._node_id or known.generation != news.generation:
            return False
        if news.version <= known.version or news.since > known.version:
            return False
        if news.since:
            self._apply(node_id, known, news.version, news.changes)
            return True
        coming = {raw for raw, form in news.changes if form}
        changes: list[Change] = [
            (raw, "") for raw in map(bytes.fromhex, known.held) if raw not in coming
        ]
        changes += [(raw, form) for raw, form in news.changes if form]
        self._apply(node_id, known, news.version, changes)
        known.removed.clear()
        known.floor = news.version
        return True

    def _check_room(self, held: int, added: int) -> None:
        if held > PER_NODE_MAX or self._total + added > TOTAL_MAX:
            raise RemoteProtocolError("holdings-full", f"{held} blobs of one node")

    def _put(self, node_id: NodeId, known: _Set, digest: Digest, form: Form | None) -> None:
        if form is None:
            if known.held.pop(digest, None) is not None:
                self._total -= 1
                holders = self._holders[digest]
                del holders[node_id]
                if not holders:
                    del self._holders[digest]
            return
        if digest not in known.held:
            self._total += 1
            self._holders.setdefault(digest, {})[node_id] = None
        known.held[digest] = form

    def _drop(self, node_id: NodeId) -> None:
        known = self._sets.pop(node_id, None)
        if known is None:
            return
        self._digest ^= known.contribution
        for digest in list(known.held):
            self._put(node_id, known, digest, None)

    def _recount(self, node_id: NodeId, known: _Set) -> None:
        self._digest ^= known.contribution
        known.contribution = (
            _contribution(node_id, known.generation, known.version) if known.visible else 0
        )
        self._digest ^= known.contribution
