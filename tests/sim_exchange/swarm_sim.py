"""A swarm of real machines on simulated links: virtual time, one seed, nothing else.

Each node has an uplink that takes turns among its connections, one frame at a time, and a downlink
that takes frames as they come, both of a fixed rate; frames also take the latency of the way. A
node serves as edged/network/server.py does: requests of a connection in order, a complete holder
from the start, a fetcher what it has. No bytes are compressed or hashed for real twice.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.bitsets import bits_of, encode_bits
from protocol.exchange import Fetch
from protocol.exchange_events import (
    Close,
    Completed,
    Dial,
    Failed,
    FetchConfig,
    FetchersNamed,
    HoldersWanted,
    ManifestVerified,
    SegmentVerified,
    Send,
    SourceBanned,
    SourceLost,
)
from protocol.ids import NodeId
from protocol.manifest import Manifest, encode_manifest, manifest_digest
from protocol.seeding import Seeding
from protocol.streams import (
    Cancel,
    ErrorReply,
    GetAny,
    GetManifest,
    GetSegment,
    Have,
    ManifestReply,
    Message,
    Nothing,
    Offer,
    Reply,
    SegmentReply,
    Want,
    frame_head,
)

DISK_S = 0.002
"""From a verified segment to its being on disk."""


@dataclass(eq=False, slots=True)
class Link:
    """One connection, seen from the node that serves."""

    asker: Node
    holder: Node
    open: bool = True
    wants: bool = False
    requests: deque[GetManifest | GetSegment | GetAny | Want] = field(default_factory=deque)


@dataclass(eq=False)
class Node:
    name: NodeId
    up: float
    """Bytes per second."""
    down: float
    rng: random.Random
    complete: bool = False
    dead: bool = False
    corrupt: bool = False
    stalls: bool = False
    """Takes requests and answers none of them for a segment."""
    fetch: Fetch | None = None
    has: int = 0
    done_at: float | None = None
    failed: Failed | None = None
    banned: list[NodeId] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    links: dict[NodeId, Link] = field(default_factory=dict)
    incoming: list[Link] = field(default_factory=list)
    turn: int = 0
    sending: bool = False
    down_free_at: float = 0.0
    sent_bytes: int = 0
    control_bytes: int = 0
    received_bytes: int = 0
    timer_at: float = float("inf")

    def __post_init__(self) -> None:
        self.seeding = Seeding(self.rng)


class Swarm:
    def __init__(
        self,
        manifest: Manifest,
        frames: list[bytes],
        *,
        seed: int,
        config: FetchConfig | None = None,
        latency_s: float = 0.0005,
    ) -> None:
        self.manifest, self.frames = manifest, frames
        self.encoded = encode_manifest(manifest)
        self.rng = random.Random(seed)
        self.config = config
        self.latency_s = latency_s
        self.now = 0.0
        self.nodes: dict[NodeId, Node] = {}
        self.whole = (1 << manifest.segments) - 1
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    # ------------------------------------------------------------ building
    def add(self, *, up: float, down: float, complete: bool = False) -> Node:
        name = NodeId(f"{len(self.nodes):032x}")
        node = Node(name, up, down, random.Random(self.rng.getrandbits(32)), complete)
        node.has = self.whole if complete else 0
        self.nodes[name] = node
        return node

    def start(self, node: Node, at: float) -> None:
        self.at(at, lambda: self._begin(node))

    def at(self, when: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (when, next(self._numbers), call))

    def _begin(self, node: Node) -> None:
        node.fetch = Fetch(
            self.manifest.blob,
            manifest_digest(self.manifest),
            config=self.config,
            rng=node.rng,
            now=self.now,
        )
        self.drain(node)

    def kill(self, node: Node) -> None:
        node.dead = True
        for link in [*node.links.values(), *node.incoming]:
            link.open = False
            if link.asker is not node:
                self.report(link.asker, lambda f, name=node.name: f.failed(name, "gone", self.now))  # type: ignore[misc]
        node.links.clear()
        node.incoming.clear()

    # ------------------------------------------------------------ running
    def run(self, until_s: float) -> None:
        while self._heap and self.now <= until_s:
            self.now, _, call = heapq.heappop(self._heap)
            call()
            if all(
                node.done_at or node.failed or node.dead or not node.fetch
                for node in self.nodes.values()
            ) and all(node.fetch or node.complete or node.dead for node in self.nodes.values()):
                return

    def report(self, node: Node, call: Callable[[Fetch], None]) -> None:
        if node.fetch is not None and not node.dead:
            call(node.fetch)
            self.drain(node)

    def drain(self, node: Node) -> None:
        fetch = node.fetch
        assert fetch is not None
        new: list[int] = []
        while True:
            event = fetch.poll_event()
            if event is not None:
                self._on_event(node, fetch, event, new)
                continue
            transmit = fetch.poll_transmit()
            if transmit is None:
                break
            self._on_transmit(node, transmit)
        if new:
            self.at(self.now + DISK_S, lambda: self._on_disk(node, new))
        deadline = fetch.next_deadline()
        if deadline is not None and deadline < node.timer_at:
            node.timer_at = deadline
            self.at(deadline, lambda: self._on_timer(node, deadline))

    def _on_timer(self, node: Node, deadline: float) -> None:
        if node.timer_at == deadline:
            node.timer_at = float("inf")
            self.report(node, lambda fetch: fetch.on_timer(self.now))

    def _on_disk(self, node: Node, new: list[int]) -> None:
        node.has |= bits_of(new)
        self.report(node, lambda fetch: fetch.stored(new, self.now))

    def _on_event(self, node: Node, fetch: Fetch, event: object, new: list[int]) -> None:
        match event:
            case HoldersWanted():
                holders = [n.name for n in self.nodes.values() if n.complete and n is not node]
                fetch.offer(holders, self.now)
            case FetchersNamed(peers):
                fetch.meet(peers, self.now)
            case ManifestVerified():
                fetch.resume([], self.now)
            case SegmentVerified():
                assert event.wire == self.frames[event.index]
                new.append(event.index)
            case SourceBanned(peer):
                node.banned.append(peer)
            case SourceLost(_, reason):
                node.lost.append(reason)
            case Completed():
                node.complete = True
                node.done_at = self.now
            case Failed():
                node.failed = event

    def _on_transmit(self, node: Node, transmit: object) -> None:
        match transmit:
            case Dial(peer):
                other = self.nodes[peer]
                if other.dead:
                    self.at(self.now + 2 * self.latency_s, lambda: self._refused(node, peer))
                else:
                    self.at(self.now + 4 * self.latency_s, lambda: self._connect(node, other))
            case Close(peer):
                link = node.links.pop(peer, None)
                if link is not None:
                    self.at(self.now + self.latency_s, lambda: self._shut(link))
            case Send(peer, message, body):
                link = node.links[peer]
                size = len(frame_head(message, len(body))) + len(body)
                node.control_bytes += size
                self.at(self.now + self.latency_s, lambda: self._request(link, message, body))

    def _connect(self, node: Node, other: Node) -> None:
        if node.dead or other.dead or node.links.get(other.name) is not None:
            return
        link = Link(node, other)
        node.links[other.name] = link
        other.incoming.append(link)
        self.report(node, lambda fetch: fetch.connected(other.name, self.now))

    def _refused(self, node: Node, peer: NodeId) -> None:
        self.report(node, lambda fetch: fetch.failed(peer, "refused", self.now))

    def _shut(self, link: Link) -> None:
        if link.open:
            link.open = False
            link.holder.incoming.remove(link)
            if link.wants:
                link.holder.seeding.leave(self.manifest.blob, link.asker.name)

    # ------------------------------------------------------------ serving
    def _request(self, link: Link, message: Message, body: bytes) -> None:
        holder, asker = link.holder, link.asker.name
        if not link.open or holder.dead:
            return
        match message:
            case Have(_, indices):
                holder.seeding.have(self.manifest.blob, asker, bits_of(indices))
                self.report(holder, lambda fetch: fetch.have(asker, indices, self.now))
            case Cancel(request_id):
                for place, waiting in enumerate(link.requests):
                    if waiting.id == request_id:
                        link.requests[place] = Want(request_id, "")  # type: ignore[arg-type]
            case Want():
                link.requests.append(message)
                bits = int.from_bytes(body, "little")
                if not link.wants:
                    link.wants = True
                    holder.seeding.join(self.manifest.blob, asker, bits)
                self.report(holder, lambda fetch: fetch.wanted_by(asker, body, self.now))
            case GetManifest() | GetSegment() | GetAny():
                link.requests.append(message)
        self._send_next(holder)

    def _send_next(self, holder: Node) -> None:
        if holder.sending or holder.dead:
            return
        for step in range(1, len(holder.incoming) + 1):
            place = (holder.turn + step) % len(holder.incoming)
            link = holder.incoming[place]
            if link.requests:
                if holder.stalls and isinstance(link.requests[0], GetSegment | GetAny):
                    continue
                holder.turn = place
                self._send(link, *self._reply(link, link.requests.popleft()))
                return

    def _send(self, link: Link, reply: Reply, body: bytes) -> None:
        holder = link.holder
        size = len(frame_head(reply, len(body))) + len(body)
        holder.sent_bytes += size
        holder.sending = True
        arrives = self.now + size / holder.up
        self.at(arrives, lambda: self._sent(link, reply, body, size))

    def _sent(self, link: Link, reply: Reply, body: bytes, size: int) -> None:
        link.holder.sending = False
        asker = link.asker
        if link.open:
            start = max(self.now + self.latency_s, asker.down_free_at)
            asker.down_free_at = start + size / asker.down
            self.at(asker.down_free_at, lambda: self._arrive(link, reply, body, size))
        self._send_next(link.holder)

    def _arrive(self, link: Link, reply: Reply, body: bytes, size: int) -> None:
        if link.open and link.asker.links.get(link.holder.name) is link:
            link.asker.received_bytes += size
            name = link.holder.name
            self.report(link.asker, lambda fetch: fetch.receive(reply, body, name, self.now))

    def _reply(self, link: Link, request: Message) -> tuple[Reply, bytes]:
        holder, asker, blob = link.holder, link.asker.name, self.manifest.blob
        match request:
            case Want(request_id, ""):
                return Nothing(request_id), b""
            case Want(request_id):
                others = holder.seeding.others(blob, asker)
                bitmap = b"" if holder.complete else encode_bits(holder.has, self.manifest.segments)
                return Offer(request_id, holder.complete, others), bitmap
            case GetManifest(request_id):
                known = holder.complete or (holder.fetch is not None and holder.fetch.manifest)
                if not known:
                    return ErrorReply(request_id, "blob-not-found", "not yet"), b""
                return ManifestReply(request_id), self.encoded
            case GetSegment(request_id, _, index):
                if not holder.has >> index & 1:
                    return Nothing(request_id), b""
                holder.seeding.sent(blob, asker, index)
                return self._segment(holder, request_id, index)
            case GetAny(request_id):
                picked = holder.seeding.pick(blob, asker, holder.has)
                if picked is None:
                    return Nothing(request_id), b""
                return self._segment(holder, request_id, picked)
        raise AssertionError(request)

    def _segment(self, holder: Node, request_id: int, index: int) -> tuple[Reply, bytes]:
        body = self.frames[index]
        if holder.corrupt:
            body = body[:-1] + bytes([body[-1] ^ 1])
        return SegmentReply(request_id, index), body
