"""What this node sends, as the links document has it: the driver of protocol.shaping. SPEC §13.

Datagrams come here instead of the socket, streams get a ShapedStream beneath TLS, and who dials
waits here for the packets of connecting. A peer is found by its id or its address: what gossip
knows of it counts, before that the document's list of nodes; of whom nothing is known yet nothing
is delayed. Bounds: datagrams under way; bytes of streams (shapedstreams.py); sockets that wait to
be closed, and for how long; peers remembered.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

import msgspec
import trio

from protocol.ids import NodeId
from protocol.member import Address, Member
from protocol.rng import Rng
from protocol.shaping import CLEAR, Link, Pipe

from ..clock import Clock
from ..config import parse_address
from ..errors import BadRequest
from ..interfaces import EventKind, LinkPeerView, LinksChange, LinksView, LinkView
from ..links import Document, Links
from ..metrics import Family, Sample
from ..telemetry import Log
from ..topology import End
from .departures import Departures
from .lanes import Lane
from .shapedstreams import ShapedStream

HELD_DATAGRAMS_MAX: Final = 65_536
"""Under way at once: some 80 MB."""
SYN_BYTES: Final = 60
SYN_RETRANSMIT_S: Final = 1.0
"""RFC 6298 §2.1; doubled each time."""
SYN_WAIT_S_MAX: Final = 60.0
CLOSING_MAX: Final = 256
CLOSING_S: Final = 60.0
"""So long a closed stream may wait for its link to come back."""
LANES_MAX: Final = 4096
ADDRESSES_MAX: Final = 16_384
AT_S_MAX: Final = 3600.0

Send = Callable[[bytes, Address], str | None]
"""As GossipSockets.send."""
Note = Callable[[EventKind, str, str], None]
"""Tells the event log."""


class Shaper:
    """All state belongs to the node's event loop. Implements interfaces.LinkOperator and
    shapedstreams.StreamOwner. Its clock is the machine's, whatever the node's own shows: links of
    several nodes are to change at one instant."""

    def __init__(
        self,
        own: End,
        document: Document,
        *,
        send: Send,
        members: Callable[[], Iterable[Member]],
        rng: Rng,
        note: Note,
        log: Log,
    ) -> None:
        self.departures: Final = Departures()
        self.held_bytes = 0
        self._own = own
        self._links = Links(document)
        self._send = send
        self._members = members
        self._rng = rng
        self._clock = Clock()
        self._note = note
        self._log = log
        self._changed_at_ms = self._clock.now_ms()
        self._pending: tuple[Document, int] | None = None
        self._pipes: dict[str, Pipe] = {}
        self._lanes: dict[End, Lane] = {}
        self._lanes_at: dict[Address, Lane | None] = {}
        self._ends: dict[NodeId | Address, End] | None = None
        """None: to be gathered anew."""
        self._closing: dict[ShapedStream, None] = {}
        self._nursery: trio.Nursery | None = None

    # ------------------------------------------------------------ life
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; what is under way then never arrives."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self.departures.run)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            for stream in list(self._closing):
                stream.end_now()

    # ------------------------------------------------------------ what it is told
    def members_changed(self) -> None:
        """Who is where may have."""
        self._ends = None
        self._lanes_at.clear()

    def schedule(self, document: Document, at_ms: int | None) -> LinksChange:
        now_ms = self._clock.now_ms()
        at_ms = now_ms if at_ms is None else max(at_ms, now_ms)
        delay_s = (at_ms - now_ms) / 1000
        if delay_s > AT_S_MAX:
            raise BadRequest(f"at_ms is {delay_s:.0f} s away; {AT_S_MAX:g} s are allowed")
        if delay_s:
            self._pending = pending = (document, at_ms)
            self.departures.at(trio.current_time() + delay_s, partial(self._switch, pending))
        else:
            self._pending = None
            self._change(document)
        return LinksChange(at_ms, len(document.rules))

    def _switch(self, pending: tuple[Document, int]) -> None:
        if self._pending is pending:
            self._pending = None
            self._change(pending[0])

    def _change(self, document: Document) -> None:
        now = trio.current_time()
        self._links = Links(document)
        self._changed_at_ms = self._clock.now_ms()
        rules = len(document.rules)
        self._log.info("links changed", rules=rules)
        self._note("links-changed", self._own.name, f"{rules} rules")
        self.members_changed()
        before, self._pipes = self._pipes, {}
        for lane in self._lanes.values():
            lane.pipe = self._pipe_to(lane.end, before)
            lane.back.change(self._link_back(lane.end), now)
            lane.look()
        for lane in self._lanes.values():
            for stream in list(lane.streams):
                stream.changed()

    # ------------------------------------------------------------ datagrams
    def send(self, data: bytes, address: Address) -> str | None:
        """As GossipSockets.send; what the link drops was sent."""
        lane = self._lane_at(address)
        if lane is None:
            return self._send(data, address)
        lane.counts.datagrams += 1
        if lane.is_clear:
            return self._send(data, address)
        now = trio.current_time()
        fate = lane.pipe.offer(len(data), now)
        if isinstance(fate, str):
            lane.counts.datagrams_dropped[fate] += 1
            return None
        if len(self.departures) > HELD_DATAGRAMS_MAX:
            lane.counts.datagrams_dropped["queue"] += 1
            return None
        lane.counts.datagrams_duplicated += len(fate) - 1
        if fate[0] > now:
            lane.counts.datagrams_delayed += 1
        for arrival in fate:
            if arrival > now:
                self.departures.at(arrival, partial(self._send, data, address))
            else:
                self._send(data, address)
        return None

    def hears(self, address: Address) -> bool:
        """Whether anything from there gets here: a refusal does not cross a link that is cut."""
        lane = self._lane_at(address)
        return lane is None or lane.back.link.cut is None

    # ------------------------------------------------------------ streams
    def stream(
        self,
        sock: socket.socket,
        reset: Callable[[], None],
        *,
        peer: NodeId | None = None,
        address: Address | None = None,
    ) -> ShapedStream:
        return ShapedStream(self, sock, peer=peer, address=address, reset=reset)

    async def connected(
        self, address: Address, connect: Callable[[], Awaitable[trio.SocketStream]]
    ) -> trio.SocketStream:
        """`connect`, which takes a packet there and one back, and hangs or fails on a link that is
        cut. Raises OSError."""
        await self._cross(self._lane_at(address), back=False)
        try:
            made = await connect()
        except OSError:
            await self._cross(self._lane_at(address), back=True)
            raise
        try:
            await self._cross(self._lane_at(address), back=True)
        except BaseException:
            made.socket.close()
            raise
        return made

    async def come_back(self, lane: Lane) -> None:
        """Raises ConnectionRefusedError."""
        await self._cross(lane, back=True)

    async def _cross(self, lane: Lane | None, *, back: bool) -> None:
        """A packet that is sent again until it gets there."""
        await trio.lowlevel.checkpoint()
        wait_s = SYN_RETRANSMIT_S
        while lane is not None:
            pipe = lane.back if back else lane.pipe
            if lane.is_reset:
                lane.counts.connects_refused += 1
                raise ConnectionRefusedError(errno.ECONNREFUSED, "the link refuses it")
            if pipe.link == CLEAR:
                return
            fate = pipe.offer(SYN_BYTES, trio.current_time())
            if not isinstance(fate, str):
                arrived = trio.Event()
                self.departures.at(fate[0], arrived.set)
                await arrived.wait()
                return
            lane.counts.connects_held += 1
            await trio.sleep(wait_s)
            wait_s = min(2 * wait_s, SYN_WAIT_S_MAX)

    def start_drain(self, drain: ShapedStream) -> None:
        assert self._nursery is not None, "it is called from a departure"
        self._nursery.start_soon(drain.drain)

    def closing(self, stream: ShapedStream) -> None:
        if self._nursery is None:
            stream.end_now()
            return
        if len(self._closing) >= CLOSING_MAX:
            next(iter(self._closing)).end_now()
        self._closing[stream] = None
        self.departures.at(trio.current_time() + CLOSING_S, stream.end_now)

    def ended(self, stream: ShapedStream) -> None:
        self._closing.pop(stream, None)

    # ------------------------------------------------------------ who is where
    def find(self, *, peer: NodeId | None, address: Address | None) -> Lane | None:
        ends = self._known_ends()
        end = ends.get(peer) if peer is not None else None
        if end is None and address is not None:
            end = ends.get(address)
        return None if end is None or end == self._own else self._lane_to(end)

    def _lane_at(self, address: Address) -> Lane | None:
        try:
            return self._lanes_at[address]
        except KeyError:
            if len(self._lanes_at) >= ADDRESSES_MAX:
                self._lanes_at.clear()
            found = self._lanes_at[address] = self.find(peer=None, address=address)
            return found

    def _known_ends(self) -> dict[NodeId | Address, End]:
        if self._ends is None:
            ends: dict[NodeId | Address, End] = {}
            for name, at in self._links.document.nodes.items():
                if at.address:
                    ends[parse_address(at.address, key=name)] = End(name, at.region)
            for member in self._members():
                end = End(member.name, member.metadata.region)
                ends[member.node_id] = end
                ends[member.metadata.gossip_address] = end
                ends[member.metadata.stream_address] = end
            self._ends = ends
        return self._ends

    def _lane_to(self, end: End) -> Lane:
        lane = self._lanes.get(end)
        if lane is None:
            if len(self._lanes) >= LANES_MAX:
                self._forget_one()
            back = Pipe(self._link_back(end), self._rng)
            lane = self._lanes[end] = Lane(end, self._pipe_to(end, {}), back)
        return lane

    def _forget_one(self) -> None:
        for end, lane in self._lanes.items():
            if not lane.streams:
                del self._lanes[end]
                self._lanes_at.clear()
                return

    def _pipe_to(self, end: End, before: dict[str, Pipe]) -> Pipe:
        """The one it shares with others of its region, or its own."""
        way = self._links.way(self._own, end)
        key = f"node:{end.name}" if way.own else end.region
        pipe = self._pipes.get(key) or before.get(key)
        if pipe is None:
            pipe = Pipe(way.link, self._rng)
        elif pipe.link != way.link:
            pipe.change(way.link, trio.current_time())
        self._pipes[key] = pipe
        return pipe

    def _link_back(self, end: End) -> Link:
        """Only what sends there takes part in its bandwidth."""
        link = self._links.link(end, self._own)
        return msgspec.structs.replace(link, bandwidth_bytes_s=None)

    # ------------------------------------------------------------ what it tells
    def bandwidth_from(self, peer: NodeId) -> float | None:
        """Bytes per second that the document in force says of the way from there to here; None:
        nothing, or an unknown peer."""
        end = self._known_ends().get(peer)
        return None if end is None else self._links.link(end, self._own).bandwidth_bytes_s

    def view(self) -> LinksView:
        ends = dict.fromkeys(end for end in self._known_ends().values() if end != self._own)
        ends |= dict.fromkeys(self._lanes)
        return LinksView(
            node=self._own.name,
            region=self._own.region,
            document=self._links.document,
            changed_at_ms=self._changed_at_ms,
            pending_at_ms=None if self._pending is None else self._pending[1],
            peers=tuple(self._peer_view(end) for end in sorted(ends)),
        )

    def _peer_view(self, end: End) -> LinkPeerView:
        link = link_view(self._links.link(self._own, end))
        lane = self._lanes.get(end)
        if lane is None:
            return LinkPeerView(end.name, end.region, link)
        counts = msgspec.structs.asdict(lane.counts)
        return LinkPeerView(
            end.name,
            end.region,
            link,
            streams=len(lane.streams),
            queue_bytes=int(lane.pipe.queue_bytes(trio.current_time())),
            **counts | {"datagrams_dropped": dict(lane.counts.datagrams_dropped)},
        )

    def families(self) -> list[Family]:
        """Metrics."""
        lanes = [(lane.end, lane.counts) for lane in self._lanes.values()]

        def family(name: str, text: str, samples: list[Sample]) -> Family:
            return Family(name, "counter", text, samples)

        def named(end: End) -> tuple[tuple[str, str], ...]:
            return (("peer", end.name), ("region", end.region))

        dropped, delayed = "edged_link_datagrams_dropped_total", "edged_link_delayed_bytes_total"
        resets = "edged_link_resets_total"
        return [
            family(
                dropped,
                "Datagrams that a shaped link dropped",
                [
                    Sample(dropped, (*named(end), ("reason", reason)), count)
                    for end, counts in lanes
                    for reason, count in counts.datagrams_dropped.items()
                ],
            ),
            family(
                delayed,
                "Bytes of streams that a shaped link held up",
                [Sample(delayed, named(end), counts.stream_bytes_delayed) for end, counts in lanes],
            ),
            family(
                resets,
                "Streams reset, and connections refused, by a shaped link",
                [
                    Sample(resets, named(end), counts.streams_reset + counts.connects_refused)
                    for end, counts in lanes
                ],
            ),
        ]


def link_view(link: Link) -> LinkView:
    rate = link.bandwidth_bytes_s
    return LinkView(
        latency_ms=round(link.latency_s * 1000, 6),
        jitter_ms=round(link.jitter_s * 1000, 6),
        jitter=link.jitter,
        correlation=link.correlation,
        loss=link.loss,
        duplicate=link.duplicate,
        reorder=link.reorder,
        bandwidth_mbit=None if rate is None else rate / 125_000,
        cut=link.cut,
    )
