"""Nothing is acknowledged before enough nodes have it on disk. SPEC §11.3.

A Change first has its blob spread to the blob's placement, then, once its records are in force
here, has those stored on nodes that have the blob. A node that refuses, fails or is slow is
replaced by the next of the ranking; one that is merely slow still counts when it is done. Each
Change is used by one task; nothing is shared between changes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final, Self

import trio

from protocol.ids import Digest, NodeId
from protocol.records import encode_bundles
from protocol.replicas import Site, placement

from .errors import EdgedError, Outdone, PeerError, PeerRefused, UnderReplicated, info_of
from .interfaces import Peer, PeerLine

SLOW_S: Final = 2.0
SLOW_BYTES_PER_S: Final = 2_500_000
"""Whoever takes longer than this for a blob (20 Mbit/s), and SLOW_S, is not waited for alone."""
PATIENCE_S: Final = 20.0
PATIENCE_BYTES_PER_S: Final = 1_250_000
"""10 Mbit/s, and PATIENCE_S: then the change fails. A dead member is known to be within 6 s."""
PATIENCE_S_MAX: Final = 150.0
"""The command line waits 180 s for an answer."""
SETTLE_S: Final = 0.5
"""When too many have refused, those that are at it may finish for so long: who has it is then told
truly, and the blobs are there when the change is tried again with fewer replicas."""
TOLD_MAX: Final = 5
"""Nodes whose reason is in the text for people; all are in `failed`."""
REASON_CHARS_MAX: Final = 160
RETRY_S: Final = 0.5
"""After a failure to reach a node; then 1, 2, 4 s."""
LOOK_S: Final = 0.25
"""How often the members are looked at."""

PASSING: Final = frozenset({"overloaded", "draining", "no-holder", "peer"})
"""Refusals that may be over in a moment; a full disk is not."""

OUTDONE: Final = info_of(Outdone("")).code

Job = Callable[[NodeId], Awaitable[None]]


@dataclass(slots=True)
class _Failure:
    why: str
    count: int
    until_s: float
    """When it may be asked again."""


class Gathering:
    """Gets a job done by as many nodes as a blob is to have; remembers with whom that failed."""

    def __init__(
        self,
        blob: Digest,
        replicas: int,
        *,
        sites: Callable[[], Sequence[Site]],
        name: Callable[[NodeId], str],
    ) -> None:
        """`sites`: every reachable member, this node among them."""
        self._blob = blob
        self._replicas = replicas
        self._sites = sites
        self._name = name
        self._refused: dict[NodeId, str] = {}
        self._failed: dict[NodeId, _Failure] = {}
        self._slow: dict[NodeId, None] = {}
        self._able: dict[NodeId, None] = {}
        """Did the job before: another one is theirs first."""

    async def run(self, job: Job, *, slow_s: float, until_s: float) -> tuple[NodeId, ...]:
        """Those that did the job: `replicas` of them, or every reachable member if they are fewer.
        `job` raises EdgedError; PeerRefused is final.

        Raises UnderReplicated at `until_s`, or when too many have refused and those that are at it
        are done or have had SETTLE_S; Outdone as soon as one says so."""
        done: dict[NodeId, None] = {}
        running: dict[NodeId, float] = {}
        news = trio.Event()
        failures: list[UnderReplicated | Outdone] = []
        hopeless_s: float | None = None
        """Since when."""

        async def attempt(node: NodeId) -> None:
            try:
                await job(node)
                done[node] = None
                self._slow.pop(node, None)
            except PeerRefused as error:
                if error.code == OUTDONE:
                    failures.append(Outdone(f"{self._name(node)}: {error.detail}"))
                elif error.code in PASSING:
                    self._note_failure(node, str(error))
                else:
                    self._refused[node] = str(error)
            except EdgedError as error:
                self._note_failure(node, str(error))
            del running[node]
            news.set()

        async with trio.open_nursery() as nursery:
            while not failures and not self._enough(done):
                now = trio.current_time()
                for node, since_s in running.items():
                    if now - since_s >= slow_s:
                        self._slow[node] = None
                for node in self._next(done, now):
                    if node not in running:
                        running[node] = now
                        nursery.start_soon(attempt, node)
                with trio.move_on_at(min(until_s, now + LOOK_S)):
                    await news.wait()
                news = trio.Event()
                now = trio.current_time()
                if not self._hopeless():
                    hopeless_s = None
                elif hopeless_s is None:
                    hopeless_s = now
                settled = hopeless_s is not None and (not running or now >= hopeless_s + SETTLE_S)
                if not failures and (settled or now >= until_s):
                    failures.append(self._too_few(done, running))
            nursery.cancel_scope.cancel()
        if failures:
            raise failures[0]
        self._able = done
        return tuple(done)

    def _wanted(self) -> int:
        return min(self._replicas, len(self._sites()))

    def _enough(self, done: Container[NodeId]) -> bool:
        return sum(site.node_id in done for site in self._sites()) >= self._wanted()

    def _hopeless(self) -> bool:
        """Even if all who have not refused did the job."""
        willing = sum(site.node_id not in self._refused for site in self._sites())
        return willing < self._wanted()

    def _next(self, done: dict[NodeId, None], now: float) -> list[NodeId]:
        """Whom to ask besides those who have done it."""

        candidates = [site for site in self._sites() if self._may(site.node_id, done, now)]
        prompt = [site for site in candidates if site.node_id not in self._slow]
        able = [site for site in prompt if site.node_id in self._able]
        for preferred in (able, prompt, candidates):
            if len(preferred) >= self._wanted():
                candidates = preferred
                break
        placed = placement(self._blob, candidates, self._replicas)
        return [site.node_id for site in placed if site.node_id not in done]

    def _may(self, node: NodeId, done: Container[NodeId], now: float) -> bool:
        failure = self._failed.get(node)
        waits = failure is not None and now < failure.until_s
        return node in done or not (waits or node in self._refused)

    def _note_failure(self, node: NodeId, why: str) -> None:
        count = self._failed[node].count + 1 if node in self._failed else 0
        until_s = trio.current_time() + RETRY_S * 2 ** min(count, 3)
        self._failed[node] = _Failure(why, count, until_s)

    def _too_few(self, done: Iterable[NodeId], running: Iterable[NodeId]) -> UnderReplicated:
        reachable = {site.node_id for site in self._sites()}
        holders = [self._name(node) for node in done if node in reachable]
        failed = {self._name(node): failure.why for node, failure in self._failed.items()}
        failed |= {self._name(node): "has not answered yet" for node in running}
        failed |= {self._name(node): why for node, why in self._refused.items()}
        wanted = self._wanted()
        willing = len(reachable.difference(self._refused))
        ways = "try again"
        if willing < wanted:
            ways = f"{willing} replicas at most can be had until that changes"
        told = [f"{name}: {why[:REASON_CHARS_MAX]}" for name, why in sorted(failed.items())]
        more = [f"and {len(told) - TOLD_MAX} more"] if len(told) > TOLD_MAX else []
        return UnderReplicated(
            f"{len(holders)} of {wanted} nodes have it on disk so far"
            f" ({'; '.join(told[:TOLD_MAX] + more)}); nothing was acknowledged, {ways}",
            private=str(failed),
            wanted=wanted,
            holders=holders,
            failed=failed,
        )


class Change:
    """One change on its way to be acknowledged. An async context manager: it keeps connections."""

    def __init__(self, nodes: Nodes, blob: Digest, replicas: int, wire_bytes: int) -> None:
        self._nodes = nodes
        self._blob = blob
        self._gathering = Gathering(blob, replicas, sites=nodes.sites, name=nodes.name)
        self._lines: dict[NodeId, PeerLine] = {}
        self._stack = AsyncExitStack()
        self._manifest: Digest | None = None
        self._have_blob: dict[NodeId, None] = {}
        self._slow_s = SLOW_S + wire_bytes / SLOW_BYTES_PER_S
        patience_s = min(PATIENCE_S + wire_bytes / PATIENCE_BYTES_PER_S, PATIENCE_S_MAX)
        self._until_s = trio.current_time() + patience_s

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def spread(self, manifest: Digest) -> None:
        """The blob, durable here, to its placement. Raises UnderReplicated; then nothing has
        changed anywhere but that some nodes have a blob that nothing names."""
        self._manifest = manifest
        await self._gathering.run(self._have, slow_s=self._slow_s, until_s=self._until_s)

    async def store(self, encoded: Sequence[bytes]) -> tuple[str, ...]:
        """Records, in force and durable here, where the blob is; the names of those nodes.

        Raises UnderReplicated; then the change is in force here and may be elsewhere. Raises
        Outdone: another one is in force there, and will be here when this node takes it."""
        bundles = encode_bundles(encoded)

        async def job(node: NodeId) -> None:
            await self._have(node)
            if node != self._nodes.me:
                for bundle in bundles:
                    await self._line(node).store_records(bundle)

        found = await self._gathering.run(job, slow_s=self._slow_s, until_s=self._until_s)
        return tuple(sorted(map(self._nodes.name, found)))

    async def _have(self, node: NodeId) -> None:
        if self._manifest is None or node in self._have_blob:
            return
        if node != self._nodes.me:
            await self._line(node).replicate(self._blob, self._manifest)
        self._have_blob[node] = None

    def _line(self, node: NodeId) -> PeerLine:
        """Raises PeerError."""
        line = self._lines.get(node)
        if line is None:
            peer = self._nodes.find_peer(node)
            if peer is None:
                raise PeerError("is not reachable any more")
            line = self._lines[node] = self._nodes.dial(peer)
            self._stack.push_async_callback(line.aclose)
        return line


@dataclass(frozen=True, slots=True)
class Nodes:
    """The cluster, as far as a change needs it."""

    me: NodeId
    sites: Callable[[], Sequence[Site]]
    """Reachable members, this node among them."""
    find_peer: Callable[[NodeId], Peer | None]
    name: Callable[[NodeId], str]
    dial: Callable[[Peer], PeerLine]

    def change(self, blob: Digest, replicas: int, *, wire_bytes: int = 0) -> Change:
        """About `blob`, which need not exist: it says where records go."""
        return Change(self, blob, replicas, wire_bytes)
