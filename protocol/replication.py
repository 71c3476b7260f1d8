"""Decides what this node fetches to keep blobs at their number, and which surplus copies it gives
up. SPEC §11.4 and §11.5. Sans-IO; one owning task.

Rules. A wanted blob whose placement this node is in, and which is not here, is fetched after a
grace time; a copy outside its placement is given up when every node of the placement has confirmed
that it holds one, and promised to keep it for longer than the asker may take to act on that. Who
is asking gives no such promise itself, so whatever two nodes believe about members, neither
relies on a copy that the other is about to delete. Work follows what changed: a member that comes
costs one hash per blob, one that goes the ranking of the blobs it had.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Collection
from typing import Final

import msgspec

from .ids import Digest, NodeId
from .modules import Wanted
from .replicas import Site, placement, score, with_newcomer
from .rng import Rng

PROMISE_S: Final = 600.0
"""How long a confirmed copy stays, whatever happens."""
ANSWER_S: Final = 10.0
"""From asking to acting on the answers: far below PROMISE_S, which the promiser counts from later
on, so that even a process that is stopped in between does no harm."""
CHECKS: Final = 4
"""How often an idle surplus copy is looked at before it goes."""
RETRY_S: Final = 5.0
RETRY_S_MAX: Final = 300.0
JITTER: Final = 0.5


class ReplicationConfig(msgspec.Struct, frozen=True):
    repair_after_s: float = 30.0
    """Grace for a member that is down to come back with its copies. Of a blob with fewer than all
    its copies only that share of it; at random up to half as much again."""
    surplus_after_s: float = 3600.0
    """A copy outside the placement is kept for so long after it was last seen in use."""
    repairs_max: int = 2
    """At once."""


class Repair(msgspec.Struct, frozen=True):
    """Please fetch the blob, then say `repaired`."""

    blob: Digest
    manifest: Digest
    copies: int
    """That others say they have."""


class AskHolders(msgspec.Struct, frozen=True):
    """Please ask each peer Confirm, and say `confirmed` of each, also of those that fail."""

    blob: Digest
    peers: tuple[NodeId, ...]


class Drop(msgspec.Struct, frozen=True):
    """Please delete the blob now, unless it has come into use; then say `dropped`."""

    blob: Digest


Event = Repair | AskHolders | Drop


class _Blob:
    __slots__ = ("floor", "placed", "shared", "wanted")

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.placed: tuple[Site, ...] = ()
        self.floor = 0
        """The least score of those placed."""
        self.shared = False
        """Two of them are in one region."""


class _Asking:
    __slots__ = ("at", "dropping", "waiting")

    def __init__(self, at: float, waiting: dict[NodeId, None]) -> None:
        self.at = at
        self.waiting = waiting
        self.dropping = False


class Replication:
    def __init__(
        self,
        me: Site,
        config: ReplicationConfig,
        rng: Rng,
        *,
        held: Callable[[Digest], bool],
        holders: Callable[[Digest], Collection[NodeId]],
        in_use: Callable[[Digest], bool],
    ) -> None:
        """`held`: durable here; `holders`: reachable others that say so of themselves; `in_use`:
        mapped, being made ready, pinned. They are asked, never told."""
        self._me = me
        self._config = config
        self._rng = rng
        self._held = held
        self._holders = holders
        self._in_use = in_use
        self._sites: dict[NodeId, Site] = {me.node_id: me}
        self._blobs: dict[Digest, _Blob] = {}
        self._due: dict[Digest, float] = {}
        self._heap: list[tuple[float, Digest]] = []
        """Of `_due`, with entries that are not true any more."""
        self._ready: dict[Digest, None] = {}
        self._repairing: dict[Digest, None] = {}
        self._attempts: dict[Digest, int] = {}
        self._idle_since: dict[Digest, float] = {}
        """Of surplus copies."""
        self._asking: dict[Digest, _Asking] = {}
        self._promises: dict[Digest, float] = {}
        self._events: deque[Event] = deque()

    # ------------------------------------------------------------ what changed
    def member_up(self, site: Site, now: float) -> None:
        """A member is reachable, this node included (its region may change)."""
        known = self._sites.get(site.node_id)
        if known == site:
            return
        if known is not None:
            self._take_away(known, now)
        self._sites[site.node_id] = site
        if site.node_id == self._me.node_id:
            self._me = site
        for digest, blob in self._blobs.items():
            replicas = blob.wanted.replicas
            if len(blob.placed) >= replicas and not self._may_enter(digest, blob, site):
                continue
            self._place(digest, blob, with_newcomer(digest, blob.placed, site, replicas), now)

    def member_gone(self, node_id: NodeId, now: float) -> None:
        """Down or left."""
        known = self._sites.get(node_id)
        if known is not None and node_id != self._me.node_id:
            self._take_away(known, now)

    def want(self, digest: Digest, wanted: Wanted | None, now: float) -> None:
        """What the catalog says of a module now (Modules.get)."""
        if wanted is None:
            if self._blobs.pop(digest, None) is not None:
                self._forget(digest)
            return
        blob = self._blobs.get(digest)
        if blob is None:
            blob = self._blobs[digest] = _Blob(wanted)
        blob.wanted = wanted
        self._place(digest, blob, self._placement(digest, wanted), now)

    def touch(self, digest: Digest, now: float) -> None:
        """The blob came, or was lost, here."""
        blob = self._blobs.get(digest)
        if blob is not None:
            self._judge(digest, blob, now)

    # ------------------------------------------------------------ what came of events
    def repaired(self, digest: Digest, now: float, *, ok: bool) -> None:
        self._repairing.pop(digest, None)
        blob = self._blobs.get(digest)
        if blob is not None and not ok:
            attempt = self._attempts[digest] = self._attempts.get(digest, 0) + 1
            delay_s = min(RETRY_S * 2 ** min(attempt, 10), RETRY_S_MAX)
            self._judge(digest, blob, now, delay_s=delay_s)
        elif blob is not None:
            self._judge(digest, blob, now)
        self._start_repairs(now)

    def confirmed(self, digest: Digest, peer: NodeId, now: float, *, held: bool) -> None:
        """A peer's answer to AskHolders; False also if it gave none."""
        asking = self._asking.get(digest)
        if asking is None or peer not in asking.waiting or asking.dropping:
            return
        blob = self._blobs[digest]
        if not held or now - asking.at > ANSWER_S:
            self._give_up_asking(digest, now)
            return
        del asking.waiting[peer]
        if asking.waiting:
            return
        if self._in_use(digest) or not self._is_surplus(digest, blob):
            self._give_up_asking(digest, now)
            return
        asking.dropping = True
        self._cancel(digest)
        self._events.append(Drop(digest))

    def dropped(self, digest: Digest, now: float) -> None:
        """Or not, if it had come into use."""
        self._asking.pop(digest, None)
        self._idle_since.pop(digest, None)
        self.touch(digest, now)

    def promise(self, digest: Digest, now: float) -> bool:
        """A peer relies on this node's copy: it is here and stays for PROMISE_S. False: it is not,
        or is just being given up."""
        if digest in self._asking or not self._held(digest):
            return False
        self._promises.pop(digest, None)
        self._promises[digest] = now + PROMISE_S
        while self._promises:
            oldest = next(iter(self._promises))
            if self._promises[oldest] > now:
                break
            del self._promises[oldest]
        return True

    def promised(self, digest: Digest, now: float) -> bool:
        """The blob must not be deleted."""
        return self._promises.get(digest, now) > now

    # ------------------------------------------------------------ timers, events
    def on_timer(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            at, digest = heapq.heappop(self._heap)
            if self._due.get(digest) != at:
                continue
            del self._due[digest]
            blob = self._blobs[digest]
            if self._is_missing(digest, blob):
                self._ready[digest] = None
            elif self._is_surplus(digest, blob):
                self._look_at_surplus(digest, blob, now)
        self._start_repairs(now)

    def next_deadline(self) -> float | None:
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def poll_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    # ------------------------------------------------------------ reading
    def placed(self, digest: Digest) -> tuple[NodeId, ...]:
        """Where a wanted blob belongs, best first; () for any other."""
        blob = self._blobs.get(digest)
        return () if blob is None else tuple(site.node_id for site in blob.placed)

    def lacking(self) -> list[Digest]:
        """Wanted blobs that fewer reachable nodes say they have than are wanted, even if there
        are no more nodes."""
        return [digest for digest, blob in self._blobs.items() if self._lacks(digest, blob)]

    def absent(self) -> list[Digest]:
        """Wanted blobs that belong here and are not on this disk."""
        return [digest for digest, blob in self._blobs.items() if self._is_missing(digest, blob)]

    @property
    def repairing(self) -> int:
        return len(self._repairing)

    @property
    def waiting(self) -> int:
        """Blobs that are missing here, and will be fetched."""
        missing = (digest for digest in self._due if self._is_missing(digest, self._blobs[digest]))
        return len(self._ready) + sum(1 for _ in missing)

    def _lacks(self, digest: Digest, blob: _Blob) -> bool:
        copies = len(self._holders(digest)) + self._held(digest)
        return copies < blob.wanted.replicas

    # ------------------------------------------------------------ placements
    def _placement(self, digest: Digest, wanted: Wanted) -> tuple[Site, ...]:
        return placement(digest, self._sites.values(), wanted.replicas)

    def _may_enter(self, digest: Digest, blob: _Blob, site: Site) -> bool:
        """Nearly always False, at the cost of one hash."""
        if score(digest, site.node_id) > blob.floor:
            return True
        return blob.shared and all(placed.region != site.region for placed in blob.placed)

    def _take_away(self, site: Site, now: float) -> None:
        del self._sites[site.node_id]
        for digest, blob in self._blobs.items():
            if site in blob.placed:
                self._place(digest, blob, self._placement(digest, blob.wanted), now)

    def _place(self, digest: Digest, blob: _Blob, placed: tuple[Site, ...], now: float) -> None:
        asking = self._asking.get(digest)
        if placed != blob.placed:
            blob.placed = placed
            blob.floor = min((score(digest, site.node_id) for site in placed), default=0)
            blob.shared = len({site.region for site in placed}) < len(placed)
            if asking is not None and not asking.dropping:
                del self._asking[digest]
        self._judge(digest, blob, now)

    def _forget(self, digest: Digest) -> None:
        self._cancel(digest)
        self._ready.pop(digest, None)
        self._attempts.pop(digest, None)
        self._idle_since.pop(digest, None)
        asking = self._asking.get(digest)
        if asking is not None and not asking.dropping:
            del self._asking[digest]

    # ------------------------------------------------------------ judging one blob
    def _is_mine(self, blob: _Blob) -> bool:
        return self._me in blob.placed

    def _is_missing(self, digest: Digest, blob: _Blob) -> bool:
        return self._is_mine(blob) and not self._held(digest)

    def _is_surplus(self, digest: Digest, blob: _Blob) -> bool:
        return not self._is_mine(blob) and self._held(digest)

    def _judge(
        self, digest: Digest, blob: _Blob, now: float, *, delay_s: float | None = None
    ) -> None:
        if digest in self._asking:
            return  # what becomes of it is decided by the answers
        if self._is_missing(digest, blob):
            self._idle_since.pop(digest, None)
            if digest in self._repairing or digest in self._ready:
                return
            if delay_s is None:
                delay_s = self._grace_s(digest, blob)
            self._set(digest, now + self._jittered(delay_s), sooner=True)
            return
        self._ready.pop(digest, None)
        self._attempts.pop(digest, None)
        if self._is_surplus(digest, blob):
            self._idle_since.setdefault(digest, now)
            if digest not in self._due:
                self._set(digest, now + self._check_s())
        else:
            self._idle_since.pop(digest, None)
            self._cancel(digest)

    def _grace_s(self, digest: Digest, blob: _Blob) -> float:
        copies = max(1, len(self._holders(digest)))
        return self._config.repair_after_s * min(1.0, copies / blob.wanted.replicas)

    def _check_s(self) -> float:
        return self._jittered(self._config.surplus_after_s / CHECKS)

    def _jittered(self, delay_s: float) -> float:
        return delay_s * (1 + JITTER * self._rng.random())

    # ------------------------------------------------------------ repairing
    def _start_repairs(self, now: float) -> None:
        for digest in list(self._ready):
            if len(self._repairing) >= self._config.repairs_max:
                return
            del self._ready[digest]
            blob = self._blobs[digest]
            if not self._is_missing(digest, blob):
                self._judge(digest, blob, now)
                continue
            copies = len(self._holders(digest))
            if not copies:  # they may come back
                self._judge(digest, blob, now, delay_s=self._config.repair_after_s)
                continue
            manifests = blob.wanted.manifests
            manifest = manifests[self._attempts.get(digest, 0) % len(manifests)]
            self._repairing[digest] = None
            self._events.append(Repair(digest, manifest, copies))

    # ------------------------------------------------------------ giving up
    def _look_at_surplus(self, digest: Digest, blob: _Blob, now: float) -> None:
        if self._in_use(digest):
            self._idle_since[digest] = now
        idle_s = now - self._idle_since.setdefault(digest, now)
        if idle_s < self._config.surplus_after_s or self._asking or self.promised(digest, now):
            self._set(digest, now + self._check_s())
            return
        peers = [site.node_id for site in blob.placed]
        self._asking[digest] = _Asking(now, dict.fromkeys(peers))
        self._events.append(AskHolders(digest, tuple(peers)))

    def _give_up_asking(self, digest: Digest, now: float) -> None:
        del self._asking[digest]
        self._set(digest, now + self._check_s())

    # ------------------------------------------------------------ one timer for each blob
    def _set(self, digest: Digest, at: float, *, sooner: bool = False) -> None:
        """`sooner`: unless it is due before."""
        if sooner and self._due.get(digest, at) < at:
            return
        if self._due.get(digest) != at:
            self._due[digest] = at
            heapq.heappush(self._heap, (at, digest))

    def _cancel(self, digest: Digest) -> None:
        self._due.pop(digest, None)
